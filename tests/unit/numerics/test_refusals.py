"""What the arithmetic refuses, and what it says of data that never vary."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from personae.errors import InvalidSettings, NumericsError
from personae.inference.effects import compare
from personae.numerics.clustered import cluster_difference, cluster_mean, cluster_robust, intraclass_correlation
from personae.numerics.power import (
    Plan,
    clusters_needed,
    detectable_difference,
    power_of_difference,
    power_of_equivalence,
    sd_of_differences,
)
from personae.numerics.rates import rate_interval, upper_bound_of_zero
from personae.numerics.resampling import cluster_permutation_test, hierarchical_bootstrap, sign_flip_test
from personae.numerics.subspaces import (
    cosine,
    mean_difference,
    principal_components,
    shrunk_covariance,
    split_half_cosine,
    whitening,
)
from personae.tables.items import item_table

RNG = np.random.default_rng(0)
Y, C = RNG.normal(size=12), [k // 3 for k in range(12)]
X = RNG.normal(size=(5, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cluster_mean(Y, C[:-1]), "differ in length"),
        (lambda: cluster_mean(Y, [0] * 12), "too few clusters"),
        (lambda: cluster_mean(Y, C, level=1.0), r"level is 1\.0"),
        (lambda: cluster_difference(Y, np.arange(12) < 3, C), "too few clusters"),
        (lambda: cluster_difference(Y, np.zeros(12), C), "linearly dependent"),
        (lambda: cluster_robust(np.ones((12, 2)), Y, C, [1, 0]), "linearly dependent"),
        (lambda: intraclass_correlation(Y, range(12)), "needs two clusters and one of two scores"),
        (lambda: hierarchical_bootstrap(Y, [[0] * 12], rng=RNG), "no level has two units"),
        (lambda: hierarchical_bootstrap(Y, [C[:3]], rng=RNG), "labels"),
        (lambda: cluster_permutation_test(Y, np.arange(12) % 2, C, rng=RNG), "both arms"),
        (lambda: cluster_permutation_test(Y, np.zeros(12), C, rng=RNG), "an arm has no scores"),
        (lambda: rate_interval(5, 4), "5 events in 4"),
        (lambda: rate_interval(1, 4, design_effect=0.5), r"design effect 0\.5"),
        (lambda: upper_bound_of_zero(0), "0 trials"),
        (lambda: Plan(1), "needs 2 clusters"),
        (lambda: Plan(5, icc=1.5), "cannot be"),
        (lambda: clusters_needed(Plan(2), 0.0), r"difference 0\.0"),
        (lambda: clusters_needed(Plan(2), 1e-5), "more than 10000000 clusters"),
        (lambda: detectable_difference(Plan(5), power=0.01), r"power is 0\.01"),
        (lambda: power_of_equivalence(Plan(5), 0.0), r"margin is 0\.0"),
        (lambda: sd_of_differences(-1.0), "0 or more"),
        (lambda: mean_difference(X, X[:, :3]), "width 8 and 3"),
        (lambda: mean_difference(X[0], X), "rows of one width"),
        (lambda: principal_components(X, 5), "5 components"),
        (lambda: shrunk_covariance(X[:1]), "1 rows"),
        (lambda: split_half_cosine(X, X, [0] * 5, range(5), rng=RNG), "two groups on either side"),
        (lambda: split_half_cosine(X, X, [0], range(5), rng=RNG), "needs a group"),
    ],
)
def test_settings_that_cannot_be_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cluster_mean([1.0, np.nan], [0, 1]), "not a finite number"),
        (lambda: hierarchical_bootstrap([1.0, np.inf], [[0, 1]], rng=RNG), "not a finite number"),
        (lambda: whitening(np.cov(X.T)), "singular"),
        (lambda: cosine([0, 0], [1, 0]), "length 0"),
        (lambda: mean_difference([[np.nan]], [[1.0]]), "not a finite number"),
    ],
)
def test_numbers_that_are_none_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(NumericsError, match=message):
        call()


def test_arms_that_agree_everywhere_are_equal_without_a_warning() -> None:
    labels = {"item": list(range(20)) * 2, "cluster": [k // 4 for k in range(20)] * 2, "arm": ["a"] * 20 + ["b"] * 20}
    effect = compare(item_table(np.tile(np.arange(20.0), 2), **labels), "a", "b", margin=0.1)
    assert effect.difference.p == 1.0
    assert effect.p_permutation == 1.0
    assert effect.equivalence is not None
    assert effect.equivalence.is_equivalent
    assert effect.detectable == 0.0


def test_one_cluster_cannot_be_flipped() -> None:
    assert sign_flip_test(Y, [0] * 12, rng=RNG) == 1.0


def test_parts_of_the_spread_add_up() -> None:
    """Miller's section 5: paired, K answers averaged; what the arms share cancels."""
    assert sd_of_differences(1.0, correlation=1.0) == 0.0
    assert sd_of_differences(1.0) == pytest.approx(np.sqrt(2))
    assert sd_of_differences(0.0, noise_first=3.0, noise_second=4.0, answers=25) == pytest.approx(1.0)


def test_power_at_no_difference_is_the_level_and_grows() -> None:
    plan = Plan(10, 5, 1.0, 0.1)
    powers = [power_of_difference(plan, d) for d in (0.0, 0.1, 0.5, 5.0, 500.0)]
    assert powers[0] == pytest.approx(0.05)
    assert (np.diff(powers) >= -1e-12).all()
    assert powers[-1] == pytest.approx(1.0)
    assert power_of_equivalence(plan, 1e-6) == pytest.approx(0.0, abs=1e-6)
    assert power_of_equivalence(plan, 1e3) == pytest.approx(1.0, abs=1e-6)


def test_whitened_rows_have_the_identity() -> None:
    rows = RNG.normal(size=(500, 4)) @ RNG.normal(size=(4, 4))
    white = rows @ whitening(shrunk_covariance(rows, shrinkage=0.0))
    assert np.cov(white.T, bias=True) == pytest.approx(np.eye(4), abs=1e-9)


def test_a_repeatable_direction_has_a_high_split_half_cosine_and_noise_has_not() -> None:
    groups = [k // 2 for k in range(60)]
    noise = RNG.normal(size=(2, 60, 30))
    planted = split_half_cosine(noise[0] + 2.0 * np.eye(30)[0], noise[1], groups, groups, rng=RNG, n_splits=50)
    null = split_half_cosine(noise[0], noise[1], groups, groups, rng=RNG, n_splits=50)
    assert np.median(planted) > 0.5
    assert abs(np.median(null)) < 0.3
