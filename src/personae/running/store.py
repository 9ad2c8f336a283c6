"""A content-addressed store of log-likelihoods that survives kill -9, torn files and full disks.

    $PERSONAE_HOME/evidence/<space>/seg-<digest>.parquet   immutable pieces: frame, episode, n_tokens, nats
    $PERSONAE_HOME/evidence/<space>/plan-<request>         what an unfinished request still has to do

A space is one model in one arithmetic; a row is named by what was scored (hash of the frame's text, hash of
context and completion), so another file, cast or run that asks the same pays nothing. A piece is written to
a temporary name, synced and renamed; its name holds its hash, so a damaged piece is noticed, set aside and
computed again. The plan keeps the batches of an interrupted request, so that it resumes with the same
batches and ends with the same bits.

Not here: what is computed. Concurrent writers are safe (pieces are never changed); two of them may do the
same work twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from personae.errors import NumericsError, StorageError

Batch = tuple[int, tuple[int, ...]]  # a frame and episodes, by their place in the request

_TORN_AFTER_S = 3600.0

_SCHEMA = pa.schema(
    [
        ("frame", pa.binary(16)),
        ("episode", pa.binary(16)),
        ("n_tokens", pa.int32()),
        ("log_likelihood", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What is known of every pair of frame and episode.

    Attributes:
        frames, episodes: Digests in the order of the axes.
        log_likelihood: Shape (n_frames, n_episodes), nats; NaN where not scored yet.
        n_tokens: Same shape; 0 where not scored yet.
    """

    frames: Mapping[bytes, int]
    episodes: Mapping[bytes, int]
    log_likelihood: NDArray[np.float64]
    n_tokens: NDArray[np.int32]

    @classmethod
    def empty(cls, frames: Sequence[bytes], episodes: Sequence[bytes]) -> Rows:
        """Nothing known yet. A digest given twice has one place."""
        frame_place = {k: i for i, k in enumerate(dict.fromkeys(frames))}
        episode_place = {k: i for i, k in enumerate(dict.fromkeys(episodes))}
        shape = (len(frame_place), len(episode_place))
        return cls(frame_place, episode_place, np.full(shape, np.nan), np.zeros(shape, np.int32))

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which pairs are not known, shape (n_frames, n_episodes)."""
        return np.isnan(self.log_likelihood)

    def fill(self, table: pa.Table) -> None:
        """Take over the rows of a piece that belong here; a pair that is known keeps its first value."""
        columns = (table.column(name).to_pylist() for name in _SCHEMA.names)
        for frame, episode, count, value in zip(*columns, strict=True):
            f, e = self.frames.get(frame), self.episodes.get(episode)
            if f is not None and e is not None and self.n_tokens[f, e] == 0:
                self.log_likelihood[f, e], self.n_tokens[f, e] = value, count


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
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _forget_torn(self.folder)
            note = self.folder / "space.json"
            if not note.exists():
                _write_whole(note, json.dumps({"space": space}).encode())
        except OSError as error:
            raise _storage_error(self.folder, error) from error

    def load(self, frames: Sequence[bytes], episodes: Sequence[bytes]) -> Rows:
        """What the store holds of every pair. Damaged pieces are set aside, not read."""
        rows = Rows.empty(frames, episodes)
        for path in sorted(self.folder.glob("seg-*.parquet")):
            table = self._read(path)
            if table is not None:
                rows.fill(table)
        return rows

    def put(self, items: Sequence[tuple[bytes, bytes, int, float]]) -> None:
        """Add rows (frame, episode, n_tokens, log_likelihood) as one piece.

        Raises:
            StorageError: If the disk is full or the folder cannot be written.
            NumericsError: If a log-likelihood is not a number; then nothing is stored.
        """
        if not items:
            return
        if any(math.isnan(value) for *_, value in items):
            raise NumericsError("a log-likelihood is not a number; it is not stored.")
        columns = zip(*items, strict=True)
        table = pa.table([pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        body = sink.getvalue()
        name = f"seg-{hashlib.blake2b(body, digest_size=12).hexdigest()}.parquet"
        try:
            _write_whole(self.folder / name, body)
        except OSError as error:
            raise _storage_error(self.folder, error) from error

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
            _write_whole(path, _plan_digest(body) + b"\n" + body)
        except OSError as error:
            raise _storage_error(self.folder, error) from error
        return list(fresh)

    def finish(self, request: str) -> None:
        """Forget the plan of a request that is complete."""
        self._plan_path(request).unlink(missing_ok=True)

    def _plan_path(self, request: str) -> Path:
        return self.folder / f"plan-{hashlib.blake2b(request.encode(), digest_size=12).hexdigest()}"

    def _read(self, path: Path) -> pa.Table | None:
        try:
            body = path.read_bytes()
            if path.stem != f"seg-{hashlib.blake2b(body, digest_size=12).hexdigest()}":
                raise pa.ArrowInvalid("checksum")
            return pq.read_table(io.BytesIO(body), schema=_SCHEMA)
        except FileNotFoundError:
            return None
        except (OSError, pa.ArrowException):
            aside = path.with_suffix(".damaged")
            with contextlib.suppress(FileNotFoundError):  # another reader was faster
                path.replace(aside)
            self.set_aside.append(aside)
            return None


def _plan_digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=12).hexdigest().encode()


def _write_whole(path: Path, body: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
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
            if time.time() - path.stat().st_mtime > _TORN_AFTER_S:
                path.unlink()


def _storage_error(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"the evidence store {folder} cannot be written: {error.strerror or error}.",
        hint="What was scored before is kept. Free some space, or set PERSONAE_HOME to another folder; then run "
        "the same command again.",
    )
