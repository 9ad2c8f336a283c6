"""Clustered errors, rates and power against independent computations: dense matrices, SciPy, enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import fractional_matrix_power

from personae.numerics.clustered import (
    as_estimate,
    cluster_difference,
    cluster_mean,
    cluster_robust,
    design_effect,
    equivalence_test,
    intraclass_correlation,
)
from personae.numerics.power import Plan, clusters_needed, detectable_difference, power_of_difference
from personae.numerics.rates import rate_interval, upper_bound_of_zero
from personae.numerics.resampling import cluster_permutation_test, hierarchical_bootstrap, sign_flip_test


def dense(x: np.ndarray, y: np.ndarray, clusters: np.ndarray, contrast: np.ndarray) -> tuple[float, float, float]:
    """CR2 with Satterthwaite degrees, by the definition: matrices of the size of the data."""
    n, m = len(y), np.linalg.inv(x.T @ x)
    hat = x @ m @ x.T
    residual = y - hat @ y
    icc = np.clip(intraclass_correlation(residual, clusters), 0, 0.99)
    columns, variance = [], 0.0
    for c in np.unique(clusters):
        mine = clusters == c
        root = np.real(fractional_matrix_power(np.eye(mine.sum()) - x[mine] @ m @ x[mine].T, -0.5))
        w = root @ x[mine] @ m @ contrast
        variance += (w @ residual[mine]) ** 2
        columns.append((np.eye(n) - hat)[mine].T @ w)
    p = np.array(columns).T
    omega = np.eye(n) + icc / (1 - icc) * (clusters[:, None] == clusters[None, :])
    b = p.T @ omega @ p
    return float(contrast @ m @ x.T @ y), float(np.sqrt(variance)), float(np.trace(b) ** 2 / np.trace(b @ b))


@pytest.mark.parametrize("seed", range(4))
def test_clustered_errors_are_those_of_the_dense_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, 7, 50)
    y = rng.normal(size=50) + 0.7 * rng.normal(size=7)[clusters]
    x = np.stack([np.ones(50), rng.random(50) < 0.5, rng.normal(size=50)], axis=1).astype(float)
    for contrast in ([0.0, 1.0, 0.0], [1.0, 0.0, -2.0]):
        got = cluster_robust(x, y, clusters, contrast)
        assert (got.value, got.se, got.df) == pytest.approx(dense(x, y, clusters, np.array(contrast)), rel=1e-9)


def test_with_equal_clusters_it_is_the_t_test_of_their_means() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(12, 5)) + rng.normal(size=(12, 1))
    one = cluster_mean(y.ravel(), np.repeat(np.arange(12), 5))
    scipy_one = stats.ttest_1samp(y.mean(axis=1), 0)
    assert one.p == pytest.approx(scipy_one.pvalue, rel=1e-9)
    assert one.df == pytest.approx(11, rel=1e-9)
    assert (one.low, one.high) == pytest.approx(tuple(scipy_one.confidence_interval(0.95)), rel=1e-9)
    second = np.repeat(np.arange(12), 5) >= 6
    two = cluster_difference(y.ravel(), second, np.repeat(np.arange(12), 5))
    assert two.p == pytest.approx(stats.ttest_ind(y[6:].mean(axis=1), y[:6].mean(axis=1)).pvalue, rel=1e-9)


def test_equivalence_is_two_one_sided_t_tests() -> None:
    d = np.random.default_rng(1).normal(0.1, 1, 40)
    got = equivalence_test(cluster_mean(d, range(40)), 0.5)
    above = stats.ttest_1samp(d, -0.5, alternative="greater").pvalue
    below = stats.ttest_1samp(d, 0.5, alternative="less").pvalue
    assert got.p == pytest.approx(max(above, below), rel=1e-9)
    assert got.is_equivalent == (got.low > -0.5 and got.high < 0.5)


def test_sign_flips_are_all_listed_when_few() -> None:
    d, clusters = np.array([1.0, 0.5, -0.2, 2.0, 0.3, 0.9]), [0, 0, 1, 2, 3, 3]
    sums = np.array([1.5, -0.2, 2.0, 1.2])
    totals = [float(np.dot(s, sums)) for s in itertools.product((-1, 1), repeat=4)]
    one_sided = np.mean([t >= sums.sum() - 1e-12 for t in totals])
    p = sign_flip_test(d, clusters, rng=np.random.default_rng(0))
    assert p == pytest.approx(2 * one_sided)
    assert p >= 2**-3  # four clusters cannot say more


def test_moving_whole_clusters_is_enumerated_when_few() -> None:
    y, clusters = np.array([0.0, 1.0, 0.5, 2.0, 3.0, 2.5, 1.5]), np.array([0, 0, 1, 2, 3, 3, 4])
    second = clusters >= 2
    gaps = []
    for chosen in itertools.combinations(range(5), 3):
        mine = np.isin(clusters, chosen)
        gaps.append(y[mine].mean() - y[~mine].mean())
    seen = y[second].mean() - y[~second].mean()
    tails = np.mean(np.array(gaps) >= seen - 1e-12), np.mean(np.array(gaps) <= seen + 1e-12)
    p = cluster_permutation_test(y, second, clusters, rng=np.random.default_rng(0))
    assert p == pytest.approx(min(1.0, 2 * min(tails)))


def test_bootstrap_error_of_one_level_is_the_formula() -> None:
    rng = np.random.default_rng(2)
    y = rng.normal(size=40) + np.repeat(rng.normal(size=8), 5)
    clusters = np.repeat(np.arange(8), 5)
    fit = hierarchical_bootstrap(y, [clusters], rng=rng, n_draws=20_000)
    assert fit.se == pytest.approx(cluster_mean(y, clusters).se, rel=0.02)
    assert fit.df == pytest.approx(7)


@pytest.mark.parametrize("method", ["wilson", "exact"])
@pytest.mark.parametrize(("events", "n"), [(0, 10), (3, 10), (10, 10), (17, 200)])
def test_rates_with_clusters_go_over_into_those_of_scipy(method: str, events: int, n: int) -> None:
    interval = stats.binomtest(events, n).proportion_ci(0.9, method=method)  # type: ignore[arg-type]
    for effect in (1.0, 1.0 + 1e-9):
        got = rate_interval(events, n, level=0.9, method=method, design_effect=effect)  # type: ignore[arg-type]
        assert (got.low, got.high) == pytest.approx((interval.low, interval.high), abs=1e-6)
    wide = rate_interval(events, n, level=0.9, method=method, design_effect=3.0)  # type: ignore[arg-type]
    assert wide.high - wide.low > interval.high - interval.low


def test_no_event_leaves_about_three_in_n() -> None:
    assert upper_bound_of_zero(1000) == pytest.approx(3 / 1000, rel=0.01)
    assert stats.binom.cdf(0, 50, upper_bound_of_zero(50)) == pytest.approx(0.05)
    assert upper_bound_of_zero(100, design_effect=2) == pytest.approx(upper_bound_of_zero(50))


def test_power_inverts() -> None:
    plan = Plan(20, 10, 1.0, 0.1)
    assert power_of_difference(plan, detectable_difference(plan, power=0.8)) == pytest.approx(0.8, abs=1e-6)
    needed = clusters_needed(plan, 0.25, power=0.9)
    for n, enough in ((needed, True), (needed - 1, False)):
        assert (power_of_difference(Plan(n, 10, 1.0, 0.1), 0.25) >= 0.9) is enough
    # Miller's formula in the limit of many clusters: n = (z + z)^2 sd^2 / difference^2.
    z = stats.norm.isf(0.025) + stats.norm.isf(0.2)
    assert clusters_needed(Plan(2), 0.05) == pytest.approx((z / 0.05) ** 2, rel=0.001)


def test_intraclass_correlation_by_hand() -> None:
    assert intraclass_correlation([1.0, 1.0, 3.0, 3.0], "aabb") == 1.0
    assert intraclass_correlation([1.0, 3.0, 1.0, 3.0], "aabb") == -1.0
    assert intraclass_correlation([2.0, 2.0, 2.0, 2.0], "aabb") == 0.0
    assert design_effect([10, 10], 0.1) == pytest.approx(1.9)
    assert design_effect([1, 3], 0.5) == pytest.approx(1.75)


def test_an_error_of_nothing() -> None:
    same = as_estimate(0.0, 0.0, 5, level=0.95, n=10, n_clusters=6)
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)
    assert equivalence_test(same, 0.1).p == 0.0
    assert as_estimate(0.2, 0.0, 5, level=0.95, n=10, n_clusters=6).p == 0.0
