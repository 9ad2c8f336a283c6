"""The evidence store: exact, whole or absent, and never wrong about what it holds."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from personae.errors import NumericsError, StorageError
from personae.running.store import EvidenceStore

SPACE = "weights|tokenizer|float32|1"
Item = tuple[bytes, bytes, int, float]


def key(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def items_of(values: list[float], frame: str = "frame") -> list[Item]:
    return [(key(frame), key(f"episode{k}"), k + 1, v) for k, v in enumerate(values)]


def load(store: EvidenceStore, n: int, frame: str = "frame") -> np.ndarray:
    return store.load([key(frame)], [key(f"episode{k}") for k in range(n)]).log_likelihood[0]


def pieces(store: EvidenceStore) -> list[Path]:
    return sorted(store.folder.glob("seg-*.parquet"))


def leftovers(store: EvidenceStore) -> list[Path]:
    return [p for p in store.folder.iterdir() if p.name.startswith(".")]


@pytest.fixture
def store(tmp_path: Path) -> EvidenceStore:
    return EvidenceStore(tmp_path / "evidence", SPACE)


def test_rows_come_back_bit_equal(store: EvidenceStore, tmp_path: Path):
    rng = np.random.default_rng(0)
    values = [*(-1e3 * rng.random(200)), -np.inf, -0.0, 0.0, -5e-324, -1.7976931348623157e308, np.nextafter(-1, 0)]
    store.put(items_of(values))
    rows = EvidenceStore(tmp_path / "evidence", SPACE).load([key("frame")], [k for _, k, _, _ in items_of(values)])
    assert rows.log_likelihood[0].tobytes() == np.array(values).tobytes()
    assert rows.n_tokens[0].tolist() == list(range(1, len(values) + 1))
    assert not rows.missing.any()


def test_only_what_was_asked_comes_back(store: EvidenceStore):
    store.put(items_of([-1.0, -2.0], "a"))
    store.put(items_of([-3.0], "b"))
    rows = store.load([key("b"), key("c"), key("a")], [key("episode1"), key("episode0")])
    np.testing.assert_array_equal(rows.log_likelihood, [[np.nan, -3.0], [np.nan, np.nan], [-2.0, -1.0]])
    np.testing.assert_array_equal(rows.missing, [[True, False], [True, True], [False, False]])


def test_a_frame_asked_twice_is_listed_once(store: EvidenceStore):
    store.put(items_of([-1.0], "a"))
    rows = store.load([key("a"), key("a")], [key("episode0"), key("episode0")])
    assert rows.missing.tolist() == [[False]]
    assert rows.log_likelihood[rows.frames[key("a")], rows.episodes[key("episode0")]] == -1.0


def test_an_empty_piece_is_not_written(store: EvidenceStore):
    store.put([])
    assert pieces(store) == []


def test_spaces_do_not_see_each_other(tmp_path: Path):
    one, other = EvidenceStore(tmp_path, SPACE), EvidenceStore(tmp_path, SPACE.replace("float32", "bfloat16"))
    one.put(items_of([-1.0]))
    assert np.isnan(load(other, 1)).all()
    assert json.loads((one.folder / "space.json").read_text()) == {"space": SPACE}


def flip_a_bit(body: bytes) -> bytes:
    middle = len(body) // 3
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda body: body[: len(body) // 2],
        lambda body: body[:-1],
        lambda body: b"",
        lambda body: body + b"\0",
        lambda body: b"\0" * len(body),
    ],
    ids=["bit", "half", "last byte", "empty", "longer", "zeros"],
)
def test_a_damaged_piece_is_set_aside_and_not_read(store: EvidenceStore, damage):
    store.put(items_of([-1.0, -2.0]))
    (piece,) = pieces(store)
    store.put(items_of([-3.0], "other"))
    piece.write_bytes(damage(piece.read_bytes()))
    assert np.isnan(load(store, 2)).all()
    assert load(store, 1, "other") == -3.0
    assert store.set_aside == [piece.with_suffix(".damaged")]
    assert piece.with_suffix(".damaged").is_file()
    assert not piece.exists()
    # Computed again, it is read again; the damaged one stays where it is.
    store.put(items_of([-1.0, -2.0]))
    assert load(store, 2).tolist() == [-1.0, -2.0]
    assert len(store.set_aside) == 1


def test_no_flipped_bit_is_ever_believed(store: EvidenceStore):
    store.put(items_of([-1.0 / k for k in range(1, 30)]))
    (piece,) = pieces(store)
    body = piece.read_bytes()
    for at in range(0, len(body), 3):
        piece.write_bytes(body[:at] + bytes([body[at] ^ (1 << at % 8)]) + body[at + 1 :])
        assert np.isnan(load(store, 29)).all(), at


def test_a_whole_piece_of_another_kind_is_set_aside(store: EvidenceStore):
    """A file whose name fits its bytes and whose bytes are no table."""
    body = b"not a table"
    name = f"seg-{hashlib.blake2b(body, digest_size=12).hexdigest()}.parquet"
    (store.folder / name).write_bytes(body)
    assert np.isnan(load(store, 1)).all()
    assert len(store.set_aside) == 1


def test_two_readers_set_a_damaged_piece_aside_once(store: EvidenceStore, tmp_path: Path, monkeypatch):
    store.put(items_of([-1.0]))
    (piece,) = pieces(store)
    piece.write_bytes(b"")
    read = Path.read_bytes

    def and_another_was_faster(path: Path) -> bytes:
        body = read(path)
        if path == piece:
            os.replace(piece, piece.with_suffix(".damaged"))
        return body

    monkeypatch.setattr(Path, "read_bytes", and_another_was_faster)
    assert np.isnan(load(store, 1)).all()


def test_files_that_are_being_written_are_not_read(store: EvidenceStore):
    store.put(items_of([-1.0]))
    (piece,) = pieces(store)
    (store.folder / ".writing-abc").write_bytes(piece.read_bytes()[:40])
    (store.folder / "notes.txt").write_text("mine")
    assert load(store, 1).tolist() == [-1.0]
    assert store.set_aside == []


def test_what_a_killed_writer_left_is_removed_and_a_live_writers_is_not(store: EvidenceStore, tmp_path: Path):
    torn, live = store.folder / ".writing-torn", store.folder / ".writing-live"
    for path in (torn, live):
        path.write_bytes(b"half")
    os.utime(torn, (0, time.time() - 7200))
    EvidenceStore(tmp_path / "evidence", SPACE)
    assert not torn.exists()
    assert live.exists()


def test_a_known_pair_keeps_its_value(store: EvidenceStore):
    rows = store.load([key("frame")], [key("episode0")])
    names = ["frame", "episode", "n_tokens", "log_likelihood"]
    for value in (-1.0, -2.0):
        rows.fill(pa.table([[key("frame")], [key("episode0")], [1], [value]], names=names))
    assert rows.log_likelihood[0, 0] == -1.0


def test_two_writers_lose_nothing(tmp_path: Path):
    stores = [EvidenceStore(tmp_path, SPACE) for _ in range(2)]
    failures: list[BaseException] = []

    def write(store: EvidenceStore, name: str) -> None:
        try:
            for k in range(15):
                store.put([(key(name), key(f"episode{k}"), 1, -float(k))])
                store.put([(key("both"), key(f"episode{k}"), 1, -float(k))])
                load(store, 15, "both")
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=write, args=(s, n)) for s, n in zip(stores, ("one", "other"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    reader = EvidenceStore(tmp_path, SPACE)
    for name in ("one", "other", "both"):
        assert load(reader, 15, name).tolist() == [-float(k) for k in range(15)]
    assert reader.set_aside == []
    assert leftovers(reader) == []


def refuse(number: int):
    def call(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_is_told_and_leaves_nothing_half_written(
    store: EvidenceStore, monkeypatch: pytest.MonkeyPatch, place: str, number: int
):
    store.put(items_of([-1.0]))
    before = sorted(store.folder.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(os, place, refuse(number))
        with pytest.raises(StorageError, match=os.strerror(number)) as caught:
            store.put(items_of([-2.0], "other"))
        with pytest.raises(StorageError):
            store.plan("request", [(0, (0,))])
    assert caught.value.exit_status == 3
    assert "PERSONAE_HOME" in caught.value.hint
    assert sorted(store.folder.iterdir()) == before
    assert load(store, 1).tolist() == [-1.0]
    store.put(items_of([-2.0], "other"))
    assert load(store, 1, "other").tolist() == [-2.0]


def test_an_interrupted_write_leaves_nothing(store: EvidenceStore, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.put(items_of([-1.0]))
    assert pieces(store) == []
    assert leftovers(store) == []


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        EvidenceStore(tmp_path / "file" / "evidence", SPACE)


def test_a_home_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "replace", refuse(errno.EROFS))
    with pytest.raises(StorageError, match="Read-only"):
        EvidenceStore(tmp_path, SPACE)


def test_not_a_number_is_never_stored(store: EvidenceStore):
    with pytest.raises(NumericsError):
        store.put(items_of([-1.0, float("nan"), -2.0]))
    assert pieces(store) == []
    assert np.isnan(load(store, 3)).all()


PLAN = [(0, (0, 2, 1)), (3, (4,)), (1, ())]


def test_a_plan_is_resumed_as_it_was(store: EvidenceStore, tmp_path: Path):
    assert store.plan("request", PLAN) == PLAN
    again = EvidenceStore(tmp_path / "evidence", SPACE)
    assert again.plan("request", [(9, (9,))]) == PLAN
    assert again.plan("another", [(9, (9,))]) == [(9, (9,))]
    again.finish("request")
    assert store.plan("request", [(5, (5,))]) == [(5, (5,))]
    store.finish("never begun")


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body[: len(body) // 2],
        lambda body: b"",
        lambda body: b"null",
        lambda body: b"[]",
        lambda body: b"{}",
        lambda body: b"\xff\xfe",
        lambda body: body.replace(b"4", b"5"),
        lambda body: body.replace(b"2", b"-"),
    ],
    ids=["half", "empty", "null", "list", "object", "bytes", "other number", "other sign"],
)
def test_a_damaged_plan_is_made_afresh(store: EvidenceStore, damage):
    store.plan("request", PLAN)
    (path,) = store.folder.glob("plan-*")
    path.write_bytes(damage(path.read_bytes()))
    fresh = [(7, (7,))]
    assert store.plan("request", fresh) == fresh
    assert store.plan("request", PLAN) == fresh
