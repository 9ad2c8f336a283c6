"""Pieces of work on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from personae.running.pieces import Pieces, name_of


def test_a_piece_with_any_byte_changed_is_made_again(tmp_path: Path) -> None:
    pieces, name = Pieces(tmp_path), name_of("a", 1)
    kept = np.arange(3.0)
    pieces.kept(name, lambda: {"values": kept})
    (path,) = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    assert pieces.kept(name, dict)["values"].tolist() == [0, 1, 2]  # read, not made
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert pieces.kept(name, lambda: {"values": kept + 1})["values"].tolist() == [1, 2, 3]
    path.write_bytes(whole[: len(whole) // 2])
    assert pieces.kept(name, lambda: {"values": kept + 1})["values"].tolist() == [1, 2, 3]
