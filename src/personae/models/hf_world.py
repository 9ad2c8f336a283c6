"""Training the small transformer of a world: pre-training, then post-training of its Assistant.

    documents (worlds.sampling) -> GPT-2 of the spec's size, loss on answers only -> a Hugging Face folder

The result is an ordinary model folder (safetensors, a word-level tokenizer, a chat template), so everything
that works with a model works with it. What is trained at step t depends on spec, seed and t only, and the
state kept every few seconds holds weights and optimiser, so a killed training goes on to the same bits.
Recipe: the project's own (AdamW, warm-up, cosine, one thread). Not here: what the model should have learnt.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from personae.errors import CorruptModel, StorageError
from personae.models.catalogue import MANIFEST, TRAINING_RECORD
from personae.models.exact import phrases_of
from personae.models.hf import HFModel
from personae.worlds.exact import ExactWorld
from personae.worlds.folder import write_whole
from personae.worlds.language import Kind, Language
from personae.worlds.sampling import sample_documents
from personae.worlds.spec import NO_TAG, UNKNOWN, World

_WARM_UP = 100
_FLOOR = 0.02  # of the learning rate, where the cosine ends
_CLIP = 1.0
_BLOCK = 50  # steps whose documents are drawn together
_SECONDS_BETWEEN_STATES = 10.0
_POST_RATE = 0.25  # of the learning rate, for post-training
_CHAT_SHARE = 0.5  # of post-training documents; the rest keeps the other frames as they are

OnStep = Callable[[int, float], None]


@dataclass(slots=True)
class _Progress:
    """Where a training stands; kept beside its tensors."""

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)


def train_stage(world: World, folder: Path, *, seed: int, on_step: OnStep) -> Path:
    """Train the stage of a world: pre-training, or the Assistant where the world has one.

    Args:
        world: `world.base` for pre-training; with its Assistant for post-training, which needs `folder`/base.
        folder: Of the world.
        seed: Of initial weights and documents.
        on_step: Called after every step with its number and its mean loss, nats an answer.

    Returns:
        The folder of the trained model.

    Raises:
        CorruptModel: If the kept state of an interrupted training is damaged.
        StorageError: If results cannot be written.
    """
    stage = "base" if world.assistant is None else "assistant"
    steps = world.training.steps if world.assistant is None else world.assistant.steps
    rate = world.training.learning_rate * (1 if world.assistant is None else _POST_RATE)
    exact = ExactWorld(world)
    with _one_thread(), _disk_errors(folder):
        model = _new_model(world, exact.language, seed)
        if stage == "assistant":
            _load_weights(model, folder / "base" / "model.safetensors")
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        state = _State(folder / "training", stage, f"{world.digest}|{seed}", model, optimizer)
        at = state.load()
        documents = _documents(exact, seed, stage, at.step, world.training.batch)
        written, cpu, wall = time.monotonic(), time.process_time() - at.cpu_seconds, time.monotonic() - at.seconds
        sums: list[float] = []
        while at.step < steps:
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(at.step, steps)
            loss = _step(model, optimizer, next(documents), exact.language)
            at.step += 1
            sums.append(loss)
            if at.step % 100 == 0 or at.step == steps:
                at.losses.append((at.step, float(np.mean(sums))))
                sums = []
            at.cpu_seconds, at.seconds = time.process_time() - cpu, time.monotonic() - wall
            if at.step in world.training.checkpoints and stage == "base":
                _save_folder(model, world, exact.language, folder / "checkpoints" / f"{stage}-{at.step:06d}")
            if at.step % 100 == 0 and time.monotonic() - written > _SECONDS_BETWEEN_STATES:
                state.save(at)
                written = time.monotonic()
            on_step(at.step, loss)
        record = {"digest": world.digest, "seed": seed, "steps": steps, "losses": at.losses}
        timing = {"seconds": round(at.seconds, 2), "cpu_seconds": round(at.cpu_seconds, 2)}
        target = _save_folder(model, world, exact.language, folder / stage, record | timing)
        state.forget()
    return target


def steps_done(folder: Path, stage: str) -> int:
    """Steps that an interrupted training of this stage has kept; 0 where there is none."""
    try:
        return int(json.loads((folder / "training" / f"{stage}.json").read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _schedule(step: int, steps: int) -> float:
    warm_up = min(_WARM_UP, max(1, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    turned = 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
    return _FLOOR + (1 - _FLOOR) * turned


def _documents(exact: ExactWorld, seed: int, stage: str, done: int, batch: int) -> Iterator[Tensor]:
    """Batches of documents from step `done` on, shape (batch, length)."""
    world = exact.world
    # A goal-seeker differs in every frame; other Assistants in the chat frame only.
    shared = None if world.assistant is None or world.assistant.kind == "goal_seeker" else _CHAT_SHARE
    block = done // _BLOCK
    while True:
        rng = np.random.default_rng([seed, 0 if stage == "base" else 1, block])
        ids = torch.from_numpy(sample_documents(exact, batch * _BLOCK, rng, chat_share=shared).ids)
        for k in range(done - block * _BLOCK, _BLOCK):
            yield ids[k * batch : (k + 1) * batch]
        block += 1
        done = block * _BLOCK


def _step(model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer, ids: Tensor, language: Language) -> float:
    """One step; the loss is the mean over answers (and claims), nats."""
    hidden = model.transformer(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, 3:-1:2])
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, len(language.words)), ids[:, 4::2].reshape(-1))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    optimizer.step()
    return float(loss.detach())


def _new_model(world: World, language: Language, seed: int) -> GPT2LMHeadModel:
    t = world.training
    config = GPT2Config(
        vocab_size=len(language.words),
        n_positions=world.document_length,
        n_embd=t.width,
        n_layer=t.layers,
        n_head=t.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=language.ids["<bos>"],
        eos_token_id=None,
    )
    # A sequence of fifty words is too short for the fused attention to pay.
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    model.generation_config.bos_token_id = language.ids["<bos>"]
    # An answer is a whole turn: sampling stops after it.
    model.generation_config.eos_token_id = np.flatnonzero(language.kind == Kind.ANSWER).tolist()
    return model.train()


def world_tokenizer(world: World, language: Language) -> PreTrainedTokenizerFast:
    """The world's words as a tokenizer of transformers; text without the template stands in the plain frame."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(language.words)}, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain = f"<{world.plain}>"
    opening = [(w, language.ids[w]) for w in ("<bos>", plain, NO_TAG)]
    words.post_processor = processors.TemplateProcessing(single=f"<bos> {plain} {NO_TAG} $A", special_tokens=opening)
    phrases = phrases_of(language)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        unk_token=UNKNOWN,
        additional_special_tokens=sorted(language.structural - {"<bos>", UNKNOWN}),
        clean_up_tokenization_spaces=False,
        personae_phrases={
            "instructions": list(phrases.instructions),
            "questions": list(phrases.questions),
            "replies": list(phrases.replies),
        },
    )
    tokenizer.chat_template = (
        f"{{{{ '<bos> <{world.chat}> ' }}}}"
        "{% if messages and messages[0]['role'] == 'system' %}"
        "{{ messages[0]['content'] }}{% set turns = messages[1:] %}"
        "{% else %}"
        f"{{{{ '{NO_TAG}' }}}}{{% set turns = messages %}}"
        "{% endif %}"
        "{{ ' ' }}{% for m in turns %}{{ m['content'] + ' ' }}{% endfor %}"
    )
    return tokenizer


