"""What a model must offer whose training can be differentiated: gradients of log-probabilities, no torch.

A gradient here is taken where a LoRA training starts: every linear layer has a branch s B A x with A random and
B = 0, so the gradient in A vanishes and that in B is the whole first step,

    d/dB sum_i w_i log p(span_i) = s sum_t g_t (A x_t)'        g_t: gradient at the layer's output, x_t: its input

(Hu et al. 2021, arXiv 2106.09685, for the branch; products of such gradients are inner products of full gradients
seen through a random projection.) A small step along a data gradient changes a measure by lr <measure, data>, to
first order: the influence of Koh & Liang (2017) without the Hessian, which Pruthi et al. (2020, arXiv 2002.08484) sum
along a run. Not here: doing it (`models.hf_gradients`), and what is made of it (`instruments.forecasters`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from personae.errors import MissingCapability
from personae.models.protocol import LanguageModel, Scorable

Floats32 = NDArray[np.float32]
_INSTALL = "Install it: pip install 'personae[hf]'"
_WITH_WEIGHTS = "Use a model with weights: smollm2, a Hugging Face folder, a .gguf file or a trained world."


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """What one pass forward and back over some requests gives.

    Attributes:
        gradients: Of weighted sums of log-likelihoods, shape (n_gradients, n_parameters), nats per unit of B.
        log_likelihood: Of each request's span, nats, shape (n_requests,).
        states: Mean over each span of the residual stream after one block, shape (n_requests, d_model).
    """

    gradients: Floats32
    log_likelihood: NDArray[np.float64]
    states: Floats32


@runtime_checkable
class GivesGradients(Protocol):
    """A model whose log-probabilities can be differentiated in the B matrices of a LoRA branch at its start."""

    @property
    def n_parameters(self) -> int:
        """Entries of all B matrices."""
        ...

    def gradients(self, batch: Sequence[Scorable], weights: NDArray[np.float64]) -> Floats32:
        """Gradients of weighted sums of log-likelihoods.

        Args:
            batch: Requests; the log-probabilities of their spans are summed.
            weights: One row a wanted gradient, shape (n_gradients, n_requests). A request is run once whatever the
                number of rows.

        Returns:
            Shape (n_gradients, n_parameters), nats per unit of B.

        Raises:
            NumericsError: If a gradient is not finite.
            OutOfMemory: If a request does not fit.
        """
        ...

    def passed(self, batch: Sequence[Scorable], weights: NDArray[np.float64], *, layer: int) -> Passed:
        """Gradients, and what the same pass shows on its way: likelihoods and the residual stream.

        Args:
            batch: As `gradients`.
            weights: As there.
            layer: 0-based block after which the stream is read.

        Raises:
            NumericsError, OutOfMemory: As `gradients`.
        """
        ...

    def products(self, batch: Sequence[Scorable], directions: Floats32) -> NDArray[np.float64]:
        """Inner products of each request's own gradient with given directions.

        Args:
            batch: Requests.
            directions: Shape (n_directions, n_parameters).

        Returns:
            Shape (n_requests, n_directions).

        Raises:
            NumericsError, OutOfMemory: As `gradients`.
        """
        ...


def shift_gradients(
    model: LanguageModel, batch: Sequence[Scorable], *, advance: Callable[[int], None] = lambda _n: None
) -> Floats32:
    """Gradient of each request's log-likelihood in a vector added to the residual stream after a block.

    The vector is added at every position, prompt and reply alike, as steering does (`models.activations.Steering`).

    Args:
        model: One with weights here.
        batch: Requests; the log-probabilities of their spans are summed.
        advance: Told of requests done.

    Returns:
        Shape (n_requests, n_layers, d_model), nats per unit of the stream.

    Raises:
        MissingCapability: If the model has no weights here (a server, a world's closed form).
        NumericsError: If a gradient is not finite.
        OutOfMemory: If a request does not fit.
    """
    try:
        from personae.models.hf import HFModel
        from personae.models.hf_shifts import gradients_of_shifts
    except ModuleNotFoundError as error:
        raise MissingCapability(
            f"gradients need the package '{error.name}', which is not installed.", hint=_INSTALL
        ) from error
    if not isinstance(model, HFModel):
        raise MissingCapability(
            f"'{model.card.name}' has no weights here that could be differentiated.", hint=_WITH_WEIGHTS
        )
    return gradients_of_shifts(model, batch, advance)


def open_gradients(model: LanguageModel, *, rank: int = 8, seed: int = 0) -> GivesGradients:
    """Gradients of a loaded model.

    Args:
        model: One with weights here.
        rank: Rows of A.
        seed: Of A.

    Raises:
        MissingCapability: If the model has no weights here (a server, a world's closed form).
    """
    try:
        from personae.models.hf import HFModel
        from personae.models.hf_gradients import LoraGradients
    except ModuleNotFoundError as error:
        raise MissingCapability(
            f"gradients need the package '{error.name}', which is not installed.", hint=_INSTALL
        ) from error
    if not isinstance(model, HFModel):
        raise MissingCapability(
            f"'{model.card.name}' has no weights here that could be differentiated.", hint=_WITH_WEIGHTS
        )
    return LoraGradients(model, rank=rank, seed=seed)
