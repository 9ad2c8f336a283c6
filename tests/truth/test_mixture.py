"""Planted mixtures are recovered, with a null and a positive control; intervals cover at their level."""

from __future__ import annotations

import numpy as np
import pytest

from personae.inference.mixture import expectation_maximisation, fit_mixture, log_marginal_likelihood, sum_by_group
from personae.numerics.statistics import auroc, benjamini_hochberg

N_TOKENS, VOCABULARY = 30, 12


def world(rng: np.random.Generator, n_components: int) -> np.ndarray:
    """Token distributions of components: the generator is exactly the model."""
    return np.log(rng.dirichlet(np.full(VOCABULARY, 2.0), size=n_components))


def sample(rng: np.random.Generator, log_p: np.ndarray, weights: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods of n sampled conversations under every component, and who spoke."""
    who = rng.choice(len(weights), size=n, p=weights)
    table = np.empty((n, len(weights)))
    for i, k in enumerate(who):
        tokens = rng.choice(VOCABULARY, size=N_TOKENS, p=np.exp(log_p[k]))
        table[i] = log_p[:, tokens].sum(axis=1)
    return table, who


def test_planted_weights_are_recovered() -> None:
    rng = np.random.default_rng(0)
    log_p = world(rng, 5)
    truth = np.array([0.5, 0.2, 0.2, 0.1, 0.0])
    table, _ = sample(rng, log_p, truth, 800)
    fit = fit_mixture(table, np.log(np.full(5, 0.2)), eta=1.0)
    # Binomial standard error at n = 800 is at most 0.018; three of them bound the error in 99.7% of worlds.
    assert np.abs(fit.weight - truth).max() < 0.055


def test_interval_covers_at_its_level() -> None:
    """150 worlds with weights drawn from the prior: 90% intervals of all four weights cover 84 to 95%."""
    rng = np.random.default_rng(1)
    covered = []
    for seed in range(150):
        log_p = world(rng, 4)
        truth = rng.dirichlet(np.ones(4))
        table, _ = sample(rng, log_p, truth, 60)
        fit = fit_mixture(
            table, np.log(np.full(4, 0.25)), eta=1.0, concentration=4.0, sweeps=500, burn_in=100, seed=seed
        )
        covered.append((fit.low <= truth) & (truth <= fit.high))
    assert 0.84 <= np.mean(covered) <= 0.95


def test_length_normalising_breaks_coverage() -> None:
    """The negative control: dividing by length inside the ratio flattens every weight towards the prior."""
    rng = np.random.default_rng(2)
    covered = []
    for seed in range(60):
        log_p = world(rng, 4)
        truth = rng.dirichlet(np.ones(4))
        table, _ = sample(rng, log_p, truth, 150)
        fit = fit_mixture(
            table / N_TOKENS, np.log(np.full(4, 0.25)), eta=1.0, concentration=4.0, sweeps=400, burn_in=100, seed=seed
        )
        covered.append((fit.low[0] <= truth[0]) & (truth[0] <= fit.high[0]))
    assert np.mean(covered) < 0.7


def test_outputs_of_no_persona_go_to_the_background() -> None:
    rng = np.random.default_rng(3)
    log_p = world(rng, 5)  # the last component is what the background stands for
    truth = np.array([0.4, 0.2, 0.1, 0.1, 0.2])
    table, _ = sample(rng, log_p, truth, 600)
    with_background = fit_mixture(table, np.log(np.full(5, 0.2)), eta=1.0)
    assert with_background.low[4] <= 0.2 <= with_background.high[4]
    without = fit_mixture(table[:, :4], np.log(np.full(4, 0.25)), eta=1.0)
    # The control: left out, its fifth is handed to personas that did not speak it.
    assert (without.low[:2] > truth[:2]).all()


def test_responsibilities_name_the_speaker_and_shuffled_ones_do_not() -> None:
    rng = np.random.default_rng(4)
    log_p = world(rng, 3)
    table, who = sample(rng, log_p, np.array([0.4, 0.3, 0.3]), 300)
    rho = fit_mixture(table, np.log(np.full(3, 1 / 3)), eta=1.0).responsibilities
    assert auroc(rho[:, 0], who == 0) > 0.97
    assert abs(auroc(rho[:, 0], rng.permutation(who) == 0) - 0.5) < 0.1


def test_no_conversations_return_the_prior() -> None:
    log_prior = np.log(np.array([0.7, 0.2, 0.1]))
    fit = fit_mixture(np.zeros((0, 3)), log_prior)
    assert np.allclose(fit.mode, np.exp(log_prior))
    assert np.abs(fit.weight - np.exp(log_prior)).max() < 0.05


def test_em_climbs_and_restarts_agree() -> None:
    rng = np.random.default_rng(5)
    table, _ = sample(rng, world(rng, 4), np.array([0.1, 0.2, 0.3, 0.4]), 200)
    mode, _ = expectation_maximisation(table, np.log(np.full(4, 0.25)), concentration=1e-6)
    best = log_marginal_likelihood(table, mode)
    for other in rng.dirichlet(np.ones(4), size=200):
        assert log_marginal_likelihood(table, other) <= best + 1e-6
    skewed, _ = expectation_maximisation(table, np.log(np.array([0.97, 0.01, 0.01, 0.01])), concentration=1e-6)
    assert np.abs(skewed - mode).max() < 1e-4


def test_rejected_replies_count_against() -> None:
    values = np.array([[0.0, -5.0], [0.0, -9.0]])
    sums = sum_by_group(values, ["pair", "pair"], np.array([1.0, -1.0]))
    assert sums.tolist() == [[0.0, 4.0]]


def test_weight_zero_is_left_out_even_when_impossible() -> None:
    values = np.array([[0.0, -1.0], [0.0, -np.inf]])
    sums = sum_by_group(values, ["a", "b"], np.array([1.0, 0.0]))
    assert sums.tolist() == [[0.0, -1.0]]


def test_benjamini_hochberg_holds_the_false_discovery_rate() -> None:
    rng = np.random.default_rng(6)
    shares = []
    for _ in range(400):
        p = rng.random(40)
        p[:10] = rng.random(10) * 1e-4
        found = benjamini_hochberg(p) <= 0.1
        shares.append(found[10:].sum() / max(found.sum(), 1))
    assert np.mean(shares) < 0.1


def test_auroc_counts_ties_half_and_refuses_one_class() -> None:
    assert auroc(np.zeros(4), np.array([True, True, False, False])) == 0.5
    assert auroc(np.array([3.0, 2.0, 1.0]), np.array([True, False, False])) == 1.0
    with pytest.raises(ValueError, match="both classes"):
        auroc(np.ones(2), np.array([True, True]))
