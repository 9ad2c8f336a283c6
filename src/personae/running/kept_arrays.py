"""Arrays that are dear to make and depend on a model alone, kept on disk so that they are made once.

    $PERSONAE_HOME/gradients/<space>/<key>.arrays     hash of what follows, then the arrays (NumPy's .npz)
    $PERSONAE_HOME/gradients/<space>/<key>.damaged    set aside: its bytes are not those that were hashed

A key names everything an entry depends on, so entries never change: a reader takes what is whole, and what is torn,
damaged or missing is made again. Concurrent writers are safe; two of them may do the same work twice. Not here: what is
kept, and why it depends on what its key names.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from personae.errors import StorageError
from personae.running.store import set_aside, write_whole

Arrays = Mapping[str, NDArray[np.generic]]


class KeptArrays:
    """The entries of one space.

    Args:
        root: Folder of all spaces; made when the first entry is kept.
        space: What makes entries comparable: model, tokenizer, dtype. Hashed into the folder's name.
    """

    def __init__(self, root: Path, space: str) -> None:
        self.folder = root / _digest(space.encode())
        self._space = space

    def load(self, key: str) -> dict[str, NDArray[np.generic]] | None:
        """The arrays kept under a key by name; None if there are none, or if they are damaged (then set aside)."""
        path = self._path(key)
        found = read_arrays(path)
        if found is None and path.exists():
            set_aside(path)
        return found

    def put(self, key: str, arrays: Arrays) -> None:
        """Keep arrays under a key.

        Raises:
            StorageError: If the disk is full or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            note = self.folder / "space.json"
            if not note.exists():
                write_whole(note, json.dumps({"space": self._space}).encode())
            write_arrays(self._path(key), arrays)
        except OSError as error:
            raise StorageError(
                f"the folder {self.folder} cannot be written: {error.strerror or error}.",
                hint="What was made before is kept. Free some space, or set PERSONAE_HOME to another folder; then run "
                "the same command again.",
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / f"{_digest(key.encode())}.arrays"


def read_arrays(path: Path) -> dict[str, NDArray[np.generic]] | None:
    """The arrays of a file by name; None if it is not there, or its bytes are not those that were hashed."""
    try:
        stamp, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if stamp != _digest(body).encode():
        return None
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (ValueError, zipfile.BadZipFile, KeyError):
        return None  # whole, but not what this version writes


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays behind a hash of their bytes: all of the file is there, or none of it.

    Raises:
        OSError: If it cannot be written.
    """
    sink = io.BytesIO()
    np.savez(sink, **arrays)  # type: ignore[arg-type]
    body = sink.getvalue()
    write_whole(path, _digest(body).encode() + b"\n" + body)


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=12).hexdigest()
