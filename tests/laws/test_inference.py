"""Laws of the right half, on random tables."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from personae.inference.mixture import expectation_maximisation
from personae.numerics.logspace import chain_increments, log_mean_exp, log_normalise

tables = arrays(np.float64, st.tuples(st.integers(1, 12), st.just(4)), elements=st.floats(-40, 0))
PRIOR = np.log(np.array([0.4, 0.3, 0.2, 0.1]))


def mode(table: np.ndarray, log_prior: np.ndarray = PRIOR) -> np.ndarray:
    return expectation_maximisation(table, log_prior, concentration=2.0)[0]


@settings(max_examples=50, deadline=None)
@given(tables, st.permutations(range(4)))
def test_permuting_personas_permutes_the_posterior(table: np.ndarray, order: list[int]) -> None:
    assert np.allclose(mode(table[:, order], PRIOR[order]), mode(table)[order], atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(tables, st.floats(-30, 30))
def test_a_constant_for_all_personas_changes_nothing(table: np.ndarray, constant: float) -> None:
    shifted = table.copy()
    shifted[0] += constant
    assert np.allclose(mode(shifted), mode(table), atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(tables)
def test_order_of_conversations_does_not_matter(table: np.ndarray) -> None:
    assert np.allclose(mode(table[::-1]), mode(table), atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(tables)
def test_twins_share_a_weight_and_leave_the_others(table: np.ndarray) -> None:
    twins = np.concatenate([table, table[:, 3:]], axis=1)
    split = np.append(PRIOR[:3], [PRIOR[3] - np.log(2)] * 2)
    before, after = mode(table), mode(twins, split)
    assert np.allclose(after[:3], before[:3], atol=1e-4)
    assert np.isclose(after[3] + after[4], before[3], atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 20)), elements=st.floats(-30, 0)))
def test_token_parts_sum_to_the_mixture(logs: np.ndarray) -> None:
    assert np.isclose(chain_increments(logs).sum(), log_mean_exp(logs.sum(axis=1)), atol=1e-8)


@settings(max_examples=100, deadline=None)
@given(arrays(np.float64, st.integers(1, 20), elements=st.floats(-700, 700)))
def test_normalised_logs_sum_to_one(values: np.ndarray) -> None:
    assert np.isclose(np.exp(log_normalise(values)).sum(), 1.0)
