"""Statistics on arrays: ratio estimates with clustered intervals, Benjamini-Hochberg, AUROC.

Not here: anything that knows a trait. The unit of resampling is the cluster (conversation, topic), never the
token (Miller 2024, arXiv 2411.00640).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, rankdata

Floats = NDArray[np.float64]


def cluster_sums(values: Floats, clusters: Sequence[str]) -> Floats:
    """Sums of rows by cluster, in order of first appearance; shape (n_clusters, ...)."""
    place = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(place), *values.shape[1:]))
    np.add.at(sums, [place[c] for c in clusters], values)
    return sums


def bootstrap_ratios(
    numerators: Floats, denominators: Floats, *, n_draws: int = 2000, rng: np.random.Generator
) -> Floats:
    """Draws of sum(numerators) / sum(denominators) with whole clusters resampled.

    Args:
        numerators: One row a cluster, shape (n_clusters, n_columns).
        denominators: Shape (n_clusters,), not negative.
        n_draws: Number of resamples.
        rng: Source of randomness.

    Returns:
        Shape (n_draws, n_columns). With one cluster every draw is the estimate itself.
    """
    n = len(denominators)
    draws = np.empty((n_draws, numerators.shape[1]))
    for start in range(0, n_draws, 200):  # in pieces: the counts of many clusters would not fit
        stop = min(start + 200, n_draws)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=stop - start).astype(np.float64)
        bottom = counts @ denominators
        top = counts @ numerators
        draws[start:stop] = top / np.where(bottom > 0, bottom, 1.0)[:, None]
    return draws


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Adjusted p-values whose threshold at r holds the false discovery rate at r (1995)."""
    return np.asarray(false_discovery_control(np.clip(p_values, 0.0, 1.0), method="bh"))


def auroc(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """Probability that a positive outranks a negative, ties counted half (Mann-Whitney U / n1 n0).

    Raises:
        ValueError: If one of the classes is empty.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        raise ValueError("AUROC needs both classes")
    ranks = rankdata(scores)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))
