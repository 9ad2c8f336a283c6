"""Laws of the right half as functions of an implementation, so that a broken one can be put to them.

An implementation takes (log_prior, log_likelihood) and gives log weights, shape (n_personas,).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Infer = Callable[[np.ndarray, np.ndarray], np.ndarray]


def same(a: np.ndarray, b: np.ndarray, atol: float) -> None:
    assert np.allclose(np.exp(a), np.exp(b), atol=atol), (np.exp(a), np.exp(b))


def permuting_personas_permutes(
    infer: Infer, prior: np.ndarray, table: np.ndarray, order: list[int], atol: float
) -> None:
    same(infer(prior[order], table[:, order]), infer(prior, table)[order], atol)


def constant_changes_nothing(infer: Infer, prior: np.ndarray, table: np.ndarray, constant: float, atol: float) -> None:
    shifted = table.copy()
    shifted[0] += constant
    same(infer(prior, shifted), infer(prior, table), atol)


def no_evidence_returns_the_prior(infer: Infer, prior: np.ndarray, atol: float) -> None:
    same(infer(prior, np.zeros((0, len(prior)))), prior, atol)


def twins_leave_the_others(infer: Infer, prior: np.ndarray, table: np.ndarray, atol: float) -> None:
    split = np.append(prior[:-1], [prior[-1] - np.log(2)] * 2)
    before = infer(prior, table)
    after = infer(split, np.concatenate([table, table[:, -1:]], axis=1))
    same(after[:-2], before[:-1], atol)
    assert np.isclose(np.exp(after[-2:]).sum(), np.exp(before[-1]), atol=atol)


def order_of_episodes_does_not_matter(
    infer: Infer, prior: np.ndarray, table: np.ndarray, order: np.ndarray, atol: float
) -> None:
    same(infer(prior, table[order]), infer(prior, table), atol)


def sequential_equals_batch(infer: Infer, prior: np.ndarray, table: np.ndarray, atol: float) -> None:
    """The posterior of what came first is the prior of what comes next."""
    belief = prior
    for row in table:
        belief = infer(belief, row[None])
    same(belief, infer(prior, table), atol)


def shift_is_linear_in_the_weights(
    infer: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    prior: np.ndarray,
    table: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    atol: float,
) -> None:
    """The shift in log-odds under a sum of weights is the sum of the shifts; `infer` takes weights as well."""

    def shift(weight: np.ndarray) -> np.ndarray:
        moved = infer(prior, table, weight) - prior
        return moved - moved[0]

    assert np.allclose(shift(first + second), shift(first) + shift(second), atol=atol)
    assert np.allclose(shift(2 * first), 2 * shift(first), atol=atol)


def chain_rule_over_episodes(
    marginal: Callable[[np.ndarray, np.ndarray], float], infer: Infer, prior: np.ndarray, table: np.ndarray, cut: int
) -> None:
    """log p(all) = log p(first) + log p(rest | first)."""
    first, rest = table[:cut], table[cut:]
    assert np.isclose(marginal(prior, table), marginal(prior, first) + marginal(infer(prior, first), rest), atol=1e-7)


def rotation_rotates(direction: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, rotation: np.ndarray) -> None:
    """A direction found in a rotated space is the rotated direction (up to its sign)."""
    turned, straight = direction(rows @ rotation), direction(rows) @ rotation
    scale = max(np.abs(straight).max(), 1e-12)
    assert min(np.abs(turned - straight).max(), np.abs(turned + straight).max()) < 1e-6 * scale


def rotation_leaves(number: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, rotation: np.ndarray) -> None:
    """An angle or a whitened length is the same in a rotated space."""
    assert np.allclose(number(rows @ rotation), number(rows), atol=1e-6, rtol=1e-6)
