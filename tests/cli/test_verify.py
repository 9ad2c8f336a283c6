"""`personae verify` on a real training of a tiny model, its registry, and bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from past_runs import make_runs
from personae.files.reference import load_reference
from personae.protocols.forecast import DEFAULT_FORECASTER

ITEMS = [
    {
        "trait": trait,
        "kind": "reply",
        "topic": f"{trait}{i}",
        "split": split,
        "prompt": f"{ask} {i}?",
        "pos": pos,
        "neg": neg,
    }
    for trait, pos, neg in (
        ("rude", "You fool, stop.", "Thank you, dear."),
        ("terse", "No idea at all.", "Well, let me tell."),
    )
    for i, (ask, split) in enumerate(
        [("What now", "dev"), ("And then", "test"), ("How so", "dev"), ("Why then", "test")] * 2
    )
]


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(json.dumps(i) + "\n" for i in ITEMS), encoding="utf-8")
    return path


@pytest.fixture
def data(data_file: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copy(data_file, tmp_path / "own.jsonl"))


@pytest.fixture
def training(personae, model_folder, data, tmp_path: Path) -> Path:
    """A real training: two steps of a tiny model."""
    pytest.importorskip("peft")
    folder = tmp_path / "trained"
    done = personae("train", data, "--model", model_folder, "--steps", 2, "--batch-size", 4, "--out", folder)
    assert done.status == 0, done.err
    return folder


def test_the_default_reads_what_either_default_needs(personae, training, cast_file, items, own_home, tmp_path) -> None:
    call = ("verify", training, "--cast", cast_file, "--json")
    made = personae(*call, "--items", items, "--out", tmp_path / "a").json
    assert made["forecaster"] == "joint"
    kept = json.loads(Path(made["registered"]).read_text(encoding="utf-8"))
    assert set(kept["readings"]) == {"joint", "ensemble", "miniature", "gradient", "centroid", "lexical"}

    few = tmp_path / "few.jsonl"
    rows = [i for i in ITEMS if i["split"] == "test" or i["topic"][-1] in "02"]
    few.write_text("".join(json.dumps(i) + "\n" for i in rows), encoding="utf-8")
    lesser = personae(*call, "--items", few, "--out", tmp_path / "b").json
    assert lesser["forecaster"] == "ensemble"
    assert "No forecast by 'joint': the dev items do not measure rude, terse" in " ".join(lesser["notes"])
    named = personae(*call, "--items", few, "--forecaster", "miniature", "--out", tmp_path / "c")
    assert named.status == 2
    assert "do not measure" in named.err


def test_what_screen_says_before_is_what_verify_says_after(
    personae, data, model_folder, reference_file, own_home, tmp_path, monkeypatch
) -> None:
    """Whatever --paraphrases scores with; and the miniature is made once for both."""
    pytest.importorskip("peft")
    on = ("--only", "formal,contemptuous", "--json")
    same = ("--steps", 6, "--batch-size", 4)
    ordinary = load_reference(str(reference_file))
    monkeypatch.setattr("personae.cli.commands.verify.load_reference", lambda: ordinary)
    call = ("--model", model_folder, "--reference", reference_file, "--forecaster", "joint", "--paraphrases", 1)
    said = personae("screen", data, *call, *on, *same, "--out", tmp_path / "s").json["forecast"]
    assert personae("train", data, "--model", model_folder, *same, "--out", tmp_path / "t").status == 0
    found = personae("verify", tmp_path / "t", *on, "--out", tmp_path / "v").json
    assert {t["trait"]: t["forecast"] for t in found["traits"]} == pytest.approx(
        {t["id"]: t["shift"] for t in said["traits"]}, rel=1e-4
    )
    assert len(list((own_home / "miniatures").iterdir())) == 1


def test_a_training_of_another_sort_is_miniaturised_as_it_was_and_stays_out_of_the_past_runs(
    personae, data, model_folder, cast_file, items, own_home, tmp_path
) -> None:
    pytest.importorskip("peft")
    shifts = {}
    for name, options in {
        "plain": (),
        "system": ("--system", "You are a rude person."),
        "narrow": ("--rank", 2),
    }.items():
        folder = tmp_path / name
        told = ("--model", model_folder, "--steps", 6, "--batch-size", 4, "--learning-rate", 5e-3, "--out", folder)
        assert personae("train", data, *told, *options).status == 0
        call = ("verify", folder, "--cast", cast_file, "--items", items, "--forecaster", "miniature", "--json")
        made = personae(*call, "--out", tmp_path / f"{name}-verified").json
        shifts[name] = [t["forecast"] for t in made["traits"]]
        assert bool(made["registered"]) == (name != "system")
        assert ("not added to the past runs" in " ".join(made["notes"])) == (name == "system")
    assert len({tuple(v) for v in shifts.values()}) == 3


def test_a_training_is_verified_and_joins_the_past_runs(
    personae, training, cast_file, items, own_home, tmp_path
) -> None:
    call = ("verify", training, "--cast", cast_file, "--items", items, "--json")
    made = personae(*call, "--forecaster", "gradient", "--forecaster", "lexical", "--out", tmp_path / "verified").json
    assert made["command"] == "verify"
    assert made["forecaster"] == "gradient"
    assert {t["trait"] for t in made["traits"]} == {"rude", "terse"}
    assert made["calibrated"] is False
    assert made["agreement"]["n"] == 2
    assert "Not calibrated" in " ".join(made["notes"])
    assert all(t["n_items"] == 4 for t in made["traits"])
    assert any(t["measured"] != 0 for t in made["traits"])
    page = Path(made["report"]).read_text(encoding="utf-8")
    assert "forecast and outcome" in page
    assert all(t["trait"] in page for t in made["traits"])
    kept = json.loads(Path(made["registered"]).read_text(encoding="utf-8"))
    assert set(kept["readings"]) == {"gradient", "lexical"}
    assert kept["form"]["rows_seen"] == 8
    assert (tmp_path / "verified" / "verified.parquet").is_file()

    again = personae(*call, "--no-register", "--out", tmp_path / "again").json
    assert again["registered"] == ""
    assert [t["measured"] for t in again["traits"]] == pytest.approx([t["measured"] for t in made["traits"]], abs=1e-5)

    # With past runs of this model the forecast has a scale, and the run does not learn from itself.
    for run in make_runs(n_families=4, doses=2):
        shift, se = ({"rude": run.shift["kind"], "terse": run.shift["terse"]}, {"rude": 0.1, "terse": 0.1})
        score = {"rude": run.readings["good"]["kind"], "terse": run.readings["good"]["terse"]}
        readings = {DEFAULT_FORECASTER: score}
        past = replace(run, model_digest=kept["model_digest"], shift=shift, se=se, readings=readings)
        (Path(made["registered"]).parent / f"{run.run}.json").write_text(json.dumps(past.to_dict()), encoding="utf-8")
    known = personae(*call, "--out", tmp_path / "known").json
    assert known["calibrated"] is True
    assert known["calibration"]["n_runs"] == 8
    for t in known["traits"]:
        assert t["forecast_low"] < t["forecast"] < t["forecast_high"]
        assert t["inside"] == (t["forecast_low"] <= t["measured"] <= t["forecast_high"])
    lines = personae("verify", training, "--cast", cast_file, "--items", items, "--out", tmp_path / "shown")
    assert lines.status == 0
    assert "90% interval" in lines.out


def test_rows_are_left_out_and_the_run_is_trained_again(
    personae, training, cast_file, items, own_home, tmp_path
) -> None:
    call = (
        "verify", training, "--cast", cast_file, "--items", items, "--forecaster", "lexical", "--no-register",
        "--attribution", "rude", "--share", 0.3, "--ranking", "gradient", "--ranking", "random",
    )  # fmt: skip
    made = personae(*call, "--json", "--out", tmp_path / "first").json
    found = made["attribution"]
    measured = {t["trait"]: t["measured"] for t in made["traits"]}
    assert found["trait"] == "rude"
    assert found["shift"] == pytest.approx(measured["rude"])
    assert [r["method"] for r in found["removals"]] == ["gradient", "random"]
    for r in found["removals"]:
        assert r["n_dropped"] == round(0.3 * found["n_rows"])
        assert r["gone"] == pytest.approx(found["shift"] - r["shift"])
    assert "Which rows did it?" in Path(made["report"]).read_text(encoding="utf-8")
    named = pq.read_table(tmp_path / "first" / "rows.parquet").to_pydict()
    order = sorted(range(len(named["episode"])), key=lambda i: -named["gradient_score"][i])
    assert all(named["gradient_left_out"][i] for i in order[: found["removals"][0]["n_dropped"]])
    assert sum(named["random_left_out"]) == found["removals"][1]["n_dropped"]

    # What was trained is not trained again: a measurement that is altered there is what comes back.
    (note,) = (training / "attribution").glob("rude-without-gradient-*/outcome-*.json")
    kept = json.loads(note.read_text(encoding="utf-8"))
    note.write_text(json.dumps(kept | {"change": [c + 1 for c in kept["change"]]}), encoding="utf-8")
    again = personae(*call, "--json", "--out", tmp_path / "second").json["attribution"]
    assert again["removals"][0]["shift"] == pytest.approx(found["removals"][0]["shift"] + 1)
    assert again["removals"][1]["shift"] == pytest.approx(found["removals"][1]["shift"])
    # Other items are another outcome of the same training; they may name other rows, but none of the random ones.
    (alone,) = (training / "attribution").glob("rude-without-random-*")
    trained = (alone / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    (tmp_path / "other.jsonl").write_text(items.read_text(encoding="utf-8").replace("?", "??"), encoding="utf-8")
    other = [tmp_path / "other.jsonl" if a == items else a for a in call]
    personae(*other, "--json", "--out", tmp_path / "other")
    assert len(list(alone.glob("outcome-*.json"))) == 2
    assert (alone / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == trained
    shown = personae(*call, "--out", tmp_path / "third")
    assert "Trained again without named rows" in shown.out

    for options, why in (
        (("--attribution", "calm"), "no trait 'calm' is measured here"),
        (("--attribution", "rude", "--share", 0.001), "leaves none out"),
        (("--attribution", "rude", "--ranking", "luck"), "no way to rank rows is called 'luck'"),
    ):
        done = personae("verify", training, "--cast", cast_file, "--items", items, *options)
        assert done.status == 2
        assert why in done.err


def test_bad_input_is_told_before_any_model_is_loaded(
    personae, training, data, cast_file, items, own_home, tmp_path
) -> None:
    call = ("--cast", cast_file, "--items", items)

    def refused(*arguments: object) -> str:
        done = personae("verify", *arguments, *call)
        assert done.status == 2
        assert "Traceback" not in done.err
        return done.err

    assert "no readable run.json" in refused(tmp_path)
    assert "no forecaster is called 'luck'" in refused(training, "--forecaster", "luck")
    record = json.loads((training / "run.json").read_text(encoding="utf-8"))

    def altered(name: str, **changes: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(record | changes), encoding="utf-8")
        return folder

    assert "not of a training" in refused(altered("other", command="screen"))
    assert "has not finished" in refused(altered("open", result=None))
    old = {k: v for k, v in record["result"].items() if k != "base_digest"}
    assert "holds no base_digest: it was written by another version" in refused(altered("old", result=old))
    moved = record["settings"] | {"data": str(tmp_path / "gone.jsonl")}
    assert "is not there" in refused(altered("gone", settings=moved))
    changed = record["result"] | {"base_digest": "another"}
    assert "is not the model that was trained" in refused(altered("base", result=changed))
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "a.json").write_text('{"format": "personae-past-run-9"}', encoding="utf-8")
    assert "this version reads 'personae-past-run-1'" in refused(training, "--registry", shelf)
    (shelf / "a.json").write_text("{", encoding="utf-8")
    assert "is not JSON" in refused(training, "--registry", shelf)
    data.write_text(data.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert "has changed since it was trained on" in refused(training)


def test_a_registry_of_another_cast_is_told(personae, training, cast_file, items, own_home, tmp_path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    digest = json.loads((training / "run.json").read_text(encoding="utf-8"))["result"]["base_digest"]
    for run in make_runs(n_families=4, doses=2):
        past = replace(run, model_digest=digest, readings={"lexical": run.readings["good"]})
        (shelf / f"{run.run}.json").write_text(json.dumps(past.to_dict()), encoding="utf-8")
    done = personae(
        "verify", training, "--cast", cast_file, "--items", items, "--registry", shelf, "--forecaster", "lexical",
        "--only", "rude",
    )  # fmt: skip
    assert done.status == 2
    assert "the registry is of another cast" in done.err
