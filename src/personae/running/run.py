"""A run's folder: `run.json`, tables, report. Every run writes what is needed to repeat it.

Not here: what a command does.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from personae.errors import InputError, StorageError

_PACKAGES = ("personae", "numpy", "scipy", "pyarrow", "torch", "transformers")


def make_run_folder(out: str | None, command: str) -> Path:
    """Create the folder of a run: `out`, or runs/<command>-<time>.

    Raises:
        StorageError: If it cannot be created or written, before any work is done.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(out) if out else _unused(Path("runs") / f"{command}-{stamp}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StorageError(
            f"the run folder {folder} cannot be written: {error.strerror or error}.",
            hint="Choose another folder with --out.",
        ) from error
    return folder


def _unused(path: Path) -> Path:
    tries = (path if k == 0 else path.with_name(f"{path.name}-{k}") for k in range(1000))
    return next(p for p in tries if not p.exists())


def provenance(inputs: Sequence[str | Path], *, seed: int) -> dict[str, object]:
    """Versions, input hashes, seed, machine and date."""
    return {
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "inputs": {str(p): file_digest(Path(p)) for p in inputs},
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(str(part.relative_to(path)).encode())
        with part.open("rb") as handle:
            while block := handle.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON file whole or not at all; NaN is refused.

    Raises:
        StorageError: If it cannot be written.
    """
    body = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False, default=str)
    write_text(path, body)


def write_text(path: Path, body: str) -> None:
    """Write a UTF-8 text whole or not at all.

    Raises:
        StorageError: If it cannot be written.
    """
    _write(path, lambda p: p.write_text(body, encoding="utf-8"))


def write_table(path: Path, columns: Mapping[str, Sequence[object] | pa.Array], notes: Mapping[str, str]) -> None:
    """Write a Parquet table with `notes` in its schema's metadata.

    Raises:
        StorageError: If it cannot be written.
    """
    table = pa.table(dict(columns)).replace_schema_metadata({f"personae_{k}": v for k, v in notes.items()})
    _write(path, lambda p: pq.write_table(table, p, compression="zstd"))


class TableWriter:
    """A Parquet table written part by part: there whole once the block ends, or not at all.

    Args:
        path: Where it will be.
        notes: For its schema's metadata.

    Raises:
        StorageError: If it cannot be written.
    """

    def __init__(self, path: Path, notes: Mapping[str, str]) -> None:
        self._path, self._notes = path, {f"personae_{k}": v for k, v in notes.items()}
        self._temporary = path.with_name(f".{path.name}.writing")
        self._writer: pq.ParquetWriter | None = None

    def add(self, columns: Mapping[str, Sequence[object] | pa.Array | NDArray[Any]]) -> None:
        """Append rows; the first part sets the columns and their types."""
        table = pa.table(dict(columns))
        try:
            if self._writer is None:
                schema = table.schema.with_metadata(self._notes)
                self._writer = pq.ParquetWriter(self._temporary, schema, compression="zstd")
            self._writer.write_table(table.cast(self._writer.schema))
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
                if kind is None:
                    os.replace(self._temporary, self._path)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        finally:
            self._temporary.unlink(missing_ok=True)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.writing")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}.",
        hint="Free some space or choose another folder with --out; scores are kept and the run resumes.",
    )


def read_run(folder: Path) -> dict[str, object]:
    """The `run.json` of a run's folder.

    Raises:
        InputError: If there is none or it cannot be read.
    """
    path = folder / "run.json"
    if not folder.exists():
        raise InputError(
            "there is no such folder",
            path=str(folder),
            hint="Name the folder of a finished run, where its run.json lies.",
        )
    if folder.is_dir() and not path.exists():
        raise InputError(
            "no readable run.json: nothing in this folder has come to its end",
            path=str(path),
            hint="Repeat the command that was to write here, or name the folder of a finished run.",
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"no readable run.json: {error}", path=str(path), hint="Name the folder of a run.") from error
    if not isinstance(value, dict) or "settings" not in value:
        raise InputError("run.json holds no settings", path=str(path))
    return value
