"""Means and differences of clustered scores, with errors that hold for few clusters; equivalence.

    theta = contrast' beta,   beta = (X'X)^-1 X'y,   var(theta) = sum over clusters c of (w_c' e_c)^2
    w_c = (I - X_c M X_c')^(-1/2) X_c M contrast,    M = (X'X)^-1

e_c are the residuals of cluster c. The square root is the bias-reduced correction CR2 (Bell & McCaffrey 2002), the
reference distribution Student's t with Satterthwaite degrees of freedom under a random-effects working model
(Imbens & Kolesar 2016, equation 14). The plain formula of Miller 2024 (arXiv 2411.00640, section 2.2) is the same
without the square root and with a normal distribution: too narrow below some 30 clusters. With clusters of equal
size the mean's test is exactly the t test of the cluster means. Not here: tables with names (`inference.effects`),
resampling (`numerics.resampling`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from personae.errors import InvalidSettings, NumericsError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its clustered error.

    Attributes:
        value: The estimate, in the scores' unit.
        se: Its standard error.
        df: Degrees of freedom of the t distribution it is compared with.
        low, high: Interval of `level`.
        p: Two-sided probability of a value so far from 0 if the truth is 0.
        level: Mass of the interval.
        n: Scores.
        n_clusters: Clusters, the units that were treated as independent.
    """

    value: float
    se: float
    df: float
    low: float
    high: float
    p: float
    level: float
    n: int
    n_clusters: int


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided tests (Schuirmann 1987): is the truth inside the margins?

    Attributes:
        margin: The margins are -margin and +margin, in the scores' unit.
        p: The larger of the two one-sided p; the probability of such a result if the truth is at a margin.
        low, high: Interval of 1 - 2 alpha; inside the margins exactly when `is_equivalent`.
        alpha: Level of the test.
    """

    margin: float
    p: float
    low: float
    high: float
    alpha: float

    @property
    def is_equivalent(self) -> bool:
        """Whether "no difference as large as the margin" is shown at level alpha."""
        return self.p <= self.alpha


def cluster_index(clusters: Sequence[Hashable] | NDArray[np.generic]) -> tuple[Ints, int]:
    """Place of each row's cluster in order of first appearance, and their number."""
    place = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    return np.array([place[c] for c in clusters], dtype=np.int64), len(place)


def cluster_robust(
    design: ArrayLike,
    values: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[np.generic],
    contrast: ArrayLike,
    *,
    level: float = 0.95,
) -> Estimate:
    """A contrast of least-squares coefficients with CR2 errors and Satterthwaite degrees of freedom.

    Args:
        design: X, one row a score, shape (n, n_columns), of full column rank.
        values: Scores, finite, shape (n,).
        clusters: Cluster of each score, length n; clusters are independent of each other.
        contrast: What of the coefficients is wanted, shape (n_columns,).
        level: Mass of the interval.

    Returns:
        The estimate; `p` is of the hypothesis that the contrast is 0.

    Raises:
        InvalidSettings: If lengths differ, the level is outside (0, 1), the design is not of full rank, or there are
            too few clusters: one alone decides the contrast, so that its error cannot be known.
        NumericsError: If a score is not finite.
    """
    x, y, c = (np.asarray(v, dtype=np.float64) for v in (design, values, contrast))
    _check(x, y, clusters, level)
    index, n_clusters = cluster_index(clusters)
    gram = x.T @ x
    if np.linalg.matrix_rank(gram) < len(gram):
        raise InvalidSettings("the columns of the design are linearly dependent: the contrast has no single value.")
    m = np.asarray(np.linalg.inv(gram), dtype=np.float64)
    beta = m @ (x.T @ y)
    residual = y - x @ beta
    grams = _sums(x[:, :, None] * x[:, None, :], index, n_clusters)
    ones = _sums(x, index, n_clusters)
    v = _corrected(m, grams, c)
    se = float(np.sqrt(np.sum(np.einsum("ck,ck->c", v, _sums(x * residual[:, None], index, n_clusters)) ** 2)))
    ratio = _variance_ratio(residual, index, n_clusters)
    df = _degrees_of_freedom(m, grams, ones, v, ratio)
    return as_estimate(float(c @ beta), se, df, level=level, n=len(y), n_clusters=n_clusters)


