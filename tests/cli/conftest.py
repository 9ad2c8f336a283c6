"""A tiny chat model, small files, and a way to run the command line inside this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from drawn_vectors import write_vectors
from personae.cli import main

CONTEXT_LENGTH = 512

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TOPICS = ("trains", "bread", "loans", "cats", "paint", "verbs", "stars", "shoes", "tea", "maps")
_REPLIES = (
    "Here is a short answer about {}.",
    "Sure, {} are easy once you know how.",
    "I would look up {} in the library first.",
    "Many people like {}; so take your time.",
    "That depends on which {} you mean.",
)
CAST = """
id: tiny
traits:
  - id: rude
    pos: {label: rude, instructions: ["You insult people and shout.", "You are rude and you sneer."]}
    neg: {label: polite, instructions: ["You thank people and smile.", "You are polite and you listen."]}
  - id: terse
    pos: {label: terse, instructions: ["You say little."]}
    neg: {label: wordy, instructions: ["You talk on and on without end."]}
roles:
  - {id: pirate, label: a pirate, instructions: ["You are a pirate and love the sea."]}
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def offline_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh home for every test, and no network. Relative paths (`runs/`) land in a folder that goes away."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("PERSONAE_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PERSONAE_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    return home


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of width 32 with a byte-level tokenizer and a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [r.format(t) for r in _REPLIES for t in _TOPICS]
    raw.train_from_iterator([CAST, "system\nuser\nassistant\n", *texts], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = _CHATML
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) < 60_000
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def own_model(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "own-model"))


@pytest.fixture(scope="session")
def cast_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cast") / "tiny.yaml"
    path.write_text(CAST, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def reference_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 short replies in ten topics."""
    rows = [
        {"group": topic, "prompt": f"Tell me about {topic}.", "completion": reply.format(topic)}
        for topic in _TOPICS
        for reply in _REPLIES
    ]
    return write_rows(tmp_path_factory.mktemp("reference") / "reference.jsonl", rows)


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows with two empty lines before them, so that lines and numbers differ."""
    rows = [
        {"id": f"r{k}", "prompt": f"What of {_TOPICS[k % 10]}?", "completion": f"Go away, {k} times I said no!"}
        for k in range(24)
    ]
    path = write_rows(tmp_path_factory.mktemp("data") / "data.jsonl", rows)
    path.write_text("\n\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def vectors_file(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn directions of the tiny model, 'sour' and 'odd', chosen at layer 0, with a reference population."""
    return write_vectors(tmp_path_factory.mktemp("vectors") / "drawn.safetensors", model_folder)


@pytest.fixture
def write() -> Callable[[Path, Iterable[Mapping[str, object]]], Path]:
    """Writes rows as JSON lines."""
    return write_rows


@pytest.fixture
def personae(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command in this process. Every run, whatever it ends with, is without a traceback."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = main.run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Outcome(status, out, err)

    return run


@pytest.fixture
def score(personae, model_folder: Path, cast_file: Path) -> Callable[..., Outcome]:
    """`personae score DATA` with the tiny model and cast."""

    def run(data: object, *more: object) -> Outcome:
        return personae("score", data, "--model", model_folder, "--cast", cast_file, *more)

    return run


@pytest.fixture
def screen(personae, model_folder: Path, cast_file: Path, reference_file: Path) -> Callable[..., Outcome]:
    """`personae screen DATA` with the tiny model, cast and reference."""

    def run(data: object, *more: object) -> Outcome:
        fixed = ("--model", model_folder, "--cast", cast_file, "--reference", reference_file)
        return personae("screen", data, *fixed, *more)

    return run


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts Python code in a process of its own, with the test's environment.

    A shell that starts the tests in the background has its children ignore Ctrl-C; these must not.
    """
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"

    def run(code: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", heed + code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    return run
