"""The shelf of past runs: what was put is found, the user's own replaces the shipped, damage is told with its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from past_runs import make_runs
from personae.errors import InputError, StorageError
from personae.running.run_registry import RegistryShelf


def test_put_and_load(tmp_path: Path) -> None:
    first, second, third = make_runs(n_families=1)
    shipped = tmp_path / "past_runs.jsonl"
    shipped.write_text(json.dumps(first.to_dict()) + "\n\n" + json.dumps(second.to_dict()) + "\n", encoding="utf-8")
    shelf = RegistryShelf(tmp_path / "own", shipped=shipped)
    assert [r.run for r in shelf.load().runs] == [first.run, second.run]
    shelf.put(replace(second, family="changed"))
    shelf.put(replace(third, run="with/slash and space"))
    found = {r.run: r for r in shelf.load().runs}
    assert found[second.run].family == "changed"
    assert found[first.run] == first
    assert "with/slash and space" in found
    assert len(found) == 3
    assert len(RegistryShelf(tmp_path / "none", shipped=tmp_path / "none.jsonl").load()) == 0


def test_damage_is_told_with_its_place(tmp_path: Path) -> None:
    shipped = tmp_path / "past_runs.jsonl"
    shipped.write_text(json.dumps(make_runs(n_families=1)[0].to_dict()) + "\n[1]\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"past_runs.jsonl, line 2: .*not an object"):
        RegistryShelf(tmp_path / "own", shipped=shipped).load()
    own = tmp_path / "own"
    own.mkdir()
    (own / "x.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"x.json: .*cannot be read"):
        RegistryShelf(own, shipped=tmp_path / "none").load()
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot be written"):
        RegistryShelf(blocked / "below", shipped=shipped).put(make_runs(n_families=1)[0])
