"""The table that a request fills: every pair of frame and episode, known or not yet.

Rows of the store find their places by digests of 16 bytes in arrays, so that millions of rows are taken over
without a Python object for each. Not here: files (`running.store`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SCHEMA = pa.schema(
    [
        ("frame", pa.binary(16)),
        ("episode", pa.binary(16)),
        ("n_tokens", pa.int32()),
        ("log_likelihood", pa.float64()),
    ]
)

Keys = NDArray[np.bytes_]


def keys_of(digests: Sequence[bytes]) -> Keys:
    """Digests as an array of 16 bytes each. Equal length makes the padding of NumPy's strings harmless."""
    return np.frombuffer(b"".join(digests), "S16")


def keys_in(column: pa.ChunkedArray) -> Keys:
    """Digests of a table's column as an array of 16 bytes each; nothing is copied."""
    whole = column.cast(pa.binary(16)).combine_chunks()
    flat = np.frombuffer(whole.buffers()[1] or b"", "S16")
    return flat[whole.offset : whole.offset + len(whole)]


class Places:
    """Where each of some distinct digests stands."""

    def __init__(self, digests: Sequence[bytes]) -> None:
        keys = keys_of(digests)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def of(self, keys: Keys) -> NDArray[np.int64]:
        """The place of each key, -1 for one that is not among them."""
        if len(self._sorted) == 0:
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._order[at], -1)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What is known of every pair of frame and episode.

    Attributes:
        frames, episodes: Digests with their places, in the order of the axes.
        log_likelihood: Shape (n_frames, n_episodes), nats; NaN where not scored yet.
        n_tokens: Same shape; 0 where not scored yet.
    """

    frames: Mapping[bytes, int]
    episodes: Mapping[bytes, int]
    log_likelihood: NDArray[np.float64]
    n_tokens: NDArray[np.int32]
    _frame_places: Places
    _episode_places: Places

    @classmethod
    def empty(cls, frames: Sequence[bytes], episodes: Sequence[bytes]) -> Rows:
        """Nothing known yet. A digest given twice has one place."""
        frame_place = {k: i for i, k in enumerate(dict.fromkeys(frames))}
        episode_place = {k: i for i, k in enumerate(dict.fromkeys(episodes))}
        shape = (len(frame_place), len(episode_place))
        places = Places(list(frame_place)), Places(list(episode_place))
        return cls(frame_place, episode_place, np.full(shape, np.nan), np.zeros(shape, np.int32), *places)

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which pairs are not known, shape (n_frames, n_episodes)."""
        return np.isnan(self.log_likelihood)

    def fill(self, table: pa.Table) -> None:
        """Take over the rows of a piece that belong here; a pair that is known keeps its first value."""
        f = self._frame_places.of(keys_in(table.column("frame")))
        e = self._episode_places.of(keys_in(table.column("episode")))
        belongs = (f >= 0) & (e >= 0)
        if not belongs.any():
            return
        # Backwards, since of several values for one place the last to be written stays.
        f, e = f[belongs][::-1], e[belongs][::-1]
        value = table.column("log_likelihood").to_numpy()[belongs][::-1]
        count = table.column("n_tokens").to_numpy()[belongs][::-1]
        new = self.n_tokens[f, e] == 0
        self.log_likelihood[f[new], e[new]] = value[new]
        self.n_tokens[f[new], e[new]] = count[new]
