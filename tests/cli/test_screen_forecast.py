"""`personae screen --forecaster`: a forecast where it was asked for or has a scale, and never otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from personae.cli.forecasting import default_forecaster


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
