"""Calibration in the exact world: eta is recovered, intervals cover, the background holds what no persona said.

The experiments are those of `benchmarks.calibration`, on fewer draws. Bounds are the bar where draws allow it, else
the bar less two binomial standard errors of the draws used (stated at each).
"""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.calibration.experiments import (
    MALICE,
    TURNS,
    K,
    World,
    coverage,
    recovered_eta,
    simulation_based_calibration,
)
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from personae.errors import InvalidSettings
from personae.inference.adequacy import adequacy
from personae.inference.calibration import (
    cllr,
    cllr_min,
    fit_temperature,
    log_likelihood_ratios,
    mean_cllr,
    reliability,
    shrink_until_covered,
)
from personae.inference.identifiability import (
    class_indicators,
    fisher_information,
    identifiability,
    merge_classes,
    pairwise_auc,
)
from personae.inference.mixture import default_concentration, fit_mixture


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Thirty conversations of each persona: exact log-likelihoods, speakers, clusters."""
    world, rng = World.make(), np.random.default_rng(5)
    parts = [world.conversations(rng, np.eye(K)[k], 30) for k in range(K)]
    table = np.concatenate([world.log_likelihood(q, a) for q, a, _ in parts])
    label = np.concatenate([who for _, _, who in parts])
    return table, label, [str(i) for i in range(len(label))]


def test_ranks_of_the_truth_are_uniform() -> None:
    found = simulation_based_calibration(60)
    # Nine functionals at 1% in all (Bonferroni): a right sampler fails once in a hundred seeds.
    assert min(found["ks_p"]) > 0.01 / 9
    # 60 draws: the bar of 0.84 less two standard errors of 0.039, on the mean of nine.
    assert 0.84 - 0.08 <= np.mean(found["coverage"]) <= 0.97


def test_ranks_of_an_overconfident_sampler_are_not_uniform() -> None:
    """The positive control of the check itself."""
    world, rng = World.make(), np.random.default_rng(1)
    ranks = []
    for i in range(60):
        w = rng.dirichlet(np.full(K, 0.5))
        q, a, _ = world.conversations(rng, w, 150)
        draws = fit_mixture(
            4 * world.log_likelihood(q, a), np.log(np.full(K, 1 / K)), eta=1.0, restarts=0, seed=i
        ).draws
        ranks.append((draws < w).mean(axis=0))
    beyond = np.mean((np.array(ranks) < 0.05) | (np.array(ranks) > 0.95))
    assert beyond > 0.2  # a tenth if it were calibrated


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_eta_is_recovered_from_labels(power: float) -> None:
    found = recovered_eta(power)
    assert abs(found.eta * power - 1) < 0.15
    assert found.low < 1 / power < found.high
    assert found.log_loss <= found.log_loss_at_one + 1e-6 < found.log_loss_uniform + 1


@pytest.mark.parametrize(("power", "eta"), [(1.0, 1.0), (2.0, 0.5), (0.5, 2.0)])
def test_intervals_cover_with_the_fitted_power(power: float, eta: float) -> None:
    found = coverage(60, lambda table: power * table, eta)
    # 60 draws: two standard errors are 0.08 for the trait; weights are eight a draw.
    assert 0.76 <= found["coverage"] <= 1.0
    assert 0.84 <= found["weights"] <= 0.96


def test_overconfident_intervals_do_not_cover() -> None:
    assert coverage(60, lambda table: 2 * table, 1.0)["weights"] < 0.8


def test_dividing_by_length_breaks_coverage() -> None:
    """The negative control: a mean per token flattens every ratio, so weights regress to the middle."""
    assert coverage(40, lambda table: table / TURNS, 1.0, n=600)["coverage"] < 0.6
    assert coverage(40, lambda table: table, 1.0, n=600)["coverage"] > 0.75


def test_a_fifth_from_no_persona_goes_to_the_background() -> None:
    with_it = coverage(60, lambda table: table, 1.0, strange=0.2, background="smooth")
    assert with_it["coverage"] >= 0.8 - 0.1  # the bar less two standard errors of 60 draws
    assert abs(with_it["background_mass"] - 0.2) < 0.06
    assert with_it["background_coverage"] >= 0.6
    without = coverage(60, lambda table: table, 1.0, strange=0.2)
    assert without["coverage"] < 0.6
    assert without["bias"] > 0.05
    nothing_strange = coverage(40, lambda table: table, 1.0, background="smooth")
    assert nothing_strange["background_mass"] < 0.05
    assert nothing_strange["coverage"] >= 0.78


def test_shrinking_stops_at_once_where_intervals_cover_and_goes_down_where_not(labelled) -> None:
    table, label, _ = labelled
    right = shrink_until_covered(table, label, 1.0)
    assert right.eta == 1.0
    assert right.reached
    wrong = shrink_until_covered(2 * table, label, 1.0)
    assert wrong.reached
    assert 0.4 < wrong.eta < 0.75
    assert next(c for _, c in wrong.tried) < 0.82
    assert wrong.coverage == wrong.tried[-1][1] >= 0.87


def test_temperature_of_perfect_labels_is_finite_and_of_noise_is_small() -> None:
    label = np.arange(40) % 4
    perfect = np.where(np.arange(4) == label[:, None], 0.0, -50.0)
    ids = [str(i) for i in range(40)]
    assert fit_temperature(perfect, label, ids).eta < 10
    noise = np.random.default_rng(0).normal(0, 5, (400, 4))
    unrelated = fit_temperature(noise, np.arange(400) % 4, [str(i) for i in range(400)])
    assert unrelated.eta < 0.05
    assert abs(unrelated.log_loss - np.log(4)) < 0.02
    with pytest.raises(InvalidSettings, match="2 or more"):
        fit_temperature(noise[:, :1], np.zeros(400, int), ids)


def test_reliability_agrees_with_an_independent_regression(labelled) -> None:
    table, label, cluster = labelled
    eta = fit_temperature(table, label, cluster).eta
    found = reliability(eta * table, label, cluster)
    assert found.slope_low < 1 < found.slope_high
    p = np.exp(eta * table - np.logaddexp.reduce(eta * table, axis=1, keepdims=True))
    odds = np.log(p / (1 - p)).reshape(-1, 1)
    hit = (np.arange(K) == label[:, None]).ravel()
    line = LogisticRegression(C=np.inf).fit(odds, hit)
    assert np.isclose(found.slope, line.coef_[0, 0], atol=1e-3)
    assert np.isclose(found.intercept, line.intercept_[0], atol=1e-3)
    over = reliability(3 * table, label, cluster)
    assert over.slope < 0.6
    assert over.error > found.error + 0.05


def test_cllr_known_answers() -> None:
    target = np.array([True, False])
    assert cllr(np.zeros(2), target) == pytest.approx(1.0)  # saying nothing costs a bit
    assert cllr(np.array([50.0, -50.0]), target) == pytest.approx(0.0, abs=1e-12)
    assert cllr(np.array([-5.0, 5.0]), target) > 5  # sure and wrong
    # By hand: LR 3 for a target, LR 1/3 for the other: 1/2 (log2(4/3) + log2(4/3)).
    assert cllr(np.log([3.0, 1 / 3]), target) == pytest.approx(np.log2(4 / 3))


def test_cllr_min_is_that_of_pool_adjacent_violators() -> None:
    rng = np.random.default_rng(2)
    target = rng.random(300) < 0.3
    ratio = rng.normal(size=300) + target
    weight = np.where(target, 0.5 / target.sum(), 0.5 / (~target).sum())
    p = IsotonicRegression(y_min=0, y_max=1).fit_transform(ratio, target.astype(float), sample_weight=weight)
    with np.errstate(divide="ignore"):
        best = np.clip(np.log(p) - np.log1p(-p), -700, 700)
    assert cllr_min(ratio, target) == pytest.approx(cllr(best, target), abs=1e-9)
    assert cllr_min(ratio, target) <= cllr(ratio, target)
    assert cllr_min(np.exp(ratio), target) == pytest.approx(cllr_min(ratio, target))
    assert cllr_min(rng.normal(size=300), target) > 0.85  # nothing to find


def test_ratios_use_a_population_denominator() -> None:
    flat = log_likelihood_ratios(np.zeros((3, 5)))
    assert np.allclose(flat, 0)
    table = np.array([[2.0, 0.0, 1.0]])
    assert log_likelihood_ratios(table)[0, 0] == pytest.approx(2 - np.log((1 + np.e) / 2))
    cost, best = mean_cllr(np.log(np.full((30, 3), 1 / 3)), np.arange(30) % 3)
    assert cost == pytest.approx(1.0)
    assert best == pytest.approx(1.0)


def test_standard_errors_are_those_of_repeated_files() -> None:
    world, rng = World.make(), np.random.default_rng(3)
    w = np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])
    fits = []
    for _ in range(60):
        q, a, _ = world.conversations(rng, w, 4000)
        found = fit_mixture(
            world.log_likelihood(q, a), np.log(np.full(K, 1 / K)), eta=1.0, concentration=1e-3, sweeps=2, burn_in=1,
            restarts=0,
        )  # fmt: skip
        fits.append(found.mode)
    q, a, _ = world.conversations(rng, w, 4000)
    info = identifiability(world.log_likelihood(q, a), w)
    ratio = info.standard_error / np.std(fits, axis=0)
    assert 0.75 < np.median(ratio) < 1.35  # 60 files: a standard deviation is known to 9%
    assert info.rank == K - 1
    assert np.isfinite(info.condition)


def test_twins_are_not_identified_their_sum_is_and_they_become_one_class(labelled) -> None:
    table, label, _ = labelled
    twins = np.hstack([table, table[:, 7:]])
    info = identifiability(twins, np.full(K + 1, 1 / (K + 1)))
    assert info.condition == np.inf or info.condition > 1e12
    assert np.isinf(info.standard_error[[7, 8]]).all()
    assert np.isfinite(info.standard_error[:7]).all()
    # Label every second conversation of 7 as the twin's.
    mine = np.flatnonzero(label == 7)
    relabelled = label.copy()
    relabelled[mine[::2]] = 8
    auc = pairwise_auc(twins, relabelled)
    assert auc[7, 8] == pytest.approx(0.5)
    classes = merge_classes(auc)
    assert classes[7] == classes[8]
    fit = fit_mixture(twins, np.log(np.full(K + 1, 1 / (K + 1))), eta=1.0)
    both = np.zeros(K + 1)
    both[[7, 8]] = 1
    mean, low, high = fit.functional(both)
    assert high - low < (fit.high - fit.low)[7] + (fit.high - fit.low)[8]
    assert low < 1 / K < high
    assert np.allclose(class_indicators(classes).sum(axis=0), 1)
    assert mean == pytest.approx((fit.draws @ both).mean())


def test_information_of_two_disjoint_personas_is_known() -> None:
    """Two personas that never overlap: w is a binomial share, so its variance is w (1 - w) / n."""
    table = np.where(np.arange(100)[:, None] % 4 == 0, [[0.0, -800.0]], [[-800.0, 0.0]])
    w = np.array([0.25, 0.75])
    assert np.allclose(fisher_information(table, w), np.diag(1 / w))
    assert np.allclose(identifiability(table, w).standard_error, np.sqrt(0.25 * 0.75 / 100))


def test_classes_chain_and_keep_apart() -> None:
    auc = np.array([[0.5, 0.6, 0.9, 0.9], [0.6, 0.5, 0.64, 0.9], [0.9, 0.64, 0.5, 0.65], [0.9, 0.9, 0.65, 0.5]])
    assert merge_classes(auc).tolist() == [0, 0, 0, 1]  # 0.65 itself is told apart
    assert merge_classes(np.full((3, 3), np.nan)).tolist() == [0, 1, 2]
    assert merge_classes(np.array([[0.5]])).tolist() == [0]


def test_prior_of_large_casts_does_not_outweigh_a_file() -> None:
    assert default_concentration(8) == 4.0
    assert default_concentration(20) == default_concentration(86) == 10.0


def test_adequacy_tells_a_mixture_from_one_persona_and_from_none() -> None:
    world, rng = World.make(), np.random.default_rng(7)
    log_prior = np.log(np.full(K + 1, 1 / (K + 1)))

    def judge(weights: np.ndarray, strangers: np.ndarray | None = None):
        q, a, _ = world.conversations(rng, weights, 300, strangers=strangers)
        table = np.hstack([world.log_likelihood(q, a), world.background(q, a, "smooth")])
        return adequacy(table, log_prior, eta=1.0, seed=1)

    two = np.zeros(K)
    two[[1, 6]] = 0.5
    mixed = judge(two)
    assert mixed.over_single > 3 * mixed.over_single_se
    assert mixed.over_background > 3 * mixed.over_background_se
    alone = judge(np.eye(K)[3])
    assert alone.best_single == 3
    assert abs(alone.over_single) < 3 * max(alone.over_single_se, 1.0)
    assert alone.over_background > 3 * alone.over_background_se
    uniform = np.full((16, 4), 0.25)
    nobody = judge(np.append(np.zeros(K), 1.0), uniform)
    assert nobody.background > 0.7
    assert nobody.over_background < alone.over_background / 3


def test_leaving_one_out_agrees_with_fitting_again() -> None:
    """elpd_i by re-weighting equals the one from a fit that never saw conversation i."""
    world, rng = World.make(), np.random.default_rng(9)
    q, a, _ = world.conversations(rng, np.full(K, 1 / K), 25)
    table = np.hstack([world.log_likelihood(q, a), world.background(q, a, "smooth")])
    log_prior = np.log(np.full(K + 1, 1 / (K + 1)))
    quick = adequacy(table, log_prior, eta=1.0, sweeps=6000, burn_in=200).pointwise[:, 0]
    for i in range(0, 25, 6):
        rest = fit_mixture(np.delete(table, i, axis=0), log_prior, eta=1.0, sweeps=6000, restarts=0)
        again = np.logaddexp.reduce(table[i] + np.log(rest.weight))
        assert abs(quick[i] - again) < 0.03


def test_malice_of_the_world_is_half() -> None:
    assert MALICE.sum() == K / 2
