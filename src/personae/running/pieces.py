"""Pieces of work on disk, each named by everything it depends on: computed once, read afterwards.

    name = hash(what it is made of)     piece = arrays, whole or not there (written aside and renamed)

A piece that cannot be read (torn, damaged: see `kept_arrays`) counts as missing and is made again. Not here:
what pieces hold, and which of them may go once a run is complete (`instruments.keeping`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personae.errors import StorageError
from personae.running.kept_arrays import read_arrays, write_arrays

Arrays = dict[str, NDArray[Any]]


class Pieces:
    """A folder of pieces.

    Args:
        root: Where it is; made when the first piece is written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def kept(self, name: str, make: Callable[[], Mapping[str, NDArray[Any]]]) -> Arrays:
        """The arrays of a piece: read if they are there, else made and written.

        Raises:
            StorageError: If they cannot be written.
        """
        path = self._path(name)
        found = read_arrays(path)
        if found is not None:
            return found
        made = dict(make())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_arrays(path, made)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written: {error.strerror or error}.",
                hint="Free some space, or set PERSONAE_HOME to another folder; what was computed is kept.",
            ) from error
        return made

    def forget(self, names: Iterable[str]) -> None:
        """Remove pieces; those that are gone already are no matter."""
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._root / name[:2] / f"{name}.npz"


def name_of(*parts: object) -> str:
    """A name from plain values, arrays and bytes: equal parts, equal name."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"array {part.dtype} {part.shape}\0".encode() + np.ascontiguousarray(part).tobytes())
        elif isinstance(part, bytes):
            digest.update(b"bytes %d\0" % len(part) + part)
        else:
            digest.update(json.dumps(part, sort_keys=True).encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
