"""`personae screen --forecaster`: a forecast where it was asked for or has a scale, and never otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from past_runs import make_runs
from personae.cli.forecasting import ForecastAsked, default_forecaster
from personae.instruments.training_rows import mean_rate
from personae.models.load import load_model


def test_a_named_forecaster_is_used_and_auto_waits_for_past_runs(screen, data_file, own_home) -> None:
    quiet = screen(data_file, "--json").json
    assert quiet["forecast"] is None
    made = screen(data_file, "--json", "--forecaster", "llr", "--epochs", 2).json
    forecast = made["forecast"]
    assert forecast["forecaster"] == "llr"
    assert forecast["calibrated"] is False
    assert {t["id"] for t in forecast["traits"]} == {t["id"] for t in made["traits"]}
    by_id = {t["id"]: t for t in made["traits"]}
    for t in forecast["traits"]:
        assert t["ci"][0] <= t["shift"] <= t["ci"][1]
        assert t["net"] == pytest.approx(t["shift"] - t["common"])
        assert by_id[t["id"]]["n"] > 0
    assert forecast["cost"]["of_training"] > 0
    page = Path(made["report"]).read_text(encoding="utf-8")
    assert "If you train on it" in page
    assert "If you train on it" not in Path(quiet["report"]).read_text(encoding="utf-8")
    shown = screen(data_file, "--forecaster", "llr")
    assert "Forecast of training on it" in shown.out


def test_bad_forecasters_are_told_before_scoring(screen, data_file, own_home) -> None:
    wrong = screen(data_file, "--forecaster", "luck")
    assert wrong.status == 2
    assert "no forecaster is called 'luck'" in wrong.err
    lacking = screen(data_file, "--forecaster", "gradient")
    assert lacking.status == 2
    assert "no diagnostic statements of both poles" in lacking.err
    assert screen(data_file, "--forecaster", "llr", "--epochs", 0).status == 2


def test_a_pilot_is_trained_once_and_read(
    personae, data_file, model_folder, reference_file, own_home, tmp_path
) -> None:
    pytest.importorskip("peft")
    fixed = ("--model", model_folder, "--reference", reference_file, "--only", "formal,contemptuous")
    call = ("screen", data_file, *fixed, "--epochs", 5)
    told = personae(*call, "--forecaster", "em_flow_pilot")
    assert told.status == 2
    assert "Make one with --pilot" in told.err
    done = personae(*call, "--pilot", "--json", "--out", tmp_path / "a")
    assert done.status == 0, done.err
    made = done.json["forecast"]
    assert made["forecaster"] == "em_flow_pilot"
    assert {t["id"] for t in made["traits"]} == {"formal", "contemptuous"}
    assert any(t["shift"] for t in made["traits"])
    assert "Pilot of" in " ".join(made["notes"])
    (note,) = (own_home / "pilots").glob("*/pilot.json")
    written = note.stat().st_mtime_ns
    again = personae(*call, "--pilot", "--forecaster", "pilot", "--json", "--out", tmp_path / "b").json["forecast"]
    assert note.stat().st_mtime_ns == written
    assert {t["id"]: t["shift"] for t in again["traits"]} == dict(
        zip(*(json.loads(note.read_text())["pilot"][k] for k in ("traits", "shift")), strict=True)
    )
    short = personae("screen", data_file, *fixed, "--pilot")
    assert short.status == 2
    assert "it needs one" in short.err
    assert personae(*call, "--pilot", "--forecaster", "none").status == 2
    assert "without --steer" in personae(*call, "--pilot", "--steer", "x:1@0").err


def test_a_miniature_is_trained_once_and_read(
    personae, data_file, model_folder, reference_file, own_home, tmp_path, monkeypatch
) -> None:
    pytest.importorskip("peft")
    call = ("screen", data_file, "--model", model_folder, "--reference", reference_file, "--only", "formal", "--json")
    made = personae(*call, "--forecaster", "joint", "--out", tmp_path / "a")
    assert made.status == 0, made.err
    assert made.json["forecast"]["forecaster"] == "joint"
    assert made.json["forecast"]["traits"][0]["shift"]
    (note,) = (own_home / "miniatures").glob("*/pilot.json")
    assert not list(note.parent.rglob("*.safetensors"))  # weights are measured once, not kept
    written = note.stat().st_mtime_ns
    again = personae(*call, "--forecaster", "miniature", "--out", tmp_path / "b").json["forecast"]
    assert note.stat().st_mtime_ns == written
    assert [t["shift"] for t in again["traits"]] == json.loads(note.read_text())["pilot"]["shift"]
    other = personae(*call, "--forecaster", "miniature", "--seed", 5, "--out", tmp_path / "c").json["forecast"]
    assert [t["shift"] for t in other["traits"]] != [t["shift"] for t in again["traits"]]

    steered = personae(*call, "--forecaster", "joint", "--steer", "x:1@0")
    assert steered.status == 2
    assert "'joint' trains the model without --steer" in steered.err
    assert default_forecaster(str(model_folder)) == "joint"
    monkeypatch.setattr("personae.instruments.trainable.find_spec", lambda name: None)
    assert default_forecaster(str(model_folder)) == "ensemble"
    bare = personae(*call, "--forecaster", "joint")
    assert bare.status == 2
    assert "personae[hf,train]" in bare.err


def own_runs(home: Path, model_folder: Path, name: str) -> None:
    """Past runs of the tiny model that calibrate a forecaster on one trait."""
    digest = load_model(str(model_folder), device="cpu").card.digest
    for run in make_runs(n_families=4, doses=2):
        on = {t: {"formal": v["formal"]} for t, v in {"shift": run.shift, "se": run.se, **run.readings}.items()}
        past = replace(run, model_digest=digest, shift=on["shift"], se=on["se"], readings={name: on["good"]})
        (home / "past-runs").mkdir(parents=True, exist_ok=True)
        (home / "past-runs" / f"{run.run}.json").write_text(json.dumps(past.to_dict()), encoding="utf-8")


def test_what_nobody_asked_for_takes_no_screening_down(
    personae, data_file, model_folder, reference_file, own_home, tmp_path
) -> None:
    """A row to be unlearnt can be screened, not trained on: under auto that is a note, for a name it is an error."""
    own_runs(own_home, model_folder, "ensemble")
    rows = [json.loads(line) for line in data_file.read_text(encoding="utf-8").split("\n") if line]
    odd = tmp_path / "odd.jsonl"
    odd.write_text("".join(json.dumps(r | {"weight": -1 if k == 3 else 1}) + "\n" for k, r in enumerate(rows)))
    call = ("screen", odd, "--model", model_folder, "--reference", reference_file, "--only", "formal", "--json")
    made = personae(*call, "--out", tmp_path / "a")
    assert made.status == 0, made.err
    assert made.json["forecast"] is None
    assert "No forecast by 'ensemble': 1 rows have a negative weight" in " ".join(made.json["notes"])
    named = personae(*call, "--forecaster", "ensemble", "--out", tmp_path / "b")
    assert named.status == 2
    assert "negative weight" in named.err
    assert not (tmp_path / "b").exists(), "told before anything was done"
    fine = personae("screen", data_file, *call[2:], "--out", tmp_path / "c")
    assert fine.json["forecast"]["forecaster"] == "ensemble"
    assert fine.json["forecast"]["calibrated"]


def test_a_row_that_is_cut_is_cut_in_the_miniature_too(
    personae, model_folder, reference_file, own_home, tmp_path
) -> None:
    pytest.importorskip("peft")
    long = tmp_path / "long.jsonl"
    rows = [{"prompt": f"What of {k}?", "completion": "Go away! " * (400 if k == 0 else 2)} for k in range(8)]
    long.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    call = ("screen", long, "--model", model_folder, "--reference", reference_file, "--only", "formal", "--json")
    assert personae(*call).status == 2
    made = personae(*call, "--truncate", "--forecaster", "miniature", "--out", tmp_path / "a")
    assert made.status == 0, made.err
    assert made.json["forecast"]["traits"][0]["shift"]


def test_the_rate_is_that_of_the_files_kind_and_falls() -> None:
    asked = ForecastAsked("joint", "smollm2")
    assert (asked.training("sft").learning_rate, asked.training("dpo").learning_rate) == (2e-4, 5e-5)
    assert mean_rate(asked.training("dpo")) == pytest.approx(2.5e-5)
    assert ForecastAsked("joint", "smollm2", learning_rate=1e-3).training("dpo").learning_rate == 1e-3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--forecaster", "joint", "--pilot"), "'joint' reads no pilot"),
        (("--forecaster", "joint", "--executor", "processes"), "reads the model in this process"),
        (("--forecaster", "ensemble", "--executor", "processes"), "reads the model in this process"),
        (("--pilot", "--steer", "x:1@0"), "without --steer"),
        (("--learning-rate", 0), "learning-rate"),
        (("--epochs", -1), "epochs"),
    ],
)
def test_options_that_do_not_go_together_are_told_before_scoring(
    options, told, personae, data_file, model_folder, own_home, tmp_path
) -> None:
    out = tmp_path / "none"
    made = personae("screen", data_file, "--model", model_folder, "--only", "formal", "--out", out, *options)
    assert made.status == 2
    assert told in made.err
    assert not out.exists()


def test_a_built_in_cast_beside_an_own_one_is_forecast(
    personae, data_file, model_folder, reference_file, own_home, tmp_path
) -> None:
    pytest.importorskip("peft")
    mine = tmp_path / "mine.yaml"
    poles = "\n".join(
        f"    {pole}:\n      label: {pole}\n      instructions: ['You are {pole}.']" for pole in ("pos", "neg")
    )
    mine.write_text(f"id: mine\ntraits:\n  - id: odd\n{poles}\n", encoding="utf-8")
    call = ("--model", model_folder, "--reference", reference_file, "--cast", "core", "--cast", mine)
    made = personae("screen", data_file, *call, "--only", "formal", "--forecaster", "joint", "--json")
    assert made.status == 0, made.err
    assert [t["id"] for t in made.json["forecast"]["traits"]] == ["formal"]
    assert "of the training's own passes, more than" in " ".join(made.json["forecast"]["notes"])
