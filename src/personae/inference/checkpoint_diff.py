"""What changed between two checkpoints, in the terms of a cast's vectors.

    d_l = mean over items of (after - before) at layer l

Its size is in residual norms; its cosine with each persona vector says what it means; the share of |d|^2 outside the
span of the vectors says how much the cast does not name. Nulls: random directions with the covariance of the
activations, for the cosines and for the share. Identical checkpoints give exactly zero. Not here: reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

from personae.errors import InvalidSettings
from personae.tables.activations import Activations
from personae.tables.space import PersonaVector

Floats = NDArray[np.float64]
_DRAWS = 999
_SHRINKAGE = 0.1


@dataclass(frozen=True, slots=True)
class TraitChange:
    """A persona vector beside the change.

    Attributes:
        vector: Its name.
        cosine: With the mean change; positive: towards the vector's positive end.
        shift: Of the mean projection, in standard deviations of the items before.
        p: Two-sided, against random directions: (1 + #{|cosine| reached}) / (1 + n).
        q: After Benjamini & Hochberg over the vectors.
    """

    vector: str
    cosine: float
    shift: float
    p: float
    q: float


@dataclass(frozen=True, slots=True)
class LayerChange:
    """The change at one layer.

    Attributes:
        layer: 0-based block.
        size: |d| in median residual norms before.
        consistency: |mean of changes| / mean of |change|: 1 where every item moved alike, 0 where nothing did.
        outside: Share of |d|^2 outside the span of the vectors; 0 where nothing changed.
        outside_null: 5 % quantile of that share for random directions: below it, the cast names the change.
        traits: Largest size of cosine first.
    """

    layer: int
    size: float
    consistency: float
    outside: float
    outside_null: float
    traits: tuple[TraitChange, ...]


def compare_checkpoints(
    before: Activations,
    after: Activations,
    vectors: Mapping[str, PersonaVector],
    layers: Sequence[int],
    *,
    rng: np.random.Generator,
) -> tuple[LayerChange, ...]:
    """The change between two readings of the same items.

    Args:
        before: Of the one checkpoint.
        after: Of the other, the same items in the same order.
        vectors: By name, of the first.
        layers: 0-based blocks.
        rng: Source of randomness.

    Raises:
        IncomparableEvidence: If they are no checkpoints of one model.
        InvalidSettings: If items differ or there are no vectors.
    """
    before.origin.require_same(after.origin)
    if before.items != after.items or not vectors:
        raise InvalidSettings("two checkpoints are compared on the same items, and in the terms of some vectors.")
    for vector in vectors.values():
        vector.origin.require_same(before.origin)
    return tuple(_at(before, after, vectors, layer, rng) for layer in layers)


def _at(
    before: Activations, after: Activations, vectors: Mapping[str, PersonaVector], layer: int, rng: np.random.Generator
) -> LayerChange:
    place = before.layers.index(layer)
    x = before.values[:, place].astype(np.float64)
    moved = after.values[:, place].astype(np.float64) - x
    d = moved.mean(axis=0)
    length = float(np.linalg.norm(d))
    units = np.stack([v.unit(layer).astype(np.float64) for v in vectors.values()])
    if length == 0:
        traits = tuple(TraitChange(name, 0.0, 0.0, 1.0, 1.0) for name in vectors)
        return LayerChange(layer, 0.0, 0.0, 0.0, 0.0, traits)
    drawn = _random_units(x, rng)
    cosines, chance = units @ d / length, np.abs(units @ drawn.T)
    p = (1 + (chance >= np.abs(cosines)[:, None]).sum(axis=1)) / (1 + _DRAWS)
    q = false_discovery_control(p)
    spread = (x @ units.T).std(axis=0)
    shift = np.divide(units @ d, spread, out=np.zeros(len(units)), where=spread > 0)
    span = np.linalg.svd(units, full_matrices=False)[2][: np.linalg.matrix_rank(units)]
    outside = 1 - float(((span @ d) ** 2).sum()) / length**2
    null = 1 - ((drawn @ span.T) ** 2).sum(axis=1)
    order = np.argsort(-np.abs(cosines))
    names = list(vectors)
    return LayerChange(
        layer,
        length / float(np.median(np.linalg.norm(x, axis=1))),
        length / float(np.linalg.norm(moved, axis=1).mean()),
        max(0.0, outside),
        float(np.quantile(null, 0.05)),
        tuple(TraitChange(names[i], float(cosines[i]), float(shift[i]), float(p[i]), float(q[i])) for i in order),
    )


def _random_units(x: Floats, rng: np.random.Generator) -> Floats:
    """Unit draws with the shrunk covariance of the rows, shape (n, width)."""
    centred = x - x.mean(axis=0)
    spread = (centred**2).sum() / x.size
    drawn = np.sqrt((1 - _SHRINKAGE) / len(x)) * rng.standard_normal((_DRAWS, len(x))) @ centred
    drawn += np.sqrt(_SHRINKAGE * spread) * rng.standard_normal((_DRAWS, x.shape[1]))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
