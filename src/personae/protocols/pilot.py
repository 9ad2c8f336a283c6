"""A pilot: a small part of the very training that is forecast, and what it did to each trait.

    first steps    the training's own first steps, at most a tenth of them
    miniature      the whole training on a tenth of its rows: as many steps as can be had, with small batches
    ->  train  ->  measure the dev items before and after  ->  Pilot, for the forecasters that read it

An optimiser that scales its steps (Adam) goes about as far in a step on one row as in one on eight, so a miniature gets
nearly as far as the whole training on a tenth of its tokens, where the first tenth of the steps gets a tenth as far.
Costs that part of the training plus two measurements, of which the base model's serves every file. The rate of the
schedule is that of the long run's height. Not here: what is made of it (`instruments.forecast_readers`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from personae.domain.diagnostic import DiagnosticSet
from personae.domain.episode import Episode
from personae.errors import InvalidSettings
from personae.inference.traits import compressed_changes
from personae.instruments.forecasting import (
    LEAST_ROWS,
    MOST_OF_RUN,
    PASSES_OF_TRAINING,
    ForecastJob,
    Pilot,
    TrainingPlan,
)
from personae.instruments.training import train
from personae.instruments.training_settings import TrainingSettings
from personae.models.load import load_model
from personae.protocols.measure import MeasureSettings, compare_profiles, measure
from personae.running.run import write_json
from personae.tables.traits import TraitProfile

Started = Callable[[int], Callable[[int, float], None]]
_NOTE = "pilot.json"


def run_pilot(
    job: ForecastJob,
    model: str,
    items: DiagnosticSet,
    *,
    folder: str | Path,
    settings: TrainingSettings | None = None,
    share: float = MOST_OF_RUN,
    device: str = "auto",
    dtype: str = "float32",
    started: Started = lambda n_steps: lambda step, loss: None,
) -> Pilot:
    """Train the first steps of a job's plan and measure them.

    Args:
        job: Its plan says how long the whole run is.
        model: Name of the job's model.
        items: Of which the dev half is asked.
        folder: For `pilot.json`, and for the weights until they are measured; one for each `pilot_key`. A second call
            goes on from what is there, and one that finds the pilot finished trains and measures nothing.
        settings: Of the whole training; steps, schedule, learning rate and batch size follow from the plan.
        share: Of the run's steps, at most a tenth.
        device: As `train`.
        dtype: As `train`.
        started: As `train`.

    Raises:
        InvalidSettings: If a tenth of the run is less than one step, or the share is above a tenth.
        MissingCapability, NumericsError, StorageError: As `train`.
    """
    steps, whole = pilot_steps(job.plan, job.n_rows, share)
    part = _Part(job.episodes, steps, job.plan.batch_size, steps / whole)
    return _run(job, model, items, part, Path(folder), settings or TrainingSettings(), (device, dtype), started)


def run_miniature(
    job: ForecastJob,
    model: str,
    items: DiagnosticSet,
    *,
    folder: str | Path,
    settings: TrainingSettings | None = None,
    device: str = "auto",
    dtype: str = "float32",
    started: Started = lambda n_steps: lambda step, loss: None,
) -> Pilot:
    """Train a job's plan in miniature and measure it.

    Args:
        job: As `run_pilot`.
        model: As `run_pilot`.
        items: As `run_pilot`.
        folder: As `run_pilot`, another than a pilot's.
        settings: As `run_pilot`.
        device: As `train`.
        dtype: As `train`.
        started: As `train`.

    Raises:
        MissingCapability, NumericsError, StorageError: As `train`.
    """
    steps, batch = miniature_steps(job.plan, job.n_rows)
    rows = job.draw(steps * batch * (2 if job.method == "dpo" else 1))
    part = _Part(rows, steps, batch, steps * batch / job.plan.rows_seen(job.n_rows), is_miniature=True)
    return _run(job, model, items, part, Path(folder), settings or TrainingSettings(), (device, dtype), started)


def pilot_steps(plan: TrainingPlan, n_rows: int, share: float = MOST_OF_RUN) -> tuple[int, int]:
    """Steps of a pilot, and of the whole run.

    Raises:
        InvalidSettings: If a tenth of the run is less than one step, or the share is above a tenth.
    """
    whole = plan.n_steps(n_rows)
    steps = int(share * whole + 1e-9)
    if not 0 < share <= MOST_OF_RUN or steps < 1:
        raise InvalidSettings(
            f"a pilot of {share:.0%} of {whole} steps has {steps}; it needs one, and at most {MOST_OF_RUN:.0%}.",
            hint="A training this short is cheaper to run than to forecast this way: use 'gradient'.",
        )
    return steps, whole


def miniature_steps(plan: TrainingPlan, n_rows: int) -> tuple[int, int]:
    """Steps and batch size of a miniature: a tenth of the rows that the run sees, `LEAST_ROWS` at least."""
    seen = plan.rows_seen(n_rows)
    rows = min(seen, max(LEAST_ROWS, int(MOST_OF_RUN * seen + 1e-9)))
    steps = min(plan.n_steps(n_rows), rows)
    return steps, rows // steps


def pilot_key(job: ForecastJob, items: DiagnosticSet) -> str:
    """Names everything a pilot depends on: the model, the rows, the plan, the seed, the items it is measured on."""
    digest = hashlib.blake2b(digest_size=10)
    digest.update(
        json.dumps([job.model.card.digest, job.model.card.dtype, job.method, asdict(job.plan), job.seed]).encode()
    )
    for episode in job.episodes:
        digest.update(episode.content_digest + str(episode.weight).encode())
    asked = [[i.id, i.prompt, i.pos, i.neg] for i in items.items if i.trait in job.traits and i.split == "dev"]
    digest.update(json.dumps(asked).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What of the training is done: rows, steps, batch size, the share of the whole, and whether it is a miniature."""

    episodes: Sequence[Episode]
    steps: int
    batch_size: int
    share: float
    is_miniature: bool = False


