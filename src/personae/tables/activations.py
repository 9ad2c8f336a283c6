"""Activations: what a model's residual stream was for some items, with who it was read under and where.

    values[i, j]   item i, layer layers[j]: the output of that block before the final norm, shape (d_model,)

Not here: reading them (`instruments.reading`) and what follows from them (`tables.space`, `inference.nulls`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from personae.errors import IncomparableEvidence, InvalidSettings, NumericsError

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Origin:
    """Which model activations were read from: enough to tell whether two directions live in one space.

    Attributes:
        model: What the user called it.
        model_digest: Hash of weights and configuration.
        tokenizer_digest: Hash of tokenizer and template.
        n_layers: Blocks of the model.
        d_model: Width of its residual stream.
    """

    model: str
    model_digest: str
    tokenizer_digest: str
    n_layers: int
    d_model: int

    def to_dict(self) -> dict[str, object]:
        """Plain values, for files."""
        return asdict(self)

    def require_same(self, other: Origin) -> None:
        """Check that both are one model, or checkpoints of one: equal layers, width and tokenizer.

        Weights may differ, so that a base model's vector can be put on its fine-tunes.

        Raises:
            IncomparableEvidence: If they are not.
        """
        if (self.tokenizer_digest, self.d_model, self.n_layers) != (
            other.tokenizer_digest,
            other.d_model,
            other.n_layers,
        ):
            raise IncomparableEvidence(
                f"one part is of '{self.model}' ({self.n_layers} layers of width {self.d_model}), the other of "
                f"'{other.model}' ({other.n_layers} of {other.d_model}): coordinates of two models have nothing in "
                "common, nor have those of two tokenizers.",
                hint="Extract both from one model; `personae vectors space --against` compares two models.",
            )


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """Residual stream of items.

    Attributes:
        items: Id of each, unique.
        labels: Persona each was read under.
        groups: Question (or conversation) of each: what is independent.
        layers: 0-based blocks.
        values: Shape (n_items, n_layers, d_model), float32, finite.
        reduce: "prompt_last" or "response_mean".
        origin: The model.
    """

    items: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    layers: tuple[int, ...]
    values: Floats32
    reduce: str
    origin: Origin

    def __post_init__(self) -> None:
        n = len(self.items)
        if not len(self.labels) == len(self.groups) == n or self.values.shape[:2] != (n, len(self.layers)):
            raise InvalidSettings(
                f"activations of shape {self.values.shape} do not fit {n} items and {len(self.layers)} layers."
            )
        if not np.isfinite(self.values).all():
            raise NumericsError("an activation is not a finite number.")
        self.values.setflags(write=False)

    def where(self, mask: NDArray[np.bool_]) -> Activations:
        """The items of a mask, shape (n_items,)."""
        keep = np.flatnonzero(mask)

        def some(texts: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(texts[i] for i in keep)

        values = np.ascontiguousarray(self.values[keep])
        return replace(self, items=some(self.items), labels=some(self.labels), groups=some(self.groups), values=values)

    def of(self, *labels: str) -> Activations:
        """The items read under these personas."""
        return self.where(np.isin(np.array(self.labels), labels))

    def in_groups(self, groups: Sequence[str]) -> Activations:
        """The items of these questions."""
        return self.where(np.isin(np.array(self.groups), list(groups)))

    @property
    def norms(self) -> Floats32:
        """Median length of the residual stream at every layer, shape (n_layers,): the unit of steering."""
        return np.median(np.linalg.norm(self.values, axis=-1), axis=0).astype(np.float32)
