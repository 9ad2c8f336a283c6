"""A pilot: the first steps of the very training that is forecast, and what they did to each trait.

    train `share` of the steps  ->  measure the dev items before and after  ->  Pilot, for the forecasters that read it

Costs at most a tenth of the training plus two measurements, of which the base model's serves every file. The rate of
the schedule is that of the long run: with a linear or cosine schedule the first tenth runs near the full rate, so the
pilot trains with a constant one. Not here: what is made of it (`instruments.forecast_readers`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from personae.domain.diagnostic import DiagnosticSet
from personae.errors import InvalidSettings
from personae.instruments.forecasting import MOST_OF_RUN, PASSES_OF_TRAINING, ForecastJob, Pilot
from personae.instruments.training import train
from personae.instruments.training_settings import TrainingSettings
from personae.models.load import load_model
from personae.protocols.measure import MeasureSettings, compare_profiles, measure


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
        folder: For the pilot's adapter; a second call with the same folder and settings goes on from it.
        settings: Of the whole training; steps, schedule, learning rate and batch size follow from the plan.
        share: Of the run's steps, at most a tenth.
        device: As `train`.
        started: As `train`.

    Raises:
        InvalidSettings: If a tenth of the run is less than one step, or the share is above a tenth.
        MissingCapability, NumericsError, StorageError: As `train`.
    """
    whole = job.plan.n_steps(job.n_rows)
    steps = int(share * whole)
    if not 0 < share <= MOST_OF_RUN or steps < 1:
        raise InvalidSettings(
            f"a pilot of {share:.0%} of {whole} steps has {steps}; it needs one, and at most {MOST_OF_RUN:.0%}.",
            hint="A training this short is cheaper to run than to forecast this way: use 'gradient'.",
        )
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
    after = measure(load_model(record.use, device=device), half, settings=asked)
    changes = [c for c in compare_profiles(before, after) if c.measurable]
    return Pilot(
        tuple(c.trait for c in changes),
        np.array([c.change for c in changes]),
        np.array([c.se for c in changes]),
        rows_seen=steps * job.plan.batch_size,
        share=steps / whole,
        tokens=PASSES_OF_TRAINING * record.n_tokens + after.n_tokens,
        shared_tokens=before.n_tokens,
        seconds=time.perf_counter() - start,
    )
