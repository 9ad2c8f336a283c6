"""The statistics core on scores of known truth: small runs of `benchmarks.statistics.checks`, each with its control."""

from __future__ import annotations

import pytest
from benchmarks.statistics import checks

from personae.numerics.power import Plan


@pytest.mark.parametrize(
    ("paired", "n_clusters", "size", "icc", "unequal"),
    [(True, 200, 1, 0.0, False), (True, 8, 20, 0.1, True), (False, 30, 20, 0.1, False), (False, 8, 20, 0.1, False)],
)
def test_two_runs_of_one_model_are_rarely_found_to_differ(
    paired: bool, n_clusters: int, size: int, icc: float, unequal: bool
) -> None:
    """A thousand A/A tests at 5%: 3 to 7% reject (2.9 binomial standard errors). Item by item, far more do."""
    shares = checks.same_model_twice(
        1000, n_clusters=n_clusters, size=size, icc=icc, paired=paired, unequal=unequal, seed=1
    )
    assert 0.03 <= shares["rejected"] <= 0.07
    assert icc == 0 or shares["rejected_naively"] > 0.15  # the negative control


def test_whole_cluster_permutation_holds_its_level() -> None:
    """300 repeats: three binomial standard errors above 5% are 8.8%."""
    for paired in (True, False):
        shares = checks.same_model_twice(300, n_clusters=8, size=10, icc=0.1, paired=paired, permute=True, seed=2)
        assert 0.01 <= shares["rejected_by_permutation"] <= 0.088


def test_two_runs_are_rarely_found_to_differ_on_tables_with_templates() -> None:
    shares = checks.same_model_twice_on_tables(300, seed=3)
    assert 0.013 <= shares["rejected"] <= 0.088


@pytest.mark.parametrize(("n_clusters", "is_binary"), [(6, False), (20, True)])
def test_intervals_of_means_cover(n_clusters: int, is_binary: bool) -> None:
    """800 worlds with clusters of unequal size: three standard errors around 90% are 86.8 to 93.2%."""
    shares = checks.coverage(800, n_clusters=n_clusters, size=10, icc=0.1, unequal=True, is_binary=is_binary)
    assert 0.868 <= shares["covered"] <= 0.932
    assert shares["covered_naively"] < 0.8


def test_design_effect_is_recovered() -> None:
    found = checks.design_effect_recovered(150, n_clusters=60)
    assert abs(found["estimated"] / found["true"] - 1) < 0.15
    # The variance of 150 means has a standard error of 12%; three of them.
    assert abs(found["simulated"] / found["true"] - 1) < 0.36


@pytest.mark.parametrize(
    ("plan", "difference"),
    [(Plan(5, 10, 0.5, 0.2), 0.35), (Plan(25, 8, 1.0, 0.1, is_paired=False), 0.3), (Plan(100, 1), 0.28)],
)
def test_power_is_as_promised(plan: Plan, difference: float) -> None:
    """3,000 comparisons: their standard error is 0.9 points at most; within 3 points."""
    shares = checks.power_promised(3000, plan, difference, seed=1)
    assert abs(shares["promised"] - shares["simulated"]) < 0.03


def test_equivalence_is_rarely_claimed_at_the_margin_and_often_of_equals() -> None:
    """At the margin 5% of claims are allowed; three standard errors above it, at 1,000 repeats, are 7.1%."""
    plan = Plan(10, 10, 1.0, 0.1)
    for difference in (-0.45, 0.45):
        assert checks.equivalence_claimed(1000, plan, 0.45, difference)["claimed"] <= 0.071
    equal = checks.equivalence_claimed(1000, plan, 0.45, 0.0)
    assert equal["claimed"] > 0.8
    assert abs(equal["claimed"] - equal["promised"]) < 0.035
    assert checks.equivalence_claimed(200, plan, 0.1, 0.0)["claimed"] < 0.05  # no power is no evidence of equality


@pytest.mark.parametrize(("n_seeds", "is_nested"), [(8, False), (6, True)])
def test_bootstrap_by_level_covers_where_bootstrap_by_item_does_not(n_seeds: int, is_nested: bool) -> None:
    """250 worlds: three standard errors around 90% are 84.3 to 95.7%."""
    shares = checks.bootstrap_coverage(
        250, n_seeds=n_seeds, n_clusters=10, size=5, seed_sd=0.4, cluster_sd=0.5, is_nested=is_nested, n_draws=200
    )
    assert 0.843 <= shares["by_level"] <= 0.957
    assert shares["by_item"] < 0.7


def test_comparisons_over_seeds_cover_and_without_seeds_they_do_not() -> None:
    shares = checks.compare_coverage(150, n_seeds=4, seed_sd=0.4, n_clusters=10, size=4)
    assert 0.82 <= shares["covered"] <= 0.98
    assert shares["covered_without_seeds"] < 0.7


def test_intervals_of_rates_cover() -> None:
    shares = checks.rate_coverage(40)
    assert abs(shares["wilson_mean"] - 0.95) < 0.01
    assert shares["exact_least"] >= 0.95
