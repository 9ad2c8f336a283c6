"""Calibration on labelled conversations: the power eta, and how far probabilities can be believed.

    eta = argmin  - mean_i log softmax_k(eta * l_ik)[label_i]          what labels say, then
    eta <- eta * 0.9 * 0.9 ...  until intervals cover                   what files made of them say

A token model counts every token as fresh evidence of the speaker and is too sure of itself; a prompted persona
can also be a diluted one, and then eta exceeds 1. Lengths are never divided out. Not here: where labels come
from (`protocols.calibrate`), weights (`mixture`).
Sources: tempered likelihoods Holmes & Walker 2017 (arXiv 1701.08515), Grunwald & van Ommen 2017; choice by
coverage, Syring & Martin 2019 as compared by Wu & Martin 2023 (arXiv 2012.11349); Cllr, Brummer & du Preez 2006.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize, minimize_scalar
from scipy.special import expit, logit, logsumexp, softmax

from personae.errors import InvalidSettings
from personae.inference.mixture import default_concentration
from personae.inference.passes import row_maxima

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# eta is sought between these; a wide log-normal prior keeps it finite where labels are told without error.
_LEAST_LOG_ETA, _MOST_LOG_ETA, _PRIOR_SD = -9.0, 2.3, 2.0
_LEVEL = 0.9
_SHRINK = 0.9
_MOST_SHRINKS = 20
_TRIES = 50
_EM_STEPS, _BURN_IN, _SWEEPS = 30, 50, 350
_CERTAIN = 1e-12


@dataclass(frozen=True, slots=True)
class TemperatureFit:
    """A power fitted to labels.

    Attributes:
        eta: The power.
        low, high: 90% interval, clusters resampled.
        log_loss: Nats a conversation at eta.
        log_loss_at_one: At eta 1: what believing the token model would cost.
        log_loss_uniform: log K: what knowing nothing costs.
        accuracy: Share of conversations whose likeliest persona is the one that spoke; the power does not change it.
        n: Conversations.
    """

    eta: float
    low: float
    high: float
    log_loss: float
    log_loss_at_one: float
    log_loss_uniform: float
    accuracy: float
    n: int


def fit_temperature(
    log_likelihood: Floats, label: Ints, cluster: Sequence[str], *, n_draws: int = 200, seed: int = 0
) -> TemperatureFit:
    """Fit the power to labelled conversations by multinomial log-loss.

    Args:
        log_likelihood: Nats a conversation, summed and not divided by length, shape (n, n_personas).
        label: Column of the persona that spoke, shape (n,).
        cluster: What is resampled: conversations with equal questions share one.
        n_draws: Bootstrap resamples for the interval.
        seed: Of the bootstrap.

    Raises:
        InvalidSettings: If there are no conversations or only one persona.
    """
    n, k = log_likelihood.shape
    if n < 2 or k < 2:
        raise InvalidSettings(f"a power cannot be fitted to {n} conversations of {k} personas; both must be 2 or more.")
    eta = _best_eta(log_likelihood, label, np.ones(n))
    index = _cluster_index(cluster)
    rng = np.random.default_rng(seed)
    draws: list[float] = []
    for _ in range(n_draws):
        weight = rng.multinomial(index.max() + 1, np.full(index.max() + 1, 1 / (index.max() + 1)))[index].astype(float)
        if weight.sum():
            draws.append(_best_eta(log_likelihood, label, weight))
    low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return TemperatureFit(
        eta,
        float(low),
        float(high),
        _log_loss(eta, log_likelihood, label, np.ones(n)),
        _log_loss(1.0, log_likelihood, label, np.ones(n)),
        float(np.log(k)),
        float((log_likelihood.argmax(axis=1) == label).mean()),
        n,
    )


def _best_eta(log_likelihood: Floats, label: Ints, weight: Floats) -> float:
    def loss(log_eta: float) -> float:
        prior = 0.5 * (log_eta / _PRIOR_SD) ** 2 / weight.sum()
        return _log_loss(float(np.exp(log_eta)), log_likelihood, label, weight) + prior

    found = minimize_scalar(loss, bounds=(_LEAST_LOG_ETA, _MOST_LOG_ETA), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def _log_loss(eta: float, log_likelihood: Floats, label: Ints, weight: Floats) -> float:
    scaled = eta * log_likelihood
    own = scaled[np.arange(len(label)), label]
    return float(weight @ (np.asarray(logsumexp(scaled, axis=1)) - own) / weight.sum())


def _cluster_index(cluster: Sequence[str]) -> Ints:
    place = {c: i for i, c in enumerate(dict.fromkeys(cluster))}
    return np.array([place[c] for c in cluster])


@dataclass(frozen=True, slots=True)
class CoverageFit:
    """A power shrunk until intervals cover.

    Attributes:
        eta: The power chosen.
        coverage: Share of 90% intervals that held the truth at it.
        tried: Every power tried with its coverage, in order.
        reached: Whether the wanted coverage was reached; if not, `eta` is the one that came closest.
    """

    eta: float
    coverage: float
    tried: tuple[tuple[float, float], ...]
    reached: bool


def shrink_until_covered(
    log_likelihood: Floats,
    label: Ints,
    eta: float,
    *,
    functionals: Floats | None = None,
    n_files: int = 100,
    seed: int = 0,
    advance: Callable[[int], None] = lambda amount: None,
) -> CoverageFit:
    """Lower eta until the intervals of weights hold the truth as often as they say.

    Files are made of the labelled conversations themselves: weights are drawn from the prior, a persona from the
    weights, a conversation from those the persona spoke. A file's true weights are known, so the share of intervals
    that hold them is coverage itself, bias included. (Generalised posterior calibration has no labels: it compares
    bootstrap intervals with the fit to all data, which cannot see a bias that both share.)
    The wanted coverage is nominal less one standard error of the simulation.

    Args:
        log_likelihood: Nats a conversation, shape (n, n_components); columns beyond the labels (a background) may
            take weight and have true weight 0.
        label: Column that spoke, shape (n,).
        eta: Where to begin.
        functionals: Values of the components, shape (n_functionals, n_components): whose interval is to cover.
            By default every component's own weight.
        n_files: Files made at each power; the same ones at every power.
        seed: Of files and sampler.
        advance: Told of every power tried.
    """
    k = log_likelihood.shape[1]
    values = np.eye(k) if functionals is None else functionals
    files = _planted_files(label, k, n_files, seed)
    wanted = _LEVEL - float(np.sqrt(_LEVEL * (1 - _LEVEL) / n_files))
    tried: list[tuple[float, float]] = []
    for step in range(_MOST_SHRINKS + 1):
        power = eta * _SHRINK**step
        tried.append((power, _coverage(power * log_likelihood, files, values, seed)))
        advance(1)
        if tried[-1][1] >= wanted:
            return CoverageFit(*tried[-1], tuple(tried), True)
    best = max(tried, key=lambda t: t[1])
    return CoverageFit(*best, tuple(tried), False)


def _planted_files(label: Ints, k: int, n_files: int, seed: int) -> list[tuple[Ints, Floats]]:
    """Rows and true weights of files put together from labelled conversations, none twice in a file.

    A repeated conversation would look like fresh evidence, so a file is at most twice as large as the smallest pool,
    and weights that ask more of a pool than it has are drawn again.
    """
    rng = np.random.default_rng(seed)
    spoke, pool = np.unique(label, return_counts=True)
    alpha = np.full(len(spoke), default_concentration(len(spoke)) / len(spoke))
    size = int(min(2 * pool.min(), len(label)))
    files: list[tuple[Ints, Floats]] = []
    while len(files) < n_files:
        for _ in range(_TRIES):
            weights = rng.dirichlet(alpha)
            counts = rng.multinomial(size, weights)
            if (counts <= pool).all():
                break
        else:
            size = max(int(pool.min()), 1)  # always fits
            files.clear()
            continue
        parts = [rng.permutation(np.flatnonzero(label == who))[:c] for who, c in zip(spoke, counts, strict=True)]
        truth = np.zeros(k)
        truth[spoke] = weights
        files.append((np.concatenate(parts), truth))
    return files


def _coverage(tempered: Floats, files: Sequence[tuple[Ints, Floats]], values: Floats, seed: int) -> float:
    """Share of 90% intervals that hold the truth, over files and functionals.

    All files are sampled side by side (the sampler of `mixture`, with a leading axis), starting from a few steps of
    EM: hundreds of small fits one by one would cost minutes.
    """
    k = tempered.shape[1]
    alpha = np.full(k, default_concentration(k) / k)
    scaled = np.exp(tempered - row_maxima(tempered))
    likelihood = scaled[np.stack([rows for rows, _ in files])]  # (files, conversations, components)
    n_files, n, _ = likelihood.shape
    truth = np.stack([t for _, t in files]) @ values.T
    rng = np.random.default_rng(seed)
    w = np.full((n_files, k), 1 / k)
    for _ in range(_EM_STEPS):
        share = likelihood * w[:, None]
        w = alpha + (share / share.sum(axis=2, keepdims=True)).sum(axis=1)
        w /= w.sum(axis=1, keepdims=True)
    offset = np.arange(n_files)[:, None] * k
    drawn = np.empty((_SWEEPS - _BURN_IN, n_files, len(values)))
    for sweep in range(_SWEEPS):
        cumulative = np.cumsum(likelihood * w[:, None], axis=2)
        below = cumulative < (rng.random((n_files, n)) * cumulative[:, :, -1])[:, :, None]
        assigned = np.minimum(below.sum(axis=2), k - 1) + offset
        gamma = rng.gamma(alpha + np.bincount(assigned.ravel(), minlength=n_files * k).reshape(n_files, k))
        w = gamma / gamma.sum(axis=1, keepdims=True)
        if sweep >= _BURN_IN:
            drawn[sweep - _BURN_IN] = w @ values.T
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    return float(((low <= truth) & (truth <= high)).mean())


def log_likelihood_ratios(tempered: Floats) -> Floats:
    """Log p(y | k) - log mean over the others of p(y | j), nats, shape (n, n_personas): what a flat prior gives."""
    k = tempered.shape[1]
    ratios = np.empty_like(tempered)
    for column in range(k):
        rest = np.delete(tempered, column, axis=1)
        ratios[:, column] = tempered[:, column] - np.asarray(logsumexp(rest, axis=1)) + np.log(k - 1)
    return ratios


def cllr(ratio: Floats, is_target: NDArray[np.bool_]) -> float:
    """Cost of log-likelihood ratios in bits: 0 for certainty that is right, 1 for saying nothing, above for harm.

        Cllr = 1/2 [ mean over targets of log2(1 + 1/LR)  +  mean over others of log2(1 + LR) ]

    Args:
        ratio: log LR, nats.
        is_target: Whether the hypothesis was true; both kinds must be there.
    """
    own = np.logaddexp(0.0, -ratio[is_target]).mean()
    other = np.logaddexp(0.0, ratio[~is_target]).mean()
    return float((own + other) / (2 * np.log(2)))


def cllr_min(ratio: Floats, is_target: NDArray[np.bool_]) -> float:
    """Cllr after the best monotone recalibration on the same data (pool adjacent violators): separation alone."""
    order = np.argsort(ratio, kind="stable")
    hits = is_target[order].astype(np.float64)
    weight = np.where(is_target[order], 0.5 / is_target.sum(), 0.5 / (~is_target).sum())
    # Ties must share a value, or the sort's order would separate them.
    groups = np.unique(ratio[order], return_inverse=True)[1]
    mass = np.bincount(groups, weight)
    fitted = isotonic_regression(np.bincount(groups, weight * hits) / mass, weights=mass).x[groups]
    with np.errstate(divide="ignore"):
        return cllr(np.clip(logit(fitted), -700, 700), hits.astype(bool))


def mean_cllr(tempered: Floats, label: Ints) -> tuple[float, float]:
    """Cllr and its minimum, averaged over the personas that spoke, each against the rest."""
    ratios = log_likelihood_ratios(tempered)
    spoke = np.unique(label)
    pairs = [(cllr(ratios[:, k], label == k), cllr_min(ratios[:, k], label == k)) for k in spoke]
    return float(np.mean([a for a, _ in pairs])), float(np.mean([b for _, b in pairs]))


@dataclass(frozen=True, slots=True)
class Reliability:
    """How stated probabilities compare with what happened.

    Attributes:
        slope, slope_low, slope_high: Of the log-odds of being right on the stated log-odds; 1 is calibrated, below
            1 is over-confident. With its 90% interval, clusters resampled.
        intercept: Log-odds of being right where 50% was stated.
        error, error_low, error_high: Expected calibration error of the likeliest persona's probability, in ten
            bins of equal number, with its interval.
    """

    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    error: float
    error_low: float
    error_high: float


def reliability(
    tempered: Floats, label: Ints, cluster: Sequence[str], *, n_draws: int = 200, seed: int = 0
) -> Reliability:
    """Reliability of softmax(tempered), persona by persona against the label.

    Args:
        tempered: Log-likelihoods times eta, shape (n, n_personas).
        label: Column that spoke, shape (n,).
        cluster: Clusters that are resampled.
        n_draws: Bootstrap resamples.
        seed: Of the bootstrap.
    """
    stated = softmax(tempered, axis=1)
    odds = logit(np.clip(stated, _CERTAIN, 1 - _CERTAIN))
    hit = (np.arange(tempered.shape[1]) == label[:, None]).astype(np.float64)
    index = _cluster_index(cluster)
    rng = np.random.default_rng(seed)
    ones = np.ones(len(label))
    intercept, slope = _logistic_line(odds, hit, ones)
    draws: list[tuple[float, float]] = []
    for _ in range(n_draws):
        weight = rng.multinomial(index.max() + 1, np.full(index.max() + 1, 1 / (index.max() + 1)))[index].astype(float)
        draws.append((_logistic_line(odds, hit, weight)[1], _calibration_error(stated, label, weight)))
    low, high = np.quantile(np.array(draws), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    error = _calibration_error(stated, label, ones)
    # A resample's error is biased upwards, since noise in a bin counts as error: the interval is reflected.
    least, most = max(0.0, 2 * error - float(high[1])), max(0.0, 2 * error - float(low[1]))
    return Reliability(slope, float(low[0]), float(high[0]), intercept, error, least, most)


def _logistic_line(odds: Floats, hit: Floats, weight: Floats) -> tuple[float, float]:
    """Intercept and slope of a logistic regression of `hit` on `odds`, both (n, k), rows weighted."""

    def loss(theta: Floats) -> tuple[float, Floats]:
        line = theta[0] + theta[1] * odds
        miss = weight[:, None] * (expit(line) - hit)
        value = (weight[:, None] * (np.logaddexp(0.0, line) - hit * line)).sum()
        return float(value), np.array([miss.sum(), (miss * odds).sum()])

    found = minimize(loss, np.array([0.0, 1.0]), jac=True, method="BFGS")
    return float(found.x[0]), float(found.x[1])


def _calibration_error(stated: Floats, label: Ints, weight: Floats, n_bins: int = 10) -> float:
    """Mean gap between confidence and accuracy of the likeliest persona, bins of equal number."""
    top = stated.max(axis=1)
    right = (stated.argmax(axis=1) == label).astype(np.float64)
    order = np.argsort(top, kind="stable")
    gaps = [abs(float(weight[b] @ (right[b] - top[b]))) for b in np.array_split(order, min(n_bins, len(order)))]
    return sum(gaps) / float(weight.sum())
