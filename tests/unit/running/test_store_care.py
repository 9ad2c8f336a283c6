"""Stores are verified, cleared and merged without losing a score, also while others use them."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from personae.errors import StorageError
from personae.running import store as store_module
from personae.running.store import EvidenceStore
from personae.running.store_care import gc, spaces, verify

SPACE = "weights|tokenizer|float32|1"


def key(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def rows(frame: str, numbers: range) -> list[tuple[bytes, bytes, int, float]]:
    return [(key(frame), key(f"e{k}"), k + 1, -1.0 / (k + 1)) for k in numbers]


def values(store: EvidenceStore, frame: str, n: int) -> list[float]:
    return store.load([key(frame)], [key(f"e{k}") for k in range(n)]).log_likelihood[0].tolist()


def expected(n: int) -> list[float]:
    return [-1.0 / (k + 1) for k in range(n)]


@pytest.fixture
def store(tmp_path: Path) -> EvidenceStore:
    return EvidenceStore(tmp_path / "evidence", SPACE)


def pieces(store: EvidenceStore) -> list[Path]:
    return sorted(store.folder.glob("seg-*.parquet"))


def test_a_sound_store_is_found_sound(store: EvidenceStore, tmp_path: Path) -> None:
    store.put(rows("a", range(10)))
    store.put(rows("b", range(5)))
    store.plan("request", [(0, (0,))])
    report = verify(store.folder)
    assert (report.n_pieces, report.n_rows, report.damaged, report.n_plans) == (2, 15, (), 1)
    assert report.space == SPACE
    assert spaces(tmp_path / "evidence") == [store.folder]
    assert spaces(tmp_path / "nothing") == []


def test_a_flipped_bit_is_found_and_set_aside_and_the_rest_is_kept(store: EvidenceStore) -> None:
    store.put(rows("a", range(10)))
    store.put(rows("b", range(10)))
    rng = random.Random(0)
    for _ in range(20):
        (victim,) = rng.sample(pieces(store), 1)
        body = bytearray(victim.read_bytes())
        at = rng.randrange(len(body))
        body[at] ^= 1 << rng.randrange(8)
        victim.write_bytes(body)
        report = verify(store.folder)
        assert report.damaged == (victim.with_suffix(".damaged").name,)
        frame = "a" if np.isnan(values(store, "a", 1)).all() else "b"
        assert values(store, "b" if frame == "a" else "a", 10) == expected(10)
        store.put(rows(frame, range(10)))  # computed again
        gc(store.folder, settled_s=1e9)
        assert verify(store.folder).damaged == ()
    assert values(store, "a", 10) == values(store, "b", 10) == expected(10)


def test_merging_loses_nothing_and_keeps_the_first_of_two_values(store: EvidenceStore, tmp_path: Path) -> None:
    for k in range(12):
        store.put(rows("a", range(3 * k, 3 * k + 3)))
    store.put([(key("a"), key("e0"), 1, -99.0)])
    before = values(store, "a", 36)
    cleaning = gc(store.folder, settled_s=0)
    assert (cleaning.n_merged, cleaning.n_pieces) == (13, 1)
    assert values(store, "a", 36) == before  # by the reader that knew the old pieces
    assert values(EvidenceStore(tmp_path / "evidence", SPACE), "a", 36) == before
    assert verify(store.folder).n_rows == 36
    assert gc(store.folder, settled_s=0).n_merged == 0


def test_young_pieces_and_live_files_are_left_alone(store: EvidenceStore) -> None:
    store.put(rows("a", range(3)))
    store.put(rows("b", range(3)))
    live = store.folder / ".writing-live"
    live.write_bytes(b"half")
    store.plan("request", [(0, (0,))])
    cleaning = gc(store.folder)
    assert (cleaning.n_merged, cleaning.n_removed, cleaning.n_pieces) == (0, 0, 2)
    assert live.exists()


def test_what_was_abandoned_goes(store: EvidenceStore) -> None:
    torn = store.folder / ".writing-torn"
    torn.write_bytes(b"half")
    store.plan("request", [(0, (0,))])
    (store.folder / "seg-0.damaged").write_bytes(b"x" * 1000)
    (plan,) = store.folder.glob("plan-*")
    for path in (torn, plan):
        os.utime(path, (0, time.time() - 40 * 86400))
    cleaning = gc(store.folder)
    assert cleaning.n_removed == 3
    assert cleaning.n_bytes_freed >= 1000
    assert sorted(p.name for p in store.folder.iterdir()) == ["space.json"]


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_takes_no_score_away(store: EvidenceStore, tmp_path: Path, monkeypatch, jump: float) -> None:
    store.put(rows("a", range(5)))
    store.put(rows("b", range(5)))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    store.put(rows("c", range(5)))
    gc(store.folder)
    later = EvidenceStore(tmp_path / "evidence", SPACE)
    for frame in "abc":
        assert values(later, frame, 5) == expected(5)


def test_a_writer_whose_file_was_taken_for_a_torn_one_writes_again(store: EvidenceStore, monkeypatch) -> None:
    replace, taken = os.replace, []

    def taken_away(source, target) -> None:
        if not taken:
            taken.append(source)
            os.unlink(source)
        replace(source, target)

    monkeypatch.setattr(store_module.os, "replace", taken_away)
    store.put(rows("a", range(4)))
    assert taken
    assert values(store, "a", 4) == expected(4)


def test_a_disk_that_cannot_be_written_is_told_and_nothing_is_removed(store: EvidenceStore, monkeypatch) -> None:
    for k in range(3):
        store.put(rows("a", range(k, k + 1)))
    before = pieces(store)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            gc(store.folder, settled_s=0)
    assert pieces(store) == before
    assert values(store, "a", 3) == expected(3)


def test_pieces_that_cannot_matter_are_read_once(store: EvidenceStore, monkeypatch) -> None:
    for k in range(4):
        store.put(rows("a", range(100 * k, 100 * k + 100)))
    reader = EvidenceStore(store.folder.parent, SPACE)
    opened: list[Path] = []
    read = store_module.read_piece
    monkeypatch.setattr(store_module, "read_piece", lambda p: opened.append(p) or read(p))
    for k in range(4):
        found = reader.load([key("a")], [key(f"e{100 * k + j:d}") for j in range(100)])
        assert not found.missing.any()
    assert len(opened) == 4 + 3  # all of them once, then one for each later part


def _write(root: str, name: str, n: int) -> None:
    store = EvidenceStore(Path(root), SPACE)
    for k in range(n):
        store.put(
            [(key(name), key(f"e{k}"), k + 1, -1.0 / (k + 1)), (key("both"), key(f"e{k}"), k + 1, -1.0 / (k + 1))]
        )


def test_two_processes_write_while_a_third_merges(tmp_path: Path) -> None:
    n = 25
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(str(tmp_path), name, n)) for name in ("one", "two")]
    reader = EvidenceStore(tmp_path, SPACE)
    for w in writers:
        w.start()
    while any(w.is_alive() for w in writers):
        gc(reader.folder, settled_s=0)
        seen = np.array(values(reader, "both", n))
        assert np.isin(seen[~np.isnan(seen)], expected(n)).all()
    assert [w.exitcode for w in writers] == [0, 0]
    gc(reader.folder, settled_s=0)
    for name in ("one", "two", "both"):
        assert values(EvidenceStore(tmp_path, SPACE), name, n) == expected(n)
    assert verify(reader.folder).damaged == ()
    assert reader.set_aside == []
