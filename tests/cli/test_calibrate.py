"""`personae calibrate`, and what `screen` makes of it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from personae.worlds.material import cast_yaml
from personae.worlds.reading import read_world

TWO = """
id: two
traits:
  - id: rude
    pos: {label: rude, instructions: ["You insult people and shout.", "You are rude and you sneer."]}
    neg: {label: polite, instructions: ["You thank people and smile.", "You are polite and you listen."]}
roles:
  - {id: pirate, label: a pirate, instructions: ["You are a pirate and love the sea.", "Arr, matey, you sail."]}
"""
QUICK = ("--conversations", "4", "--max-tokens", "6")


@pytest.fixture
def cast(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(TWO, encoding="utf-8")
    return path


def edited(cast: Path, old: str, new: str) -> Path:
    text = cast.read_text(encoding="utf-8")
    assert old in text
    cast.write_text(text.replace(old, new), encoding="utf-8")
    return cast


def test_calibrate_stores_what_screen_uses(personae, model_folder, cast, reference_file, data_file, tmp_path) -> None:
    made = personae("calibrate", model_folder, cast, *QUICK, "--json", "--out", tmp_path / "run").json
    assert made["command"] == "calibrate"
    assert 0 < made["eta"] <= made["eta_fitted"] <= 10
    assert made["n_conversations"] == 16  # two poles, a role and the model as it is, four each
    assert {r["persona"] for r in made["recall"]} == {"rude/pos", "rude/neg", "pirate", "plain"}
    assert all(r["n"] == r["right"] + sum(r["taken_for"].values()) for r in made["recall"])
    kept = json.loads(Path(made["stored"]).read_text(encoding="utf-8"))
    assert kept["eta"] == made["eta"]
    assert kept["versions"]["personae"]
    assert kept["seed"] == 0
    spoken = [json.loads(x) for x in (tmp_path / "run" / "conversations.jsonl").read_text("utf-8").splitlines()]
    assert len({row["group"] for row in spoken}) == 16

    screen = ("screen", data_file, "--model", model_folder, "--reference", reference_file, "--json")
    used = personae(*screen, "--cast", cast).json
    assert used["eta"] == pytest.approx(made["eta"])
    assert "calibrated for this model and cast on 16 conversations" in used["eta_source"]
    assert used["eta_source"] in Path(used["report"]).read_text(encoding="utf-8")
    part = personae(*screen, "--cast", cast, "--only", "rude").json
    assert part["eta"] == used["eta"]
    given = personae(*screen, "--cast", cast, "--eta", "0.5").json
    assert (given["eta"], given["eta_source"]) == (0.5, "given with --eta")
    other = personae(*screen, "--cast", edited(cast, "sneer", "growl")).json
    assert other["eta"] == 0.25
    assert "not calibrated" in other["eta_source"]


def test_second_run_says_and_scores_the_same_without_work(personae, model_folder, cast) -> None:
    first = personae("calibrate", model_folder, cast, *QUICK, "--json")
    again = personae("calibrate", model_folder, cast, *QUICK, "--json")
    assert "Talking" in first.err
    assert "Talking: 0 turns" in again.err
    different = {"run", "stored"}
    assert {k: v for k, v in first.json.items() if k not in different} == {
        k: v for k, v in again.json.items() if k not in different
    }
    other = personae("calibrate", model_folder, cast, *QUICK, "--json", "--seed", "1")
    assert other.json["eta_fitted"] != first.json["eta_fitted"]


def test_terminal_shows_the_power_and_its_figures(personae, model_folder, cast) -> None:
    outcome = personae("calibrate", model_folder, cast, *QUICK)
    assert outcome.status == 0
    for words in ("eta ", "reliability slope", "Cllr", "chance 25%", "Hardest to tell", "Kept for `personae screen`"):
        assert words in outcome.out


def test_rerun_repeats_a_calibration(personae, model_folder, cast, tmp_path) -> None:
    first = personae("calibrate", model_folder, cast, *QUICK, "--json", "--out", tmp_path / "run").json
    again = personae("rerun", tmp_path / "run", "--json").json
    assert again["eta"] == first["eta"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (', "Arr, matey, you sail."', "", ["'pirate'", "has 1 paraphrase", "none is left to hold out"]),
        (', "You are rude and you sneer."', "", ["'rude/pos'", "has 1 paraphrase"]),
    ],
)
def test_a_persona_with_one_paraphrase_is_refused(personae, model_folder, cast, old, new, words) -> None:
    outcome = personae("calibrate", model_folder, edited(cast, old, new), *QUICK)
    assert outcome.status == 2
    assert all(w in outcome.err for w in words)
    assert "two paraphrases" in outcome.err


def test_paraphrases_that_leave_none_are_refused(personae, model_folder, cast) -> None:
    outcome = personae("calibrate", model_folder, cast, *QUICK, "--paraphrases", "2")
    assert outcome.status == 2
    assert "2 would score" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere-model", "CAST"], "there is no model 'nowhere-model'"),
        (["MODEL", "nowhere-cast"], "there is no cast 'nowhere-cast'"),
        (["MODEL", "CAST", "--conversations", "0"], "--conversations"),
        (["MODEL", "CAST", "--turns", "0"], "--turns"),
        (["MODEL", "CAST", "--turns", "40", "--max-tokens", "40"], "outgrows the model's 512 tokens"),
        (["MODEL"], "Missing argument"),
    ],
)
def test_bad_input_is_refused(personae, model_folder, cast, arguments, words) -> None:
    place = {"MODEL": model_folder, "CAST": cast}
    outcome = personae("calibrate", *(place.get(a, a) for a in arguments))
    assert outcome.status == 2
    assert words in outcome.err


def test_a_model_that_says_nothing_is_refused(personae, own_model, cast) -> None:
    """Every hidden state is the same and its head knows one answer: the end of the turn."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = {k: v.clone() for k, v in load_file(own_model / "model.safetensors").items()}
    tokens = json.loads((own_model / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    end = next(t["id"] for t in tokens if t["content"] == "<|im_end|>")
    for name, value in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            value.zero_()
        elif name.endswith(("embed_tokens.weight", "model.norm.weight")):
            value.fill_(1.0)
    weights["lm_head.weight"][end] = torch.ones_like(weights["lm_head.weight"][end])
    save_file(weights, own_model / "model.safetensors", metadata={"format": "pt"})
    outcome = personae("calibrate", own_model, cast, *QUICK)
    assert outcome.status == 3
    assert "gave nothing but empty replies to 16 conversations" in outcome.err


def test_a_damaged_calibration_is_named(personae, model_folder, cast, reference_file, data_file) -> None:
    stored = Path(personae("calibrate", model_folder, cast, *QUICK, "--json").json["stored"])
    good = stored.read_text(encoding="utf-8")
    screen = ("screen", data_file, "--model", model_folder, "--cast", cast, "--reference", reference_file)
    for body in ("", "{", "[]", '{"eta": "much"}', '{"eta": -1}', '{"eta": NaN}', '{"eta": true}', "\0", "[" * 100_000):
        stored.write_text(body, encoding="utf-8")
        outcome = personae(*screen)
        assert outcome.status == 3
        assert f"the calibration {stored} is damaged" in outcome.err
        assert "personae calibrate" in outcome.err
    assert personae(*screen, "--eta", "0.3").status == 0
    assert personae("calibrate", model_folder, cast, *QUICK).status == 0  # it is written anew
    assert json.loads(stored.read_text(encoding="utf-8"))["eta"] == json.loads(good)["eta"]
    assert personae(*screen).status == 0


def test_interrupted_calibration_goes_on(start, personae, model_folder, cast, offline_home) -> None:
    """Stopped while it talks: what was said is kept, and the result is that of a run that was not stopped."""
    code = "import sys; from personae.cli.main import run; sys.exit(run(sys.argv[1:]))"
    arguments = ("calibrate", model_folder, cast, "--conversations", "12", "--max-tokens", "8", "--json")
    process = start(code, *arguments)
    deadline = time.time() + 120
    while time.time() < deadline and not list(offline_home.glob("transcripts/*/chunk-*.json")):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    kept = {p: p.read_bytes() for p in offline_home.glob("transcripts/*/chunk-*.json")}
    assert kept
    resumed = personae(*arguments).json
    assert all(p.read_bytes() == body for p, body in kept.items())
    for path in [*offline_home.glob("transcripts/*/*.json")]:
        path.unlink()
    fresh = personae(*arguments).json
    assert fresh["eta_fitted"] == pytest.approx(resumed["eta_fitted"], rel=1e-6)


def test_a_worlds_likelihoods_need_no_power(personae, tmp_path) -> None:
    """The exact model's likelihoods are right, so the power fitted to the labels is near one."""
    cast = tmp_path / "cast.yaml"
    cast.write_text(cast_yaml(read_world("tiny")), encoding="utf-8")
    made = personae("calibrate", "world:tiny/exact", cast, "--conversations", "32", "--json").json
    assert made["eta_low"] < 1 < made["eta_high"]
    assert made["eta_low"] > 0.5
    assert made["eta_high"] < 1.6
