"""The two passes over a table of likelihoods that fitting mixture weights needs, in NumPy.

    expect   sum_i rho_ik and sum_i log sum_k w_k e_ik      with rho_ik = w_k e_ik / sum_j w_j e_ij
    count    how many rows fall to each component when row i is assigned by its uniform draw u_i

Everything else (priors, acceleration, draws) works on K numbers. Large tables take the compiled version in
`passes_compiled`, which does the same arithmetic; `choose_passes` decides. Not here: what a component is.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from personae.errors import NumericsError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Entries times sweeps below which compiling (some seconds) costs more than it saves.
_WORTH_COMPILING = 500_000_000
_ROWS_AT_ONCE = 16_384


class Passes(Protocol):
    """Both passes over one table."""

    n_rows: int
    n_components: int

    def expect(self, weights: Floats) -> tuple[Floats, float]:
        """Expected counts, shape (n_components,), and the log-likelihood of the scaled rows, nats."""
        ...

    def count(self, weights: Floats, uniforms: Floats) -> Ints:
        """Counts of assignments, shape (n_components,); row i goes to the first k with cum_ik >= u_i total_i."""
        ...


class NumpyPasses:
    """The plain version: float64, rows in pieces that stay in the cache.

    Args:
        tempered: Log-likelihoods times eta, shape (n_rows, n_components); a row may be shifted by a constant.
    """

    def __init__(self, tempered: Floats) -> None:
        self.n_rows, self.n_components = tempered.shape
        self._likelihood = np.exp(tempered - row_maxima(tempered))

    def expect(self, weights: Floats) -> tuple[Floats, float]:
        """See `Passes`: two matrix-vector products."""
        total = self._likelihood @ weights
        return weights * (self._likelihood.T @ (1 / total)), float(np.log(total).sum())

    def count(self, weights: Floats, uniforms: Floats) -> Ints:
        """See `Passes`."""
        counts = np.zeros(self.n_components, np.int64)
        for at in range(0, self.n_rows, _ROWS_AT_ONCE):
            cumulative = np.cumsum(self._likelihood[at : at + _ROWS_AT_ONCE] * weights, axis=1)
            below = cumulative < (uniforms[at : at + _ROWS_AT_ONCE] * cumulative[:, -1])[:, None]
            assigned = np.minimum(below.sum(axis=1), self.n_components - 1)
            counts += np.bincount(assigned, minlength=self.n_components)
        return counts


def row_maxima(tempered: Floats) -> Floats:
    """Largest entry of each row, shape (n_rows, 1).

    Raises:
        NumericsError: If a row holds a NaN or +inf, or is impossible under every component.
    """
    if not len(tempered):
        return np.zeros((0, 1))
    largest = tempered.max(axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(largest[:, 0]))
    if len(bad):
        raise NumericsError(
            f"conversation {bad[0]} has no finite log-likelihood under the components: no weights can explain it.",
            hint="Leave it out, or add a background under which it is possible.",
        )
    return largest


def choose_passes(tempered: Floats, *, sweeps: int) -> Passes:
    """The compiled passes where the work is worth the compilation, else the plain ones."""
    if tempered.size * sweeps < _WORTH_COMPILING:
        return NumpyPasses(tempered)
    from personae.inference.passes_compiled import CompiledPasses  # numba takes a second to import

    return CompiledPasses(tempered)
