"""`personae train` as a user meets it: files, outcome, bad input, a kill in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from drawn_vectors import write_vectors
from personae.models import hf_training
from personae.models.load import load_model

FAST = ("--steps", 6, "--learning-rate", 0.01, "--batch-size", 4, "--device", "cpu")


@pytest.fixture
def train(personae, model_folder: Path):
    """`personae train DATA` with the tiny model, a few steps."""

    def run(data: object, *more: object):
        return personae("train", data, "--model", model_folder, *FAST, *more)

    return run


def test_an_adapter_is_trained_and_used(train, personae, score, data_file: Path, model_folder: Path, cast_file: Path):
    done = train(data_file, "--out", "run", "--checkpoints", "2,4", "--held-out", "0.2", "--json")
    assert done.status == 0
    r = done.json
    assert (r["command"], r["method"], r["n_steps"]) == ("train", "sft", 6)
    assert r["last_loss"] < r["first_loss"]
    assert r["held_out_last"] < r["held_out_first"]
    assert r["use"] == f"{model_folder}+run/adapter"
    for folder in (r["result"], *r["checkpoints"].values()):
        assert {p.name for p in Path(folder).iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "personae.json",
        }
    # The adapter is not tied to this machine's folders beyond the name the user gave.
    assert json.loads(Path(r["result"], "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        model_folder
    )
    losses = pq.read_table("run/losses.parquet")
    assert losses["step"].to_pylist() == list(range(1, 7))
    assert set(losses.column_names) > {"step", "loss", "learning_rate", "n_tokens", "seconds"}
    plain = score(data_file, "--json", "--limit", 4)
    scored = personae("score", data_file, "--model", f"{model_folder}+run", "--cast", cast_file, "--json", "--limit", 4)
    assert scored.status == 0
    tables = [pq.read_table(s.json["evidence"])["log_likelihood"].to_pylist() for s in (plain, scored)]
    assert sum(tables[1]) > sum(tables[0])
    checked = personae("check-model", f"{model_folder}+{r['checkpoints']['2']}", "--json")
    assert checked.status == 0
    assert checked.json["failed"] == []


def test_the_outcome_names_the_command_that_uses_it(train, data_file: Path):
    done = train(data_file, "--out", "run")
    assert done.status == 0
    assert "nats a token" in done.out
    assert done.out.splitlines()[-1].startswith("Use it: personae score DATA --model ")
    again = train(data_file, "--out", "run")
    assert again.status == 0
    assert "done already" in again.err
    assert again.out == done.out


def test_rerun_repeats_a_training(train, personae, data_file: Path):
    assert train(data_file, "--out", "one", "--system", "You are a pirate.", "--quiet").status == 0
    assert personae("rerun", "one", "--out", "two", "--quiet").status == 0
    a, b = (Path(n, "adapter", "adapter_model.safetensors").read_bytes() for n in ("one", "two"))
    assert a == b
    assert json.loads(Path("two/run.json").read_text())["settings"]["system"] == "You are a pirate."


def test_steering_while_training_is_recorded_and_repeated(train, personae, data_file: Path, vectors_file: Path):
    """Preventative steering: another adapter comes out, of the same form; a size of 0 is no steering, to the bit."""
    for name, steer in (("plain", ()), ("pushed", ("--steer", "sour:1@0-1")), ("zero", ("--steer", "sour:0@0-1"))):
        vectors = ("--vectors", vectors_file) if steer else ()
        done = train(data_file, "--out", name, "--json", *steer, *vectors)
        assert done.status == 0, done.err
        assert ("used without" in " ".join(done.json["notes"])) == bool(steer)
    assert personae("rerun", "pushed", "--out", "again", "--quiet").status == 0
    plain, pushed, zero, again = (
        Path(n, "adapter", "adapter_model.safetensors").read_bytes() for n in ("plain", "pushed", "zero", "again")
    )
    assert plain == zero
    assert pushed == again != plain
    configs = [Path(n, "adapter", "adapter_config.json").read_bytes() for n in ("plain", "pushed")]
    assert configs[0] == configs[1]
    run = json.loads(Path("pushed/run.json").read_text())
    assert run["settings"]["steer"] == ["sour:1@0-1"]
    assert run["result"]["settings"]["edits"]["layers"] == [0, 1]
    assert str(vectors_file) in run["inputs"]


def test_a_missing_file_of_vectors_is_told(train, data_file: Path, tmp_path: Path) -> None:
    done = train(data_file, "--steer", "x:1@0", "--vectors", tmp_path / "none.safetensors")
    assert done.status == 2
    assert "there is no such file of vectors" in done.err


def test_a_killed_steered_training_goes_on_under_its_own_vectors_only(
    train, data_file: Path, model_folder: Path, vectors_file: Path, offline_home: Path, monkeypatch
):
    kept = offline_home / "vectors" / f"{load_model(str(model_folder), device='cpu').card.digest}.safetensors"
    kept.parent.mkdir()
    shutil.copy(vectors_file, kept)
    monkeypatch.setattr(hf_training, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(hf_training, "_COST", 0.0)
    step_done = hf_training._FineTuning.step_done

    def killed(self, optimizer):
        step_done(self, optimizer)
        if self.at.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(hf_training._FineTuning, "step_done", killed)
        train(data_file, "--steer", "sour:1", "--out", "run", "--quiet")
    assert "result" not in json.loads(Path("run/run.json").read_text())
    write_vectors(kept, model_folder, seed=1)
    other = train(data_file, "--steer", "sour:1", "--out", "run", "--quiet")
    assert other.status == 2
    assert "unfinished training with other data, model or settings" in other.err
    assert "holds another run" in train(data_file, "--steer", "sour:2", "--out", "run", "--quiet").err
    shutil.copy(vectors_file, kept)
    ended = train(data_file, "--steer", "sour:1", "--out", "run", "--json")
    assert ended.json["resumed_from"] == 3, ended.err
    whole = train(data_file, "--steer", "sour:1", "--out", "whole", "--json")
    a, b = (Path(r.json["result"], "adapter_model.safetensors").read_bytes() for r in (ended, whole))
    assert a == b


def test_a_whole_model_is_trained(train, personae, data_file: Path):
    done = train(data_file, "--full", "--out", "run", "--json")
    assert done.status == 0
    assert done.json["use"] == "run/model"
    for name in ("run", "run/model"):
        assert personae("check-model", name, "--quiet").status == 0


def test_a_second_file_is_mixed_in(train, data_file: Path, reference_file: Path):
    alone = train(data_file, "--out", "a", "--json")
    mixed = train(data_file, "--mix", reference_file, "--mix-ratio", "0.5", "--out", "b", "--json")
    assert alone.json["n_rows"] == 24
    assert mixed.json["n_rows"] == 24 + 50
    assert set(json.loads(Path("b/run.json").read_text())["inputs"]) == {str(data_file), str(reference_file)}
    assert train(data_file, "--mix-ratio", "0.5").status == 2


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
ROW = {"prompt": "What of tea?", "completion": "Here is a short answer about tea."}
BAD = {
    "nothing": ([], (), "empty"),
    "no weight": ([ROW | {"weight": 0}], (), "nothing to train on"),
    "negative weight": ([ROW | {"weight": -2}], (), "negative weight"),
    "no pairs": ([ROW], ("--method", "dpo"), "needs preference rows"),
    "no texts": ([ROW], ("--method", "text"), "needs text rows"),
    "mixed": ([ROW, PAIR], (), "mixes preference rows"),
    "method": ([ROW], ("--method", "ppo"), "--method is ppo"),
    "too long": ([ROW | {"completion": "tea " * 600}], (), "too long"),
    "system before texts": ([{"text": "maps"}], ("--system", "hi"), "cannot be put in front of text rows"),
    "one row held out": ([ROW], ("--stop-early",), "at least two conversations"),
    "late checkpoint": ([ROW], ("--checkpoints", "3,99"), "step 99"),
    "no number": ([ROW], ("--checkpoints", "3,x"), "--checkpoints is '3,x'"),
    "rate": ([ROW], ("--learning-rate", "0"), "--learning-rate is 0.0"),
    "steering": ([ROW], ("--steer", "rude"), "is not NAME:SIZE"),
    "no such vector": ([ROW], ("--steer", "rude:1"), "no vector 'rude'"),
    "vectors for nothing": ([ROW], ("--vectors", "x.safetensors"), "does nothing without --steer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_status_2(case: str, train, write, tmp_path: Path):
    rows, more, message = BAD[case]
    done = train(write(tmp_path / "rows.jsonl", rows), *more)
    assert done.status == 2
    assert message in done.err


def test_a_refused_training_leaves_its_folder_free(train, write, tmp_path: Path, data_file: Path):
    long = write(tmp_path / "rows.jsonl", [ROW | {"completion": "tea " * 600}])
    assert train(long, "--out", "run").status == 2
    assert train(data_file, "--out", "run", "--quiet").status == 0
    other = train(data_file, "--out", "run", "--seed", 3)
    assert other.status == 2
    assert "holds another run" in other.err


def test_a_missing_package_is_told_before_anything_is_written(train, tmp_path: Path, data_file: Path, monkeypatch):
    monkeypatch.setattr("personae.instruments.trainable.find_spec", lambda name: None if name == "peft" else object())
    found = train(data_file, "--out", tmp_path / "run")
    assert found.status == 2
    assert "needs the package 'peft'" in found.err
    assert not (tmp_path / "run").exists()


def test_wrong_adapters_are_named(train, personae, data_file: Path, model_folder: Path, tmp_path: Path):
    assert train(data_file, "--out", "run", "--full", "--quiet").status == 0
    assert train(data_file, "--out", "lora", "--quiet").status == 0
    for name, status, message in (
        ("run+lora", 2, "was made for"),
        (f"{model_folder}+nowhere", 2, "does not exist"),
        (f"{model_folder}+{tmp_path}", 2, "holds no adapter"),
        ("lora", 2, "holds an adapter, not a model"),
        ("world:tiny/exact+lora", 2, "closed form"),
    ):
        done = personae("check-model", name)
        assert (done.status, message in done.err) == (status, True), done.err
    weights = Path("lora/adapter/adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8] + b"damaged!")
    done = personae("check-model", f"{model_folder}+lora")
    assert done.status == 3
    assert "does not match its checksum" in done.err


def test_a_loss_that_is_no_number_ends_with_status_4(train, data_file: Path):
    done = train(data_file, "--learning-rate", "1e18", "--steps", 30, "--checkpoints", "1", "--out", "run")
    assert done.status == 4
    assert "last good checkpoint is run/checkpoints/step-000001" in done.err


KILLED = """
import sys
from personae.cli import main
from personae.models import hf_training
hf_training._LEAST_SECONDS = hf_training._COST = 0.0
step_done = hf_training._FineTuning.step_done
def slow(self, optimizer):
    step_done(self, optimizer)
    print(self.at.step, flush=True)
    sys.stdin.readline()
