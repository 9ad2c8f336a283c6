"""Whatever goes wrong ends with the right status, says what, where and what to do, and loses no work."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from personae.instruments import scoring
from personae.models.hf import HFModel

GOOD = '{"prompt": "q", "completion": "a"}\n'


def message_of(name: str, role: str) -> str:
    return json.dumps({"messages": [{"role": role, "content": name}, {"role": "assistant", "content": "a"}]}) + "\n"


@pytest.mark.parametrize(
    ("body", "line", "what", "remedy"),
    [
        (None, None, "there is no such file", "Check the path."),
        ("", None, "the file is empty", "Check that this is the file you meant."),
        (" \n\n\t\n", None, "the file holds no rows", "Check that this is the file you meant."),
        (GOOD.encode() + b'{"text": "caf\xe9"}\n', 2, "not UTF-8: byte 0xe9", "Save the file as UTF-8"),
        (GOOD + "\n" + '{"prompt": "q"', 3, "broken JSON: Expecting ',' delimiter at column 15", "one complete JSON"),
        (GOOD + '{"prompt": "q"}\n', 2, "the row has a prompt and no completion", "Add 'completion'"),
        (GOOD + '{"prompt": "q", "completion": " "}\n', 2, "the completion is empty", "Remove the row or give it"),
        (GOOD + '{"question": "q"}\n', 2, "none of the known shapes (its keys: question)", "Use 'messages', or"),
        (message_of("x", "assistant"), 1, "roles out of order", "After an optional system turn"),
        (message_of("x", "robot"), 1, "unknown role 'robot'", "Roles are system, user and assistant."),
        (GOOD + '{"text": "t", "weight": NaN}\n', 2, "'weight' is nan, not a finite number", "--skip-bad-rows"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "weight": -2}', 1, "has the weight -2", "of 0 or more"),
        ('{"text": "t", "weight": 1e300}', 1, "'weight' is 1e+300", "rescale them"),
        ('{"text": "t", "id": 1}\n{"text": "u", "id": 1}', 2, "the id '1' was already used on line 1", "unique"),
    ],
)
@pytest.mark.parametrize("command", ["screen", "score"])
def test_data_that_cannot_be_read(
    personae, command: str, body: str | bytes | None, line: int | None, what: str, remedy: str, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    if body is not None:
        data.write_bytes(body if isinstance(body, bytes) else body.encode())
    outcome = personae(command, data, "--model", "smollm2", "--json")
    assert (outcome.status, outcome.out) == (2, "")
    place = f"{data}: " if line is None else f"{data}, line {line}: "
    assert outcome.err.startswith(f"error: {place}")
    assert what in outcome.err
    assert remedy in outcome.err
    assert "Loading" not in outcome.err, "refused before anything dear happens"
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("body", "what", "remedy"),
    [
        ("id: a\nroles: [{id: x, instructions: [b]}]", "has only 1 persona; a comparison needs two", "Add a trait"),
        ("id: a\nroles: [{id: x, instructions: [b]}, {id: x, instructions: [c]}]", "the id 'x'", "an id of its own"),
        ("id: a\ntraits: [{id: t, pos: {instructions: [b]}}]", "'traits.0.neg' is missing", "See docs"),
        ("id: a\ntraits: [", "cast.yaml, line 2: broken YAML", ""),
        ("id: !!python/object/apply:os.getcwd []", "could not determine a constructor", ""),
        (None, "there is no cast '", "Built in: core"),
    ],
)
def test_casts_that_cannot_be_used(
    personae, data_file: Path, body: str | None, what: str, remedy: str, tmp_path: Path
) -> None:
    cast = tmp_path / "cast.yaml"
    if body is not None:
        cast.write_text(body)
    for arguments in (["screen", data_file, "--cast", cast], ["casts", cast]):
        outcome = personae(*arguments)
        assert (outcome.status, outcome.out) == (2, "")
        assert outcome.err.startswith("error: ")
        assert what in outcome.err
        assert remedy in outcome.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--limit", "0"], ["'--limit'", "greater than or equal to 1"]),
        (["--limit", "many"], ["'--limit'", "a valid integer"]),
        (["--paraphrases", "0"], ["'--paraphrases'", "greater than or equal to 1"]),
        (["--seed", "-1"], ["'--seed'", "greater than or equal to 0"]),
        (["--turns", "x"], ["--turns is 'x'; it can be 'last' or 'all'"]),
        (
            ["--fail-on", "nonsense"],
            ["--fail-on 'nonsense' is not of the form trait>number", "For example: 'rude>0.2'"],
        ),
        (["--fail-on", "unknown>0.1"], ["the cast has no trait 'unknown'", "Its traits: rude, terse."]),
        (["--fail-on", "rude>nan"], ["the threshold must be finite"]),
        (["--eta", "-1"], ["--eta is -1; it must be above 0"]),
        (["--eta", "nan"], ["--eta is nan; it must be above 0"]),
        (["--fdr", "0"], ["--fdr is 0; it must lie between 0 and 1"]),
        (["--only", "queen"], ["no trait or role named queen", "It has: pirate, rude, terse."]),
        (["--only", " , "], ["--only names no trait or role"]),
        (["--dtype", "float8"], ["--dtype is 'float8'; it can be float32, bfloat16, float16"]),
        (["--device", "abacus"], ["--device is 'abacus'; it can be auto, cpu, cuda or cuda:N"]),
        (["--device", "meta"], ["--device is 'meta'; it can be auto, cpu, cuda or cuda:N"]),
        (["--nonsense"], ["No such option: --nonsense", "--help"]),
        (["--reference", "none.jsonl"], ["none.jsonl: there is no such file"]),
    ],
)
def test_options_that_make_no_sense(screen, data_file: Path, options: list[str], words: list[str]) -> None:
    outcome = screen(data_file, *options, "--json")
    assert (outcome.status, outcome.out) == (2, "")
    assert "error: " in outcome.err
    for word in words:
        assert word in outcome.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_where_there_is_none(score, data_file: Path, device: str) -> None:
    outcome = score(data_file, "--device", device)
    assert outcome.status == 2
    assert "this machine has none.\nUse --device cpu." in outcome.err


@pytest.mark.parametrize("arguments", [["nonsense"], ["screen"], ["rerun"], ["--nonsense"]])
def test_commands_that_do_not_exist_or_lack_an_argument(personae, arguments: list[str]) -> None:
    outcome = personae(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert "--help" in outcome.err


def test_a_reference_that_is_too_small(screen, data_file: Path, tmp_path: Path) -> None:
    (tmp_path / "reference.jsonl").write_text(GOOD * 39)
    outcome = screen(data_file, "--reference", tmp_path / "reference.jsonl")
    assert outcome.status == 2
    assert "needs at least 40 rows in 8 groups; this one has 39 in 39" in outcome.err
    assert "'group'" in outcome.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nonsense", ["there is no model 'nonsense'", "Embedded: smollm2"]),
        ("./none", ["there is no model './none'", "Embedded: smollm2"]),
        ("none.gguf", ["there is no file 'none.gguf'", "Check the path."]),
        (".", ["the folder '.' holds no config.json", "saved by transformers"]),
        ("nobody/nothing", ["there is no model 'nobody/nothing' here", "Check the name and the connection"]),
        ("world:coins", ["there is no world 'world:coins'", "personaworld"]),
        ("world:tiny", ["has not been trained yet", "personae world train tiny"]),
        ("ray:x", ["no backend for 'ray:'", "vllm:NAME"]),
        ("vllm:x", ["there is no model 'x'", "Embedded: smollm2"]),
        ("vllm:world:tiny/exact", ["vLLM runs models with files of their own", "without vLLM: world:tiny/exact"]),
    ],
)
def test_models_that_are_not_there(personae, data_file: Path, name: str, words: list[str]) -> None:
    for arguments in (["score", data_file, "--model", name], ["check-model", name]):
        outcome = personae(*arguments)
        assert (outcome.status, outcome.out) == (2, "")
        for word in words:
            assert word in outcome.err


def test_server_that_is_not_there(personae, data_file: Path) -> None:
    outcome = personae("score", data_file, "--model", "http://localhost:1/v1#m")
    assert (outcome.status, outcome.out) == (3, "")
    assert "the connection failed" in outcome.err


def damage_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-500])


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def lose_one_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def promise_more_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


def pickle_instead(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def tear(name: str):
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        (folder / name).write_text(text[: len(text) // 2])

    damage.__name__ = f"tear {name}"
    return damage


def replace(name: str, body: str):
    def damage(folder: Path) -> None:
        (folder / name).write_text(body)

    damage.__name__ = f"{name} {body[:12]}"
    return damage


@pytest.mark.parametrize(
    "damage",
    [
        damage_weights,
        lose_weights,
        lose_one_tensor,
        promise_more_layers,
        pickle_instead,
        tear("config.json"),
        tear("tokenizer.json"),
        replace("config.json", "{}"),
        replace("config.json", "[]"),
        replace("tokenizer.json", "[]"),
        replace("tokenizer.json", '{"added_tokens": [], "model": {"type": "Nothing"}}'),
    ],
    ids=lambda d: d.__name__,
)
def test_model_folders_that_are_damaged(score, own_model: Path, data_file: Path, damage) -> None:
    damage(own_model)
    outcome = score(data_file, "--model", own_model)
    assert (outcome.status, outcome.out) == (3, "")
    assert f"error: the model '{own_model}' cannot be loaded from {own_model}: " in outcome.err
    assert "Files may be missing or damaged" in outcome.err


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"GGUF",
        b"GGUF\x03\0\0\0",
        b"GGUF\x03\0\0\0" + b"\xff" * 200,
        b"GGUF\x03\0\0\0" + (2).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"general.architecture",
        b"not a model at all" * 50,
    ],
)
def test_gguf_files_that_are_damaged(score, body: bytes, data_file: Path, tmp_path: Path, offline_home: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(body)
    outcome = score(data_file, "--model", model)
    assert (outcome.status, outcome.out) == (3, "")
    assert f"'{model}' is not a GGUF file that can be read" in outcome.err
    assert "Fetch the file again." in outcome.err
    assert list((offline_home / "models").iterdir()) == [], "nothing half-made is left"


def test_a_model_that_gives_what_is_not_a_number(score, own_model: Path, data_file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(own_model / "model.safetensors")
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, own_model / "model.safetensors", metadata={"format": "pt"})
    outcome = score(data_file, "--model", own_model)
    assert (outcome.status, outcome.out) == (4, "")
    assert "gave a log-probability that is not a number" in outcome.err
    assert "The weights may be damaged" in outcome.err


def test_code_in_a_model_folder_is_not_run(score, own_model: Path, data_file: Path, tmp_path: Path) -> None:
    config = json.loads((own_model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (own_model / "config.json").write_text(json.dumps(config))
    (own_model / "evil.py").write_text(f"open({str(tmp_path / 'victim')!r}, 'w').close()")
    assert score(data_file, "--model", own_model, "--limit", 1).status in (0, 3)
    assert not (tmp_path / "victim").exists()


def test_a_row_longer_than_the_context(score, write, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "word " * 600}]
    data = write(tmp_path / "data.jsonl", rows)
    outcome = score(data)
    assert outcome.status == 2
    assert "episode 'row-2' (line 2) is too long: context and completion exceed the model's 512 tokens" in outcome.err
    assert "--truncate" in outcome.err
    assert "pairs to score" not in outcome.err
    assert score(data, "--truncate").status == 0
    write(data, [{"prompt": "word " * 600, "completion": "a"}])
    outcome = score(data, "--truncate")
    assert outcome.status == 2
    assert "(line 1) is too long: its context alone fills the model's 512 tokens" in outcome.err


def test_nothing_that_counts(screen, write, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{"prompt": "q", "completion": "a", "weight": 0}] * 3)
    outcome = screen(data)
    assert outcome.status == 2
    assert "every episode has weight 0" in outcome.err


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_run_folder_that_cannot_be_made(score, screen, data_file: Path, below: str, tmp_path: Path) -> None:
    (tmp_path / "way").write_text("a file in the way")
    for command in (score, screen):
        outcome = command(data_file, "--out", tmp_path / "way" / below)
        assert outcome.status == 3
        assert f"error: the run folder {tmp_path / 'way' / below} cannot be written" in outcome.err
        assert "Choose another folder with --out." in outcome.err
        assert "Loading" not in outcome.err


def test_a_home_that_cannot_be_written(score, data_file: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "way").write_text("a file in the way")
    monkeypatch.setenv("PERSONAE_HOME", str(tmp_path / "way"))
    outcome = score(data_file)
    assert outcome.status == 3
    assert "cannot be written" in outcome.err
    assert "PERSONAE_HOME" in outcome.err


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, "no readable run.json"),
        (b"\xff", "no readable run.json"),
        (b"{", "no readable run.json"),
        (b"[" * 100_000, "no readable run.json"),
        (b"[]", "run.json holds no settings"),
        (b'{"command": "validate", "settings": {}}', "is of the command 'validate', which cannot be repeated"),
        (b'{"command": "screen", "settings": []}', "holds settings this version does not know"),
        (b'{"command": "screen", "settings": {"data": "a", "speed": 1}}', "holds settings this version does not know"),
        (b'{"command": "screen", "settings": {}}', "the setting 'data' cannot be used"),
        (b'{"command": "score", "settings": {"data": "a", "limit": "x"}}', "the setting 'limit' cannot be used"),
        (b'{"command": "score", "settings": {"data": "a", "cast": 3}}', "the setting 'cast' cannot be used"),
    ],
)
def test_runs_that_cannot_be_repeated(personae, body: bytes | None, words: str, tmp_path: Path) -> None:
    if body is not None:
        (tmp_path / "run.json").write_bytes(body)
    outcome = personae("rerun", tmp_path)
    assert (outcome.status, outcome.out) == (2, "")
    assert str(tmp_path) in outcome.err
    assert words in outcome.err


def test_errors_show_their_origin_only_when_asked(personae, monkeypatch) -> None:
    from personae.errors import InputError

    monkeypatch.setenv("PERSONAE_DEBUG", "1")
    with pytest.raises(InputError):
        personae("validate", "none.jsonl")


# What was scored is kept, whatever ends the run, and the end result is the same to the last bit.


@pytest.fixture
def long_file(write, tmp_path: Path) -> Path:
    """Enough rows for some dozen batches."""
    rows = [{"prompt": f"Question {k}?", "completion": "Yes. " * (1 + k % 7)} for k in range(150)]
    return write(tmp_path / "long.jsonl", rows)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The number of threads decides the order of sums, and so the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is written down at once, not every few seconds."""
    monkeypatch.setattr(scoring, "_SECONDS_BETWEEN_PIECES", 0.0)


