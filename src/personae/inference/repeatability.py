"""How repeatable a mean-difference direction is, and where it separates best, on the data that made it.

    split-half     cosine of the directions of two halves of the questions, by layer; null: labels permuted within
                   questions, which keeps what the halves share (their texts) and destroys what the poles differ in
    separation     direction of one half, standardised gap between the poles in the other half: chooses a layer

Everything is computed from Gram matrices of the items, since items are fewer than coordinates. Not here: whether a
direction beats directions that are about something else (`inference.nulls`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from personae.errors import InvalidSettings
from personae.numerics.clustered import cluster_index

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Repeatability:
    """Split-half cosines of a direction, and the layer it separates best at.

    Attributes:
        best_layer: Place of that layer, 0-based among the layers given.
        cosine: Median cosine of halves at that layer.
        low: 5 % quantile over splits.
        high: 95 % quantile.
        null_high: 95 % quantile of the largest mean cosine over layers, labels permuted.
        p: (1 + #{permuted >= observed}) / (1 + n) for the largest mean cosine over layers.
        by_layer: Median cosine at every layer.
        separation: Standardised gap in the other half, by layer.
    """

    best_layer: int
    cosine: float
    low: float
    high: float
    null_high: float
    p: float
    by_layer: tuple[float, ...]
    separation: tuple[float, ...]


def repeatability(
    values: ArrayLike,
    positive: NDArray[np.bool_],
    questions: Sequence[Hashable],
    *,
    rng: np.random.Generator,
    n_splits: int = 20,
    n_permutations: int = 200,
) -> Repeatability:
    """Split questions in halves, make the direction in each, and compare.

    Args:
        values: Activations, shape (n, n_layers, d_model).
        positive: Whether each item is of the positive pole, shape (n,).
        questions: Of each item; never split.
        rng: Source of randomness.
        n_splits: Splits.
        n_permutations: Permutations of labels within questions.

    Raises:
        InvalidSettings: If there are fewer than four questions, or one has a single pole only.
    """
    x = np.asarray(values, dtype=np.float64)
    index, n_questions = cluster_index(questions)
    sides = np.array([[positive[index == q].any(), (~positive[index == q]).any()] for q in range(n_questions)])
    if n_questions < 4 or not sides.all():
        raise InvalidSettings(
            f"{n_questions} questions, {int((~sides.all(axis=1)).sum())} of them with one pole only: halves need four "
            "questions with both poles.",
            hint="Give more questions, or ones that both poles answer.",
        )
    grams = np.einsum("nld,mld->lnm", x, x, optimize=True)
    splits = np.stack([rng.permutation(n_questions) < n_questions // 2 for _ in range(n_splits)])[:, index]
    sign = np.where(positive, 1.0, -1.0)
    observed = _cosines(grams, sign, splits)
    null = np.array(
        [
            _cosines(grams, _within(sign, index, n_questions, rng), splits).mean(axis=1).max()
            for _ in range(n_permutations)
        ]
    )
    separation = _separation(grams, sign, splits)
    best = int(separation.argmax())
    low, median, high = np.quantile(observed[best], [0.05, 0.5, 0.95])
    largest = observed.mean(axis=1).max()
    return Repeatability(
        best,
        float(median),
        float(low),
        float(high),
        float(np.quantile(null, 0.95)) if n_permutations else float("nan"),
        (1 + int((null >= largest - 1e-12).sum())) / (1 + n_permutations),
        tuple(float(v) for v in np.median(observed, axis=1)),
        tuple(float(v) for v in separation),
    )


def _weights(sign: Floats, rows: NDArray[np.bool_]) -> Floats:
    """Weights of items in the mean difference of the items chosen, shape (n_splits, n)."""
    up, down = rows & (sign > 0), rows & (sign < 0)
    return up / np.maximum(up.sum(axis=1, keepdims=True), 1) - down / np.maximum(down.sum(axis=1, keepdims=True), 1)


def _cosines(grams: Floats, sign: Floats, splits: NDArray[np.bool_]) -> Floats:
    """Cosine of the halves' directions, shape (n_layers, n_splits)."""
    first, second = _weights(sign, splits), _weights(sign, ~splits)
    one, two = first @ grams, second @ grams
    length = np.sqrt((one * first).sum(axis=-1) * (two * second).sum(axis=-1))
    product = (one * second).sum(axis=-1)
    return np.divide(product, length, out=np.zeros_like(product), where=length > 0)


def _separation(grams: Floats, sign: Floats, splits: NDArray[np.bool_]) -> Floats:
    """Mean gap between the poles of the half that did not make the direction, in standard deviations, by layer."""
    projected = _weights(sign, splits) @ grams  # (n_layers, n_splits, n)
    total = np.zeros(len(grams))
    for k, half in enumerate(splits):
        up, down = projected[:, k, ~half & (sign > 0)], projected[:, k, ~half & (sign < 0)]
        spread = np.sqrt((up.var(axis=1) + down.var(axis=1)) / 2)
        total += np.divide(up.mean(axis=1) - down.mean(axis=1), spread, out=np.zeros(len(grams)), where=spread > 0)
    return total / len(splits)


def _within(sign: Floats, index: NDArray[np.int64], n: int, rng: np.random.Generator) -> Floats:
    out = sign.copy()
    for q in range(n):
        rows = index == q
        out[rows] = rng.permutation(out[rows])
    return out
