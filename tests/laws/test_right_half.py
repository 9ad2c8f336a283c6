"""Every law of the right half holds for every implementation it should hold for, and catches a broken one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ortho_group

import right_half as law
from personae.inference.mixture import expectation_maximisation, fit_mixture, log_marginal_likelihood
from personae.inference.readout import read_out
from personae.inference.shift import Ratios, trait_shifts
from personae.inference.update import update, update_by_step
from personae.numerics.logspace import log_normalise
from personae.numerics.subspaces import (
    cosine,
    mean_difference,
    principal_angles,
    principal_components,
    shrunk_covariance,
    split_half_cosine,
    whitening,
)

tables = arrays(np.float64, st.tuples(st.integers(1, 8), st.just(4)), elements=st.floats(-30, 0))
priors = arrays(np.float64, 4, elements=st.floats(-6, 0)).map(log_normalise)
exactly = settings(max_examples=60, deadline=None)
iterated = settings(max_examples=25, deadline=None)
EXACT, ITERATED = 1e-9, 1e-4


def by_update(prior: np.ndarray, table: np.ndarray) -> np.ndarray:
    return update(prior, table).log_weights


def by_em(prior: np.ndarray, table: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(expectation_maximisation(table, prior, concentration=2.0)[0])


# Broken implementations: each is a mistake that is easily made.


def in_sorted_order(prior: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Gives weights by rank instead of by persona."""
    return np.sort(by_update(prior, table))


