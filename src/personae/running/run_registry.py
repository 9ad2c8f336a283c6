"""Where past runs are kept, so that forecasts get better with use.

    $PERSONAE_HOME/past-runs/<run>.json       one a verified training
    reference/past_runs.jsonl                 those that came with the package, one a line

A user's record replaces a shipped one of the same id. Not here: what is in a record (`tables.run_registry`), what is
learnt from them (`inference.common_mode`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from personae.errors import InputError, StorageError
from personae.running.run import write_json
from personae.tables.run_registry import PastRun, RunRegistry


class RegistryShelf:
    """The past runs of a user, and those that came with the package.

    Args:
        root: Folder of the user's records; need not exist.
        shipped: File of shipped records; None for the package's own. It need not exist.
    """

    def __init__(self, root: Path, *, shipped: Path | None = None) -> None:
        self._root = root
        self._shipped = shipped or Path(str(resources.files("personae") / "reference" / "past_runs.jsonl"))

    def load(self, *, shipped: bool = True) -> RunRegistry:
        """Every record; with `shipped` False only the user's own.

        Raises:
            InputError: If one is damaged or of another format, with its path.
        """
        runs = {run.run: run for run in self._from_package()} if shipped else {}
        for path in sorted(self._root.glob("*.json")) if self._root.is_dir() else []:
            run = PastRun.from_dict(_object(_text(path), str(path)), path=str(path))
            runs[run.run] = run
        return RunRegistry(tuple(runs.values()))

    def put(self, run: PastRun) -> Path:
        """Keep a record, replacing one of the same id; gives its path.

        Raises:
            StorageError: If it cannot be written.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"the folder {self._root} cannot be written: {error.strerror or error}.",
                hint="Set PERSONAE_HOME or --registry to another folder, or pass --no-register.",
            ) from error
        path = self._root / f"{re.sub(r'[^A-Za-z0-9._-]', '_', run.run)}.json"
        write_json(path, run.to_dict())
        return path

    def _from_package(self) -> Iterator[PastRun]:
        if not self._shipped.is_file():
            return
        for number, line in enumerate(_text(self._shipped).splitlines(), 1):
            if line.strip():
                place = f"{self._shipped}, line {number}"
                yield PastRun.from_dict(_object(line, place), path=place)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the record of a past run cannot be read: {error}.", path=str(path)) from error


def _object(text: str, place: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"the record of a past run is not JSON: {error}.",
            path=place,
            hint="Delete it; `personae verify` remakes it.",
        ) from error
    if not isinstance(value, dict):
        raise InputError("the record of a past run is not an object.", path=place)
    return value
