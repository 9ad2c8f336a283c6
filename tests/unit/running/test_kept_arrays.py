"""Arrays kept on disk: what was put comes back to the bit, and what is torn or altered does not come back at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from personae.errors import StorageError
from personae.running.kept_arrays import KeptArrays

ARRAYS = {"gradient": np.arange(12, dtype=np.float16).reshape(3, 4), "unit": np.asarray(np.float32(0.25))}


def test_what_was_put_comes_back_under_its_key_and_space_alone(tmp_path: Path) -> None:
    KeptArrays(tmp_path, "one model").put("a", ARRAYS)
    found = KeptArrays(tmp_path, "one model").load("a")
    assert found is not None
    for name, values in ARRAYS.items():
        assert found[name].dtype == values.dtype
        assert np.array_equal(found[name], values)
    assert KeptArrays(tmp_path, "one model").load("b") is None
    assert KeptArrays(tmp_path, "another model").load("a") is None


@pytest.mark.parametrize("harm", ["torn", "altered", "emptied", "foreign"])
def test_damage_is_set_aside_and_made_again(harm: str, tmp_path: Path) -> None:
    kept = KeptArrays(tmp_path, "model")
    kept.put("a", ARRAYS)
    (path,) = kept.folder.glob("*.arrays")
    body = path.read_bytes()
    altered = bytearray(body)
    altered[len(body) // 2] ^= 1
    path.write_bytes(
        {"torn": body[:-7], "altered": bytes(altered), "emptied": b"", "foreign": b"no hash\nnothing"}[harm]
    )
    assert kept.load("a") is None
    assert [p.suffix for p in kept.folder.iterdir() if p.name != "space.json"] == [".damaged"]
    kept.put("a", ARRAYS)
    again = kept.load("a")
    assert again is not None
    assert np.array_equal(again["gradient"], ARRAYS["gradient"])


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "in-the-way").write_text("a file", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot be written"):
        KeptArrays(tmp_path / "in-the-way", "model").put("a", ARRAYS)
