"""What a model must offer that can be prompted with vectors instead of words: learning them, and reading under them.

    P* = argmin_P  mean over tokens t of  - sum_v p_t(v) log q_P(v | h_t)        P: shape (n_vectors, d_model)

p_t are distributions to be imitated, q_P the model with P behind the first token of its context. The loss is
KL(p || q_P) up to the entropy of p. Prompt tuning: Lester et al. 2021, arXiv 2104.08691, with whole distributions in
the place of sampled tokens. No torch here. Not here: doing it (`models.hf_soft_prompt`), what it explains
(`protocols.audit_soft`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from personae.errors import InvalidSettings, MissingCapability
from personae.models.protocol import LanguageModel, Scorable, TokenDistributions

Floats32 = NDArray[np.float32]
MOST_VECTORS = 64


@dataclass(frozen=True, slots=True)
class SoftPromptPlan:
    """How vectors are learned.

    Attributes:
        n_vectors: How many.
        steps: Steps of Adam, the rate falling to zero along half a cosine.
        batch_tokens: Tokens of the requests of one step.
        rate: First rate of learning, in units of the root mean square of the model's embeddings.
        seed: Of the order of requests.
    """

    n_vectors: int = 4
    steps: int = 40
    batch_tokens: int = 400
    rate: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.n_vectors <= MOST_VECTORS:
            raise InvalidSettings(f"a soft prompt of {self.n_vectors} vectors: it can have 1 to {MOST_VECTORS}.")


@dataclass(frozen=True, slots=True, eq=False)
class SoftPromptState:
    """Vectors on their way, with Adam's running means; all of shape (n_vectors, d_model).

    Attributes:
        vectors: The vectors.
        mean, square: Of gradients and of their squares.
        step: Steps taken.
    """

    vectors: Floats32
    mean: Floats32
    square: Floats32
    step: int = 0


class LearnsSoftPrompts(Protocol):
    """A model that can be prompted with vectors."""

    def begin(self, token_ids: Sequence[int], n_vectors: int) -> SoftPromptState:
        """A state whose vectors are the embeddings of tokens, taken round and round."""
        ...

    def learn(
        self,
        state: SoftPromptState,
        requests: Sequence[Scorable],
        targets: Sequence[TokenDistributions],
        plan: SoftPromptPlan,
        n_steps: int,
    ) -> SoftPromptState:
        """Some steps on from a state; the same whether they are taken at once or in parts.

        Args:
            state: Where to begin.
            requests: Contexts and spans.
            targets: The distribution to be imitated at every place of each span.
            plan: How.
            n_steps: Steps to take, at most those left of the plan.

        Raises:
            NumericsError: If the loss is not finite.
            OutOfMemory: If a step does not fit.
        """
        ...

    def under(self, vectors: Floats32) -> LanguageModel:
        """The model with the vectors behind the first token of whatever it is given."""
        ...


def open_soft_prompts(model: LanguageModel) -> LearnsSoftPrompts:
    """Soft prompts of a loaded model.

    Raises:
        MissingCapability: If the model has no weights here (a server, a world's closed form).
    """
    try:
        from personae.models.hf import HFModel
        from personae.models.hf_soft_prompt import SoftPrompts
    except ModuleNotFoundError as error:
        raise MissingCapability(
            f"soft prompts need the package '{error.name}', which is not installed.",
            hint="Install it: pip install 'personae[hf]'",
        ) from error
    if not isinstance(model, HFModel):
        raise MissingCapability(
            f"'{model.card.name}' gives no gradients: it has no weights here.",
            hint="Use a model with weights: smollm2, a Hugging Face folder, a .gguf file or a trained world.",
        )
    return SoftPrompts(model)
