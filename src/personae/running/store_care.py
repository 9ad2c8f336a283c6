"""Looking after evidence stores: check every piece, put away what is damaged, merge what is small.

    verify   read every byte; a piece whose bytes are not those it was named after is set aside
    gc       remove what was set aside, torn or abandoned, and merge the pieces of a space into large ones

Both may run while others read and write: pieces are never changed, a merged piece is there before its parts go, and
readers look again when a piece went away. Not here: what a piece holds (`running.store`).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from personae.errors import StorageError
from personae.running.rows import SCHEMA
from personae.running.store import TORN_AFTER_S, piece_name, piece_of, read_piece, set_aside, storage_error, write_whole

_MERGED_ROWS = 2**21  # of one piece at most
_SETTLED_S = 60.0  # a younger piece may belong to a run under way, which merges nothing
PLAN_DAYS = 30


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """What was found in one space.

    Attributes:
        folder: Where it is.
        space: What makes its rows comparable, as it was noted.
        n_pieces, n_rows, n_bytes: What is whole.
        damaged: Pieces that were set aside, now or before.
        n_plans: Requests that were interrupted.
    """

    folder: Path
    space: str
    n_pieces: int
    n_rows: int
    n_bytes: int
    damaged: tuple[str, ...]
    n_plans: int


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What `gc` did to one space."""

    folder: Path
    n_removed: int
    n_merged: int
    n_pieces: int
    n_bytes_freed: int


def spaces(root: Path) -> list[Path]:
    """The folders of all spaces under a store's root."""
    return sorted(p for p in root.glob("*") if p.is_dir()) if root.is_dir() else []


def verify(folder: Path) -> SpaceReport:
    """Read every piece of a space; those that are damaged are set aside.

    Raises:
        StorageError: If the folder cannot be read or written.
    """
    n_pieces = n_rows = n_bytes = 0
    try:
        for path in sorted(folder.glob("seg-*.parquet")):
            table = read_piece(path)
            if table is not None:
                n_pieces, n_rows, n_bytes = n_pieces + 1, n_rows + len(table), n_bytes + path.stat().st_size
            elif path.exists():
                set_aside(path)
        damaged = tuple(p.name for p in sorted(folder.glob("*.damaged")))
        plans = len(list(folder.glob("plan-*")))
    except OSError as error:
        raise storage_error(folder, error) from error
    return SpaceReport(folder, _space_of(folder), n_pieces, n_rows, n_bytes, damaged, plans)


def gc(folder: Path, *, plan_days: float = PLAN_DAYS, settled_s: float = _SETTLED_S) -> Cleaning:
    """Remove what no run will read, and merge small pieces.

    Args:
        folder: Of the space.
        plan_days: Plans of interrupted requests older than this are forgotten.
        settled_s: Pieces younger than this are left alone.

    Raises:
        StorageError: If the folder cannot be read or written; nothing that was whole is lost.
    """
    try:
        before = _bytes_in(folder)
        now = time.time()
        gone = [*folder.glob("*.damaged"), *(p for p in folder.glob(".writing-*") if _age(p, now) > TORN_AFTER_S)]
        gone += [p for p in folder.glob("plan-*") if _age(p, now) > plan_days * 86400]
        for path in gone:
            path.unlink(missing_ok=True)
        settled = [p for p in sorted(folder.glob("seg-*.parquet")) if _age(p, now) > settled_s]
        merged = sum(_merge(folder, group) for group in _groups(settled))
        n_pieces = len(list(folder.glob("seg-*.parquet")))
        return Cleaning(folder, len(gone), merged, n_pieces, max(0, before - _bytes_in(folder)))
    except OSError as error:
        raise storage_error(folder, error) from error


def _groups(paths: list[Path]) -> Iterator[list[Path]]:
    """Pieces to merge: several small ones, in the order in which they are read, up to a number of rows."""
    group: list[Path] = []
    rows = 0
    for path in paths:
        try:
            n = pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException):
            continue  # `verify` sets it aside
        if group and rows + n > _MERGED_ROWS:
            yield group
            group, rows = [], 0
        group.append(path)
        rows += n
    yield group


def _merge(folder: Path, group: list[Path]) -> int:
    """One piece instead of several, rows in the order in which a reader meets them; how many went."""
    tables = [(path, table) for path in group if (table := read_piece(path)) is not None]
    if len(tables) < 2:
        return 0
    # Of two values of one pair readers keep the first, so the first is what stays.
    whole = pa.concat_tables([t for _, t in tables]).append_column(
        "place", pa.array(range(sum(len(t) for _, t in tables)))
    )
    first = whole.group_by(["frame", "episode"], use_threads=False).aggregate([("place", "min")])["place_min"]
    body = piece_of(whole.take(first.sort()).select(SCHEMA.names).cast(SCHEMA))
    path = folder / piece_name(body)
    write_whole(path, body)
    if read_piece(path) is None:
        raise StorageError(f"the merged piece {path} cannot be read back.", hint="Nothing was removed.")
    for old, _ in tables:
        if old != path:
            old.unlink(missing_ok=True)
    return len(tables)


def _age(path: Path, now: float) -> float:
    with contextlib.suppress(FileNotFoundError):
        return now - path.stat().st_mtime
    return 0.0


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _space_of(folder: Path) -> str:
    try:
        value = json.loads((folder / "space.json").read_text(encoding="utf-8"))
        return str(value["space"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
