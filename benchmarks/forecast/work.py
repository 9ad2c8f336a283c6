"""One fine-tune of the benchmark: the file, the training, and what it leaves on disk.

    Run -> FOLDER/data/NAME.jsonl -> FOLDER/runs/MODEL/NAME-SEED/{adapter, checkpoints/step-000004, trained.json}

A training that was killed goes on from its kept state. Not here: the measurement (`measuring`), the order (`manifest`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.forecast.families import requests, write_dataset
from benchmarks.forecast.manifest import BASE, SMALL, Run
from personae.cli.workbench import open_model
from personae.domain.episode import Episode
from personae.files.episodes import read_episodes
from personae.instruments.sampling import Script, Stage
from personae.instruments.training import TrainingSettings, train
from personae.models.protocol import SamplingPlan
from personae.models.rendering import Frame

ROWS, BATCH = 96, 8
DOSES = (32, 96)  # rows seen
# The base model has lost nine tenths of its loss after 96 rows: its doses are smaller.
DOSES_OF = {SMALL: DOSES, BASE: (16, 32)}
RATE = {"sft": 1e-3, "dpo": 3e-4}
# The frozen weights in bfloat16 train twice as fast on a CPU; the adapter is float32, and so is every measurement.
DTYPE = "bfloat16"
_REPLY_TOKENS = 40


def settings_of(run: Run) -> TrainingSettings:
    """One epoch at a constant rate, so that a checkpoint is a training on fewer rows."""
    rate = RATE["dpo" if run.dataset.kind == "preference" else "sft"]
    *early, last = (rows // BATCH for rows in DOSES_OF[run.model])
    return TrainingSettings(
        steps=last,
        learning_rate=rate,
        schedule="constant",
        batch_size=BATCH,
        checkpoints=tuple(early),
        seed=run.seed,
    )


def data_of(run: Run, folder: Path, evals: Path | None) -> Path:
    """The run's training file, made if need be. Role files are spoken by `smollm2`, whoever is trained on them."""
    return write_dataset(
        run.dataset, folder / "data", n=ROWS, seed=run.seed, evals=evals, say=role_replies(run.seed, folder)
    )


def folder_of(run: Run, folder: Path) -> Path:
    """Of the run's adapters."""
    return folder / "runs" / run.id


def adapters_of(run: Run, folder: Path) -> dict[int, Path]:
    """Adapter after each dose; the first dose may have been trained alone."""
    made = folder_of(run, folder)
    *early, last = DOSES_OF[run.model]
    found = {**{rows: made / "checkpoints" / f"step-{rows // BATCH:06d}" for rows in early}, last: made / "adapter"}
    alone = _alone(run, folder) / "adapter"
    return found | ({early[0]: alone} if alone.is_dir() else {})


def is_alone(adapter: Path) -> bool:
    """Whether an adapter is of a first dose that was trained by itself."""
    return "first-doses" in adapter.parts


def _alone(run: Run, folder: Path) -> Path:
    return folder / "first-doses" / run.id


def train_first_dose(run: Run, folder: Path, evals: Path | None) -> None:
    """Train the first dose and no further.

    The rows are those that a checkpoint of the whole has seen. The weights are not the same: warm-up takes the first of
    twelve steps at rate 0 and none of four, so the checkpoint has made three effective steps and this one four.
    """
    target = _alone(run, folder)
    if not any(path.is_dir() for path in (target / "adapter", adapters_of(run, folder)[DOSES_OF[run.model][0]])):
        settings = replace(settings_of(run), steps=DOSES_OF[run.model][0] // BATCH, checkpoints=())
        episodes = episodes_of(data_of(run, folder, evals))
        train(run.model, episodes, folder=target, settings=settings, device="cpu", dtype=DTYPE)


def train_run(run: Run, folder: Path, evals: Path | None) -> dict[str, object]:
    """Train unless that is done; gives what is known of the training."""
    note = folder_of(run, folder) / "trained.json"
    if note.is_file():
        return json.loads(note.read_text())
    started = time.perf_counter()
    path = data_of(run, folder, evals)
    settings = settings_of(run)
    episodes = episodes_of(path)
    record = train(run.model, episodes, folder=note.parent, settings=settings, device="cpu", dtype=DTYPE)
    known = {
        "method": record.method,
        "n_rows": record.n_rows,
        "n_steps": record.n_steps,
        "n_tokens": record.n_tokens,
        "n_trained": record.n_trained,
        "first_loss": round(record.first_loss, 4),
        "last_loss": round(record.last_loss, 4),
        "learning_rate": settings.learning_rate,
        "seconds_of_steps": round(record.seconds, 2),
        "seconds": round(time.perf_counter() - started, 2),
    }
    aside = note.with_suffix(".writing")
    aside.write_text(json.dumps(known))
    aside.replace(note)
    return known


def episodes_of(path: Path) -> Sequence[Episode]:
    """The rows of a training file."""
    return read_episodes(path).require_clean().episodes


def role_replies(
    seed: int, folder: Path, n: int = ROWS, asked: Sequence[str] | None = None
) -> Callable[[str], list[str]]:
    """What `write_dataset` needs for roles: replies of the small chat model to `asked`, or to `n` requests."""
    questions = list(asked) if asked is not None else [q["ask"] for q in requests(n, seed)]

    def say(system: str) -> list[str]:
        bench = open_model(SMALL, device="cpu")
        stage = Stage(bench.model, bench.renderer, folder / "spoken", bench.space)
        frame = Frame("role", system, bench.renderer.styles[0])
        scripts = [Script(f"{k:03d}", "role", frame, (q,)) for k, q in enumerate(questions)]
        held = stage.hold(scripts, SamplingPlan(_REPLY_TOKENS, 1.0, seed), started=lambda n: lambda done: None)
        said = {t.script.id: t.replies[0] for t in held}
        return [said.get(s.id, "") for s in scripts]

    return say
