"""A stranger is known by what other conversations say; where there is none, nobody is taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import gammaln

from personae.inference.mixture import fit_mixture
from personae.inference.stranger import stranger_log_likelihood

K, Q, A, TURNS = 4, 12, 4, 8


def spoken(share: float, seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Conversations of known characters in the parts 4:3:2:1, a share of all by a table that nobody has."""
    rng = np.random.default_rng(seed)
    theta = rng.dirichlet(np.ones(A), size=(K + 1, Q))
    who = rng.choice(K + 1, size=n, p=np.append(np.array([0.4, 0.3, 0.2, 0.1]) * (1 - share), share))
    counts = np.zeros((n, Q, A))
    for i, k in enumerate(who):
        for q in rng.permutation(Q)[:TURNS]:
            counts[i, q, rng.choice(A, p=theta[k, q])] += 1
    known = np.einsum("nqa,kqa->nk", counts, np.log(theta[:K]))
    return known, counts, who


def weights(known: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    fit = fit_mixture(np.column_stack([known, column]), np.full(K + 1, -np.log(K + 1)), eta=1.0)
    low, high = np.quantile(fit.draws[:, -1], [0.05, 0.95])
    return fit.weight, low, high


def polya(counts: np.ndarray) -> np.ndarray:
    """Each conversation by itself."""
    each = gammaln(1 + counts).sum(axis=-1)
    return (each - gammaln(A + counts.sum(axis=-1)) + gammaln(A)).sum(axis=-1)


def test_a_fifth_of_strangers_is_a_fifth_and_its_interval_covers() -> None:
    found, covered, alone = [], [], []
    for seed in range(8):
        known, counts, who = spoken(0.2, seed)
        truth = float((who == K).mean())
        column = stranger_log_likelihood(known, counts)
        mean, low, high = weights(known, column)
        found.append(mean[-1] - truth)
        covered.append(low <= truth <= high)
        urn = polya(counts)
        alone.append(weights(known, urn)[0][-1] - truth)
    assert np.abs(found).max() <= 0.04
    assert sum(covered) >= 6
    assert np.abs(alone).mean() > 1.5 * np.abs(found).mean(), "each conversation by itself tells less"


def test_where_nobody_is_strange_the_stranger_gets_nothing() -> None:
    """A blend of the known could be learned; it does not predict well enough to be believed."""
    for seed in range(10):
        known, counts, _ = spoken(0.0, seed)
        urn = polya(counts)
        np.testing.assert_allclose(stranger_log_likelihood(known, counts), urn)
        assert weights(known, urn)[0][-1] <= 0.03


def test_alone_a_conversation_is_polyas_urn_whatever_the_order() -> None:
    counts = np.zeros((1, 2, 3))
    counts[0, 0] = (2, 1, 0)
    counts[0, 1, 2] = 1
    column = stranger_log_likelihood(np.zeros((1, 2)), counts)
    assert column[0] == pytest.approx(np.log(1 / 3 * 2 / 4 * 1 / 5 * 1 / 3))
