"""A pilot: the first steps of the very training that is forecast, and what they did to each trait.

    train `share` of the steps  ->  measure the dev items before and after  ->  Pilot, for the forecasters that read it

Costs at most a tenth of the training plus two measurements, of which the base model's serves every file. The rate of
the schedule is that of the long run: with a linear or cosine schedule the first tenth runs near the full rate, so the
pilot trains with a constant one. Not here: what is made of it (`instruments.forecast_readers`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from personae.domain.diagnostic import DiagnosticSet
from personae.errors import InvalidSettings
from personae.instruments.forecasting import MOST_OF_RUN, PASSES_OF_TRAINING, ForecastJob, Pilot, TrainingPlan
from personae.instruments.training import train
from personae.instruments.training_settings import TrainingSettings
from personae.models.load import load_model
from personae.protocols.measure import MeasureSettings, compare_profiles, measure
from personae.running.run import write_json

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
    started: Callable[[int], Callable[[int, float], None]] = lambda n_steps: lambda step, loss: None,
) -> Pilot:
    """Train the first steps of a job's plan and measure them.

    Args:
        job: Its plan says how long the whole run is.
        model: Name of the job's model.
        items: Of which the dev half is asked.
        folder: For the pilot's adapter and `pilot.json`; one for each `pilot_key`. A second call goes on from what is
            there, and one that finds the pilot finished trains and measures nothing.
        settings: Of the whole training; steps, schedule, learning rate and batch size follow from the plan.
        share: Of the run's steps, at most a tenth.
        device: As `train`.
        started: As `train`.

    Raises:
        InvalidSettings: If a tenth of the run is less than one step, or the share is above a tenth.
        MissingCapability, NumericsError, StorageError: As `train`.
    """
    steps, whole = pilot_steps(job.plan, job.n_rows, share)
    known = _kept(Path(folder) / _NOTE, job.traits, steps / whole)
    if known is not None:
        return known
    start = time.perf_counter()
    chosen = replace(
        settings or TrainingSettings(),
        method=job.method,
        steps=steps,
        schedule="constant",
        learning_rate=job.plan.learning_rate,
        batch_size=job.plan.batch_size,
    )
    record = train(model, job.episodes, folder=folder, settings=chosen, device=device, started=started)
    half = items.select(traits=[t for t in job.traits if t in items.traits], split="dev")
    asked = MeasureSettings(quick=True)
    before = measure(job.model, half, settings=asked, renderer=job.renderer)
    after = measure(load_model(record.use, device=device, dtype=job.model.card.dtype), half, settings=asked)
    changes = [c for c in compare_profiles(before, after) if c.measurable]
    pilot = Pilot(
        tuple(c.trait for c in changes),
        np.array([c.change for c in changes]),
        np.array([c.se for c in changes]),
        rows_seen=steps * job.plan.batch_size,
        share=steps / whole,
        tokens=PASSES_OF_TRAINING * record.n_tokens + after.n_tokens,
        shared_tokens=before.n_tokens,
        seconds=time.perf_counter() - start,
    )
    write_json(Path(folder) / _NOTE, asdict(pilot) | {"shift": pilot.shift.tolist(), "se": pilot.se.tolist()})
    return pilot


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


def pilot_key(job: ForecastJob) -> str:
    """Names everything a pilot depends on: the model, the rows, the plan, the items it is measured on."""
    digest = hashlib.blake2b(digest_size=10)
    digest.update(json.dumps([job.model.card.digest, job.model.card.dtype, job.method, asdict(job.plan)]).encode())
    for episode in (*job.episodes, *(e for t in job.traits for e in job.diagnostics.get(t, ()))):
        digest.update(episode.content_digest + str(episode.weight).encode())
    return digest.hexdigest()


def _kept(note: Path, traits: Sequence[str], share: float) -> Pilot | None:
    """A finished pilot of these traits; None where there is none that can be read."""
    try:
        stored = json.loads(note.read_text(encoding="utf-8"))
        arrays = {name: np.array(stored.pop(name), np.float64) for name in ("shift", "se")}
        pilot = Pilot(traits=tuple(stored.pop("traits")), **arrays, **stored)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, InvalidSettings):
        return None
    return pilot if set(traits) <= set(pilot.traits) and abs(pilot.share - share) < 1e-9 else None