def length_normalised(prior: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Divides by the number of episodes."""
    return log_normalise(prior + table.sum(axis=0) / max(len(table), 1))


def relative_to_zero(prior: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Clips log-likelihoods from below, so that only some of the personas lose."""
    return log_normalise(prior + np.maximum(table, -10).sum(axis=0))


def flat_when_empty(prior: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Forgets the prior."""
    return log_normalise(table.sum(axis=0))


def recent_counts_more(prior: np.ndarray, table: np.ndarray) -> np.ndarray:
    return log_normalise(prior + np.arange(1, len(table) + 1) @ table)


def squared_prior(prior: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Uses the prior twice."""
    return log_normalise(2 * prior + table.sum(axis=0))


TABLE = np.array([[-1.0, -12.0, -3.0, -14.0], [-4.0, -2.0, -9.0, -1.0], [-0.5, -3.0, -3.5, -2.0]])
PRIOR = np.log([0.4, 0.3, 0.2, 0.1])


def test_each_law_catches_a_broken_implementation() -> None:
    broken: list[Callable[[], None]] = [
        lambda: law.permuting_personas_permutes(in_sorted_order, PRIOR, TABLE, [1, 0, 3, 2], EXACT),
        lambda: law.constant_changes_nothing(relative_to_zero, PRIOR, TABLE, -5.0, EXACT),
        lambda: law.no_evidence_returns_the_prior(flat_when_empty, PRIOR, EXACT),
        lambda: law.no_evidence_returns_the_prior(squared_prior, PRIOR, EXACT),
        lambda: law.twins_leave_the_others(flat_when_empty, PRIOR, TABLE, EXACT),
        lambda: law.twins_leave_the_others(squared_prior, PRIOR, TABLE, EXACT),
        lambda: law.order_of_episodes_does_not_matter(recent_counts_more, PRIOR, TABLE, np.array([2, 0, 1]), EXACT),
        lambda: law.sequential_equals_batch(length_normalised, PRIOR, TABLE, EXACT),
        lambda: law.sequential_equals_batch(squared_prior, PRIOR, TABLE, EXACT),
        lambda: law.shift_is_linear_in_the_weights(
            lambda p, t, w: log_normalise(p + np.tanh(w) @ t), PRIOR, TABLE, np.ones(3), np.ones(3), EXACT
        ),
        lambda: law.chain_rule_over_episodes(
            lambda p, t: float(np.sum(np.log(np.exp(t) @ np.exp(p)))), by_update, PRIOR, TABLE, 1
        ),
        lambda: law.rotation_rotates(standardised_difference, ROWS, ROTATION),
        lambda: law.rotation_leaves(standardised_angle, ROWS, ROTATION),
    ]
    for one in broken:
        with pytest.raises(AssertionError):
            one()


# One speaker: every law, exactly.


@exactly
@given(priors, tables, st.permutations(range(4)), st.floats(-30, 30), st.randoms(use_true_random=False))
def test_update_obeys_the_laws(prior: np.ndarray, table: np.ndarray, order: list[int], constant: float, r) -> None:
    rows = np.array(r.sample(range(len(table)), len(table)))
    law.permuting_personas_permutes(by_update, prior, table, order, EXACT)
    law.constant_changes_nothing(by_update, prior, table, constant, EXACT)
    law.no_evidence_returns_the_prior(by_update, prior, EXACT)
    law.twins_leave_the_others(by_update, prior, table, EXACT)
    law.order_of_episodes_does_not_matter(by_update, prior, table, rows, EXACT)
    law.sequential_equals_batch(by_update, prior, table, EXACT)
    steps = update_by_step(prior, table)
    for n in range(len(table) + 1):
        law.same(steps.log_weights[n], by_update(prior, table[:n]), EXACT)
    law.chain_rule_over_episodes(marginal_of_update, by_update, prior, table, len(table) // 2)


@exactly
@given(priors, tables, arrays(np.float64, (2, 8), elements=st.floats(-3, 3)), st.floats(0.05, 4))
def test_log_odds_shift_is_linear_in_weights_and_power(
    prior: np.ndarray, table: np.ndarray, weights: np.ndarray, eta: float
) -> None:
    first, second = weights[:, : len(table)]
    law.shift_is_linear_in_the_weights(
        lambda p, t, w: update(p, t, weight=w).log_weights, prior, table, first, second, 1e-7
    )
    powered = update(prior, table, eta=eta).log_weights - prior
    plain = by_update(prior, table) - prior
    assert np.allclose(powered - powered[0], eta * (plain - plain[0]), atol=1e-8)


def marginal_of_update(prior: np.ndarray, table: np.ndarray) -> float:
    value = update(prior, table).log_marginal_likelihood
    assert value is not None
    return value


# Many speakers: the mode by EM. Sequential updating and linearity do not hold for a mixture, nor should they.


@iterated
@given(priors, tables, st.permutations(range(4)), st.floats(-30, 30))
def test_mixture_mode_obeys_the_laws(prior: np.ndarray, table: np.ndarray, order: list[int], constant: float) -> None:
    law.permuting_personas_permutes(by_em, prior, table, order, ITERATED)
    law.constant_changes_nothing(by_em, prior, table, constant, ITERATED)
    law.no_evidence_returns_the_prior(by_em, prior, EXACT)
    law.twins_leave_the_others(by_em, prior, table, ITERATED)
    law.order_of_episodes_does_not_matter(by_em, prior, table, np.arange(len(table))[::-1], ITERATED)


def test_mixture_is_no_update() -> None:
    """That the law tells the two models apart: conversations of two speakers, each certain."""
    table = np.array([[0.0, -20.0, -20.0, -20.0], [-20.0, 0.0, -20.0, -20.0]])
    with pytest.raises(AssertionError):
        law.sequential_equals_batch(by_em, PRIOR, table, 0.01)


@exactly
@given(tables, arrays(np.float64, 4, elements=st.floats(0.01, 1)), st.integers(0, 8))
def test_likelihood_of_given_weights_obeys_the_chain_rule(table: np.ndarray, w: np.ndarray, cut: int) -> None:
    """Given the weights, conversations are independent, so the parts add."""
    w = w / w.sum()
    parts = log_marginal_likelihood(table[:cut], w) + log_marginal_likelihood(table[cut:], w)
    assert np.isclose(log_marginal_likelihood(table, w), parts, atol=1e-8)


def test_sampler_with_a_fixed_seed_ignores_constants() -> None:
    """Quarters, so that no rounding moves a draw: the fit is the same to the last digits."""
    table = np.round(np.random.default_rng(0).uniform(-20, 0, (30, 4)) * 4) / 4
    one, other = (fit_mixture(t, PRIOR, eta=1.0, sweeps=300, burn_in=100, seed=1) for t in (table, table - 8.0))
    assert np.allclose(one.weight, other.weight, atol=1e-9)
    assert np.allclose(one.low, other.low, atol=1e-9)
    assert np.allclose(one.responsibilities, other.responsibilities, atol=1e-6)


# Read-out: components are its personas, probes its episodes.


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(3)))
def test_read_out_obeys_the_laws(seed: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    theta = rng.dirichlet(np.ones(4), size=(3, 10))
    p = rng.dirichlet(np.ones(4), size=10)
    straight = read_out(p, theta, n_draws=1, n_starts=1).weight
    permuted = read_out(p, theta[order], n_draws=1, n_starts=1).weight
    assert np.allclose(permuted, straight[order], atol=1e-5)
    probes = rng.permutation(10)
    assert np.allclose(read_out(p[probes], theta[:, probes], n_draws=1, n_starts=1).weight, straight, atol=1e-5)
    leaked = read_out(0.95 * p, 0.97 * theta, n_draws=1, n_starts=1).weight
    assert np.allclose(leaked, straight, atol=1e-5)
    twins = read_out(p, np.concatenate([theta, theta[2:]]), n_draws=1, n_starts=1)
    assert np.allclose(twins.weight[:2], straight[:2], atol=1e-5)
    assert not twins.is_identified
    assert np.allclose(
        read_out(np.tile(p, (3, 1)), np.tile(theta, (1, 3, 1)), n_draws=1, n_starts=1).weight, straight, atol=1e-5
    )


def test_read_out_catches_weights_by_rank() -> None:
    """The positive control: sorted weights do not permute with the components."""
    rng = np.random.default_rng(1)
    theta, p = rng.dirichlet(np.ones(4), size=(3, 10)), rng.dirichlet(np.ones(4), size=10)
    order = [2, 0, 1]
    by_rank = [np.sort(read_out(p, t, n_draws=1, n_starts=1).weight) for t in (theta, theta[order])]
    assert not np.allclose(by_rank[1], by_rank[0][order], atol=1e-3)


# Shift: numerator and denominator are both linear in the weights.


def test_shift_depends_on_ratios_of_weights_only() -> None:
    rng = np.random.default_rng(2)
    reference = Ratios(
        rng.normal(size=(60, 3)), rng.integers(5, 40, 60), np.ones(60), tuple(str(k // 6) for k in range(60))
    )
    llr, tokens, weight = rng.normal(size=(20, 3)), rng.integers(5, 40, 20), rng.uniform(0.5, 2, 20)
    cluster = tuple(map(str, range(20)))

    def shift(w: np.ndarray, values: np.ndarray = llr) -> np.ndarray:
        return trait_shifts(Ratios(values, tokens, w, cluster), reference, n_draws=5).shift

    assert np.allclose(shift(3 * weight), shift(weight))
    # Linear in the evidence: halfway between two files lies halfway between their shifts.
    other = rng.normal(size=llr.shape)
    assert np.allclose(shift(weight, (llr + other) / 2), (shift(weight) + shift(weight, other)) / 2)
    # A row left out is a row that is not there; the control: a row of weight 1 is not.
    without = weight.copy()
    without[0] = 0.0
    short = Ratios(llr[1:], tokens[1:], weight[1:], cluster[1:])
    assert np.allclose(shift(without), trait_shifts(short, reference, n_draws=5).shift)
    assert not np.allclose(shift(weight), shift(without))


# Activations: rotating the space rotates directions and leaves angles.

ROWS = np.random.default_rng(3).normal(size=(40, 6)) @ np.diag([4.0, 2.5, 1.5, 1.0, 0.6, 0.3]) + np.repeat(
    [[1.0, 0, 0.5, 0, 0, 0], [0.0] * 6], 20, axis=0
)
ROTATION = ortho_group.rvs(6, random_state=4)


def standardised_difference(rows: np.ndarray) -> np.ndarray:
    """Broken: scales each coordinate by its own standard deviation."""
    return mean_difference(rows[:20] / rows.std(axis=0), rows[20:] / rows.std(axis=0))


def standardised_angle(rows: np.ndarray) -> np.ndarray:
    scaled = rows / rows.std(axis=0)
    return principal_angles(scaled[:2], scaled[2:4])


def mahalanobis(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(mean_difference(rows[:20], rows[20:]) @ whitening(shrunk_covariance(rows)))


def repeatability(rows: np.ndarray) -> np.ndarray:
    groups = list(range(20))
    return split_half_cosine(rows[:20], rows[20:], groups, groups, rng=np.random.default_rng(0), n_splits=10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_rotation_rotates_directions_and_leaves_angles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotation = ortho_group.rvs(6, random_state=rng)
    law.rotation_rotates(lambda x: mean_difference(x[:20], x[20:]), ROWS, rotation)
    for k in range(3):
        law.rotation_rotates(lambda x, k=k: principal_components(x, 3)[0][k], ROWS, rotation)
    law.rotation_leaves(lambda x: principal_components(x, 3)[1], ROWS, rotation)
    law.rotation_leaves(lambda x: principal_angles(x[:2], x[2:4]), ROWS, rotation)
    law.rotation_leaves(lambda x: np.array(cosine(x[0], x[1])), ROWS, rotation)
    law.rotation_leaves(mahalanobis, ROWS, rotation)
    law.rotation_leaves(repeatability, ROWS, rotation)
    covariance = shrunk_covariance(ROWS, shrinkage=0.1)
    assert np.allclose(shrunk_covariance(ROWS @ rotation, shrinkage=0.1), rotation.T @ covariance @ rotation)