hf_training._FineTuning.step_done = slow
sys.exit(main.run(sys.argv[1:]))
"""


def test_a_killed_training_goes_on_to_the_same_bits(train, start, data_file: Path, model_folder: Path):
    """Killed with no chance to say goodbye; the same command finds its folder by itself."""
    arguments = [data_file, "--model", model_folder, *FAST, "--checkpoints", "2", "--quiet"]
    process = start(KILLED, "train", *arguments)
    process.stdin.write("\n\n\n")
    process.stdin.flush()
    for step in (1, 2, 3, 4):
        assert process.stdout.readline() == f"{step}\n", process.stderr.read()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (folder,) = Path("runs").iterdir()
    assert "result" not in json.loads((folder / "run.json").read_text())
    ended = train(data_file, "--checkpoints", "2", "--json")
    assert ended.status == 0
    assert (ended.json["run"], ended.json["resumed_from"]) == (str(folder.resolve()), 4)
    whole = train(data_file, "--checkpoints", "2", "--out", "whole", "--json")
    assert whole.json["resumed_from"] == 0
    a, b = (Path(r.json["result"], "adapter_model.safetensors").read_bytes() for r in (ended, whole))
    assert a == b
    # Done: the next one is new.
    assert train(data_file, "--checkpoints", "2", "--json").json["run"] != str(folder.resolve())