def _run(
    job: ForecastJob,
    model: str,
    items: DiagnosticSet,
    part: _Part,
    folder: Path,
    settings: TrainingSettings,
    place: tuple[str, str],
    started: Started,
) -> Pilot:
    """Train a part at a place (device, dtype) and measure it, unless that is done."""
    device, dtype = place
    known = _kept(folder / _NOTE, job.traits, part.share)
    if known is not None:
        return known
    start = time.perf_counter()
    chosen = replace(
        settings,
        method=job.method,
        steps=part.steps,
        schedule="constant",
        learning_rate=job.plan.learning_rate,
        batch_size=part.batch_size,
        checkpoints=(),
    )
    record = train(model, part.episodes, folder=folder, settings=chosen, device=device, dtype=dtype, started=started)
    half = items.select(traits=[t for t in job.traits if t in items.traits], split="dev")
    # What a model says is asked for alone where that measures every trait; else what it says of itself too.
    asked = MeasureSettings(quick={i.trait for i in half.items if i.kind == "reply"} >= set(half.traits))
    before = measure(job.model, half, settings=asked, renderer=job.renderer, store=job.scoring.store)
    after = measure(load_model(record.use, device=device, dtype=job.model.card.dtype), half, settings=asked)
    changes = compressed_changes(before, after) if part.is_miniature else _shifts(before, after)
    pilot = Pilot(
        tuple(changes),
        np.array([value for value, _ in changes.values()]),
        np.array([se for _, se in changes.values()]),
        rows_seen=part.steps * part.batch_size,
        share=part.share,
        tokens=PASSES_OF_TRAINING * record.n_tokens + after.n_tokens,
        shared_tokens=before.n_tokens,
        seconds=time.perf_counter() - start,
        is_miniature=part.is_miniature,
    )
    write_json(folder / _NOTE, asdict(pilot) | {"shift": pilot.shift.tolist(), "se": pilot.se.tolist()})
    shutil.rmtree(record.result, ignore_errors=True)  # measured, so 20 MB a file that nobody asks again
    return pilot


def _shifts(before: TraitProfile, after: TraitProfile) -> dict[str, tuple[float, float]]:
    """Change of each measurable trait and its standard error, nats."""
    return {c.trait: (c.change, c.se) for c in compare_profiles(before, after) if c.measurable}


def _kept(note: Path, traits: Sequence[str], share: float) -> Pilot | None:
    """A finished pilot of these traits; None where there is none that can be read."""
    try:
        stored = json.loads(note.read_text(encoding="utf-8"))
        arrays = {name: np.array(stored.pop(name), np.float64) for name in ("shift", "se")}
        pilot = Pilot(traits=tuple(stored.pop("traits")), **arrays, **stored)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, InvalidSettings):
        return None
    return pilot if set(traits) <= set(pilot.traits) and abs(pilot.share - share) < 1e-9 else None
