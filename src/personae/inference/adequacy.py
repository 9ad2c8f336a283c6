"""Is the cast adequate: does a mixture of it predict a conversation it has not seen better than less would?

    elpd_i = log sum_k E[w_k | all but i] p_k(y_i)            nats, leave-one-conversation-out

compared with the background alone and with the single persona that predicts the others best. The marginal
likelihood of a misspecified model is not used. Weights without conversation i come from the sampler's
assignments (each removes its own count, and draws are re-weighted by 1 / p(y_i | the others), Gelfand & Dey
1994), so nothing is fitted n times and no re-weighting is unbounded. Not here: whether the background is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from personae.inference.mixture import default_concentration, fit_mixture
from personae.inference.passes import row_maxima

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Adequacy:
    """What the mixture adds.

    Attributes:
        elpd: Sum over conversations for the mixture, nats.
        over_background, over_background_se: Its gain over the background alone, with the paired standard error.
        over_single, over_single_se: Its gain over the best single persona.
        best_single: Column of the persona that predicts best alone, most often chosen.
        background, background_low, background_high: The background's weight and its 90% interval.
        pointwise: elpd_i of mixture, background and best single persona, shape (n, 3).
    """

    elpd: float
    over_background: float
    over_background_se: float
    over_single: float
    over_single_se: float
    best_single: int
    background: float
    background_low: float
    background_high: float
    pointwise: Floats


def adequacy(
    log_likelihood: Floats,
    log_prior: Floats,
    *,
    eta: float,
    concentration: float | None = None,
    sweeps: int = 400,
    burn_in: int = 100,
    seed: int = 0,
) -> Adequacy:
    """Compare the mixture with the background alone and with the best single persona.

    Weights are learnt at power eta; predictions are the personas' own densities, not tempered, so differences are
    nats of text.

    Args:
        log_likelihood: Nats a conversation, the background last, shape (n, n_components), n at least 2.
        log_prior: Of the components.
        eta: Power on the likelihood while weights are learnt.
        concentration: Of the Dirichlet; see `mixture.default_concentration`.
        sweeps: Of the sampler.
        burn_in: Sweeps dropped.
        seed: Of the sampler.
    """
    n, k = log_likelihood.shape
    total = default_concentration(k) if concentration is None else concentration
    without = _weights_without(eta * log_likelihood, total * np.exp(log_prior), sweeps, burn_in, seed)
    with np.errstate(divide="ignore"):
        mixture = np.asarray(logsumexp(log_likelihood + np.log(without), axis=1))
    sums = log_likelihood[:, :-1].sum(axis=0)
    chosen = (sums - log_likelihood[:, :-1]).argmax(axis=1)
    single = log_likelihood[np.arange(n), chosen]
    points = np.stack([mixture, log_likelihood[:, -1], single], axis=1)
    fit = fit_mixture(log_likelihood, log_prior, eta=eta, concentration=total, seed=seed)
    gains = points[:, :1] - points[:, 1:]
    errors = gains.std(axis=0, ddof=1) * np.sqrt(n)
    return Adequacy(
        float(mixture.sum()),
        float(gains[:, 0].sum()),
        float(errors[0]),
        float(gains[:, 1].sum()),
        float(errors[1]),
        int(np.bincount(chosen).argmax()),
        float(fit.weight[-1]),
        float(fit.low[-1]),
        float(fit.high[-1]),
        points,
    )


def _weights_without(tempered: Floats, alpha: Floats, sweeps: int, burn_in: int, seed: int) -> Floats:
    """E[w | all conversations but i] for every i, shape (n, n_components)."""
    n, k = tempered.shape
    rng = np.random.default_rng(seed)
    likelihood = np.exp(tempered - row_maxima(tempered))
    w = alpha / alpha.sum()
    rows = np.arange(n)
    sums, norms = np.zeros((n, k)), np.zeros(n)
    for sweep in range(sweeps):
        cumulative = np.cumsum(likelihood * w, axis=1)
        below = cumulative < (rng.random(n) * cumulative[:, -1])[:, None]
        assigned = np.minimum(below.sum(axis=1), k - 1)
        counts = alpha + np.bincount(assigned, minlength=k)
        gamma = rng.gamma(np.maximum(counts, 1e-12))
        w = gamma / gamma.sum()
        if sweep < burn_in:
            continue
        # The predictive of i given the others' assignments: its own count taken out.
        predictive = likelihood @ counts - likelihood[rows, assigned]
        weight = 1 / np.maximum(predictive, 1e-300)
        sums += weight[:, None] * counts
        sums[rows, assigned] -= weight
        norms += weight
    left = sums / norms[:, None]
    return left / left.sum(axis=1, keepdims=True)
