"""Which weights can be told apart: Fisher information, pairwise separation, classes.

    G_jk = mean over conversations of  p_j p_k / m_w^2,    m_w = sum_k w_k p_k

is the information about w in one conversation; only directions inside the simplex (summing to 0) count. Personas
whose labelled conversations cannot be told apart become one class. Near the edge of the simplex the standard
error is not to be trusted; the sampler's interval is. Not here: the fit (`mixture`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.linalg import null_space
from scipy.spatial.distance import squareform

from personae.inference.passes import row_maxima
from personae.numerics.statistics import auroc

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MERGE_BELOW = 0.65


@dataclass(frozen=True, slots=True, eq=False)
class Identifiability:
    """Information about mixture weights.

    Attributes:
        condition: Largest over smallest eigenvalue of the information on the simplex' tangent; infinite where
            some direction is not seen at all.
        standard_error: Of each weight from n conversations, shape (n_components,); infinite where not identified.
        rank: Directions seen, at most n_components - 1.
    """

    condition: float
    standard_error: Floats
    rank: int


def fisher_information(tempered: Floats, weights: Floats) -> Floats:
    """Information of one conversation about the weights, shape (n_components, n_components)."""
    likelihood = np.exp(tempered - row_maxima(tempered))
    score = likelihood / (likelihood @ weights)[:, None]
    return score.T @ score / len(score)


def identifiability(tempered: Floats, weights: Floats) -> Identifiability:
    """Condition number and standard errors of weights fitted to these conversations.

    Args:
        tempered: Log-likelihoods times eta, shape (n, n_components), at least one row.
        weights: Where the information is taken, e.g. the mode, shape (n_components,).
    """
    n, k = tempered.shape
    tangent = null_space(np.ones((1, k)))
    values, vectors = np.linalg.eigh(tangent.T @ fisher_information(tempered, weights) @ tangent)
    seen = values > values.max() * k * np.finfo(np.float64).eps
    directions = tangent @ vectors
    variance = (directions[:, seen] ** 2 / values[seen]).sum(axis=1) / n
    blind = (directions[:, ~seen] ** 2).sum(axis=1) > 1e-9
    condition = float(values.max() / values.min()) if seen.all() else float("inf")
    return Identifiability(condition, np.where(blind, np.inf, np.sqrt(variance)), int(seen.sum()))


def pairwise_auc(log_likelihood: Floats, label: Ints) -> Floats:
    """How well conversations of two personas are told apart by their ratio, shape (n_components, n_components).

    Entry (j, k): probability that l_j - l_k is higher in a conversation of j than in one of k; NaN where one of
    them has no labelled conversation, 0.5 on the diagonal.
    """
    k = log_likelihood.shape[1]
    table = np.full((k, k), np.nan)
    for a in np.unique(label):
        table[a, a] = 0.5
        for b in np.unique(label):
            if a < b:
                rows = np.isin(label, (a, b))
                ratio = log_likelihood[rows, a] - log_likelihood[rows, b]
                table[a, b] = table[b, a] = auroc(ratio, label[rows] == a)
    return table


def merge_classes(auc: Floats, *, below: float = MERGE_BELOW) -> Ints:
    """Class of each component: single linkage of pairs whose AUC is below the threshold.

    Args:
        auc: From `pairwise_auc`; pairs that are NaN are kept apart.
        below: Pairs at or above it are told apart.

    Returns:
        Shape (n_components,), classes counted from 0 in order of first appearance.
    """
    k = len(auc)
    if k < 2:
        return np.zeros(k, np.int64)
    distance = np.where(np.isnan(auc), 1.0, np.clip(auc, 0.0, 1.0))
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="single")
    found = fcluster(tree, np.nextafter(below, 0.0), criterion="distance")
    first = {c: i for i, c in enumerate(dict.fromkeys(found.tolist()))}
    return np.array([first[c] for c in found.tolist()])


def class_indicators(classes: Ints) -> Floats:
    """Functionals that add up each class's weights, shape (n_classes, n_components)."""
    return (np.arange(classes.max() + 1)[:, None] == classes).astype(np.float64)
