"""A pilot: a small part of the very training that is forecast, and what it did to each trait.

    first steps    the training's own first steps, at most a tenth of them
    miniature      the whole training on a tenth of its rows: as many steps as can be had, with small batches
    ->  train  ->  measure the dev items before and after  ->  Pilot, for the forecasters that read it

An optimiser that scales its steps (Adam) goes about as far in a step on one row as in one on eight, so a miniature gets
nearly as far as the whole training on a tenth of its tokens, where the first tenth of the steps gets a tenth as far.
Costs that part of the training plus two measurements, of which the base model's serves every file. First steps run at
the height of the long run's rate, a miniature at its mean; all else is as the job says the training will be. Not here:
what is made of it (`instruments.forecast_readers`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from personae.domain.diagnostic import DiagnosticSet
from personae.domain.episode import Episode
from personae.errors import InputError, InvalidSettings
from personae.inference.traits import LEAST_ITEMS, compressed_changes
from personae.instruments.forecasting import (
    MINIATURE_ROWS,
    MOST_OF_RUN,
    PASSES_OF_TRAINING,
    ForecastJob,
    Pilot,
    TrainingPlan,
)
from personae.instruments.training import TRAINING_VERSION, train
from personae.instruments.training_settings import TrainingSettings
from personae.models.load import load_model
from personae.models.rendering import RENDERING_VERSION
from personae.protocols.measure import MeasureSettings, compare_profiles, measure
from personae.running.run import write_json
from personae.tables.traits import TraitProfile

Started = Callable[[int], Callable[[int, float], None]]
_NOTE = "pilot.json"
PILOT_VERSION = 1  # of the rules by which a part is chosen and its changes are put together


def run_pilot(
    job: ForecastJob,
    model: str,
    items: DiagnosticSet,
    *,
    folder: str | Path,
    share: float = MOST_OF_RUN,
    device: str = "auto",
    dtype: str = "float32",
    started: Started = lambda n_steps: lambda step, loss: None,
) -> Pilot:
    """Train the first steps of a job's plan and measure them.

    Args:
        job: Its plan says how long the whole run is, and `training` how else it is done.
        model: Name of the job's model.
        items: Of which the dev half is asked.
        folder: For the pilot's adapter and `pilot.json`, see `Part.key`. A second call goes on from what is there, and
            one that finds this pilot finished trains and measures nothing.
        share: Of the run's steps, at most a tenth.
        device: As `train`.
        dtype: As `train`.
        started: As `train`.

    Raises:
        InvalidSettings: If a tenth of the run is less than one step, or the share is above a tenth.
        InputError: If the dev items do not measure every trait of the job.
        MissingCapability, NumericsError, StorageError: As `train`.
    """
    return _run(job, model, items, pilot_part(job, share), Path(folder), (device, dtype), started)


def run_miniature(
    job: ForecastJob,
    model: str,
    items: DiagnosticSet,
    *,
    folder: str | Path,
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
        device: As `train`.
        dtype: As `train`.
        started: As `train`.

    Raises:
        InputError: If the dev items do not measure every trait of the job.
        MissingCapability, NumericsError, StorageError: As `train`.
    """
    return _run(job, model, items, miniature_part(job), Path(folder), (device, dtype), started)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What of a training is done.

    Attributes:
        episodes: Its rows.
        settings: How they are trained, all resolved.
        rows_seen: Rows (or pairs) over its steps.
        share: Of the rows that the whole run sees.
        is_miniature: Whether it is the training in miniature, not its first steps.
    """

    episodes: Sequence[Episode]
    settings: TrainingSettings
    rows_seen: int
    share: float
    is_miniature: bool

    def key(self, job: ForecastJob, items: DiagnosticSet, dtype: str = "float32") -> str:
        """Names everything that training it and measuring it depends on."""
        card = job.model.card
        digest = hashlib.blake2b(digest_size=10)
        weights = [card.digest, card.tokenizer_digest, card.dtype, dtype]
        rules = [PILOT_VERSION, TRAINING_VERSION, RENDERING_VERSION, self.is_miniature, asdict(self.settings)]
        digest.update(json.dumps([*weights, *rules], sort_keys=True).encode("utf-8", "surrogatepass"))
        for episode in self.episodes:
            digest.update(json.dumps([episode.content_digest.hex(), episode.weight, episode.group]).encode())
        asked = [[i.id, i.kind, i.prompt, i.pos, i.neg, i.topic] for i in _asked(job, items).items]
        digest.update(json.dumps(asked).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def pilot_part(job: ForecastJob, share: float = MOST_OF_RUN) -> Part:
    """The training's first steps.

    Raises:
        InvalidSettings: As `pilot_steps`.
    """
    steps, whole = pilot_steps(job.plan, job.n_rows, share)
    rate = job.training.learning_rate or job.plan.learning_rate
    settings = _settings(job, steps, job.plan.batch_size, rate)
    return Part(job.episodes, settings, steps * job.plan.batch_size, steps / whole, is_miniature=False)


def miniature_part(job: ForecastJob) -> Part:
    """The training in miniature."""
    steps, batch = miniature_steps(job.plan, job.n_rows)
    rows = job.draw(steps * batch * (2 if job.method == "dpo" else 1))
    settings = _settings(job, steps, batch, job.plan.learning_rate)
    share = steps * batch / job.plan.rows_seen(job.n_rows)
    return Part(rows, settings, steps * batch, share, is_miniature=True)


def _settings(job: ForecastJob, steps: int, batch: int, rate: float) -> TrainingSettings:
    """Those of the job's training at a constant rate, with nothing held out and nothing written on the way."""
    return replace(
        job.training,
        method=job.method,
        epochs=1.0,
        steps=steps,
        schedule="constant",
        learning_rate=rate,
        alpha=job.training.alpha or 2.0 * job.training.rank,
        batch_size=batch,
        mix_ratio=1.0,
        checkpoints=(),
        held_out=0.0,
        stop_early=False,
    )


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
    """Steps and batch size of a miniature: a tenth of the rows that the run sees, `MINIATURE_ROWS` at least."""
    seen = plan.rows_seen(n_rows)
    rows = min(seen, max(MINIATURE_ROWS, int(MOST_OF_RUN * seen + 1e-9)))
    steps = min(plan.n_steps(n_rows), rows)
    return steps, rows // steps


