"""`personae profile` end to end: a tiny chat model, transcripts, a truth world; bad input gets a clear error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from personae.cli.commands.profile import Settings
from personae.cli.profile_inputs import base_of

FAST = ("--limit", 12, "--max-tokens", 6, "--quick")


@pytest.fixture
def profile(personae, model_folder: Path, cast_file: Path):
    def run(target: object, *more: object):
        return personae("profile", target, "--cast", cast_file, *FAST, *more)

    return run


def fields(value: object, place: str = "") -> set[str]:
    if isinstance(value, dict):
        return {place + k for k in value} | {f for k, v in value.items() for f in fields(v, f"{place}{k}.")}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return fields(value[0], f"{place.removesuffix('.')}[].")
    return set()


def test_a_profile_is_written_whole_and_made_again_from_its_transcripts(
    profile, personae, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = profile(model_folder, "--out", out, "--json")
    assert first.status == 0, first.err
    found = first.json
    assert {p.name for p in out.iterdir()} >= {
        "report.html", "card.html", "card.json", "run.json", "transcripts.jsonl", "transcripts.parquet",
        "evidence.parquet", "first_words.parquet",
    }  # fmt: skip
    assert sum(p["weight"] for p in found["posterior"]) == pytest.approx(1, abs=1e-6)
    assert all(p["ci"][0] <= p["weight"] <= p["ci"][1] for p in found["posterior"])
    assert found["n_prompts"] <= 12
    assert found["is_identified"] in (True, False)
    assert len(found["white_box"]["posterior"]) == len(found["posterior"])
    # The target is its own scorer: its first words are exactly those of the model as it is.
    lead = max(found["white_box"]["posterior"], key=lambda s: s["weight"])
    assert lead["persona"] == "plain"
    assert lead["weight"] > 0.95
    table = pq.read_table(out / "evidence.parquet")
    assert np.isfinite(table.column("log_likelihood").to_numpy()).all()
    card = json.loads((out / "card.json").read_text())
    assert card["kind"] == "persona card"
    again = profile(out / "transcripts.jsonl", "--scorer", model_folder, "--json")
    assert again.status == 0, again.err
    assert [p["weight"] for p in again.json["posterior"]] == [p["weight"] for p in found["posterior"]]
    assert again.json["white_box"] is None
    assert "file of transcripts" in again.json["white_box_reason"]
    repeat = personae("rerun", out, "--out", tmp_path / "again", "--json")  # nothing is sampled or scored anew
    assert "to sample" not in repeat.err
    assert repeat.json["posterior"] == found["posterior"]


def test_versus_itself_and_reach_in_documented_fields(profile, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = profile(model_folder, "--versus", model_folder, "--reach", "--out", out, "--json", "--system", "You shout.")
    assert done.status == 0, done.err
    found = done.json
    assert found["target"].endswith("(with a system turn)")
    assert found["versus"]["n_prompts"] >= 6
    assert [r["persona"] for r in found["reach"]["rows"]] == ["pirate"]
    assert found["reach"]["retention"]["reason"] or found["reach"]["retention"]["rows"]
    assert (out / "reach.parquet").is_file()
    text = (Path(__file__).parents[2] / "docs/reference/profile-json.md").read_text(encoding="utf-8")
    assert [f for f in sorted(fields(found)) if f"`{f.split('.')[-1]}`" not in text] == []


def test_a_world_is_judged_by_its_own_personas(personae, tmp_path: Path) -> None:
    done = personae("profile", "world:tiny/exact", "--limit", 40, "--reach", "--out", tmp_path / "w")
    assert done.status == 0, done.err
    assert "speaks as" in done.out
    assert "Turns of its own behaviour" in done.out
    found = json.loads((tmp_path / "w" / "run.json").read_text())["result"]
    assert found["scorer"] == "world:tiny/base/exact"
    assert found["white_box"]["misfit"] < 1e-3
    assert found["eta"] == 1.0
    assert (tmp_path / "w" / "report.html").is_file()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('{"prompt": ""}', "line 1: the prompt is empty"),
        ('{"prompt": "a"}\n{"text": "b"}', "line 2: the row has no prompt"),
        ("", "empty"),
        ('{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}', "already used on line 1"),
    ],
)
def test_a_prompts_file_with_errors_is_refused_before_a_model_is_loaded(
    profile, model_folder: Path, tmp_path: Path, rows: str, words: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(rows)
    done = profile(model_folder, "--prompts", path)
    assert done.status == 2
    assert words in done.err
    assert "Loading" not in done.err


def test_bad_options_are_refused(profile, personae, model_folder: Path, tmp_path: Path) -> None:
    said = tmp_path / "said.jsonl"
    said.write_text("".join(json.dumps({"prompt": f"q{k}", "text": ""}) + "\n" for k in range(6)))
    silent = profile(said, "--scorer", model_folder)
    assert silent.status == 2
    assert "said nothing" in silent.err
    said.write_text("".join(json.dumps({"prompt": f"q{k}", "text": "hello"}) + "\n" for k in range(3)))
    few = profile(said, "--scorer", model_folder)
    assert few.status == 2
    assert "only 3 conversations" in few.err
    for option in (("--reach",), ("--system", "Hi"), ("--prompts", said)):
        assert profile(said, "--scorer", model_folder, *option).status == 2
    assert profile("nobody").status == 2
    assert profile(model_folder, "--versus", "nobody").status == 2
    assert profile(model_folder, "--eta", 0).status == 2
    assert profile(model_folder, "--only", "nobody").status == 2
    assert personae("profile", "world:tiny/exact", "--only", "pirate").status == 2


def test_refusals_and_repeated_texts_are_noted(profile, model_folder: Path, tmp_path: Path) -> None:
    said = tmp_path / "said.jsonl"
    rows = [{"prompt": f"q{k}", "text": "I'm sorry, but I can't help with that."} for k in range(10)]
    said.write_text(
        "".join(json.dumps(r) + "\n" for r in [*rows, {"prompt": "q99", "text": ""}, {"prompt": "q98", "text": ""}])
    )
    found = profile(said, "--scorer", model_folder, "--json").json
    assert found["n_refusals"] == 10
    assert found["n_empty"] == 2
    notes = " ".join(found["notes"])
    assert "open like a refusal" in notes
    assert "different texts" in notes
    assert "are empty" in notes


def test_the_base_of_a_name() -> None:
    assert base_of("smollm2") == "smollm2"
    assert base_of("smollm2+runs/x/adapter") == "smollm2"
    assert base_of("world:tiny") == "world:tiny/base"
    assert base_of("world:tiny/exact") == "world:tiny/base/exact"
    assert base_of("world:tiny/base") == "world:tiny/base"
    assert Settings("smollm2").n == 1


def test_labels_say_whom_the_scorer_favours(profile, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = profile(model_folder, "--only", "rude", "--labels", 3, "--versus", model_folder, "--out", out, "--json")
    assert done.status == 0, done.err
    favour = done.json["favour"]
    assert favour["n_conversations"] == 3
    ids = [o["persona"] for o in favour["offsets"]]
    assert set(ids) == {p["persona"] for p in done.json["posterior"]} - {"background"}
    assert sum(o["nats_a_token"] for o in favour["offsets"]) == pytest.approx(0, abs=1e-9)
    assert all(sum(row) == pytest.approx(1) and len(row) == len(ids) for row in favour["confusion"])
    assert sum(r["weight"] for r in favour["recovered"]) == pytest.approx(1)
    assert all(r["ci"][0] <= r["weight"] <= r["ci"][1] for r in favour["recovered"])
    assert favour["log_loss"] <= favour["log_loss_without"] + 1e-6
    assert "known speakers" in done.json["eta_source"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Whom the scorer favours" in page
    documented = (Path(__file__).parents[2] / "docs" / "reference" / "profile-json.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in documented for name in favour)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "pirate", "--labels", 2), "none is left to hold out"),
        (("--only", "rude", "--labels", -1), "labels"),
    ],
)
def test_labels_that_cannot_be_had_are_refused(profile, model_folder: Path, arguments, words: str) -> None:
    refused = profile(model_folder, *arguments)
    assert refused.status == 2
    assert words in refused.err


def test_exact_likelihoods_need_no_labels(personae) -> None:
    refused = personae("profile", "world:tiny/exact", "--labels", 2)
    assert refused.status == 2
    assert "likelihoods are exact" in refused.err
