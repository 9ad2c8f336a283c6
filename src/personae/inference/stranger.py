"""A stranger among known characters: one more table of answers, learned from the conversations themselves.

    l_i0 = log p(C_i | 1 + sum over j != i of r_j C_j)        Dirichlet-multinomial; r_j: responsibility of the stranger

Each conversation alone is Polya's urn: every table of answers as likely as another. Where strangers speak, each is
recognised by what the others said, never by its own words: empirical Bayes for one component of unknown parameters
(Robbins 1956), the conversation itself left out. A blend of known characters can be learned as well, so what was
learned is believed only where it predicts the conversations better than the urn by three standard errors. Not here:
the known characters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp, softmax

Floats = NDArray[np.float64]

_MOST_ROUNDS = 60
_SETTLED = 1e-4  # nats
_CONCENTRATION = 0.5  # of the weights, as for mixtures
_LEAST_ERRORS = 3.0


def stranger_log_likelihood(known: Floats, counts: Floats) -> Floats:
    """Log-likelihood of every conversation under a stranger, nats, shape (n,).

    Args:
        known: Under every known character, shape (n, n_characters).
        counts: How often each answer was given to each question, shape (n, n_questions, n_answers).
    """
    urn = column = _predictive(counts, np.zeros_like(counts))
    even = np.full(known.shape[1] + 1, -np.log(known.shape[1] + 1))
    share, told = _shares(known, urn, even)
    for _ in range(_MOST_ROUNDS):
        mine = share[:, -1, None, None] * counts
        last, column = column, _predictive(counts, mine.sum(axis=0) - mine)
        weights = share.sum(axis=0) + _CONCENTRATION
        share, told = _shares(known, column, np.log(weights / weights.sum()))
        if np.abs(column - last).max() < _SETTLED:
            break
    gain = told - _settled(known, urn)
    return column if gain.sum() > _LEAST_ERRORS * np.sqrt(len(gain)) * gain.std() else urn


def _shares(known: Floats, column: Floats, log_weights: Floats) -> tuple[Floats, Floats]:
    """Responsibilities, shape (n, k), and the log-likelihood of every conversation under the mixture."""
    table = np.column_stack([known, column]) + log_weights
    return softmax(table, axis=1), np.asarray(logsumexp(table, axis=1))


def _settled(known: Floats, column: Floats) -> Floats:
    """Log-likelihood of every conversation under the best mixture with this column."""
    log_weights = np.full(known.shape[1] + 1, -np.log(known.shape[1] + 1))
    for _ in range(_MOST_ROUNDS):
        share, _ = _shares(known, column, log_weights)
        weights = share.sum(axis=0) + _CONCENTRATION
        log_weights = np.log(weights / weights.sum())
    return _shares(known, column, log_weights)[1]


def _predictive(counts: Floats, others: Floats) -> Floats:
    """Of each conversation, given what others were counted to say: log-probability of its answers in their order."""
    prior = 1.0 + others
    each = (gammaln(prior + counts) - gammaln(prior)).sum(axis=-1)
    whole = gammaln(prior.sum(axis=-1) + counts.sum(axis=-1)) - gammaln(prior.sum(axis=-1))
    return (each - whole).sum(axis=-1)
