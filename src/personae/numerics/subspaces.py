"""Directions and subspaces of activations: mean differences, principal components, shrinkage, whitening, angles.

Rotating the space (x -> x Q) rotates every direction found here and leaves every angle and every whitened length as it
was; nothing is scaled coordinate by coordinate, which would break that. Not here: which layer, which personas, and
whether a direction beats its nulls.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import subspace_angles

from personae.errors import InvalidSettings, NumericsError
from personae.numerics.clustered import cluster_index

Floats = NDArray[np.float64]


def mean_difference(positive: ArrayLike, negative: ArrayLike) -> Floats:
    """Mean of the rows of `positive` less that of `negative`; shapes (n, width) and (m, width), result (width,)."""
    a, b = _rows(positive), _rows(negative)
    if a.shape[1] != b.shape[1]:
        raise InvalidSettings(f"activations of width {a.shape[1]} and {b.shape[1]} cannot be compared.")
    return a.mean(axis=0) - b.mean(axis=0)


def principal_components(rows: ArrayLike, n_components: int) -> tuple[Floats, Floats]:
    """Orthonormal directions of most variance and their shares of it (`sklearn.decomposition.PCA`, full SVD).

    Args:
        rows: Shape (n, width).
        n_components: At most min(n - 1, width).

    Returns:
        Components, shape (n_components, width), strongest first, each with the sign that makes its largest entry
        positive; and their shares of the variance, shape (n_components,).

    Raises:
        InvalidSettings: If there are not as many components.
    """
    x = _rows(rows)
    if not 1 <= n_components <= min(len(x) - 1, x.shape[1]):
        raise InvalidSettings(f"{n_components} components cannot be had from {x.shape[0]} rows of width {x.shape[1]}.")
    from sklearn.decomposition import PCA  # slow to import, and `--help` needs none of it

    fit = PCA(n_components=n_components, svd_solver="full").fit(x)
    components = np.asarray(fit.components_)
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(n_components), largest])
    return components * signs[:, None], np.asarray(fit.explained_variance_ratio_)


def shrunk_covariance(rows: ArrayLike, *, shrinkage: float | None = None) -> Floats:
    """Covariance pulled towards a multiple of the identity, shape (width, width).

        (1 - shrinkage) S + shrinkage tr(S) / width * I

    Args:
        rows: Shape (n, width), at least two rows.
        shrinkage: 0 to 1; left out, that of Ledoit & Wolf 2004 (`sklearn.covariance.ledoit_wolf`).

    Raises:
        InvalidSettings: If there is one row only, or the shrinkage is outside [0, 1].
    """
    x = _rows(rows)
    if len(x) < 2 or not (shrinkage is None or 0 <= shrinkage <= 1):
        raise InvalidSettings(f"{len(x)} rows with shrinkage {shrinkage}: a covariance needs two and one in [0, 1].")
    if shrinkage is None:
        from sklearn.covariance import ledoit_wolf

        return np.asarray(ledoit_wolf(x)[0])
    centred = x - x.mean(axis=0)
    plain = centred.T @ centred / len(x)
    return (1 - shrinkage) * plain + shrinkage * np.trace(plain) / x.shape[1] * np.eye(x.shape[1])


def whitening(covariance: ArrayLike) -> Floats:
    """The symmetric W with W covariance W = identity (ZCA); rows are whitened by `rows @ W`.

    Raises:
        NumericsError: If the covariance is singular: then shrink it first.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
    if values[0] <= values[-1] * 1e-12:
        raise NumericsError("the covariance is singular and has no whitening.", hint="Use shrunk_covariance.")
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T)


def cosine(first: ArrayLike, second: ArrayLike) -> float:
    """Cosine of the angle between two directions, shape (width,) each.

    Raises:
        NumericsError: If one of them is zero.
    """
    a, b = (np.asarray(v, dtype=np.float64) for v in (first, second))
    length = np.linalg.norm(a) * np.linalg.norm(b)
    if not length > 0:
        raise NumericsError("a direction of length 0 has no angle.")
    return float(np.clip(a @ b / length, -1.0, 1.0))


def principal_angles(first: ArrayLike, second: ArrayLike) -> Floats:
    """Angles between two subspaces in radians, largest first (`scipy.linalg.subspace_angles`).

    Args:
        first: Directions that span the one, shape (n, width).
        second: Directions that span the other, shape (m, width).

    Returns:
        Shape (min(n, m),); 0 is a common direction, pi / 2 a right angle.
    """
    return np.asarray(subspace_angles(_rows(first).T, _rows(second).T))


def split_half_cosine(
    positive: ArrayLike,
    negative: ArrayLike,
    positive_groups: Sequence[Hashable],
    negative_groups: Sequence[Hashable],
    *,
    rng: np.random.Generator,
    n_splits: int = 100,
) -> Floats:
    """Cosine of the mean differences of two halves of the groups: how repeatable a direction is.

    Args:
        positive: Activations, shape (n, width).
        negative: Activations, shape (m, width).
        positive_groups: Question or conversation of each row of `positive`; a group is never split.
        negative_groups: Likewise of `negative`; a group on both sides goes to the same half.
        rng: Source of randomness.
        n_splits: Random splits.

    Returns:
        One cosine a split, shape (n_splits,). The direction from all rows is more repeatable than these, which
        use half of them.

    Raises:
        InvalidSettings: If a side has fewer than two groups, or labels do not fit the rows.
    """
    a, b = _rows(positive), _rows(negative)
    if len(a) != len(positive_groups) or len(b) != len(negative_groups):
        raise InvalidSettings("every row of activations needs a group.")
    index, n_groups = cluster_index([*positive_groups, *negative_groups])
    mine, theirs = index[: len(a)], index[len(a) :]
    if min(len(set(mine.tolist())), len(set(theirs.tolist()))) < 2:
        raise InvalidSettings("a split into halves needs two groups on either side.")
    out = np.empty(n_splits)
    for split in range(n_splits):
        while True:
            half = rng.permutation(n_groups) < n_groups // 2
            if 0 < half[mine].sum() < len(a) and 0 < half[theirs].sum() < len(b):
                break
        out[split] = cosine(
            mean_difference(a[half[mine]], b[half[theirs]]), mean_difference(a[~half[mine]], b[~half[theirs]])
        )
    return out


def _rows(rows: ArrayLike) -> Floats:
    x = np.asarray(rows, dtype=np.float64)
    if x.ndim != 2 or len(x) == 0:
        raise InvalidSettings(f"activations have the shape {x.shape}; rows of one width are wanted.")
    if not np.isfinite(x).all():
        raise NumericsError("an activation is not a finite number.")
    return x
