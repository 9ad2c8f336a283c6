"""A table written part by part is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personae.errors import StorageError
from personae.files.ids import UsedIds
from personae.running.run import TableWriter


def columns(start: int, n: int) -> dict[str, pa.Array]:
    return {
        "episode": pa.array([f"e{k}" for k in range(start, start + n)]),
        "value": pa.array(np.arange(start, start + n)),
    }


def test_parts_follow_one_another_with_notes(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    with TableWriter(path, {"unit": "nats"}) as writer:
        for start in (0, 3, 6):
            writer.add(columns(start, 3))
            assert not path.exists()
    table = pq.read_table(path)
    assert table["value"].to_pylist() == list(range(9))
    assert table.schema.metadata[b"personae_unit"] == b"nats"
    assert list(tmp_path.iterdir()) == [path]


def write_and_stop(path: Path) -> None:
    with TableWriter(path, {}) as writer:
        writer.add(columns(5, 2))
        raise KeyboardInterrupt


def write_all(path: Path) -> None:
    with TableWriter(path, {}) as writer:
        writer.add(columns(0, 2))


def test_an_interruption_leaves_what_was_there_before(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    with TableWriter(path, {}) as writer:
        writer.add(columns(0, 2))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_and_stop(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(StorageError, match="No space left") as caught:
            write_all(tmp_path / "table.parquet")
    assert "--out" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    nowhere = TableWriter(tmp_path / "no" / "such" / "folder.parquet", {})
    with pytest.raises(StorageError):
        nowhere.add(columns(0, 1))


def test_an_id_is_known_wherever_it_was_used_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personae.files.ids._GATHERED", 7)
    used = UsedIds()
    for line in range(1, 101):
        assert used.add(f"row-{line}", line) is None
    for line in (1, 6, 7, 8, 50, 99, 100):
        assert used.add(f"row-{line}", 1000) == line
    assert used.add("row-101", 101) is None
    assert used.add("\ud800 half a pair", 102) is None
