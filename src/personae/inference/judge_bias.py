"""A judge that hears some personas everywhere: what labelled conversations say of its bias, and weights without it.

    corrected l_ik = l_ik + n_i b_k          b: nats a token, fitted with eta by  - mean_i log softmax(eta l_i)[label_i]

A mixture fitted to likelihoods that favour one persona gives it weight that belongs to others, and more conversations
only make it surer. Where conversations of known speakers are at hand, one offset a persona takes the favour out; the
mixture is then fitted as before. This is label-shift estimation with a calibrated classifier: EM of Saerens et al.
2002, bias-corrected temperature of Alexandari et al. 2020 (arXiv 1901.06852), the bias here growing with length. Beside
it stands the confusion matrix turned round (black-box shift estimation, Lipton et al. 2018, arXiv 1802.03916), which
needs no likelihoods to be right and pays with variance. Not here: where labels come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls
from scipy.special import logsumexp, softmax

from personae.errors import InvalidSettings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LOG_ETA_SD = 2.0
_BIAS_SD = 1.0  # nats a conversation of mean length, after tempering
_ONE = 1e3  # weight of the constraint that weights sum to one


@dataclass(frozen=True, slots=True, eq=False)
class JudgeBias:
    """What labels say about a judge.

    Attributes:
        eta: Power on the corrected likelihood.
        offset: Nats a token to be added for every persona, before the power, sum 0, shape (n_personas,).
        log_loss, log_loss_without: Mean log-loss of the labels, nats, with offsets and with the power alone.
    """

    eta: float
    offset: Floats
    log_loss: float
    log_loss_without: float


def fit_judge_bias(log_likelihood: Floats, label: Ints, n_tokens: Ints, *, offsets: bool = True) -> JudgeBias:
    """Fit power and offsets to labelled conversations.

    A normal prior of one tempered nat a conversation holds offsets near 0, so that few labels move them little.

    Args:
        log_likelihood: Nats a conversation, shape (n, n_personas).
        label: Column of the persona that spoke, shape (n,).
        n_tokens: Scored tokens, shape (n,).
        offsets: False for the power alone.

    Raises:
        InvalidSettings: If there are fewer than two conversations or personas.
    """
    n, k = log_likelihood.shape
    if n < 2 or k < 2:
        raise InvalidSettings(f"a judge cannot be calibrated on {n} conversations of {k} personas; 2 of both at least.")
    length = n_tokens / n_tokens.mean()
    hit = np.eye(k)[label]

    def loss(theta: Floats) -> tuple[float, Floats]:
        eta = np.exp(theta[0])
        scaled = eta * log_likelihood + length[:, None] * theta[1:]
        miss = softmax(scaled, axis=1) - hit
        value = float((np.asarray(logsumexp(scaled, axis=1)) - (scaled * hit).sum(axis=1)).sum())
        value += 0.5 * (theta[0] / _LOG_ETA_SD) ** 2 + 0.5 * float((theta[1:] ** 2).sum()) / _BIAS_SD**2
        slope = np.append((miss * log_likelihood).sum() * eta + theta[0] / _LOG_ETA_SD**2, length @ miss)
        slope[1:] += theta[1:] / _BIAS_SD**2
        return value, slope

    def fitted(free: bool) -> Floats:
        bounds = [(-9.0, 2.3), *[(None, None) if free else (0.0, 0.0)] * k]
        return minimize(loss, np.zeros(k + 1), jac=True, method="L-BFGS-B", bounds=bounds).x

    without, best = fitted(False), fitted(offsets)
    eta = float(np.exp(best[0]))
    offset = (best[1:] - best[1:].mean()) / (eta * n_tokens.mean())
    losses = [_log_loss(np.exp(t[0]) * log_likelihood + length[:, None] * t[1:], label) for t in (best, without)]
    return JudgeBias(eta, offset, losses[0], losses[1])


def _log_loss(scaled: Floats, label: Ints) -> float:
    return float((np.asarray(logsumexp(scaled, axis=1)) - scaled[np.arange(len(label)), label]).mean())


def without_bias(log_likelihood: Floats, n_tokens: Ints, bias: JudgeBias) -> Floats:
    """Log-likelihoods with each persona's offset; columns beyond the labelled personas are left as they are."""
    out = log_likelihood.copy()
    out[:, : len(bias.offset)] += n_tokens[:, None] * bias.offset
    return out


def confusion(log_likelihood: Floats, label: Ints, bias: JudgeBias, n_tokens: Ints) -> Floats:
    """Mean responsibilities under equal weights of the conversations of every speaker, shape (k, k); row: speaker."""
    k = log_likelihood.shape[1]
    heard = softmax(bias.eta * without_bias(log_likelihood, n_tokens, bias), axis=1)
    return np.stack([heard[label == j].mean(axis=0) for j in range(k)])


@dataclass(frozen=True, slots=True, eq=False)
class Turned:
    """Weights by the confusion of known speakers turned round.

    Attributes:
        weight, low, high: With 90% intervals, labelled and other conversations resampled, shape (k,).
        confusion: Mean responsibilities of the conversations of every speaker, shape (k, k); row: speaker.
        bias: What labels said of the judge.
    """

    weight: Floats
    low: Floats
    high: Floats
    confusion: Floats
    bias: JudgeBias


def turned_round(
    known: Floats, label: Ints, n_known: Ints, heard: Floats, n_heard: Ints, *, n_draws: int = 200, seed: int = 0
) -> Turned:
    """Weights of unknown speakers whose conversations would be heard as these were.

    Args:
        known: Log-likelihoods of labelled conversations, nats, shape (n, k); every column has spoken.
        label: Who spoke, shape (n,).
        n_known: Scored tokens of the labelled, shape (n,).
        heard: Log-likelihoods of the others, shape (m, k).
        n_heard: Scored tokens of the others, shape (m,).
        n_draws: Resamples.
        seed: Of resamples.
    """
    bias = fit_judge_bias(known, label, n_known)
    k = known.shape[1]
    of_known = softmax(bias.eta * without_bias(known, n_known, bias), axis=1)
    of_heard = softmax(bias.eta * without_bias(heard, n_heard, bias), axis=1)
    groups = [np.flatnonzero(label == j) for j in range(k)]
    rng = np.random.default_rng([seed, 67])
    draws = np.empty((n_draws, k))
    for d in range(n_draws):
        table = np.stack([of_known[rng.choice(g, len(g))].mean(axis=0) for g in groups])
        draws[d] = _on_simplex(table, of_heard[rng.integers(len(of_heard), size=len(of_heard))].mean(axis=0))
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    table = np.stack([of_known[g].mean(axis=0) for g in groups])
    weight = _on_simplex(table, of_heard.mean(axis=0))
    return Turned(weight, np.minimum(low, weight), np.maximum(high, weight), table, bias)


def deconvolved(log_likelihood: Floats, n_tokens: Ints, bias: JudgeBias, table: Floats) -> Floats:
    """Weights whose conversations would be heard as these were: least squares on the simplex, shape (k,)."""
    heard = softmax(bias.eta * without_bias(log_likelihood, n_tokens, bias), axis=1).mean(axis=0)
    return _on_simplex(table, heard)


def _on_simplex(table: Floats, heard: Floats) -> Floats:
    """Weights >= 0 of sum 1 for which table' weights is nearest to what was heard, by least squares."""
    left = np.vstack([table.T, np.full((1, len(table)), _ONE)])
    weights, _ = nnls(left, np.append(heard, _ONE))
    return weights / weights.sum()
