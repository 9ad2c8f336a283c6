"""Weights of a persona mixture from log-likelihoods: EM for the mode, Gibbs for intervals.

    p(D | w) = prod over conversations i of  sum_k w_k exp(eta * l_ik),    w ~ Dirichlet(alpha)

The unit is the conversation: log-likelihoods of its episodes are added first (times their weights, so that a
rejected reply counts against). The last component is the background. The log posterior is concave in w, so
there is one mode; restarts are a check. Not here: where l comes from, and which eta (`calibration`).
Sources: the model is Xie et al. 2022 (arXiv 2111.02080) restricted to a finite cast; the power eta follows
Holmes & Walker 2017 (arXiv 1701.08515); acceleration is SQUAREM (Varadhan & Roland 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, logsumexp

from personae.inference.passes import NumpyPasses, Passes, choose_passes
from personae.numerics.logspace import softmax

Floats = NDArray[np.float64]

# Power on the likelihood until `calibrate` fits one for a model and cast: the token model of a small LM is
# over-confident about who speaks. A provisional value, chosen and not calibrated; every result names it.
DEFAULT_ETA = 0.25

_PER_COMPONENT, _MOST_PRIOR = 0.5, 10.0
_TINY = 1e-300
_LEAST_SHAPE = 1e-12
_ROWS_AT_ONCE = 65_536


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
        draws: Gibbs draws of the weights, shape (n_draws, n_components).
        restart_gap: Largest difference between modes found from different starts, in weight.
    """

    weight: Floats
    low: Floats
    high: Floats
    mode: Floats
    responsibilities: Floats
    level: float
    n_groups: int
    draws: Floats
    restart_gap: float

    def functional(self, values: Floats) -> tuple[float, float, float]:
        """Mean and interval of sum_k w_k v_k: the weight of a trait or class, also where single weights blur."""
        drawn = self.draws @ values
        tail = (1 - self.level) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail])
        return float(drawn.mean()), float(low), float(high)


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


def default_concentration(n_components: int) -> float:
    """Total prior mass of the Dirichlet, in conversations: half a one for each component, at most ten in all.

    Half a count each is Jeffreys' prior for counts (alpha_k = 0.5 up to 20 components). In larger casts it
    would outweigh a file, so the total stays at ten and alpha_k = 10 / K: continuous at 20.
    """
    return min(_PER_COMPONENT * n_components, _MOST_PRIOR)


def fit_mixture(
    log_likelihood: Floats,
    log_prior: Floats,
    *,
    eta: float = DEFAULT_ETA,
    concentration: float | None = None,
    sweeps: int = 2000,
    burn_in: int | None = None,
    level: float = 0.9,
    restarts: int = 1,
    seed: int = 0,
) -> MixtureFit:
    """Fit the weights of a mixture of given components.

    Args:
        log_likelihood: One row a conversation, one column a component, nats, shape (n_groups, n_components).
        log_prior: Log prior of the components, shape (n_components,); its mean under the Dirichlet.
        eta: Power on the likelihood.
        concentration: Total prior mass of the Dirichlet, in conversations; see `default_concentration`.
        sweeps: Gibbs sweeps. Draws of like components follow one another slowly, and the ends of an interval are read
            from its tails: with 600 sweeps intervals hold the truth two points less often than with 2,000.
        burn_in: Sweeps dropped at the start, which is the mode; None: a fifth of them.
        level: Mass of the equal-tailed intervals.
        restarts: Further starts of EM, to check that they agree.
        seed: Of restarts and sampler.

    Returns:
        The fit. With no conversations it is the prior.

    Raises:
        NumericsError: If a conversation is impossible under every component.
    """
    n, k = log_likelihood.shape
    alpha = (default_concentration(k) if concentration is None else concentration) * np.exp(log_prior)
    rng = np.random.default_rng(seed)
    passes = choose_passes(eta * log_likelihood, sweeps=sweeps)
    mode = maximise(passes, alpha, alpha / alpha.sum())
    others = [maximise(passes, alpha, rng.dirichlet(np.ones(k))) for _ in range(restarts if n else 0)]
    gap = max((float(np.abs(other - mode).max()) for other in others), default=0.0)
    dropped = sweeps // 5 if burn_in is None else burn_in
    draws = sample_weights(passes, alpha, mode, sweeps=sweeps, burn_in=dropped, rng=rng)
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    rho = _responsibilities(log_likelihood, eta, mode)
    return MixtureFit(draws.mean(axis=0), low, high, mode, rho, level, n, draws, gap)


