"""The passes of `passes`, compiled: one stream over the table, parallel over tiles.

Layout: tiles of 256 rows, component-major, (n_tiles, K, 256), so that one tile is one contiguous block, the
inner loop runs over rows (vector instructions without reordering a sum), and a tile's partial sums stay in the
cache. Tiles belong to a fixed number of chunks, whose partial results are added in order: the result does not
depend on the number of threads. Cumulative sums add in the plain version's order, so counts are equal to the
row. float32 would halve the stream but not give that: one row that falls to the other side of a rounding error
moves every later draw of the sampler. The only file that imports numba; nothing imports it before a large table comes.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from personae.inference.passes import row_maxima

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TILE = 256
_CHUNKS = 64
_TILES_AT_ONCE = 64
# Entries below which waking threads for every pass costs more than they save, the more so on a busy machine.
_WORTH_THREADS = 2**24


class CompiledPasses:
    """Both passes over one table; see `passes.Passes`.

    Args:
        tempered: Log-likelihoods times eta, shape (n_rows, n_components). Kept relative to the row's
            largest, 8 bytes an entry.
    """

    def __init__(self, tempered: Floats) -> None:
        self.n_rows, self.n_components = tempered.shape
        n_tiles = -(-self.n_rows // _TILE)
        self._tiles = np.zeros((n_tiles, self.n_components, _TILE))
        for first in range(0, n_tiles, _TILES_AT_ONCE):
            piece = tempered[first * _TILE : (first + _TILES_AT_ONCE) * _TILE]
            whole = np.zeros((-(-len(piece) // _TILE) * _TILE, self.n_components))
            whole[: len(piece)] = np.exp(piece - row_maxima(piece))
            tiles = whole.reshape(-1, _TILE, self.n_components).transpose(0, 2, 1)
            self._tiles[first : first + len(tiles)] = tiles

        kind = "parallel" if tempered.size >= _WORTH_THREADS else "serial"
        self._expect, self._count = _EXPECT[kind], _COUNT[kind]

    def expect(self, weights: Floats) -> tuple[Floats, float]:
        """See `passes.Passes`."""
        sums, logs = self._expect(self._tiles, weights, self.n_rows)
        return weights * sums.sum(axis=0), float(logs.sum())

    def count(self, weights: Floats, uniforms: Floats) -> Ints:
        """See `passes.Passes`."""
        return self._count(self._tiles, weights, uniforms).sum(axis=0)


def _expect(tiles: Floats, weights: Floats, n_rows: int) -> tuple[Floats, Floats]:
    n_tiles, n_components, _ = tiles.shape
    sums = np.zeros((_CHUNKS, n_components))
    logs = np.zeros(_CHUNKS)
    for chunk in prange(_CHUNKS):
        total = np.empty(_TILE)
        for tile in range(chunk * n_tiles // _CHUNKS, (chunk + 1) * n_tiles // _CHUNKS):
            rows = min(_TILE, n_rows - tile * _TILE)
            total[:] = 0.0
            for k in range(n_components):
                for j in range(_TILE):
                    total[j] += weights[k] * tiles[tile, k, j]
            log = 0.0
            for j in range(rows):
                log += np.log(total[j])
                total[j] = 1.0 / total[j]
            for j in range(rows, _TILE):
                total[j] = 0.0
            logs[chunk] += log
            for k in range(n_components):
                part = 0.0
                for j in range(_TILE):
                    part += tiles[tile, k, j] * total[j]
                sums[chunk, k] += part
    return sums, logs


def _count(tiles: Floats, weights: Floats, uniforms: Floats) -> Ints:
    n_tiles, n_components, _ = tiles.shape
    n_rows = len(uniforms)
    counts = np.zeros((_CHUNKS, n_components), np.int64)
    for chunk in prange(_CHUNKS):
        target = np.empty(_TILE)
        cumulative = np.empty(_TILE)
        place = np.empty(_TILE, np.int64)
        for tile in range(chunk * n_tiles // _CHUNKS, (chunk + 1) * n_tiles // _CHUNKS):
            rows = min(_TILE, n_rows - tile * _TILE)
            target[:] = 0.0
            for k in range(n_components):
                for j in range(_TILE):
                    target[j] += weights[k] * tiles[tile, k, j]
            for j in range(rows):
                target[j] *= uniforms[tile * _TILE + j]
            cumulative[:] = 0.0
            place[:] = 0
            for k in range(n_components):
                for j in range(_TILE):
                    cumulative[j] += weights[k] * tiles[tile, k, j]
                    place[j] += cumulative[j] < target[j]
            for j in range(rows):
                counts[chunk, min(place[j], n_components - 1)] += 1
    return counts


# The same functions, so the same numbers; compiled when first called.
_EXPECT = {
    "parallel": njit(parallel=True, fastmath={"reassoc", "contract"})(_expect),
    "serial": njit(fastmath={"reassoc", "contract"})(_expect),
}
_COUNT = {"parallel": njit(parallel=True)(_count), "serial": njit(_count)}