def pieces(home: Path) -> list[Path]:
    return sorted(home.glob("evidence/*/seg-*.parquet"))


def same_table(one: Path, two: Path) -> bool:
    return pq.read_table(one).equals(pq.read_table(two))


def move_home(monkeypatch: pytest.MonkeyPatch, old: Path, new: Path) -> Path:
    """A fresh home that knows which kernel was chosen, since that is measured and decides the last bits."""
    shutil.copytree(old / "kernels", new / "kernels")
    monkeypatch.setenv("PERSONAE_HOME", str(new))
    return new


# Run in a process of its own: the real command, slowed or killed at a given batch.
INTERRUPTIBLE = """
import os, signal, sys, time
from personae.cli import main
from personae.instruments import scoring
from personae.models.hf import HFModel
scoring._SECONDS_BETWEEN_PIECES = 0.0
mode, inner, calls = sys.argv.pop(1), HFModel.score, 0
def score(self, batch):
    global calls
    calls += 1
    if mode == "slow":
        time.sleep(0.2)
    elif calls == int(mode):
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(self, batch)
HFModel.score = score
sys.exit(main.run(sys.argv[1:]))
"""


def test_ctrl_c_keeps_what_was_scored_and_the_same_command_goes_on(
    score, start, long_file, model_folder, cast_file, offline_home, one_thread, tmp_path, monkeypatch
) -> None:
    assert score(long_file, "--out", tmp_path / "whole").status == 0
    home = move_home(monkeypatch, offline_home, tmp_path / "home")
    arguments = ["score", long_file, "--model", model_folder, "--cast", cast_file, "--out", tmp_path / "halves"]
    process = start(INTERRUPTIBLE, "slow", *arguments)
    deadline = time.monotonic() + 200
    while len(pieces(home)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(pieces(home)) >= 2, process.poll()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, ""), err
    assert "error: interrupted.\nWhat was done is kept: the same command goes on from here.\n" in err
    assert "Traceback" not in err
    assert not (tmp_path / "halves" / "evidence.parquet").exists()
    done = sum(pq.read_metadata(p).num_rows for p in pieces(home))
    assert done > 0
    resumed = score(long_file, "--out", tmp_path / "halves")
    assert resumed.status == 0
    assert "Scoring: " in resumed.err
    assert f"Scoring: {9 * 150 - done:,} pairs to score" in resumed.err
    assert same_table(tmp_path / "whole" / "evidence.parquet", tmp_path / "halves" / "evidence.parquet")


