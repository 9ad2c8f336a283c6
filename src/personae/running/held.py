"""A folder held by one process: a second one that wants it is told, and a killed one lets go of it by itself."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from personae.errors import InvalidSettings, StorageError

_LOCK = Path("training") / "lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder against a second process.

    Raises:
        InvalidSettings: If another process trains in it.
        StorageError: If it cannot be written.
    """
    place = folder / _LOCK
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = place.open("wb")
    except OSError as error:
        raise StorageError(
            f"the run folder {folder} cannot be written: {error.strerror or error}.",
            hint="Choose another folder with --out.",
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidSettings(
                f"another process is training in {folder}.",
                hint="Wait for it; a training of your own can be given another folder with --out.",
            ) from error
        yield


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder now."""
    try:
        with (folder / _LOCK).open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
