"""Arithmetic on logarithms of probabilities. Everything is in nats and float64.

Not here: anything that knows what a persona is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

Floats = NDArray[np.float64]


def log_mean_exp(values: ArrayLike, axis: int = 0) -> Floats:
    """Log of the mean of exp(values) along `axis`: the log-likelihood of an equal mixture."""
    array = np.asarray(values, dtype=np.float64)
    return np.asarray(logsumexp(array, axis=axis) - np.log(array.shape[axis]))


def log_normalise(values: ArrayLike, axis: int = -1) -> Floats:
    """Subtract the log-sum-exp along `axis`, so that probabilities sum to 1."""
    array = np.asarray(values, dtype=np.float64)
    return array - np.asarray(logsumexp(array, axis=axis, keepdims=True))


def softmax(values: ArrayLike, axis: int = -1) -> Floats:
    """Probabilities proportional to exp(values) along `axis`."""
    return np.exp(log_normalise(values, axis=axis))


def chain_increments(token_log_probs: Floats) -> Floats:
    """What each token adds to the log-likelihood of an equal mixture of token models.

    Args:
        token_log_probs: log p(y_t | y_<t, r) for paraphrase r, shape (n_paraphrases, n_tokens).

    Returns:
        Shape (n_tokens,); the entries sum to log_mean_exp of the summed rows, by the chain rule

            log p(y_t | y_<t) = LME_r cum_r(t) - LME_r cum_r(t - 1).
    """
    totals = log_mean_exp(np.cumsum(np.asarray(token_log_probs, np.float64), axis=1), axis=0)
    return np.diff(totals, prepend=0.0)