def expectation_maximisation(
    tempered: Floats, log_prior: Floats, *, concentration: float = 1.0, tolerance: float = 1e-9, most: int = 5000
) -> tuple[Floats, Floats]:
    """Posterior-mean style fixed point w = (alpha + sum_i rho_i) / (A + n), and the responsibilities.

    The Dirichlet's alpha is added as pseudo-counts (not alpha - 1), which stays inside the simplex for any
    alpha > 0 and is the mode in the log-odds parametrisation.
    """
    alpha = concentration * np.exp(log_prior)
    mode = maximise(NumpyPasses(tempered), alpha, alpha / alpha.sum(), tolerance=tolerance, most=most)
    return mode, _responsibilities(tempered, 1.0, mode)


def maximise(passes: Passes, alpha: Floats, start: Floats, *, tolerance: float = 1e-9, most: int = 5000) -> Floats:
    """Mode of the weights by EM with SQUAREM steps in log weights.

    Stops by the certificate of a concave problem: the objective is at most (n + A) * (max_k F(w)_k / w_k - 1)
    below its maximum, where F is a step of EM, so the stopping rule does not mistake slow for done.

    Args:
        passes: The table.
        alpha: Dirichlet parameters, shape (n_components,); 0 keeps a component at 0.
        start: Where to begin.
        tolerance: Of the certificate, per conversation, nats.
        most: Passes at most.
    """
    held = alpha > 0

    def step(w: Floats) -> tuple[Floats, float]:
        expected, fitted = passes.expect(w)
        return _normalised((alpha + expected) * held), fitted + float(alpha[held] @ np.log(w[held]))

    x0 = _normalised(start * held)
    for _ in range(0, most, 3):
        x1, _ = step(x0)
        if (x1[held] / x0[held]).max() - 1 <= tolerance:
            return x1
        x2, value = step(x1)
        x0 = _extrapolated(x0, x1, x2, held)
        ahead, reached = step(x0)
        x0 = ahead if reached >= value else x2
    return x0


def _extrapolated(x0: Floats, x1: Floats, x2: Floats, held: NDArray[np.bool_]) -> Floats:
    """SQUAREM's step (its third step length) on log weights; Notation: r, v, a as in the paper."""
    logs = [np.log(x[held]) for x in (x0, x1, x2)]
    r = logs[1] - logs[0]
    v = logs[2] - logs[1] - r
    size = float(np.sqrt(v @ v))
    a = min(-1.0, -float(np.sqrt(r @ r)) / size) if size > 0 else -1.0
    ahead = np.zeros_like(x0)
    theta = logs[0] - 2 * a * r + a * a * v
    ahead[held] = np.exp(theta - theta.max())
    return _normalised(ahead)


def _normalised(w: Floats) -> Floats:
    w = np.where(w > 0, np.maximum(w / w.sum(), _TINY), 0.0)
    return w / w.sum()


def sample_weights(
    passes: Passes, alpha: Floats, start: Floats, *, sweeps: int, burn_in: int, rng: np.random.Generator
) -> Floats:
    """Draws of w: assign every conversation, then draw the weights given the counts.

    Args:
        passes: The table.
        alpha: Dirichlet parameters.
        start: Weights of the first sweep.
        sweeps: All sweeps.
        burn_in: Sweeps dropped.
        rng: Gives one uniform a conversation and one a component each sweep, in this order.

    Returns:
        Shape (sweeps - burn_in, n_components).
    """
    w = start
    draws = np.empty((sweeps - burn_in, len(alpha)))
    for sweep in range(sweeps):
        counts = passes.count(w, rng.random(passes.n_rows))
        # By the inverse distribution function, not by rejection: a row that falls to the other side of a rounding
        # error then moves the draw by as little, and does not shift every later random number.
        gamma = gammaincinv(np.maximum(alpha + counts, _LEAST_SHAPE), rng.random(len(alpha)))
        w = gamma / gamma.sum()
        if sweep >= burn_in:
            draws[sweep - burn_in] = w
    return draws


def log_marginal_likelihood(tempered: Floats, weights: Floats) -> float:
    """Sum over conversations of log sum_k w_k exp(l_ik), nats."""
    with np.errstate(divide="ignore"):
        return float(np.asarray(logsumexp(tempered + np.log(weights), axis=1)).sum())


def _responsibilities(log_likelihood: Floats, eta: float, weights: Floats) -> Floats:
    """Probability of each component for each row, in pieces that keep temporaries small."""
    log_w = np.log(np.maximum(weights, _TINY))
    rho = np.empty(log_likelihood.shape)
    for at in range(0, len(rho), _ROWS_AT_ONCE):
        piece = slice(at, at + _ROWS_AT_ONCE)
        rho[piece] = softmax(eta * log_likelihood[piece] + log_w, axis=1)
    return rho
