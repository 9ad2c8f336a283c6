r"""Episodes x model -> an adapter, with its losses: supervised fine-tuning, DPO, continued pre-training.

    replies  --chat frame, --system--> ids, trained where `score` scores     \
    pairs    --the same, twice-------> chosen, rejected                       > batches -> models.hf_training
    texts    --no frame, in windows--> ids, all trained but the first        /

What is trained on a reply is exactly what `personae score` scores: the completion's tokens, under the model's own
template, without what the template writes after them. Not here: reading files, printing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from personae.domain.episode import Episode
from personae.errors import InvalidSettings
from personae.instruments.steering import while_training
from personae.instruments.trainable import require_trainable
from personae.instruments.training_rows import (
    default_rate,
    rows_for,
    sequences_of,
    training_renderer,
    usual_scale,
)
from personae.instruments.training_settings import TrainingRecord, TrainingSettings
from personae.models.activations import Edit, EditableModel, Steering, check_edits, edited_digest, require_activations
from personae.models.examples import Example, Pair, hold_out, plan_batches
from personae.models.protocol import ModelCard
from personae.models.rendering import RENDERING_VERSION, Renderer
from personae.running.held import held
from personae.running.run import write_table

if TYPE_CHECKING:
    from personae.models.hf import HFModel
    from personae.models.hf_training import Job, Trained

TRAINING_VERSION = 1
_WARM_UP_SHARE = 0.05
_HELD_OUT_SHARE, _LOOKS = 0.1, 10

During = Callable[[object], AbstractContextManager[object]]
Started = Callable[[int], Callable[[int, float], None]]
EditsFor = Callable[[EditableModel], Sequence[Edit]]


def train(
    model: str,
    episodes: Sequence[Episode],
    *,
    folder: str | Path,
    settings: TrainingSettings | None = None,
    mix: Sequence[Episode] = (),
    device: str = "auto",
    dtype: str = "float32",
    during: During | None = None,
    edits: EditsFor | None = None,
    started: Started = lambda n_steps: lambda step, loss: None,
) -> TrainingRecord:
    """Fine-tune a model on episodes, or go on with a training of the same folder that was interrupted.

    Args:
        model: Name, see `personae models`; with '+PATH' a model that has adapters already.
        episodes: Replies, documents, or pairs as `read_episodes` gives them (chosen and rejected in a row).
        folder: Of the run: `adapter/` (or `model/`), `checkpoints/`, `losses.parquet`.
        settings: How; None: `TrainingSettings()`.
        mix: Rows of a second file, `settings.mix_ratio` of them for one of `episodes`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: Of the base weights; the adapter is float32 in any case.
        during: Given the module, a context in which each training step runs; what it does is part of no key, so it
            is not seen by a training that goes on.
        edits: Given the model, edits in force in each training step and gone after it: preventative steering (Chen et
            al. 2025, arXiv 2507.21509, section 5). They are part of what a training is: one that was begun under other
            edits is not gone on with. Instead of `during`.
        started: Told the number of steps before the first; gives a function told of each step and its loss.

    Returns:
        The record; `record.use` is the name of the trained model.

    Raises:
        InvalidSettings: If there is nothing to train on, rows and method do not go together, an edit does not fit the
            model, or both `during` and `edits` are given.
        ContextOverflow: If a row does not fit the model.
        MissingCapability: If trl or peft is not installed, or the model cannot be trained.
        NumericsError: If a loss is not a number.
        StorageError, CorruptModel, OutOfMemory: If disk, files or memory fail.
    """
    settings = settings or TrainingSettings()
    if during is not None and edits is not None:
        raise InvalidSettings("a training step runs under `during` or under `edits`, not under both.")
    source = require_trainable(model)
    method, chosen, notes = rows_for(episodes, settings.method)
    others = rows_for(mix, method)[1] if mix else []
    os.environ.setdefault("TQDM_DISABLE", "1")
    from personae.models.hf_load import load_unpacked
    from personae.models.hf_training import fine_tune

    loaded = load_unpacked(source, device=device, dtype=dtype)
    folder = Path(folder)
    with held(folder):
        steered = _steered(loaded, edits)
        during = while_training(steered) if steered else during
        job, resolved, more = _job(loaded, method, chosen, others, settings, steered)
        on_step = started(len(job.batches))
        done = fine_tune(loaded, job, folder, during=during, on_step=on_step)
        _write_losses(folder, done, method)
        record = _record(loaded.card, job, done, method, resolved, (*notes, *more))
    done.forget()
    return record


def _steered(loaded: HFModel, edits: EditsFor | None) -> tuple[Edit, ...]:
    """The edits of a training that change anything; checked."""
    if edits is None:
        return ()
    model = require_activations(loaded)
    made = check_edits(edits(model), model.n_layers, model.d_model)
    return tuple(e for e in made if not isinstance(e, Steering) or e.coefficient)


def _job(
    loaded: HFModel,
    method: str,
    episodes: Sequence[Episode],
    mix: Sequence[Episode],
    settings: TrainingSettings,
    edits: Sequence[Edit],
) -> tuple[Job, dict[str, object], list[str]]:
    """Render everything, set rows aside, plan the batches and resolve the settings."""
    from personae.models.hf_training import Job, Recipe

    renderer = training_renderer(loaded.tokenizer, loaded.card.context_length, settings)
    scale = usual_scale(episodes)
    items = sequences_of(renderer, method, episodes, settings, scale=scale)
    second = sequences_of(renderer, method, mix, settings, scale=scale)
    share = settings.held_out or (_HELD_OUT_SHARE if settings.stop_early else 0.0)
    aside = hold_out([i.group for i in items], share, settings.seed)
    if share and not aside:
        raise InvalidSettings(
            "holding out needs at least two conversations (rows, or values of 'group').",
            hint="Train without --held-out and --stop-early.",
        )
    held_out = [i for i in items if i.group in aside]
    trained = [*(i for i in items if i.group not in aside), *second]
    n_first = len(items) - len(held_out)
    per_epoch = -(-(n_first + (round(settings.mix_ratio * n_first) if mix else 0)) // settings.batch_size)
    steps = settings.steps or max(1, round(settings.epochs * per_epoch))
    plan = plan_batches(
        [i.n_tokens for i in trained],
        batch_size=settings.batch_size,
        seed=settings.seed,
        n_first=n_first,
        mix_ratio=settings.mix_ratio if mix else 0.0,
    )
    late = [s for s in settings.checkpoints if s > steps]
    if late:
        raise InvalidSettings(
            f"--checkpoints names step {late[0]}, and the training has {steps} steps.",
            hint="Name earlier steps, or train longer with --steps or --epochs.",
        )
    kind = "dpo" if method == "dpo" else "sft"
    rate = settings.learning_rate or default_rate(method, full=settings.full)
    alpha = settings.alpha or 2.0 * settings.rank
    recipe = Recipe(
        kind,
        settings.full,
        settings.rank,
        alpha,
        settings.dropout,
        rate,
        settings.schedule,
        round(_WARM_UP_SHARE * steps),
        settings.beta,
        settings.seed,
        tuple(sorted(set(settings.checkpoints))),
        max(1, steps // _LOOKS) if held_out else 0,
        settings.patience if settings.stop_early else 0,
    )
    batches = [b for _, b in islice(plan, steps)]
    resolved = asdict(replace(settings, method=method, steps=steps, learning_rate=rate, alpha=alpha, held_out=share))
    if edits:
        resolved["edits"] = {"digest": edited_digest("", edits), "layers": [e.layer for e in edits]}
    key = _key(loaded.card, trained, held_out, resolved)
    return Job(trained, batches, held_out, recipe, key), resolved, _cut_notes(renderer, [*episodes, *mix], settings)


def _cut_notes(renderer: Renderer, episodes: Sequence[Episode], settings: TrainingSettings) -> list[str]:
    if not settings.truncate:
        return []
    cut = sum(not e.is_document and renderer.kept_of_cut(e) > 0 for e in episodes)
    return [f"{cut} of {len(episodes)} replies were cut to fit."] if cut else []


def _key(
    card: ModelCard, trained: Sequence[Example | Pair], held_out: Sequence[Example | Pair], resolved: dict[str, object]
) -> str:
    """Names everything a step depends on."""
    digest = hashlib.blake2b(digest_size=16)
    about = [TRAINING_VERSION, RENDERING_VERSION, card.digest, card.tokenizer_digest, card.dtype, resolved]
    digest.update(json.dumps(about, sort_keys=True).encode())
    for item in (*trained, None, *held_out):
        digest.update(repr(item).encode())
    return digest.hexdigest()


def _write_losses(folder: Path, done: Trained, method: str) -> None:
    names = ("step", "loss", "learning_rate", "n_tokens", "n_trained", "seconds", "held_out_loss")
    columns = {name: [row[k] for row in done.progress.rows] for k, name in enumerate(names)}
    columns["held_out_loss"] = pa.array(columns["held_out_loss"], pa.float64())
    unit = "DPO loss a pair" if method == "dpo" else "nats a trained token"
    write_table(folder / "losses.parquet", columns, {"unit": unit})


def _record(
    card: ModelCard,
    job: Job,
    done: Trained,
    method: str,
    resolved: dict[str, object],
    notes: Sequence[str],
) -> TrainingRecord:
    rows = done.progress.rows
    losses = [row[1] for row in rows]
    tenth = max(1, len(losses) // 10)
    held = {row[0]: row[6] for row in rows if row[6] is not None}
    result = str(done.result)
    stopped = len(rows) < len(job.batches)
    more = [f"Training stopped early, after step {len(rows)} of {len(job.batches)}."] if stopped else []
    return TrainingRecord(
        card.name,
        result,
        result if job.recipe.full else f"{card.name}+{result}",
        method,
        job.recipe.full,
        len(rows),
        done.chosen_step,
        len(job.items),
        len(job.held_out),
        sum(row[3] for row in rows),
        sum(row[4] for row in rows),
        done.n_trainable,
        sum(losses[:tenth]) / tenth,
        sum(losses[-tenth:]) / tenth,
        next(iter(held.values()), None),
        held.get(done.chosen_step, next(reversed(held.values()), None)),
        done.progress.seconds,
        done.resumed_from,
        {step: str(path) for step, path in done.checkpoints.items()},
        card.digest,
        resolved,
        (*notes, *more),
    )