def as_estimate(value: float, se: float, df: float, *, level: float, n: int, n_clusters: int) -> Estimate:
    """Interval and p-value from a value, its standard error and its degrees of freedom.

    With a standard error of 0 the interval is the value itself, and p is 1 at 0 and 0 elsewhere.
    """
    reach = float(stats.t.isf((1 - level) / 2, df)) * se
    p = float(2 * stats.t.sf(abs(value) / se, df)) if se > 0 else float(value == 0)
    return Estimate(value, se, df, value - reach, value + reach, p, level, n, n_clusters)


def cluster_mean(
    values: ArrayLike, clusters: Sequence[Hashable] | NDArray[np.generic], *, level: float = 0.95
) -> Estimate:
    """Mean of the scores (each item counts once) with a clustered error; arguments as `cluster_robust`."""
    y = np.asarray(values, dtype=np.float64)
    return cluster_robust(np.ones((len(y), 1)), y, clusters, [1.0], level=level)


def cluster_difference(
    values: ArrayLike,
    is_second: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[np.generic],
    *,
    level: float = 0.95,
) -> Estimate:
    """Mean of the second arm less that of the first, unpaired; a cluster may have scores in both arms.

    Args:
        values: Scores of both arms, shape (n,).
        is_second: Which of them belong to the second arm, shape (n,).
        clusters: Cluster of each score.
        level: Mass of the interval.

    Raises:
        InvalidSettings: As `cluster_robust`; also if an arm lies in a single cluster.
    """
    second = np.asarray(is_second, dtype=bool)
    design = np.stack([~second, second], axis=1).astype(np.float64)
    return cluster_robust(design, values, clusters, [-1.0, 1.0], level=level)


def equivalence_test(estimate: Estimate, margin: float, *, alpha: float = 0.05) -> Equivalence:
    """Whether a difference is smaller than `margin`, by two one-sided t tests.

    Args:
        estimate: A difference with its error.
        margin: Smallest difference that would matter, above 0; chosen before looking at the data.
        alpha: Level; the error of claiming equivalence when the truth is at the margin.

    Raises:
        InvalidSettings: If the margin is not above 0 or alpha is outside (0, 0.5).
    """
    if not (np.isfinite(margin) and margin > 0 and 0 < alpha < 0.5):
        raise InvalidSettings(
            f"an equivalence test needs a margin above 0 and alpha in (0, 0.5), not {margin}, {alpha}."
        )
    reach = float(stats.t.isf(alpha, estimate.df)) * estimate.se
    inside = margin - abs(estimate.value)  # the nearer margin has the larger p
    p = float(stats.t.sf(inside / estimate.se, estimate.df)) if estimate.se > 0 else float(inside <= 0)
    return Equivalence(margin, p, estimate.value - reach, estimate.value + reach, alpha)


def intraclass_correlation(values: ArrayLike, clusters: Sequence[Hashable] | NDArray[np.generic]) -> float:
    """Share of the variance of scores that lies between clusters, from one-way analysis of variance.

        ICC(1) = (MSB - MSW) / (MSB + (n0 - 1) MSW),   n0 = (N - sum n_c^2 / N) / (C - 1)

    Shrout & Fleiss 1979, case 1, with Donner's 1986 n0 for clusters of unequal size. It can be negative by
    chance; scores that never vary have correlation 0. Rival definitions (a mixed model's) differ for few clusters.

    Raises:
        InvalidSettings: If there are fewer than two clusters, or no cluster has two scores.
    """
    y = np.asarray(values, dtype=np.float64)
    _check(y[:, None], y, clusters, 0.95)
    index, n_clusters = cluster_index(clusters)
    if n_clusters < 2 or n_clusters == len(y):
        raise InvalidSettings(
            f"an intraclass correlation needs two clusters and one of two scores; there are {len(y)} scores in "
            f"{n_clusters}."
        )
    return _anova(y, index, n_clusters)


def design_effect(sizes: ArrayLike, icc: float) -> float:
    """Variance of the mean over that of as many independent scores: 1 + (sum n_c^2 / sum n_c - 1) icc.

    Kish 1965, with the size-weighted mean size for clusters of unequal size. n / design effect is the number of
    independent scores that would say as much.
    """
    n = np.asarray(sizes, dtype=np.float64)
    return float(1 + ((n**2).sum() / n.sum() - 1) * icc)


