"""What a model must offer whose residual stream can be read and edited: protocols and edits, no torch.

    layer l   the output of decoder block l, 0-based, before the final norm; never an entry of `hidden_states`, whose
              last one has passed that norm

An edit applies to every position, prompt and response alike, and to every later one through the attention of the
blocks above it. Not here: doing it (`models.hf_hooks`), and where directions come from (`tables.space`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from personae.errors import InvalidSettings, MissingCapability, NumericsError
from personae.models.protocol import LanguageModel, Scorable

Floats32 = NDArray[np.float32]
Reduce = Literal["response_mean", "prompt_last", "tokens"]
REDUCES: tuple[Reduce, ...] = ("response_mean", "prompt_last", "tokens")


@dataclass(frozen=True, slots=True, eq=False)
class Steering:
    """Add `coefficient * vector` to the residual stream after block `layer`.

    Attributes:
        layer: 0-based block.
        vector: Shape (d_model,), not zero; used as it is, not normalised.
        coefficient: Multiple of the vector; 0 changes nothing, to the bit.
    """

    layer: int
    vector: Floats32
    coefficient: float


@dataclass(frozen=True, slots=True, eq=False)
class Capping:
    """Raise the projection on a direction to a floor after block `layer`.

        h <- h - v min(<h, v> - floor, 0),   v = vector / |vector|

    (Lu et al. 2026, arXiv 2601.10387.) Positions at or above the floor keep their bits. To put a ceiling, give the
    opposite vector and the opposite floor.

    Attributes:
        layer: 0-based block.
        vector: Shape (d_model,), not zero; normalised before use.
        floor: Least projection on the normalised vector, in units of the residual stream.
    """

    layer: int
    vector: Floats32
    floor: float


Edit = Steering | Capping


@runtime_checkable
class ReadsActivations(Protocol):
    """A model whose residual stream can be read."""

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        ...

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        ...

    def read(
        self, batch: Sequence[Scorable], *, layers: Sequence[int] | None = None, reduce: Reduce = "response_mean"
    ) -> list[Floats32]:
        """Residual stream of every request, in the order given.

        Args:
            batch: Requests; the span of each is the response.
            layers: 0-based blocks, in the order wanted; None for all.
            reduce: "response_mean": mean over the span; "prompt_last": the token before the span; "tokens": every
                token of the span.

        Returns:
            One array a request: (n_layers, d_model), for "tokens" (n_layers, n_scored, d_model); float32.

        Raises:
            InvalidSettings: If a layer does not exist.
            NumericsError: If an activation is not finite.
        """
        ...


@runtime_checkable
class WritesActivations(Protocol):
    """A model whose residual stream can be edited."""

    def steered(self, edits: Sequence[Edit]) -> AbstractContextManager[EditableModel]:
        """A view of the model with edits, which ends with the context; the model itself is never changed.

        Raises:
            InvalidSettings: If a layer does not exist, or a vector is zero or of another width.
            NumericsError: If an edit is not finite.
        """
        ...


@runtime_checkable
class EditableModel(LanguageModel, ReadsActivations, WritesActivations, Protocol):
    """A language model whose residual stream can be read and edited."""


def require_activations(model: LanguageModel) -> EditableModel:
    """The same model, known to be editable.

    Raises:
        MissingCapability: If it is not.
    """
    if not isinstance(model, EditableModel):
        raise MissingCapability(
            f"'{model.card.name}' has no activations that can be read or edited.",
            hint="A model with weights here has: smollm2, a Hugging Face folder, a .gguf file, or a trained world "
            "(world:NAME, without /exact).",
        )
    return model


def check_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    """The layers asked for; all of them where None was given.

    Raises:
        InvalidSettings: If one does not exist or none is named.
    """
    chosen = tuple(range(n_layers)) if layers is None else tuple(layers)
    wrong = [layer for layer in chosen if not 0 <= layer < n_layers]
    if wrong or not chosen:
        raise InvalidSettings(
            f"layer {wrong[0]} does not exist." if wrong else "no layer was named.",
            hint=f"This model has {n_layers} blocks: layers 0 to {n_layers - 1}.",
        )
    return chosen


def check_edits(edits: Sequence[Edit], n_layers: int, d_model: int) -> tuple[Edit, ...]:
    """Edits that fit a model.

    Raises:
        InvalidSettings: If a layer does not exist, or a vector is zero or of another width.
        NumericsError: If a vector, coefficient or floor is not finite.
    """
    for edit in edits:
        check_layers([edit.layer], n_layers)
        vector = np.asarray(edit.vector)
        if vector.shape != (d_model,):
            raise InvalidSettings(
                f"a vector of shape {vector.shape} cannot edit a residual stream of width {d_model}.",
                hint="It was taken from another model: extract it from this one.",
            )
        size = edit.coefficient if isinstance(edit, Steering) else edit.floor
        if not np.isfinite(vector).all() or not np.isfinite(size):
            raise NumericsError("a vector, coefficient or floor is not a finite number.")
        if not vector.any():
            raise InvalidSettings("a vector is zero everywhere: it points nowhere.")
    return tuple(edits)


def edited_digest(digest: str, edits: Sequence[Edit]) -> str:
    """Digest of a model under edits: its rows are never taken for the model's own. Edits of no size leave it."""
    real = [e for e in edits if isinstance(e, Capping) or e.coefficient]
    if not real:
        return digest
    made = hashlib.blake2b(digest.encode(), digest_size=16)
    for e in real:
        size = e.coefficient if isinstance(e, Steering) else e.floor
        made.update(f"{type(e).__name__}|{e.layer}|{float(size).hex()}|".encode())
        made.update(np.ascontiguousarray(e.vector, np.float32).tobytes())
    return made.hexdigest()
