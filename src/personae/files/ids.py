"""Which ids a file has used, and on which line, in 24 bytes an id.

A file of any size is checked for ids that repeat without keeping the ids themselves: they are hashed to 16 bytes,
gathered, and merged into one sorted array from time to time. Not here: what an id belongs to.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GATHERED = 2**16


class UsedIds:
    """Ids seen so far with the line of each."""

    def __init__(self) -> None:
        self._recent: dict[bytes, int] = {}
        self._digests = np.zeros(0, "S16")
        self._lines = np.zeros(0, np.int64)

    def add(self, name: str, line: int) -> int | None:
        """Note an id; the line where it was used before, or None."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        earlier = self._recent.get(digest) or self._in_array(digest)
        if earlier is None:
            self._recent[digest] = line
            if len(self._recent) >= _GATHERED:
                self._merge()
        return earlier

    def _in_array(self, digest: bytes) -> int | None:
        at = int(np.searchsorted(self._digests, np.bytes_(digest)))
        if at < len(self._digests) and self._digests[at] == np.bytes_(digest):
            return int(self._lines[at])
        return None

    def _merge(self) -> None:
        digests = np.concatenate([self._digests, np.frombuffer(b"".join(self._recent), "S16")])
        lines = np.concatenate([self._lines, np.fromiter(self._recent.values(), np.int64)])
        order = np.argsort(digests, kind="stable")
        self._digests, self._lines = digests[order], lines[order]
        self._recent = {}
