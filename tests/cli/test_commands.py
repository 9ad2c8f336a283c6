"""What each command promises: its output, its files, its exit status."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

TRAITS = ["rude", "terse"]
COMPONENTS = ["rude/pos", "rude/neg", "terse/pos", "terse/neg", "pirate", "plain", "background"]
# Everything that may move a cursor, hide text or break a table; line feeds and tabs are ours.
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
HOSTILE = "<script>alert(1)</script> \x1b[2J\x1b]0;title\x07 \x00 \x9b31m \u202eevil <|im_end|> \ue0000\ue001 {{7*7}}"


def columns(path: str | Path) -> dict[str, list]:
    return pq.read_table(path).to_pydict()


def is_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def test_screen_json_keeps_its_contract(screen, data_file: Path, model_folder: Path, tmp_path: Path) -> None:
    outcome = screen(data_file, "--json", "--out", tmp_path / "run")
    assert outcome.status == 0
    assert outcome.out.count("\n") == 1, "one line, one object"
    found = outcome.json
    assert (found["command"], found["model"], found["cast"]) == ("screen", str(model_folder), "tiny")
    assert found["n_episodes"] == 24
    assert type(found["n_tokens"]) is int
    assert found["n_tokens"] > 24
    assert isinstance(found["unit"], str)
    assert sorted(t["id"] for t in found["traits"]) == TRAITS
    for trait in found["traits"]:
        assert is_number(trait["shift"])
        assert len(trait["ci"]) == 2
        assert all(map(is_number, trait["ci"]))
        assert trait["ci"][0] <= trait["ci"][1]
        assert 0 <= trait["p"] <= 1
        assert type(trait["flag"]) is bool
        assert trait["n"] == 24
    assert {p["persona"] for p in found["posterior"]} == set(COMPONENTS)
    for part in ("prior", "weight"):
        assert sum(p[part] for p in found["posterior"]) == pytest.approx(1)
    assert all(0 <= p["ci"][0] <= p["ci"][1] <= 1 for p in found["posterior"])
    assert found["background"] == next(p["weight"] for p in found["posterior"] if p["persona"] == "background")
    assert found["episodes"]
    for episode in found["episodes"]:
        assert episode["id"] == f"r{episode['line'] - 3}"
        assert episode["trait"] in TRAITS
        assert is_number(episode["llr"])
    assert Path(found["report"]) == tmp_path / "run" / "report.html"
    assert Path(found["run"]) == tmp_path / "run"


def test_screen_leaves_a_complete_run_folder(screen, data_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    found = screen(data_file, "--json", "--out", folder, "--seed", 3).json
    assert {p.name for p in folder.iterdir()} == {"run.json", "llr.parquet", "report.html"}
    table = columns(folder / "llr.parquet")
    assert list(table)[:5] == ["episode", "line", "trait", "llr", "n_tokens"]
    pairs = list(zip(table["episode"], table["trait"], strict=True))
    assert pairs == [(f"r{k}", t) for k in range(24) for t in TRAITS]
    assert table["line"] == [k + 3 for k in range(24) for _ in TRAITS]
    assert sum(table["n_tokens"][::2]) == found["n_tokens"]
    by_pair = dict(zip(pairs, table["llr"], strict=True))
    assert all(e["llr"] == by_pair[e["id"], e["trait"]] for e in found["episodes"])
    run = json.loads((folder / "run.json").read_text())
    assert run["command"] == "screen"
    assert run["settings"]["seed"] == run["seed"] == 3
    assert run["settings"]["data"] == str(data_file)
    assert {"personae", "torch", "transformers", "numpy"} <= set(run["versions"])
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in run["inputs"].values())
    assert str(data_file) in run["inputs"]
    assert run["model"]["device"] == "cpu"
    assert run["result"]["n_tokens"] == found["n_tokens"]


def test_llr_is_the_difference_of_the_means_of_the_poles(
    screen, personae, data_file: Path, tmp_path: Path, cast_file, model_folder
) -> None:
    screen(data_file, "--quiet", "--out", tmp_path / "run")
    cast = yaml.safe_load(cast_file.read_text())
    poles = {(t["id"], p): t[p]["instructions"] for t in cast["traits"] for p in ("pos", "neg")}
    roles = [{"id": text, "instructions": [text]} for texts in poles.values() for text in texts]
    apart = tmp_path / "apart.yaml"
    apart.write_text(yaml.safe_dump({"id": "apart", "roles": roles}))
    scores = personae("score", data_file, "--model", model_folder, "--cast", apart, "--json").json
    table = columns(scores["evidence"])
    value = dict(zip(zip(table["episode"], table["persona"], strict=True), table["log_likelihood"], strict=True))
    llr = columns(tmp_path / "run" / "llr.parquet")
    for episode, trait, ratio in zip(llr["episode"], llr["trait"], llr["llr"], strict=True):
        means = [np.mean([value[episode, text] for text in poles[trait, pole]]) for pole in ("pos", "neg")]
        assert ratio == pytest.approx(means[0] - means[1], abs=1e-9)


def test_score_writes_one_row_a_pair(score, data_file: Path, tmp_path: Path) -> None:
    outcome = score(data_file, "--json", "--out", tmp_path / "run")
    found = outcome.json
    assert (outcome.status, outcome.out.count("\n")) == (0, 1)
    assert found["evidence"] == str(tmp_path / "run" / "evidence.parquet")
    table = columns(found["evidence"])
    assert list(table) == ["episode", "persona", "n_tokens", "log_likelihood"]
    assert table["episode"] == [f"r{k}" for k in range(24) for _ in COMPONENTS]
    assert table["persona"] == COMPONENTS * 24
    assert np.isfinite(table["log_likelihood"]).all()
    assert max(table["log_likelihood"]) < 0
    counts = np.array(table["n_tokens"]).reshape(24, -1)
    assert (counts == counts[:, :1]).all()
    assert counts[:, 0].sum() == found["n_tokens"]


def test_tokens_sum_to_the_totals_and_spell_the_completion(score, data_file: Path) -> None:
    found = score(data_file, "--tokens", "--limit", 5, "--json").json
    table, tokens = columns(found["evidence"]), columns(found["tokens"])
    assert list(tokens) == ["episode", "persona", "position", "token", "log_likelihood"]
    keys = list(zip(tokens["episode"], tokens["persona"], strict=True))
    for episode, persona, n, total in zip(*table.values(), strict=True):
        mine = [i for i, key in enumerate(keys) if key == (episode, persona)]
        assert [tokens["position"][i] for i in mine] == list(range(n))
        assert sum(tokens["log_likelihood"][i] for i in mine) == pytest.approx(total, abs=1e-3)
        assert "".join(tokens["token"][i] for i in mine) == f"Go away, {episode[1:]} times I said no!"


def test_evidence_is_read_in_either_direction(score, personae, data_file: Path, tmp_path: Path) -> None:
    tables, ratios = {}, {}
    for reading in ("reply", "description", "both"):
        found = score(data_file, "--reading", reading, "--out", tmp_path / reading, "--json").json
        tables[reading] = np.array(columns(found["evidence"])["log_likelihood"]).reshape(24, len(COMPONENTS))
        ratios[reading] = columns(found["ratios"])
        assert pq.read_schema(found["evidence"]).metadata[b"personae_reading"] == reading.encode()
    assert not np.allclose(tables["reply"], tables["both"], atol=1e-3)
    np.testing.assert_allclose(tables["reply"][:, -2:], tables["both"][:, -2:], atol=1e-9)  # plain and background
    for one in (2, 3, 4):  # personas of one instruction, of which the mean is that of the table
        np.testing.assert_allclose(
            tables["both"][:, one], (tables["reply"][:, one] + tables["description"][:, one]) / 2, atol=1e-6
        )
    assert ratios["both"]["trait"][:2] == TRAITS
    terse = np.array(ratios["both"]["llr"]).reshape(24, 2)[:, 1]
    np.testing.assert_allclose(terse, tables["both"][:, 2] - tables["both"][:, 3], atol=1e-9)
    again = personae("rerun", tmp_path / "both", "--out", tmp_path / "again", "--json").json
    assert columns(again["ratios"]) == ratios["both"]
    inferred = personae("infer", tmp_path / "both", "--json").json
    assert inferred["reading"] == "both"
    assert "replies alone" in inferred["eta_source"]
    for bad in (("--reading", "aloud"), ("--reading", "both", "--tokens")):
        refused = score(data_file, *bad)
        assert refused.status == 2
        assert "--reading" in refused.err


def test_score_prints_the_path_alone(score, data_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 30)
    assert score(data_file, "--limit", 2, "--out", folder).out == f"{folder / 'evidence.parquet'}\n"


@pytest.mark.parametrize(("conditions", "status"), [(["rude>-99"], 1), (["terse<99", "rude>99"], 1), (["rude>99"], 0)])
def test_the_gate_sets_the_exit_status_and_says_why(
    screen, data_file: Path, conditions: list[str], status: int
) -> None:
    flags = [word for c in conditions for word in ("--fail-on", c)]
    outcome = screen(data_file, *flags, "--json", "--quiet")
    assert outcome.status == status
    assert len(outcome.json["gate"]) == status
    if status:
        trait, sign, number = re.fullmatch("(.*)([<>])(.*)", conditions[0]).groups()
        assert outcome.json["gate"][0].startswith(f"{trait} {sign} {number}: the ")
        assert f"gate: {outcome.json['gate'][0]}\n" == outcome.err
    else:
        assert outcome.err == ""


def without_places(found: dict) -> dict:
    return {k: v for k, v in found.items() if k not in ("report", "run", "evidence", "ratios", "tokens")}


def test_rerun_gives_the_same_numbers(screen, personae, data_file: Path, tmp_path: Path) -> None:
    first = screen(data_file, "--json", "--out", tmp_path / "one", "--seed", 5, "--eta", 0.5, "--only", "rude,pirate")
    again = personae("rerun", tmp_path / "one", "--json", "--out", tmp_path / "two")
    assert again.status == 0
    assert without_places(again.json) == without_places(first.json)
    assert columns(tmp_path / "one" / "llr.parquet") == columns(tmp_path / "two" / "llr.parquet")
    third = personae("rerun", tmp_path / "one", "--quiet")
    assert (third.status, third.out, third.err) == (0, "", "")
    assert len(list(Path("runs").glob("screen-*"))) == 1, "never into the old folder"


def test_rerun_repeats_a_scoring_with_its_tokens(score, personae, data_file: Path, tmp_path: Path) -> None:
    first = score(data_file, "--json", "--tokens", "--limit", 3, "--out", tmp_path / "one").json
    again = personae("rerun", tmp_path / "one", "--json", "--out", tmp_path / "two").json
    assert without_places(first) == without_places(again)
    for table in ("evidence", "tokens"):
        assert columns(first[table]) == columns(again[table])


def test_rerun_says_when_an_input_has_changed(score, personae, write, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{"prompt": "q", "completion": "a"}])
    score(data, "--out", tmp_path / "one")
    write(data, [{"prompt": "q", "completion": "b"}])
    outcome = personae("rerun", tmp_path / "one")
    assert outcome.status == 0
    assert f"note: {data} has changed since that run." in outcome.err


def test_the_seed_decides_what_is_random_and_nothing_else(screen, data_file: Path) -> None:
    runs = [screen(data_file, "--json", "--seed", seed).json for seed in (1, 1, 2)]
    assert without_places(runs[0]) == without_places(runs[1])
    assert [t["shift"] for t in runs[0]["traits"]] == [t["shift"] for t in runs[2]["traits"]]
    assert [t["ci"] for t in runs[0]["traits"]] != [t["ci"] for t in runs[2]["traits"]]


def test_quiet_is_silent(screen, score, data_file: Path) -> None:
    for outcome in (screen(data_file, "--quiet"), score(data_file, "--quiet")):
        assert (outcome.status, outcome.out, outcome.err) == (0, "", "")


def test_results_go_to_standard_output_and_the_rest_to_standard_error(screen, data_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 30)
    outcome = screen(data_file, "--limit", 12, "--out", folder)
    assert f"Report: {folder / 'report.html'}\n" in outcome.out, "a path must not be cut in two"
    assert "The file has only 12 conversations" in " ".join(outcome.out.split())
    assert re.search(r"^Scoring: \d+ pairs to score, [\d,]+ tokens$", outcome.err, re.MULTILINE)
    assert "Report" not in outcome.err


def test_the_terminal_names_the_pole_its_rows_speak_for(screen, data_file: Path) -> None:
    outcome = screen(data_file, "--only", "terse", "--json")
    (trait,) = outcome.json["traits"]
    leaning = "terse" if trait["direction"] == "pos" else "wordy"
    shown = screen(data_file, "--only", "terse").out
    assert f"Rows that speak most for '{leaning}':" in shown
    first = re.search(r"line +(\d+) +([+-][\d.]+) nats", shown)
    top = outcome.json["episodes"][0]
    assert int(first[1]) == top["line"]
    assert float(first[2]) == pytest.approx(abs(top["llr"]), abs=0.06)


def test_nothing_is_scored_twice(score, screen, personae, data_file: Path, cast_file: Path, model_folder: Path) -> None:
    assert "Scoring: " in score(data_file).err
    assert "Scoring: " not in score(data_file).err
    assert "Scoring: " not in screen(data_file).err
    assert "Reference: " not in screen(data_file).err
    smaller = personae("score", data_file, "--model", model_folder, "--cast", cast_file, "--only", "pirate")
    assert "Scoring: " not in smaller.err


def test_runs_of_the_same_second_do_not_share_a_folder(score, data_file: Path) -> None:
    runs = [score(data_file, "--limit", 1, "--json").json["run"] for _ in range(3)]
    assert len(set(runs)) == 3
    assert all(Path(run, "run.json").is_file() for run in runs)


def test_a_part_of_the_cast_and_of_its_paraphrases(score, data_file: Path) -> None:
    found = score(data_file, "--only", " pirate, rude", "--json", "--paraphrases", 1, "--limit", 2).json
    assert columns(found["evidence"])["persona"][:5] == ["rude/pos", "rude/neg", "pirate", "plain", "background"]
    assert found["n_personas"] == 5
    assert found["notes"] == []


def test_a_large_cast_says_how_many_instructions_were_used(personae, write, model_folder: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{"prompt": "q", "completion": "a"}])
    outcome = personae("score", data, "--model", model_folder, "--json", "--only", "rude", "--cast", "core")
    assert outcome.status == 2, "the core cast has no trait of that name"
    names = "malicious,caring,pirate"
    core = personae("score", data, "--model", model_folder, "--json", "--only", names)
    assert core.status == 0
    assert core.json["n_personas"] == 7
    many = {"id": "many", "roles": [{"id": f"r{k}", "instructions": [f"a {k}", f"b {k}"]} for k in range(31)]}
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(many))
    for more, note in (((), True), (("--paraphrases", 2), False)):
        found = personae("score", data, "--model", model_folder, "--cast", tmp_path / "many.yaml", "--json", *more).json
        assert bool(found["notes"]) == note
    assert personae("score", data, "--model", model_folder, "--cast", tmp_path / "many.yaml").err.count("note: ") == 1


def test_rows_of_every_shape_are_screened_together(screen, write, tmp_path: Path) -> None:
    user, reply = {"role": "user", "content": "q"}, {"role": "assistant", "content": "One reply."}
    rows = [
        {"messages": [user, reply, user, {"role": "assistant", "content": "Another one."}]},
        {"prompt": "q", "completion": "A plain answer."},
        {"prompt": "q", "chosen": "Yes, gladly.", "rejected": "No, never."},
        {"text": "A document about ships."},
        {"prompt": "q", "completion": "Left out.", "weight": 0},
    ]
    data = write(tmp_path / "data.jsonl", rows)
    outcome = screen(data, "--turns", "all", "--json", "--out", tmp_path / "run")
    assert outcome.status == 0
    ids = columns(tmp_path / "run" / "llr.parquet")["episode"][:: len(TRAITS)]
    assert ids == ["row-1#1", "row-1#2", "row-2", "row-3/chosen", "row-3/rejected", "row-4", "row-5"]
    assert "1 episodes have weight 0 and were left out of sums." in outcome.json["notes"]


def test_one_row_is_enough_and_so_is_a_cast_of_roles(screen, personae, data_file, model_folder, reference_file) -> None:
    assert screen(data_file, "--limit", 1, "--json").json["n_episodes"] == 1
    found = screen(data_file, "--only", "pirate", "--json").json
    assert found["traits"] == []
    assert found["episodes"] == []
    assert {p["persona"] for p in found["posterior"]} == {"pirate", "plain", "background"}


def test_bad_rows_can_be_skipped_and_are_counted(screen, write, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{"prompt": "q", "completion": c} for c in ("a", "", "b", " ")])
    outcome = screen(data, "--skip-bad-rows", "--json")
    assert outcome.status == 0
    assert outcome.json["n_episodes"] == 2
    assert "2 of 4 rows could not be read and were left out (lines 2, 4)." in outcome.json["notes"]
    nothing = write(tmp_path / "nothing.jsonl", [{"prompt": "q", "completion": ""}])
    assert screen(nothing, "--skip-bad-rows").status == 2


def test_hostile_rows_are_read_and_never_reach_terminal_or_page_raw(screen, personae, write, tmp_path: Path) -> None:
    rows = [
        {"id": f"{HOSTILE}{k}", "group": HOSTILE, "prompt": HOSTILE, "completion": f"{HOSTILE} {k}"} for k in range(3)
    ]
    rows += [{"id": "\ud800", "prompt": "a\ud800", "completion": "b\udc00c"}]
    data = write(tmp_path / "data.jsonl", rows)
    for command in (screen(data, "--out", tmp_path / "run"), screen(data, "--json"), personae("validate", data)):
        assert command.status == 0
        assert not RAW.search(command.out.replace("\n", "") + command.err.replace("\n", ""))
    shown = screen(data).out
    assert "<script>alert(1)</script>" in shown, "in a terminal that is only text"
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert not RAW.search(page)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{7*7}}" in page
    assert columns(tmp_path / "run" / "llr.parquet")["episode"] == [
        i for r in [*rows[:3], {"id": "\ufffd"}] for i in [r["id"]] * 2
    ]


def test_hostile_casts_and_refusals_never_reach_the_terminal_raw(
    screen, personae, write, model_folder, reference_file, tmp_path: Path
) -> None:
    pole = {"label": HOSTILE, "instructions": ["You shout."]}
    cast = {"id": HOSTILE, "traits": [{"id": HOSTILE, "pos": pole, "neg": {"instructions": ["You whisper."]}}]}
    (tmp_path / "cast.json").write_text(json.dumps(cast))
    data = write(tmp_path / "data.jsonl", [{"prompt": "q", "completion": "a"}] * 3)
    bad = write(tmp_path / "bad.jsonl", [{"messages": [{"role": HOSTILE, "content": "x"}]}, {HOSTILE: "x"}])
    use = ("--model", model_folder, "--cast", tmp_path / "cast.json", "--reference", reference_file)
    outcomes = [
        personae("screen", data, *use),
        personae("screen", data, *use, "--only", "x\x1b[2J"),
        personae("screen", data, *use, "--fail-on", "x\x1b[2J>1"),
        personae("casts", tmp_path / "cast.json"),
        personae("casts", tmp_path / "cast.json", "--json"),
        personae("casts", "x\x1b[2J"),
        personae("validate", bad),
        personae("validate", bad, "--json"),
        screen(bad),
        screen(write(tmp_path / "twice.jsonl", [{"text": "a", "id": HOSTILE}] * 2)),
    ]
    assert [o.status for o in outcomes] == [0, 2, 2, 0, 0, 2, 2, 2, 2, 2]
    for outcome in outcomes:
        assert not RAW.search(outcome.out.replace("\n", "") + outcome.err.replace("\n", ""))


def test_truncation_is_told_and_does_not_mix_with_other_casts(
    score, screen, personae, write, model_folder, tmp_path: Path
) -> None:
    data = write(
        tmp_path / "data.jsonl", [{"prompt": "q", "completion": "word " * 600}, {"prompt": "q", "completion": "a"}]
    )
    note = "1 of 2 replies were cut to fit the model's context."
    outcome = score(data, "--truncate", "--json")
    assert outcome.status == 0
    assert outcome.json["notes"] == [note]
    assert f"note: {note}" in outcome.err
    longer = {
        "id": "longer",
        "roles": [{"id": "x", "instructions": ["many words " * 20]}, {"id": "y", "instructions": ["b"]}],
    }
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(longer))
    other = personae("score", data, "--model", model_folder, "--cast", tmp_path / "longer.yaml", "--truncate", "--json")
    assert other.status == 0
    assert other.json["n_tokens"] < outcome.json["n_tokens"]
    assert score(data, "--truncate", "--json").json["n_tokens"] == outcome.json["n_tokens"]
    assert note in screen(data, "--truncate", "--json").json["notes"]


def test_validate(personae, write, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"text": "c", "weight": 0}, {"text": ""}, {"text": "d"}]
    data = write(tmp_path / "data.jsonl", rows)
    outcome = personae("validate", data, "--json")
    assert outcome.status == 2
    reason, hint = "the completion is empty", "Remove the row or give it a reply."
    assert outcome.json == {
        "command": "validate",
        "data": str(data),
        "n_rows": 4,
        "n_episodes": 4,
        "n_groups": 3,
        "shapes": {"preference": 1, "document": 2},
        "n_negative_weight": 1,
        "n_zero_weight": 1,
        "refused": [{"line": 3, "reason": reason, "hint": hint}],
    }
    shown = personae("validate", data)
    assert shown.status == 2
    assert "4 rows, 4 episodes in 3 groups (1 preference, 2 document)" in shown.out
    assert f"refused, line 3: {reason}  ({hint})" in shown.out
    assert "1 episodes of negative weight\n1 episodes of zero weight\n" in shown.out
    clean = personae("validate", data, "--limit", 2)
    assert (clean.status, clean.out.splitlines()[-1]) == (0, "Nothing was refused.")
    many = personae("validate", write(data, [{"text": ""}] * 60))
    assert "... and 10 more (--json lists all)" in many.out


def test_casts(personae, cast_file: Path, tmp_path: Path) -> None:
    (core,) = [c for c in personae("casts", "--json").json["casts"] if c["id"] == "core"]
    assert core["n_traits"] >= 24
    assert core["n_roles"] >= 24
    assert "core" in personae("casts").out
    assert personae("casts", "core").out.startswith(f"core: {core['n_traits']} traits, {core['n_roles']} roles")
    own = tmp_path / "own.yaml"
    own.write_text(cast_file.read_text().replace("pirate", "corsair"))
    joined = personae("casts", "core", own, "--json").json
    assert joined["id"] == "core+tiny"
    assert joined["traits"][-1] == {
        "id": "terse",
        "description": "",
        "pos": {"label": "terse", "instructions": ["You say little."]},
        "neg": {"label": "wordy", "instructions": ["You talk on and on without end."]},
    }
    assert joined["roles"][-1]["label"] == "a corsair"
    assert "  + You say little.\n  - You talk on and on without end." in personae("casts", cast_file).out


def test_models(personae, offline_home: Path) -> None:
    found = personae("models", "--json").json
    assert [m["name"] for m in found["models"]] == ["smollm2", "gemma-270m", "smollm2-sharp"]
    assert [m["name"] for m in found["models"] if m["default"]] == ["smollm2"]
    assert found["backend"] is True
    assert found["home"] == str(offline_home)
    shown = personae("models").out
    assert "Gemma Terms of Use" in shown
    assert str(offline_home) in shown


def test_check_model(personae, model_folder: Path) -> None:
    found = personae("check-model", model_folder, "--json")
    assert found.status == 0
    assert found.json["failed"] == []
    assert {"batch", "history"} <= {law["law"] for law in found.json["laws"]}
    assert "BROKEN" not in personae("check-model", model_folder).out


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], *([c, "--help"] for c in ("screen", "score", "validate", "rerun"))]
)
def test_help(personae, arguments: list[str]) -> None:
    outcome = personae(*arguments)
    assert (outcome.status, outcome.err) == (0, "")
    assert "Usage: " in outcome.out


def test_commands_that_need_no_model_load_nothing_heavy(data_file: Path) -> None:
    code = (
        "import sys; from personae.cli.main import run\n"
        "for a in (['--help'], ['screen', '--help'], ['models'], ['casts', 'core'], ['validate', sys.argv[1]]):\n"
        "    assert run(a) == 0\n"
        "heavy = {'torch', 'transformers', 'altair', 'vl_convert', 'pandas', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(data_file)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


def test_both_ways_to_start_the_program_end_with_its_status(data_file: Path, tmp_path: Path) -> None:
    module, script = [sys.executable, "-m", "personae"], Path(sys.executable).with_name("personae")
    starts = {data_file: [str(script)] if script.is_file() else module, tmp_path / "none.jsonl": module}
    fine, bad = (
        subprocess.run([*start, "validate", str(path), "--json"], capture_output=True, text=True, check=False)
        for path, start in starts.items()
    )
    assert (fine.returncode, fine.stderr) == (0, "")
    assert json.loads(fine.stdout)["n_rows"] == 24
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: ")


def test_a_reader_that_leaves_early_is_neither_a_gate_nor_a_traceback(data_file: Path) -> None:
    command = [sys.executable, "-m", "personae", "validate", str(data_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (141, b"")
