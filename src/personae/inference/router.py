"""Does who speaks depend on the topic more than a mixture of personas can? Effect sizes, not p-values.

    Lambda = 2 [sum_d max_w l_d(w) - max_w l(w)],     l(w) = sum_i log sum_k w_k p_k(y_i)
    residual = 2 [sum_i log post(y_i) - sum_d max_w l_d(w)]

Both are given as nats a reply (divided by 2N). Weights that may differ by topic are what a router has and a
mixture of personas has not; the residual is what no weights explain, measured from the target's own
likelihood (the saturated model). Under a mixture that is only approximately right, Lambda grows with N, so a
bootstrap from the fit would reject: it is compared with control models that are mixtures by construction. Not
here: where replies come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from personae.inference.mixture import expectation_maximisation
from personae.numerics.clustered import cluster_index

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Heterogeneity:
    """Of one model's replies.

    Attributes:
        effect, effect_se: Lambda / 2N, nats a reply, and its standard error over clusters at the fitted weights.
        residual, residual_se: The same of the residual.
        n_replies: N.
        shift: Total variation between each topic's weights and the common ones, by topic.
        by_topic: Contribution of every topic to the effect, nats a reply of the topic.
    """

    effect: float
    effect_se: float
    residual: float
    residual_se: float
    n_replies: int
    shift: dict[str, float]
    by_topic: dict[str, float]


def heterogeneity(
    log_likelihood: Floats, log_target: Floats, topics: Sequence[str], clusters: Sequence[str]
) -> Heterogeneity:
    """Lambda and residual of replies.

    Args:
        log_likelihood: Of every reply under every component, nats, shape (n, n_components).
        log_target: Under the target, shape (n,).
        topics: Of each reply.
        clusters: Of each reply: the prompt.
    """
    labels = np.array(topics)
    common = _best(log_likelihood)
    whole = _mixed(log_likelihood, common)
    own = np.empty_like(whole)
    shift: dict[str, float] = {}
    for topic in sorted(set(topics)):
        mine = labels == topic
        weights = _best(log_likelihood[mine])
        own[mine] = _mixed(log_likelihood[mine], weights)
        shift[topic] = 0.5 * float(np.abs(weights - common).sum())
    gain, rest = own - whole, log_target - own
    return Heterogeneity(
        float(gain.mean()),
        _cluster_se(gain, clusters),
        float(rest.mean()),
        _cluster_se(rest, clusters),
        len(gain),
        shift,
        {t: float(gain[labels == t].mean()) for t in shift},
    )


def _best(log_likelihood: Floats) -> Floats:
    k = log_likelihood.shape[1]
    mode, _ = expectation_maximisation(log_likelihood, np.full(k, -np.log(k)), concentration=1e-3, tolerance=1e-8)
    return mode


def _mixed(log_likelihood: Floats, weights: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.asarray(logsumexp(log_likelihood + np.log(weights), axis=1))


def _cluster_se(values: Floats, clusters: Sequence[str]) -> float:
    index, n = cluster_index(clusters)
    if n < 2:
        return float("nan")
    sums = np.bincount(index, weights=values - values.mean(), minlength=n)
    return float(np.sqrt((sums**2).sum() * n / (n - 1)) / len(values))
