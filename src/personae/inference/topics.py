"""Does the mix of personas change with the topic? A score test with a permutation null, and mixes by topic.

    T = sum over topics d, components k of  n_d ( mean_d rho_k - mean rho_k )^2 / mean rho_k

rho are responsibilities at the weights of all conversations together: the score of "topic d has weights of its own".
The null moves whole prompts between topics, so that prompts may differ among themselves. Beside p stands an effect
size that does not grow with n: Lambda / 2N = [ sum_d max l_d - max l ] / N, nats a conversation, less its mean under
permutation. On a real model a topic's words alone favour some personas (a chef where food is asked about): a change is
what the scorer sees, not proof of a router. Not here: Lambda against control models (the audit's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.inference.mixture import fit_mixture, log_marginal_likelihood, maximise
from personae.inference.passes import NumpyPasses
from personae.numerics.clustered import cluster_index
from personae.numerics.statistics import benjamini_hochberg

Floats = NDArray[np.float64]

_FLOOR = 1e-6
_NULL_FITS = 10


@dataclass(frozen=True, slots=True, eq=False)
class TopicMix:
    """The mix in one topic.

    Attributes:
        topic: Its name.
        n: Conversations.
        weight, low, high: Weights shrunk towards those of all topics, with 90% interval, shape (n_components,).
        p, q: That it differs from the others, by permutation; after Benjamini-Hochberg over topics.
    """

    topic: str
    n: int
    weight: Floats
    low: Floats
    high: Floats
    p: float
    q: float


@dataclass(frozen=True, slots=True)
class TopicTest:
    """Whether the mix changes with the topic.

    Attributes:
        p: Permutation p; None where there are too few topics or prompts.
        effect: Lambda / 2N beyond its mean under permutation, nats a conversation.
        effect_null: Largest of the permuted ones beyond their mean, same unit.
        topics: The mix of each.
        reason: Why there is no test, or empty.
    """

    p: float | None
    effect: float
    effect_null: float
    topics: tuple[TopicMix, ...]
    reason: str = ""


def topic_test(
    log_likelihood: Floats,
    responsibilities: Floats,
    weights: Floats,
    *,
    topic: Sequence[str],
    prompt: Sequence[str],
    eta: float,
    n_permutations: int = 999,
    seed: int = 0,
) -> TopicTest:
    """Test whether the mix changes with the topic and give the mixes.

    Args:
        log_likelihood: Nats a conversation, shape (n_conversations, n_components).
        responsibilities: At the weights of all conversations, same shape.
        weights: Of all conversations, shape (n_components,): what topics are shrunk towards.
        topic: Topic of each conversation.
        prompt: Prompt of each conversation, what is moved between topics; every prompt has one topic.
        eta: Power on the likelihood.
        n_permutations: Of the null.
        seed: Of permutations and sampler.
    """
    where, n_topics = cluster_index(topic)
    which, n_prompts = cluster_index(prompt)
    names = list(dict.fromkeys(topic))
    home = np.zeros(n_prompts, np.int64)
    home[which] = where
    rng = np.random.default_rng(seed)
    tempered = eta * log_likelihood
    mixes = [_mix(log_likelihood[where == d], weights, eta, seed) for d in range(n_topics)]
    if n_topics < 2 or n_prompts < n_topics + 2:
        reason = "there is one topic" if n_topics < 2 else "there are hardly more prompts than topics"
        alone = tuple(TopicMix(names[d], int((where == d).sum()), *mixes[d], p=1.0, q=1.0) for d in range(n_topics))
        return TopicTest(None, 0.0, 0.0, alone, reason)
    sums = np.zeros((n_prompts, responsibilities.shape[1]))
    np.add.at(sums, which, responsibilities)
    size = np.bincount(which, minlength=n_prompts).astype(np.float64)
    seen = _by_topic(sums, size, home, n_topics)
    null = np.stack([_by_topic(sums, size, rng.permutation(home), n_topics) for _ in range(n_permutations)])
    p = (1 + (null.sum(axis=1) >= seen.sum()).sum()) / (1 + n_permutations)
    by_topic = (1 + (null >= seen).sum(axis=0)) / (1 + n_permutations)
    q = benjamini_hochberg(by_topic)
    pooled = log_marginal_likelihood(tempered, maximise(NumpyPasses(tempered), *_flat(tempered)))
    gains = [_gain(tempered, where, n_topics, pooled)]
    gains += [_gain(tempered, rng.permutation(home)[which], n_topics, pooled) for _ in range(_NULL_FITS)]
    expected = float(np.mean(gains[1:]))
    return TopicTest(
        float(p),
        gains[0] - expected,
        max(gains[1:]) - expected,
        tuple(
            TopicMix(names[d], int((where == d).sum()), *mixes[d], p=float(by_topic[d]), q=float(q[d]))
            for d in range(n_topics)
        ),
    )


def _by_topic(sums: Floats, size: Floats, home: NDArray[np.int64], n_topics: int) -> Floats:
    """The statistic's terms, one a topic."""
    total = np.zeros((n_topics, sums.shape[1]))
    np.add.at(total, home, sums)
    n = np.bincount(home, weights=size, minlength=n_topics)
    overall = sums.sum(axis=0) / size.sum()
    gap = total / np.maximum(n, 1.0)[:, None] - overall
    return n * (gap**2 / np.maximum(overall, _FLOOR)).sum(axis=1)


def _mix(rows: Floats, weights: Floats, eta: float, seed: int) -> tuple[Floats, Floats, Floats]:
    centre = np.maximum(weights, _FLOOR)
    fit = fit_mixture(rows, np.log(centre / centre.sum()), eta=eta, sweeps=500, burn_in=100, restarts=0, seed=seed)
    return fit.weight, fit.low, fit.high


def _flat(tempered: Floats) -> tuple[Floats, Floats]:
    """A tenth of a pseudo-count in all, which keeps EM off the faces of the simplex, and equal weights to begin."""
    k = tempered.shape[1]
    return np.full(k, 0.1 / k), np.full(k, 1 / k)


def _gain(tempered: Floats, where: NDArray[np.int64], n_topics: int, pooled: float) -> float:
    """Lambda / 2N, nats a conversation."""
    apart = 0.0
    for d in range(n_topics):
        rows = tempered[where == d]
        if len(rows):
            alpha, start = _flat(rows)
            apart += log_marginal_likelihood(rows, maximise(NumpyPasses(rows), alpha, start, tolerance=1e-5, most=600))
    return (apart - pooled) / len(tempered)
