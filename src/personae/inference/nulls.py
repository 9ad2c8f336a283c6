"""What a direction's statistic is worth: four nulls, each with its own maximum over layers (A6 of the methods).

    T = max over layers of |statistic of the projections|,      p = (1 + number of null T >= T) / (1 + n)

    permuted labels   the positive and negative sides change places within a question, and the direction is made again
    random            directions drawn from N(0, S), S the covariance of what is judged, shrunk by 0.1: like the data,
                      and about nothing. Isotropic ones would be too weak.
    other traits      the directions of the other traits
    components        the five strongest principal components

A public replication of persona vectors (Chen et al. 2025, arXiv 2507.21509) found correlations of 0.85 to 0.97 that
none of these nulls was beaten by: a number alone says little. Not here: reading activations.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from personae.errors import InvalidSettings, NumericsError
from personae.numerics.clustered import cluster_index

Floats = NDArray[np.float64]
Statistic = Literal["correlation", "auroc"]

SHRINKAGE = 0.1
N_PERMUTATIONS = 200
N_RANDOM = 500
N_COMPONENTS = 5
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Null:
    """One null against one statistic.

    Attributes:
        name: "permuted labels", "random", "other traits" or "components".
        n: Draws.
        median: Of the null's statistic.
        high: 97.5 % quantile of it; its maximum where there are fewer than 40 draws.
        p: (1 + #{null >= observed}) / (1 + n).
        beaten: p at most 0.05; for other traits and components, larger than every one.
    """

    name: str
    n: int
    median: float
    high: float
    p: float
    beaten: bool


@dataclass(frozen=True, slots=True)
class Tested:
    """A statistic of a direction with its nulls.

    Attributes:
        statistic: What was computed.
        value: Its largest size over layers.
        layer: Place of that layer in the layers given, 0-based.
        signed: The value at that layer with its sign.
        by_layer: Signed values at every layer.
        n: Items it was computed on.
        nulls: In the order of the module's list; those that could not be run are absent.
    """

    statistic: str
    value: float
    layer: int
    signed: float
    by_layer: tuple[float, ...]
    n: int
    nulls: tuple[Null, ...]

    @property
    def beats_every_null(self) -> bool:
        """Whether no null explains it."""
        return all(null.beaten for null in self.nulls)

    @property
    def verdict(self) -> str:
        """A sentence: what was beaten and what was not."""
        lost = [null.name for null in self.nulls if not null.beaten]
        if not self.nulls:
            return "no null was run"
        if not lost:
            return "beats every null"
        return f"does not beat {' or '.join(lost)}: no evidence of a direction of its own"

    def null(self, name: str) -> Null:
        """The null of that name."""
        return next(n for n in self.nulls if n.name == name)


@dataclass(frozen=True, slots=True, eq=False)
class Poles:
    """What a direction is made from.

    Attributes:
        values: Activations, shape (n, n_layers, d_model).
        positive: Whether each is of the positive pole, shape (n,).
        strata: Question of each: labels are permuted within it only.
    """

    values: ArrayLike
    positive: NDArray[np.bool_]
    strata: Sequence[Hashable]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What it is judged on; no item of it made the direction.

    Attributes:
        values: Activations, shape (m, n_layers, d_model).
        target: What projections should tell, shape (m,): any number for "correlation", 0 and 1 for "auroc".
        condition: Of each item; where given, both sides are centred within conditions (correlation only).
    """

    values: ArrayLike
    target: ArrayLike
    condition: Sequence[Hashable] | None = None


def direction_of(poles: Poles) -> NDArray[np.float32]:
    """The mean of the positive side less that of the negative, shape (n_layers, d_model)."""
    sign = np.where(poles.positive, 1.0, -1.0)
    return _differences(np.asarray(poles.values, np.float32), sign[None])[0]


def null_battery(
    poles: Poles,
    judged: Judged,
    statistic: Statistic,
    *,
    rng: np.random.Generator,
    others: ArrayLike | None = None,
    n_permutations: int = N_PERMUTATIONS,
    n_random: int = N_RANDOM,
) -> Tested:
    """Make the mean-difference direction, judge it, and run every null through the same steps.

    Args:
        poles: What the direction is made from.
        judged: What it is judged on.
        statistic: "correlation" (Pearson) or "auroc".
        rng: Source of randomness.
        others: Directions of other traits, shape (n_others, n_layers, d_model).
        n_permutations: Permutations of labels.
        n_random: Random directions.

    Raises:
        InvalidSettings: If shapes do not fit, a side is empty, or the target never changes.
        NumericsError: If a value is not finite.
    """
    x, y = _checked(poles, judged)
    evaluate = _Statistic(y, np.asarray(judged.target, dtype=np.float64), judged.condition, statistic)
    sign = np.where(poles.positive, 1.0, -1.0)
    own = _differences(x, sign[None])
    by_layer = evaluate.signed(own)[0]
    observed = np.abs(by_layer)
    value = float(observed.max())
    index, n_strata = cluster_index(poles.strata)
    permuted = _permuted(sign, index, n_strata, n_permutations, rng)
    draws = {
        "permuted labels": evaluate.largest(_differences(x, permuted)),
        "random": evaluate.largest_of(_random_projections(y, n_random, rng)),
        "other traits": evaluate.largest(np.asarray(others, dtype=np.float32)) if others is not None else np.empty(0),
        "components": evaluate.largest_of(_component_projections(y)),
    }
    layer = int(observed.argmax())
    nulls = tuple(_null(name, drawn, value) for name, drawn in draws.items() if len(drawn))
    name = "AUROC" if statistic == "auroc" else "r" if judged.condition is None else "r within conditions"
    offset = 0.5 if statistic == "auroc" else 0.0  # AUROC is compared by its distance from chance
    return Tested(
        name,
        value + offset,
        layer,
        float(by_layer[layer]) + offset,
        tuple(float(v) + offset for v in by_layer),
        len(y),
        tuple(_shifted(null, offset) for null in nulls),
    )


class _Statistic:
    """The chosen statistic of projections, vectorised over directions and layers."""

    def __init__(
        self, values: NDArray[np.float32], target: Floats, condition: Sequence[Hashable] | None, statistic: Statistic
    ) -> None:
        self._values = values
        self._centre = None if condition is None else _centring(condition)
        self._auroc = statistic == "auroc"
        if self._auroc:
            if not set(np.unique(target)) == {0.0, 1.0}:
                raise InvalidSettings("an AUROC needs a target of zeros and ones, both present.")
            self._target = target
        else:
            centred = self._centred(target[:, None])[:, 0]
            length = np.linalg.norm(centred)
            if not length > 1e-12 * max(1.0, float(np.abs(target).max())):
                raise InvalidSettings("what projections should tell is the same for all items: nothing to correlate.")
            self._target = centred / length

    def signed(self, directions: NDArray[np.float32]) -> Floats:
        """Shape (n_directions, n_layers)."""
        return self._of(np.einsum("mld,bld->mbl", self._values, directions, optimize=True))

    def largest(self, directions: NDArray[np.float32]) -> Floats:
        """Largest size over layers, shape (n_directions,)."""
        return np.abs(self.signed(directions)).max(axis=1)

    def largest_of(self, projections: NDArray[np.float32]) -> Floats:
        """Likewise, of projections of shape (m, n_directions, n_layers)."""
        return np.abs(self._of(projections)).max(axis=1)

    def _of(self, projections: NDArray[np.float32]) -> Floats:
        m = len(projections)
        flat = projections.reshape(m, -1).astype(np.float64)
        if self._auroc:
            ranks, n = rankdata(flat, axis=0), self._target.sum()
            found = (self._target @ ranks - n * (n + 1) / 2) / (n * (m - n)) - 0.5
        else:
            centred = self._centred(flat)
            length = np.linalg.norm(centred, axis=0)
            found = np.divide(self._target @ centred, length, out=np.zeros_like(length), where=length > 1e-12)
        return found.reshape(projections.shape[1:])

    def _centred(self, columns: Floats) -> Floats:
        return columns - (columns.mean(axis=0) if self._centre is None else self._centre @ columns)


def _centring(condition: Sequence[Hashable]) -> Floats:
    """Matrix that replaces items by the mean of their condition."""
    index, n = cluster_index(condition)
    member = np.eye(n)[index]
    return member @ (member / member.sum(axis=0)).T


def _differences(x: NDArray[np.float32], sign: Floats) -> NDArray[np.float32]:
    """Mean of the rows signed + less mean of those signed -, for every row of signs: (b, n) -> (b, n_layers, d)."""
    up, down = sign > 0, sign < 0
    weights = up / up.sum(axis=1, keepdims=True) - down / down.sum(axis=1, keepdims=True)
    return np.einsum("bn,nld->bld", weights.astype(np.float32), x, optimize=True)


def _permuted(sign: Floats, index: NDArray[np.int64], n_strata: int, n: int, rng: np.random.Generator) -> Floats:
    """Labels shuffled within strata, shape (n, n_items)."""
    out = np.tile(sign, (n, 1))
    for stratum in range(n_strata):
        rows = np.flatnonzero(index == stratum)
        out[:, rows] = rng.permuted(out[:, rows], axis=1)
    return out


def _random_projections(y: NDArray[np.float32], n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Projections on draws from N(0, (1 - s) S + s tr(S)/d I), shape (m, n, n_layers); S is never formed."""
    m, n_layers, d = y.shape
    out = np.empty((m, n, n_layers), np.float32)
    for layer in range(n_layers):
        centred = y[:, layer] - y[:, layer].mean(axis=0)
        spread = float((centred.astype(np.float64) ** 2).sum()) / m / d
        drawn = np.sqrt((1 - SHRINKAGE) / m) * centred.T @ rng.standard_normal((m, n), dtype=np.float32)
        drawn += np.float32(np.sqrt(SHRINKAGE * spread)) * rng.standard_normal((d, n), dtype=np.float32)
        out[:, :, layer] = centred @ drawn
    return out


def _component_projections(y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Projections on the strongest components of each layer, shape (m, n_components, n_layers)."""
    m, n_layers, d = y.shape
    n = min(N_COMPONENTS, m - 1, d)
    out = np.empty((m, n, n_layers), np.float32)
    for layer in range(n_layers):
        u, s, _ = np.linalg.svd(y[:, layer] - y[:, layer].mean(axis=0), full_matrices=False)
        out[:, :, layer] = u[:, :n] * s[:n]
    return out


def _null(name: str, drawn: Floats, value: float) -> Null:
    # Equal up to rounding counts as reached.
    reached = int((drawn >= value - 1e-9).sum())
    p = (1 + reached) / (1 + len(drawn))
    few = name in ("other traits", "components")
    high = float(drawn.max() if len(drawn) < 40 else np.quantile(drawn, 0.975))
    return Null(name, len(drawn), float(np.median(drawn)), high, p, reached == 0 if few else p <= LEVEL)


def _shifted(null: Null, offset: float) -> Null:
    return Null(null.name, null.n, null.median + offset, null.high + offset, null.p, null.beaten)


def _checked(poles: Poles, judged: Judged) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    x, y = (np.asarray(v, dtype=np.float32) for v in (poles.values, judged.values))
    if x.ndim != 3 or y.ndim != 3 or x.shape[1:] != y.shape[1:]:
        raise InvalidSettings(f"activations of shape {x.shape} and {y.shape} do not fit (items, layers, width).")
    if not len(x) == len(poles.positive) == len(poles.strata) or len(np.asarray(judged.target)) != len(y):
        raise InvalidSettings("every item needs a label, a stratum and a target.")
    if not 0 < int(np.sum(poles.positive)) < len(x):
        raise InvalidSettings("a direction needs both poles.")
    if len(y) < 3:
        raise InvalidSettings(f"{len(y)} items cannot judge a direction.")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and np.isfinite(np.asarray(judged.target)).all()):
        raise NumericsError("an activation or a target is not a finite number.")
    return x, y
