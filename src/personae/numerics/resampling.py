"""Resampling by levels: hierarchical bootstrap, sign-flip and permutation tests of whole clusters.

The bootstrap draws a weight for every unit of every level (training seed, cluster, item) and takes weighted means; a
row's weight is the product over levels. Levels may be nested (other prompts for each seed) or crossed (the same
prompts for every seed); which of the two is read off the labels. The tests are `scipy.stats.permutation_test`, exact
where all flips can be listed. Not here: errors by formula (`numerics.clustered`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from personae.errors import InvalidSettings, NumericsError
from personae.numerics.clustered import cluster_index

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Bootstrap:
    """Result of resampling by levels.

    Attributes:
        value: The mean of the scores.
        se: Standard deviation of the draws, corrected for the levels' finite numbers (n / (n - 1) for each).
        df: Satterthwaite degrees of freedom from the variance of each resampled level.
        low, high: value -+ t(df) * se, the interval of `level`. With few seeds percentiles of the draws cannot
            reach far enough: three seeds never leave the range of their three means.
        level: Mass of the interval.
        draws: Means of the resamples, shape (n_draws,).
    """

    value: float
    se: float
    df: float
    low: float
    high: float
    level: float
    draws: Floats


def hierarchical_bootstrap(
    values: ArrayLike,
    levels: Sequence[Sequence[Hashable]],
    *,
    rng: np.random.Generator,
    n_draws: int = 2000,
    level: float = 0.95,
    resample_lower: bool = False,
) -> Bootstrap:
    """Mean of scores with an interval that accounts for every level.

    Args:
        values: Scores, finite, shape (n,).
        levels: Labels of each row, outermost level first, such as [seeds, clusters, items]; each of length n. A level
            with a single unit is passed over: its variance cannot be seen.
        rng: Source of randomness.
        n_draws: Resamples, at least 2.
        level: Mass of the interval.
        resample_lower: Also resample units nested in a resampled unit. The variance among resampled units already
            holds that of what is inside them, so this counts it twice; the default keeps them (Davison & Hinkley 1997,
            section 3.8). Crossed levels are always resampled both (Owen 2007, the pigeonhole bootstrap).

    Raises:
        InvalidSettings: If lengths differ, or no level has two units.
        NumericsError: If a score is not finite.
    """
    y = np.asarray(values, dtype=np.float64)
    if y.ndim != 1 or len(y) == 0 or any(len(labels) != len(y) for labels in levels) or n_draws < 2:
        raise InvalidSettings(f"{y.shape} scores with levels of {[len(x) for x in levels]} labels, {n_draws} draws.")
    if not np.isfinite(y).all():
        raise NumericsError("a score is not a finite number.", hint="Leave unscored items out of the table.")
    chosen = _resampled(levels, resample_lower=resample_lower)
    if not chosen:
        raise InvalidSettings("no level has two units: nothing can be resampled.")
    centred = y - y.mean()
    draws = np.empty(n_draws)
    for start in range(0, n_draws, 100):  # in pieces: draws times rows would not fit
        count = min(100, n_draws - start)
        weight = np.ones((count, len(y)))
        for unit, parent in chosen:
            weight *= _weights(unit, parent, count, rng)[:, unit]
        total = weight.sum(axis=1)
        draws[start : start + count] = y.mean() + weight @ centred / np.where(total > 0, total, 1.0)
    parts = np.array([_variance_of_mean(centred, unit, parent) for unit, parent in chosen])
    degrees = np.array(
        [_size(unit) - _size(parent) if parent is not None else _size(unit) - 1 for unit, parent in chosen]
    )
    plug_in = parts * degrees / np.maximum([_size(unit) for unit, _ in chosen], 1)
    grow = parts.sum() / plug_in.sum() if plug_in.sum() > 0 else 1.0
    se = float(draws.std() * np.sqrt(grow))
    df = float(parts.sum() ** 2 / (parts**2 / degrees).sum()) if parts.sum() > 0 else 1.0
    reach = float(stats.t.isf((1 - level) / 2, df)) * se
    value = float(y.mean())
    return Bootstrap(value, se, df, value - reach, value + reach, level, draws)


def sign_flip_test(
    values: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[np.generic],
    *,
    rng: np.random.Generator,
    n_permutations: int = 9999,
) -> float:
    """Two-sided p that the mean of paired differences is 0, flipping the sign of whole clusters.

    Exact, for any number of clusters, if under the null a cluster's differences are as likely with the other sign
    (which the exchange of two equal arms gives). With C clusters p is at least 2^(1 - C): five cannot reach 0.05.

    Args:
        values: Differences, shape (n,).
        clusters: Cluster of each.
        rng: Source of randomness, used when there are more than `n_permutations` sign patterns.
        n_permutations: Sign patterns drawn, at most.
    """
    index, n_clusters = cluster_index(clusters)
    sums = np.bincount(index, weights=np.asarray(values, dtype=np.float64), minlength=n_clusters)
    if n_clusters < 2:
        return 1.0

    def total(x: Floats, axis: int = -1) -> Floats:
        return np.asarray(x.sum(axis=axis))

    result = stats.permutation_test(
        (sums,), total, permutation_type="samples", vectorized=True, n_resamples=n_permutations, batch=1000, rng=rng
    )
    return float(result.pvalue)


def cluster_permutation_test(
    values: ArrayLike,
    is_second: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[np.generic],
    *,
    rng: np.random.Generator,
    n_permutations: int = 9999,
) -> float:
    """Two-sided p that two arms have one mean, moving whole clusters between them.

    Args:
        values: Scores of both arms, shape (n,).
        is_second: Which belong to the second arm, shape (n,).
        clusters: Cluster of each; a cluster lies in one arm.
        rng: Source of randomness.
        n_permutations: Permutations drawn, at most; all are listed when they are fewer.

    Raises:
        InvalidSettings: If a cluster has scores in both arms: then flip signs of paired differences instead.
    """
    second = np.asarray(is_second, dtype=bool)
    index, n_clusters = cluster_index(clusters)
    n = np.bincount(index, minlength=n_clusters).astype(np.float64)
    sums = np.bincount(index, weights=np.asarray(values, dtype=np.float64), minlength=n_clusters)
    share = np.bincount(index, weights=second, minlength=n_clusters) / n
    if ((share > 0) & (share < 1)).any():
        raise InvalidSettings("a cluster has scores in both arms.", hint="Pair the arms by item instead.")

    def gap(first: NDArray[np.generic], other: NDArray[np.generic], axis: int = -1) -> Floats:
        a, b = first.astype(np.int64), other.astype(np.int64)
        return np.asarray(sums[b].sum(axis=axis) / n[b].sum(axis=axis) - sums[a].sum(axis=axis) / n[a].sum(axis=axis))

    arms = (np.flatnonzero(share == 0), np.flatnonzero(share == 1))
    if min(map(len, arms)) == 0:
        raise InvalidSettings("an arm has no scores.")
    result = stats.permutation_test(
        arms, gap, permutation_type="independent", vectorized=True, n_resamples=n_permutations, batch=1000, rng=rng
    )
    return float(result.pvalue)


def _resampled(levels: Sequence[Sequence[Hashable]], *, resample_lower: bool) -> list[tuple[Ints, Ints | None]]:
    """Units to draw for each row, with the unit inside which they are drawn (None: among all).

    A level nested in one already chosen is left out unless `resample_lower`; a single unit is passed over.
    """
    chosen: list[tuple[Ints, Ints | None]] = []
    for labels in levels:
        unit, n_units = cluster_index(labels)
        if n_units < 2:
            continue
        parents = [above for above, _ in chosen if _is_nested(unit, above)]
        if not parents:
            chosen.append((unit, None))
        elif resample_lower and _size(unit) > _size(parents[-1]):
            chosen.append((unit, parents[-1]))
    return chosen


def _is_nested(unit: Ints, above: Ints) -> bool:
    """Whether each unit lies in one unit of the level above."""
    return len(set(zip(unit.tolist(), above.tolist(), strict=True))) == _size(unit)


def _size(unit: Ints) -> int:
    return int(unit.max()) + 1


def _weights(unit: Ints, parent: Ints | None, count: int, rng: np.random.Generator) -> Floats:
    """How often each unit is drawn: n of n with replacement, within each parent if there is one."""
    n_units = _size(unit)
    out = np.empty((count, n_units))
    home = np.zeros(n_units, dtype=np.int64)
    if parent is not None:
        home[unit] = parent
    for h in range(int(home.max()) + 1):
        mine = np.flatnonzero(home == h)
        out[:, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=count)
    return out


def _variance_of_mean(centred: Floats, unit: Ints, parent: Ints | None) -> float:
    """Variance of the mean when the units are the independent ones (linearised, n / (n - 1) corrected)."""
    n_units = _size(unit)
    sums = np.bincount(unit, weights=centred, minlength=n_units)
    if parent is None:
        return float((sums**2).sum()) * n_units / (n_units - 1) / len(centred) ** 2
    home = np.zeros(n_units, dtype=np.int64)
    home[unit] = parent
    means = np.bincount(home, weights=sums) / np.bincount(home)
    lost = n_units / max(n_units - _size(parent), 1)
    return float(((sums - means[home]) ** 2).sum()) * lost / len(centred) ** 2