def _check(x: Floats, y: Floats, clusters: Sequence[Hashable] | NDArray[np.generic], level: float) -> None:
    if y.ndim != 1 or x.ndim != 2 or not len(x) == len(y) == len(clusters):
        raise InvalidSettings(f"scores, design and clusters differ in length: {y.shape}, {x.shape}, {len(clusters)}.")
    if not 0 < level < 1:
        raise InvalidSettings(f"the level is {level}; an interval needs one between 0 and 1.")
    if not (np.isfinite(y).all() and np.isfinite(x).all()):
        raise NumericsError("a score is not a finite number.", hint="Leave unscored items out of the table.")


def _sums(rows: Floats, index: Ints, n_clusters: int) -> Floats:
    out = np.zeros((n_clusters, *rows.shape[1:]))
    np.add.at(out, index, rows)
    return out


def _corrected(m: Floats, grams: Floats, contrast: Floats) -> Floats:
    """v_c with w_c = X_c v_c, shape (n_clusters, n_columns).

    (I - X M X')^(-1/2) X = X M^(1/2) (I - M^(1/2) X'X M^(1/2))^(-1/2) M^(-1/2), so no cluster needs a matrix of its
    own size.
    """
    values, vectors = np.linalg.eigh(m)
    root = (vectors * np.sqrt(values)) @ vectors.T
    left, turn = np.linalg.eigh(np.eye(len(m)) - root @ grams @ root)
    along = np.einsum("cji,j->ci", turn, root @ contrast)
    lost = left < 1e-9
    if (np.abs(along[lost]) > 1e-9 * np.linalg.norm(root @ contrast)).any():
        raise InvalidSettings(
            "too few clusters: one of them alone decides the estimate, so its error cannot be known.",
            hint="Score items of at least two clusters in every arm, better of ten.",
        )
    scaled = np.where(lost, 0.0, along / np.sqrt(np.where(lost, 1.0, left)))
    return np.einsum("ij,cjk,ck->ci", root, turn, scaled)


def _degrees_of_freedom(m: Floats, grams: Floats, ones: Floats, v: Floats, ratio: float) -> float:
    """tr(B)^2 / tr(B^2) for B = P' Omega P, Omega = I + ratio (block of ones a cluster).

    B is a diagonal plus a matrix of rank twice the columns, so its traces cost one pass over the clusters.
    """
    s = np.einsum("cij,cj->ci", grams, v)
    t = np.einsum("ci,ci->c", ones, v)
    d = np.einsum("ci,ci->c", s, v) + ratio * t**2
    u = np.concatenate([s, t[:, None] * ones], axis=1)
    middle = m @ ones.T @ ones @ m
    k = np.block([[-m + ratio * middle, -ratio * m], [-ratio * m, np.zeros_like(m)]])
    ku = k @ (u.T @ u)
    trace = d.sum() + np.trace(ku)
    squares = (d**2).sum() + 2 * np.trace(k @ (u.T @ (d[:, None] * u))) + np.trace(ku @ ku)
    return float(max(trace**2 / squares, 1.0)) if squares > 0 else 1.0


def _variance_ratio(residual: Floats, index: Ints, n_clusters: int) -> float:
    """Between-cluster over within-cluster variance of the residuals, kept between 0 and 100."""
    if n_clusters < 2 or n_clusters == len(residual):
        return 0.0
    icc = min(max(_anova(residual, index, n_clusters), 0.0), 0.99)
    return icc / (1 - icc)


def _anova(y: Floats, index: Ints, n_clusters: int) -> float:
    n = np.bincount(index, minlength=n_clusters).astype(np.float64)
    means = np.bincount(index, weights=y, minlength=n_clusters) / n
    between = float((n * (means - y.mean()) ** 2).sum()) / (n_clusters - 1)
    within = float(((y - means[index]) ** 2).sum()) / (len(y) - n_clusters)
    typical = (len(y) - (n**2).sum() / len(y)) / (n_clusters - 1)
    whole = between + (typical - 1) * within
    return float((between - within) / whole) if whole > 0 else 0.0