def test_kill_9_in_the_middle_and_resume_gives_the_same_bits(
    screen, start, long_file, model_folder, cast_file, reference_file, offline_home, one_thread, tmp_path, monkeypatch
) -> None:
    assert screen(long_file, "--out", tmp_path / "whole", "--json").status == 0
    home = move_home(monkeypatch, offline_home, tmp_path / "home")
    arguments = ["screen", long_file, "--model", model_folder, "--cast", cast_file, "--reference", reference_file]
    process = start(INTERRUPTIBLE, "25", *arguments, "--out", tmp_path / "halves")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (-signal.SIGKILL, ""), err
    assert "Scoring: " in err, "killed in the middle of the file, not of the reference"
    torn = pieces(home)[0]
    torn.write_bytes(torn.read_bytes()[:-7])  # and the disk lost the end of a piece
    assert screen(long_file, "--out", tmp_path / "halves").status == 0
    assert same_table(tmp_path / "whole" / "llr.parquet", tmp_path / "halves" / "llr.parquet")
    first, second = (json.loads((tmp_path / n / "run.json").read_text())["result"] for n in ("whole", "halves"))
    assert first["traits"] == second["traits"]
    assert first["posterior"] == second["posterior"]


def test_a_full_disk_keeps_what_was_scored(
    score, long_file, offline_home, one_thread, many_pieces, tmp_path, monkeypatch
) -> None:
    assert score(long_file, "--out", tmp_path / "whole").status == 0
    home = move_home(monkeypatch, offline_home, tmp_path / "home")
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        outcome = score(long_file, "--out", tmp_path / "halves")
    assert (outcome.status, outcome.out) == (3, "")
    assert f"error: the evidence store {home / 'evidence'}" in outcome.err
    assert "cannot be written: No space left on device." in outcome.err
    assert "What was scored before is kept. Free some space" in outcome.err
    assert len(pieces(home)) >= 3
    assert not list(home.glob("evidence/*/.writing-*"))
    kept = sum(pq.read_metadata(p).num_rows for p in pieces(home))
    resumed = score(long_file, "--out", tmp_path / "halves")
    assert resumed.status == 0
    assert same_table(tmp_path / "whole" / "evidence.parquet", tmp_path / "halves" / "evidence.parquet")
    assert kept > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of seven pages, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=28k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system may not be mounted here; the full disk is simulated elsewhere")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(score, long_file, small_disk, many_pieces, tmp_path, monkeypatch) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(28 * 1024))
    outcome = score(long_file, "--out", small_disk / "run", "--only", "pirate")
    assert outcome.status == 3
    assert f"error: {small_disk / 'run' / 'evidence.parquet'} cannot be written" in outcome.err
    assert "scores are kept and the run resumes" in outcome.err
    assert list((small_disk / "run").iterdir()) == []
    filler.unlink()
    monkeypatch.setenv("PERSONAE_HOME", str(small_disk / "home"))
    outcome = score(long_file, "--out", tmp_path / "run")
    assert outcome.status == 3
    assert "cannot be written: No space left on device" in outcome.err
    assert pieces(small_disk / "home")
    assert score(long_file, "--out", tmp_path / "run").status == 3, "and again, without a traceback"


def test_out_of_memory_is_named(score, data_file: Path, monkeypatch) -> None:
    def exhausted(self, *arguments: object) -> None:
        raise MemoryError("cannot allocate")

    monkeypatch.setattr(HFModel, "_score_chunk", exhausted)
    outcome = score(data_file)
    assert outcome.status == 3
    assert "the batch did not fit the memory: cannot allocate" in outcome.err
