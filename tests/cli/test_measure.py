"""`personae measure` as a user meets it: files, JSON, comparison, errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest


@pytest.fixture
def items_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    pairs = [("I like ships", "I like trains"), ("I swim", "I walk"), ("I fish", "I farm"), ("I row", "I ride")]
    rows = [
        {"trait": "seafaring", "kind": "reply", "topic": f"t{k}", "prompt": f"Ask {k}?", "pos": p, "neg": n}
        for k, (p, n) in enumerate(pairs)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_a_profile_of_ones_own_items_and_its_rerun(
    personae, model_folder: Path, items_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    found = personae("measure", model_folder, "--items", items_file, "--json", "--quiet", "--out", out)
    assert found.status == 0, found.err
    assert (found.json["command"], found.json["cast"]) == ("measure", "mine")
    (trait,) = found.json["traits"]
    assert (trait["id"], trait["positive"], trait["n_items"]) == ("seafaring", "seafaring", 4)
    assert trait["low"] <= trait["log_odds"] <= trait["high"]
    assert math.isfinite(trait["p"])
    assert json.loads((out / "traits.json").read_text()) == found.json
    columns = pq.read_table(out / "items.parquet").to_pydict()
    assert set(columns) == {"item", "cluster", "template", "seed", "arm", "score", "trait", "part"}
    assert len(columns["score"]) == 4
    page = (out / "report.html").read_text()
    assert "personae measure" in page
    assert "<svg" in page
    again = personae("rerun", out, "--json", "--quiet", "--out", tmp_path / "again")
    assert again.json["traits"] == found.json["traits"]
    assert again.json["n_tokens"] == 0, "all answers were kept"


def test_a_prompt_is_compared_with_none(personae, model_folder: Path, items_file: Path, tmp_path: Path) -> None:
    found = personae(
        *("measure", model_folder, "--items", items_file, "--system", "You are a sailor.", "--versus", model_folder),
        *("--json", "--quiet", "--out", tmp_path / "run"),
    )
    assert found.status == 0, found.err
    (change,) = found.json["versus"]["changes"]
    assert change["low"] <= change["change"] <= change["high"]
    assert change["q"] == change["p"]
    arms = set(pq.read_table(tmp_path / "run" / "items.parquet").column("arm").to_pylist())
    assert len(arms) == 2
    assert "What moved" in (tmp_path / "run" / "report.html").read_text()


def test_a_steered_model_is_measured_compared_and_repeated(
    personae, model_folder: Path, items_file: Path, vectors_file: Path, tmp_path: Path
) -> None:
    def measured(*more: object) -> dict:
        call = ("measure", model_folder, "--items", items_file, "--json", "--quiet", "--vectors", vectors_file, *more)
        found = personae(*call)
        assert found.status == 0, found.err
        return found.json

    out = tmp_path / "run"
    pushed = measured("--steer", "sour:2@0-1", "--cap", "odd:p25", "--versus", model_folder, "--out", out)
    assert pushed["edits"] == ["steer sour:2@0-1", "cap odd:p25"]
    (change,) = pushed["versus"]["changes"]
    assert abs(change["change"]) > 1e-3, "an edit of two residual norms is felt"
    assert len(set(pq.read_table(out / "items.parquet").column("arm").to_pylist())) == 2
    assert "steer sour:2@0-1" in (out / "report.html").read_text()
    run = json.loads((out / "run.json").read_text())
    assert (run["settings"]["steer"], run["settings"]["cap"]) == (["sour:2@0-1"], ["odd:p25"])
    assert str(vectors_file) in run["inputs"]
    again = personae("rerun", out, "--json", "--quiet", "--out", tmp_path / "again")
    assert again.json["traits"] == pushed["traits"]
    # No size, no edit: the same answers, not one asked again.
    nothing = measured("--steer", "sour:0@0-1", "--versus", model_folder)
    assert nothing["versus"]["changes"][0]["change"] == 0.0
    plain = personae("measure", model_folder, "--items", items_file, "--json", "--quiet")
    assert (nothing["traits"], nothing["n_tokens"]) == (plain.json["traits"], 0)


def test_a_world_is_measured_in_its_own_words(personae, tmp_path: Path) -> None:
    from personae.worlds.reading import shipped_worlds

    name = sorted(shipped_worlds())[0]
    found = personae("measure", f"world:{name}/exact", "--json", "--quiet", "--out", tmp_path / "run")
    assert found.status == 0, found.err
    assert found.json["cast"] == name
    assert all(t["measurable"] for t in found.json["traits"])


def test_a_thorough_measurement_asks_more(personae, model_folder: Path) -> None:
    call = ("measure", model_folder, "--only", "formal", "--quick", "--split", "test", "--json")
    short, thorough = personae(*call), personae(*call, "--thorough")
    assert [f.json["traits"][0]["n_items"] for f in (short, thorough)] == [8, 32]
    assert [(f.json["cast"], f.json["thorough"]) for f in (short, thorough)] == [("core", False), ("core", True)]
    assert "with the further ones" in Path(thorough.json["report"]).read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-model"], "no model"),
        (["MODEL", "--cast", "no-such-cast"], "no cast"),
        (["MODEL", "--only", "thoughtful"], "no diagnostic items for thoughtful"),
        (["MODEL", "--only", ","], "names no trait"),
        (["MODEL", "--split", "train"], "the split is 'train'"),
        (["MODEL", "--versus", "MODEL"], "the model itself"),
        (["MODEL", "--versus", "no-such-model"], "no model"),
        (["MODEL", "--items", "missing.jsonl"], "no such file"),
        (["MODEL", "--items", "missing.jsonl", "--thorough"], "further items belong to a built-in cast"),
        (["MODEL", "--split", "dev", "--thorough"], "all further items are test items"),
        (["world:tiny/exact", "--thorough"], "a world has no further items"),
        (["MODEL", "--steer", "rude"], "is not NAME:SIZE"),
        (["MODEL", "--cap", "rude:p101"], "no percentage"),
        (["MODEL", "--steer", "rude:1"], "no vector 'rude'"),
        (["MODEL", "--vectors", "missing.safetensors"], "does nothing without"),
        (["MODEL", "--vectors", "missing.safetensors", "--steer", "rude:1"], "no such file"),
    ],
)
def test_bad_input_is_told_before_anything_dear(personae, model_folder: Path, arguments: list[str], words: str) -> None:
    found = personae("measure", *(str(model_folder) if a == "MODEL" else a for a in arguments))
    assert found.status == 2
    assert words in found.err
    assert "Traceback" not in found.err