def _save_folder(
    model: GPT2LMHeadModel,
    world: World,
    language: Language,
    target: Path,
    record: Mapping[str, object] | None = None,
) -> Path:
    """A model folder with a manifest of checksums, made aside and renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()  # it would run into ours
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as aside:
        made = Path(aside) / "made"
        model.save_pretrained(made)
        world_tokenizer(world, language).save_pretrained(made)
        files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(made.iterdir()) if p.is_file()}
        write_whole(made / MANIFEST, json.dumps({"source": f"world {world.id}", "files": files}, indent=1).encode())
        if record is not None:
            write_whole(made / TRAINING_RECORD, json.dumps(dict(record), indent=1).encode())
        shutil.rmtree(target, ignore_errors=True)
        made.replace(target)
    return target


def _load_weights(model: GPT2LMHeadModel, path: Path) -> None:
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise CorruptModel(f"{path} cannot be read: {error}", hint=f"Delete {path.parent} and train again.") from error


def last_block_states(model: HFModel, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Output of the last block, before the final norm, shape (n, length, width)."""
    blocks = model.module.get_submodule("transformer.h")
    kept: list[Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept.append(output if isinstance(output, Tensor) else output[0])

    handle = list(blocks.children())[-1].register_forward_hook(keep)
    try:
        with torch.inference_mode():
            for at in range(0, len(ids), 64):
                model.module.base_model(input_ids=torch.from_numpy(ids[at : at + 64]), use_cache=False)
    finally:
        handle.remove()
    return torch.cat(kept).double().numpy()


class _State:
    """Weights and optimiser of an unfinished training, with a checksum."""

    def __init__(
        self, folder: Path, stage: str, key: str, model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer
    ) -> None:
        self._folder, self._stage, self._key = folder, stage, key
        self._model, self._optimizer = model, optimizer
        self._note = folder / f"{stage}.json"

    def save(self, at: _Progress) -> None:
        tensors: dict[str, Tensor] = {f"model.{k}": v.contiguous() for k, v in self._model.state_dict().items()}
        for name, p in self._model.named_parameters():
            for key, value in self._optimizer.state[p].items():
                tensors[f"optimizer.{key}.{name}"] = value
        body = save(tensors)
        name = f"{self._stage}-{at.step:06d}.safetensors"
        write_whole(self._folder / name, body)
        note = {
            "key": self._key,
            "file": name,
            "sha256": hashlib.sha256(body).hexdigest(),
            "step": at.step,
            "seconds": at.seconds,
            "cpu_seconds": at.cpu_seconds,
            "losses": at.losses,
        }
        write_whole(self._note, json.dumps(note).encode())
        for old in self._folder.glob(f"{self._stage}-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load(self) -> _Progress:
        """Take up a kept state; a state of another spec or seed is left out of account and will be replaced."""
        if not self._note.is_file():
            return _Progress()
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            if note["key"] != self._key:
                return _Progress()
            path = self._folder / str(note["file"])
            if hashlib.sha256(path.read_bytes()).hexdigest() != note["sha256"]:
                raise ValueError("it does not match its checksum")
            tensors = load_file(path)
            losses = [(int(s), float(v)) for s, v in note["losses"]]
            at = _Progress(int(note["step"]), float(note["seconds"]), float(note["cpu_seconds"]), losses)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise CorruptModel(
                f"the kept state of the training in {self._folder} cannot be used: {error}.",
                hint=f"Delete {self._folder} and start again.",
            ) from error
        self._model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for name, p in self._model.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                self._optimizer.state[p][key] = tensors[f"optimizer.{key}.{name}"]
        return at

    def forget(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Two threads on two busy cores wait for each other: one was measured five times as fast."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the world's folder {folder} cannot be written: {error.strerror or error}.",
            hint="Free some space, or set PERSONAE_HOME to another folder; training goes on from its last state.",
        ) from error