def _run(
    job: ForecastJob,
    model: str,
    items: DiagnosticSet,
    part: Part,
    folder: Path,
    place: tuple[str, str],
    started: Started,
) -> Pilot:
    """Train a part at a place (device, dtype) and measure it, unless that is done."""
    device, dtype = place
    key = part.key(job, items, dtype)
    known = _kept(folder / _NOTE, key)
    if known is not None:
        return known
    start = time.perf_counter()
    half = _asked(job, items)
    # What a model says is asked for alone where that measures every trait; else what it says of itself too.
    asked = MeasureSettings(quick={i.trait for i in half.items if i.kind == "reply"} >= set(half.traits))
    before = measure(job.model, half, settings=asked, renderer=job.renderer, store=job.scoring.store)
    _require_measured(job.traits, before)  # before minutes are spent on a training that would not be measured
    record = train(
        model, part.episodes, folder=folder, settings=part.settings, device=device, dtype=dtype, started=started
    )
    after = measure(load_model(record.use, device=device, dtype=job.model.card.dtype), half, settings=asked)
    changes = compressed_changes(before, after) if part.is_miniature else _shifts(before, after)
    pilot = Pilot(
        tuple(changes),
        np.array([value for value, _ in changes.values()]),
        np.array([se for _, se in changes.values()]),
        rows_seen=part.rows_seen,
        share=part.share,
        tokens=PASSES_OF_TRAINING * record.n_tokens + after.n_tokens,
        shared_tokens=before.n_tokens,
        seconds=time.perf_counter() - start,
        is_miniature=part.is_miniature,
    )
    found = asdict(pilot) | {"shift": pilot.shift.tolist(), "se": pilot.se.tolist()}
    write_json(folder / _NOTE, {"key": key, "pilot": found})
    return pilot


def _asked(job: ForecastJob, items: DiagnosticSet) -> DiagnosticSet:
    return items.select(traits=[t for t in job.traits if t in items.traits], split="dev")


def _require_measured(traits: Sequence[str], profile: TraitProfile) -> None:
    """Refuse traits that the base model's answers do not measure.

    Raises:
        InputError: Naming them, with the first one's reason.
    """
    found = {r.trait: r for r in profile.readings}
    lacking = [t for t in traits if t not in found or not found[t].measurable]
    if lacking:
        first = found.get(lacking[0])
        raise InputError(
            f"the dev items do not measure {', '.join(lacking[:5])}: "
            f"{first.reason if first and first.reason else 'there are none'}.",
            hint=f"{LEAST_ITEMS} items of two topics are needed for each trait; or choose a forecaster that trains "
            "nothing: 'ensemble'.",
        )


def _shifts(before: TraitProfile, after: TraitProfile) -> dict[str, tuple[float, float]]:
    """Change of each measurable trait and its standard error, nats."""
    return {c.trait: (c.change, c.se) for c in compare_profiles(before, after) if c.measurable}


def _kept(note: Path, key: str) -> Pilot | None:
    """A finished pilot of this key; None where there is none that can be read."""
    try:
        stored = json.loads(note.read_text(encoding="utf-8"))
        found = stored["pilot"]
        arrays = {name: np.array(found.pop(name), np.float64) for name in ("shift", "se")}
        pilot = Pilot(traits=tuple(found.pop("traits")), **arrays, **found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, InvalidSettings):
        return None
    return pilot if stored.get("key") == key else None
