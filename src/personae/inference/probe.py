"""Belief probe: is the log-odds of a persona linear in the activations?

    R2 = 1 - sum (b - b_hat)^2 / sum (b - mean of b in training)^2,    selectivity = R2 - R2 of permuted personas

b is the known log-odds of a set of personas at a position of a document, b_hat the ridge regression of it on the
activations there. Documents are held out whole: within a document neighbouring positions share their answer. Ridge
strength is chosen by an inner cross-validation, again by document. Two controls say what a high R2 is worth:

    permuted personas   in each document the personas change places by a permutation of its own; the target keeps its
                        shape over positions and loses its meaning (a control task, Hewitt & Liang 2019, 1909.03368)
    position            a spline of the position alone; beliefs grow with it, whoever speaks

Not here: reading activations from a model, and whether moving along the direction moves the belief.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import SplineTransformer, StandardScaler

from personae.errors import InputError, InvalidSettings, NumericsError
from personae.numerics.clustered import cluster_index

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALPHAS = tuple(10.0**e for e in range(-3, 7))
_LEAST_DOCUMENTS = 10


@dataclass(frozen=True, slots=True, eq=False)
class BeliefProbe:
    """A linear probe of a belief, with its controls.

    Attributes:
        r2: Held-out share of the variance of the log-odds that activations explain.
        permuted_r2: The same for permuted personas, the mean over permutations.
        position_r2: The same for the position alone.
        selectivity: r2 - permuted_r2.
        predicted: Held-out predictions, nats, shape (n,).
        target: The log-odds, nats, shape (n,).
        direction: Weights of the probe fitted to all documents, nats per unit of activation, shape (width,).
        intercept: Nats.
        alpha: Its ridge strength, on standardised activations.
        documents: Documents it was fitted to.
    """

    r2: float
    permuted_r2: float
    position_r2: float
    selectivity: float
    predicted: Floats
    target: Floats
    direction: Floats
    intercept: float
    alpha: float
    documents: frozenset[Hashable]

    def predict(self, activations: ArrayLike) -> Floats:
        """Log-odds read from activations of shape (n, width), nats, shape (n,)."""
        return np.asarray(activations, dtype=np.float64) @ self.direction + self.intercept

    def score(self, activations: ArrayLike, log_odds: ArrayLike, documents: Sequence[Hashable]) -> float:
        """R2 on new documents, against their own mean.

        Raises:
            InputError: If a document is one the probe was fitted to: that would measure memory.
        """
        known = [d for d in dict.fromkeys(documents) if d in self.documents]
        if known:
            raise InputError(
                f"{len(known)} of the documents were used to fit the probe (the first: {known[0]!r}).",
                hint="Score a probe on documents it has not seen.",
            )
        truth = np.asarray(log_odds, dtype=np.float64)
        return 1 - float(((truth - self.predict(activations)) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def fit_probe(
    activations: ArrayLike,
    log_weights: ArrayLike,
    documents: Sequence[Hashable],
    positive: Sequence[int],
    *,
    position: ArrayLike | None = None,
    n_folds: int = 5,
    n_permutations: int = 5,
    seed: int = 0,
) -> BeliefProbe:
    """Fit and evaluate a probe of log(weight of `positive` / weight of the others).

    Args:
        activations: One row a position, shape (n, width).
        log_weights: Known posterior over personas at that position, nats, shape (n, n_personas); finite.
        documents: Document of each row; at least ten.
        positive: Columns of `log_weights` whose summed weight is the belief; some, not all.
        position: Place of each row in its document, shape (n,); left out, the order of its rows.
        n_folds: Folds, outer and inner, of whole documents.
        n_permutations: Permutations of personas.
        seed: Of the folds and permutations.

    Returns:
        The probe.

    Raises:
        InvalidSettings: If shapes do not fit, there are fewer than ten documents, `positive` is empty or holds all
            personas, or the belief never changes.
        NumericsError: If a value is not finite.
    """
    x, beliefs = (np.asarray(v, dtype=np.float64) for v in (activations, log_weights))
    index, n_documents = cluster_index(documents)
    _check(x, beliefs, index, n_documents, positive, n_folds)
    place = _positions(index) if position is None else np.asarray(position, dtype=np.float64)
    if place.shape != index.shape or not np.isfinite(place).all():
        raise InvalidSettings(f"positions have the shape {place.shape}; one finite number a row is wanted.")
    rng = np.random.default_rng(seed)
    target = _log_odds(beliefs, positive)
    if np.ptp(target) == 0:
        raise InvalidSettings("the belief is the same everywhere: there is nothing to probe.")
    predicted, r2 = _held_out(x, target, index, n_folds, seed)
    permuted = [
        _held_out(x, _log_odds(_permuted(beliefs, index, rng), positive), index, n_folds, seed)[1]
        for _ in range(n_permutations)
    ]
    by_position = SplineTransformer(n_knots=5, extrapolation="constant").fit_transform(place[:, None])
    scaler, ridge = _fit(x, target, index, n_folds, seed)
    direction = np.asarray(ridge.coef_) / np.asarray(scaler.scale_)
    return BeliefProbe(
        r2=r2,
        permuted_r2=float(np.mean(permuted)),
        position_r2=_held_out(np.asarray(by_position), target, index, n_folds, seed)[1],
        selectivity=r2 - float(np.mean(permuted)),
        predicted=predicted,
        target=target,
        direction=direction,
        intercept=float(np.asarray(ridge.intercept_) - np.asarray(scaler.mean_) @ direction),
        alpha=float(np.asarray(ridge.alpha_)),
        documents=frozenset(documents),
    )


def _held_out(x: Floats, target: Floats, index: Ints, n_folds: int, seed: int) -> tuple[Floats, float]:
    """Out-of-fold predictions and their R2 against the training mean."""
    predicted, baseline = np.empty_like(target), np.empty_like(target)
    for train, test in _folds(index, n_folds, seed):
        scaler, ridge = _fit(x[train], target[train], index[train], n_folds, seed)
        predicted[test] = ridge.predict(scaler.transform(x[test]))
        baseline[test] = target[train].mean()
    return predicted, 1 - float(((target - predicted) ** 2).sum() / ((target - baseline) ** 2).sum())


def _fit(x: Floats, target: Floats, index: Ints, n_folds: int, seed: int) -> tuple[StandardScaler, RidgeCV]:
    scaler = StandardScaler().fit(x)
    ridge = RidgeCV(alphas=ALPHAS, cv=_folds(index, n_folds, seed))
    return scaler, ridge.fit(scaler.transform(x), target)


def _folds(index: Ints, n_folds: int, seed: int) -> list[tuple[Ints, Ints]]:
    folds = GroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    return list(folds.split(index, groups=index))


def _log_odds(log_weights: Floats, positive: Sequence[int]) -> Floats:
    chosen = np.isin(np.arange(log_weights.shape[1]), positive)
    for_it = np.asarray(logsumexp(log_weights[:, chosen], axis=1))
    return for_it - np.asarray(logsumexp(log_weights[:, ~chosen], axis=1))


def _permuted(log_weights: Floats, index: Ints, rng: np.random.Generator) -> Floats:
    """The personas of each document in an order of its own."""
    n_documents, n_personas = int(index.max()) + 1, log_weights.shape[1]
    order = rng.permuted(np.tile(np.arange(n_personas), (n_documents, 1)), axis=1)
    return np.take_along_axis(log_weights, order[index], axis=1)


def _positions(index: Ints) -> Floats:
    seen = np.zeros(int(index.max()) + 1)
    place = np.empty(len(index))
    for row, document in enumerate(index):
        place[row] = seen[document]
        seen[document] += 1
    return place


def _check(x: Floats, beliefs: Floats, index: Ints, n_documents: int, positive: Sequence[int], n_folds: int) -> None:
    if x.ndim != 2 or beliefs.ndim != 2 or not len(x) == len(beliefs) == len(index):
        raise InvalidSettings(
            f"activations {x.shape}, log weights {beliefs.shape} and {len(index)} documents do not fit."
        )
    if n_documents < _LEAST_DOCUMENTS or not 2 <= n_folds <= n_documents // 2:
        raise InvalidSettings(
            f"{n_documents} documents in {n_folds} folds: a probe is evaluated on documents it has not seen, and needs "
            f"{_LEAST_DOCUMENTS} of them and two a fold.",
            hint="Name the document of each row; do not give every row the same one.",
        )
    chosen = set(positive)
    if not chosen or not chosen < set(range(beliefs.shape[1])):
        raise InvalidSettings(
            f"columns {sorted(chosen)} of {beliefs.shape[1]} personas: some, and not all, are wanted."
        )
    if not (np.isfinite(x).all() and np.isfinite(beliefs).all()):
        raise NumericsError("an activation or a log weight is not a finite number.")
