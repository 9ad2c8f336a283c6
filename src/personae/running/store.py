"""A content-addressed store of log-likelihoods that survives kill -9, torn files and full disks.

    $PERSONAE_HOME/evidence/<space>/seg-<digest>.parquet   immutable pieces: frame, episode, n_tokens, nats
    $PERSONAE_HOME/evidence/<space>/plan-<request>         what an unfinished request still has to do
    $PERSONAE_HOME/evidence/<space>/seg-<digest>.damaged   set aside: its bytes are not those it was named after

A space is one model in one arithmetic; a row is named by what was scored (hash of the frame's text, hash of
context and completion), so another file, cast or run that asks the same pays nothing. A piece is written to
a temporary name, synced and renamed; its name holds its hash, so a damaged piece is noticed, set aside and
computed again. The plan keeps the batches of an interrupted request, so that it resumes with the same
batches and ends with the same bits.

A store remembers which episodes each piece is about, so that a file that is scored part by part opens every
piece once and then only those it needs.

Not here: what is computed, and looking after what is kept (`running.store_care`). Concurrent writers are safe
(pieces are never changed); two of them may do the same work twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from personae.errors import NumericsError, StorageError
from personae.running.rows import SCHEMA, Keys, Rows, keys_in, keys_of

Batch = tuple[int, tuple[int, ...]]  # a frame and episodes, by their place in the request

TORN_AFTER_S = 3600.0
_TRIES = 3


class EvidenceStore:
    """The rows of one space.

    Args:
        root: Folder of all spaces.
        space: What makes rows comparable: model, tokenizer, dtype. Hashed into the folder's name.
    """

    def __init__(self, root: Path, space: str) -> None:
        digest = hashlib.blake2b(space.encode(), digest_size=12).hexdigest()
        self.folder = root / digest
        self.set_aside: list[Path] = []
        self._about: dict[Path, NDArray[np.uint64]] = {}  # the start of every episode's digest, sorted
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _forget_torn(self.folder)
            note = self.folder / "space.json"
            if not note.exists():
                write_whole(note, json.dumps({"space": space}).encode())
        except OSError as error:
            raise storage_error(self.folder, error) from error

    def load(self, frames: Sequence[bytes], episodes: Sequence[bytes]) -> Rows:
        """What the store holds of every pair. Damaged pieces are set aside, not read."""
        rows = Rows.empty(frames, episodes)
        wanted = _starts(keys_of(list(rows.episodes)))
        done: set[Path] = set()
        # A piece that goes away meanwhile was merged into a new one (`store gc`): look again.
        while fresh := sorted(set(self.folder.glob("seg-*.parquet")) - done):
            for path in fresh:
                if path not in self._about or _overlap(self._about[path], wanted):
                    table = self._read(path)
                    if table is not None:
                        self._about[path] = _starts(keys_in(table.column("episode")))
                        rows.fill(table)
            done |= set(fresh)
        return rows

    def put(self, items: Sequence[tuple[bytes, bytes, int, float]]) -> None:
        """Add rows (frame, episode, n_tokens, log_likelihood) as one piece.

        Raises:
            StorageError: If the disk is full or the folder cannot be written.
            NumericsError: If a log-likelihood is not a number; then nothing is stored.
        """
        if items:
            columns = zip(*items, strict=True)
            self.put_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA))

    def put_table(self, table: pa.Table) -> None:
        """Add rows in the columns of `rows.SCHEMA` as one piece; raises what `put` raises."""
        if len(table) == 0:
            return
        if np.isnan(table.column("log_likelihood").to_numpy()).any():
            raise NumericsError("a log-likelihood is not a number; it is not stored.")
        body = piece_of(table)
        path = self.folder / piece_name(body)
        try:
            write_whole(path, body)
        except OSError as error:
            raise storage_error(self.folder, error) from error
        self._about[path] = _starts(keys_in(table.column("episode")))

    def plan(self, request: str, fresh: Sequence[Batch]) -> list[Batch]:
        """The batches of an interrupted request if there is one, else `fresh`, which is written down.

        Batches hold places in the request's own order of frames and episodes, so the request must name both.
        A damaged plan is written afresh.
        """
        path = self._plan_path(request)
        try:
            if path.is_file():
                digest, _, body = path.read_bytes().partition(b"\n")
                if digest == _plan_digest(body):
                    return [(f, tuple(es)) for f, es in json.loads(body)]
            body = json.dumps(fresh, separators=(",", ":")).encode()
            write_whole(path, _plan_digest(body) + b"\n" + body)
        except OSError as error:
            raise storage_error(self.folder, error) from error
        return list(fresh)

    def finish(self, request: str) -> None:
        """Forget the plan of a request that is complete."""
        self._plan_path(request).unlink(missing_ok=True)

    def _plan_path(self, request: str) -> Path:
        return self.folder / f"plan-{hashlib.blake2b(request.encode(), digest_size=12).hexdigest()}"

    def _read(self, path: Path) -> pa.Table | None:
        table = read_piece(path)
        if table is None and path.exists():
            aside = set_aside(path)
            self.set_aside.append(aside)
        return table


def _starts(keys: Keys) -> NDArray[np.uint64]:
    """The first eight bytes of digests, sorted, each once: enough to tell which pieces may hold them."""
    return np.unique(np.frombuffer(keys.tobytes(), np.uint64)[::2])


def _overlap(have: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> bool:
    if len(have) == 0 or len(wanted) == 0:
        return False
    few, many = (have, wanted) if len(have) < len(wanted) else (wanted, have)
    at = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return bool((many[at] == few).any())


def piece_of(table: pa.Table) -> bytes:
    """The bytes of a piece."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def piece_name(body: bytes) -> str:
    """The name of a piece, which holds the hash of its bytes."""
    return f"seg-{hashlib.blake2b(body, digest_size=12).hexdigest()}.parquet"


def read_piece(path: Path) -> pa.Table | None:
    """The rows of a piece; None if it is damaged or has gone."""
    try:
        body = path.read_bytes()
        if path.name != piece_name(body):
            return None
        return pq.read_table(io.BytesIO(body), schema=SCHEMA)
    except (OSError, pa.ArrowException):
        return None


def set_aside(path: Path) -> Path:
    """Rename a damaged piece so that it is not read again, and give its new name."""
    aside = path.with_suffix(".damaged")
    with contextlib.suppress(FileNotFoundError):  # another reader was faster
        path.replace(aside)
    return aside


def _plan_digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=12).hexdigest().encode()


def write_whole(path: Path, body: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    for attempt in range(_TRIES):
        try:
            _write_once(path, body)
            return
        except FileNotFoundError:
            # Another process took our file for a torn one: its clock, or ours, has jumped.
            if attempt == _TRIES - 1 or not path.parent.is_dir():
                raise


def _write_once(path: Path, body: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _forget_torn(folder: Path) -> None:
    """Remove what a killed writer left half-written; a live writer's file is seconds old."""
    for path in folder.glob(".writing-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > TORN_AFTER_S:
                path.unlink()


def storage_error(folder: Path, error: OSError) -> StorageError:
    """What is told when the store cannot be written."""
    return StorageError(
        f"the evidence store {folder} cannot be written: {error.strerror or error}.",
        hint="What was scored before is kept. Free some space, or set PERSONAE_HOME to another folder; then run "
        "the same command again.",
    )
