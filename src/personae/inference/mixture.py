"""Weights of a persona mixture from log-likelihoods: EM for the mode, Gibbs for intervals.

    p(D | w) = prod over conversations i of  sum_k w_k exp(eta * l_ik),    w ~ Dirichlet(alpha)

The unit is the conversation: log-likelihoods of its episodes are added first (times their weights, so that a
rejected reply counts against). The last component is the background. Not here: where l comes from.
Sources: the model is Xie et al. 2022 (arXiv 2111.02080) restricted to a finite cast; the power eta follows
Holmes & Walker 2017 (arXiv 1701.08515).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from personae.numerics.logspace import softmax

Floats = NDArray[np.float64]

# Power on the likelihood until `calibrate` fits one for a model and cast: the token model of a small LM is
# over-confident about who speaks. A provisional value, chosen and not calibrated; every result names it.
DEFAULT_ETA = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class MixtureFit:
    """Posterior over mixture weights.

    Attributes:
        weight: Posterior mean of each component's weight, shape (n_components,).
        low, high: Equal-tailed interval of `level`, same shape.
        mode: EM's maximum a posteriori, same shape.
        responsibilities: Probability of each component for each conversation at the mode, shape
            (n_groups, n_components).
        level: Mass of the interval.
        n_groups: Conversations used.
    """

    weight: Floats
    low: Floats
    high: Floats
    mode: Floats
    responsibilities: Floats
    level: float
    n_groups: int


def sum_by_group(values: Floats, group: Sequence[str], weight: Floats) -> Floats:
    """Weighted sum of rows over each group, in order of first appearance; shape (n_groups, n_columns).

    Episodes of weight 0 are left out, also when impossible (0 times -inf is 0 here).
    """
    place = {g: i for i, g in enumerate(dict.fromkeys(group))}
    sums = np.zeros((len(place), values.shape[1]))
    used = weight != 0
    rows = np.array([place[g] for g in group], np.int64)[used]
    np.add.at(sums, rows, values[used] * weight[used, None])
    return sums[np.unique(rows)]


def fit_mixture(
    log_likelihood: Floats,
    log_prior: Floats,
    *,
    eta: float = DEFAULT_ETA,
    concentration: float = 1.0,
    sweeps: int = 800,
    burn_in: int = 200,
    level: float = 0.9,
    seed: int = 0,
) -> MixtureFit:
    """Fit the weights of a mixture of given components.

    Args:
        log_likelihood: One row a conversation, one column a component, nats, shape (n_groups, n_components).
        log_prior: Log prior of the components, shape (n_components,); its mean under the Dirichlet.
        eta: Power on the likelihood.
        concentration: Total prior mass of the Dirichlet, in conversations.
        sweeps: Gibbs sweeps.
        burn_in: Sweeps dropped at the start.
        level: Mass of the equal-tailed intervals.
        seed: Of the sampler.

    Returns:
        The fit. With no conversations it is the prior.
    """
    alpha = concentration * np.exp(log_prior)
    tempered = eta * log_likelihood
    mode, responsibilities = expectation_maximisation(tempered, log_prior, concentration=concentration)
    draws = _gibbs(tempered, alpha, sweeps=sweeps, burn_in=burn_in, rng=np.random.default_rng(seed))
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return MixtureFit(draws.mean(axis=0), low, high, mode, responsibilities, level, len(log_likelihood))


def expectation_maximisation(
    tempered: Floats, log_prior: Floats, *, concentration: float = 1.0, tolerance: float = 1e-9, most: int = 5000
) -> tuple[Floats, Floats]:
    """Posterior-mean style fixed point w = (alpha + sum_i rho_i) / (A + n), and the responsibilities.

    The Dirichlet's alpha is added as pseudo-counts (not alpha - 1), which stays inside the simplex for any
    alpha > 0 and is the mode in the log-odds parametrisation.
    """
    alpha = concentration * np.exp(log_prior)
    log_w = np.log(np.maximum(alpha / alpha.sum(), 1e-300))
    rho = np.zeros_like(tempered)
    for _ in range(most):
        rho = softmax(tempered + log_w, axis=1) if len(tempered) else rho
        w = alpha + rho.sum(axis=0)
        w /= w.sum()
        moved = np.abs(w - np.exp(log_w)).max()
        log_w = np.log(np.maximum(w, 1e-300))
        if moved < tolerance:
            break
    return np.exp(log_w), rho


def log_marginal_likelihood(tempered: Floats, weights: Floats) -> float:
    """Sum over conversations of log sum_k w_k exp(l_ik), nats."""
    with np.errstate(divide="ignore"):
        return float(np.sum(logsumexp(tempered + np.log(weights), axis=1)))


def _gibbs(tempered: Floats, alpha: Floats, *, sweeps: int, burn_in: int, rng: np.random.Generator) -> Floats:
    """Draws of w: assign every conversation, then draw the weights given the counts."""
    n, k = tempered.shape
    likelihood = np.exp(tempered - tempered.max(axis=1, keepdims=True)) if n else np.zeros((0, k))
    w = alpha / alpha.sum()
    draws = np.empty((sweeps - burn_in, k))
    for sweep in range(sweeps):
        cumulative = np.cumsum(likelihood * w, axis=1)
        pick = rng.random(n) * cumulative[:, -1] if n else np.zeros(0)
        assigned = (cumulative < pick[:, None]).sum(axis=1)
        counts = np.bincount(np.minimum(assigned, k - 1), minlength=k)
        gamma = rng.gamma(np.maximum(alpha + counts, 1e-12))
        w = gamma / gamma.sum()
        if sweep >= burn_in:
            draws[sweep - burn_in] = w
    return draws
