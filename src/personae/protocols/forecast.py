"""Forecasters behind one seam: a job in, a distribution over the shift of every trait out, with its cost.

    reader(job) -> one score a trait  --past runs of this model-->  mean, sd, 90% interval, the common mode apart

Which reader is the default is decided by the forecast benchmark and stands here, in one place. Without enough past runs
a forecast is the reading itself in its own unit and says so. Not here: the readers (`instruments.forecast_readers`,
`instruments.forecast_geometry`), the model of past runs (`inference.common_mode`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from personae.errors import InvalidSettings, UnknownPersona
from personae.inference.common_mode import (
    LEAST_FAMILIES,
    LEAST_RUNS,
    Z90,
    Cells,
    CommonMode,
    cells_of,
    fit_common_mode,
)
from personae.instruments.forecast_ensemble import JOINT_PARTS, PARTS, read_ensemble, read_joint, sized
from personae.instruments.forecast_geometry import read_centroid, read_gradient, read_gradient_sgd, read_projection
from personae.instruments.forecast_readers import (
    read_em_flow,
    read_em_flow_pilot,
    read_lexical,
    read_llr,
    read_miniature,
    read_nothing,
    read_pilot,
    read_tempered_bayes,
)
from personae.instruments.forecasting import MOST_OF_RUN, ForecastJob
from personae.tables.run_registry import FORM_FEATURES, PastRun, RunForm, RunRegistry, common_traits
from personae.tables.trait_forecast import CALIBRATED_UNIT, Cost, ForecastReading, TraitForecast

DEFAULT_FORECASTER = "joint"
WITHOUT_TRAINING = "ensemble"  # the best that trains nothing, for models that cannot be trained here
PILOT, MINIATURE = "pilot", "miniature"
SHARED_FAMILY = "\0new"
_IN_WORDS = {
    "log_tokens": "length of replies",
    "loss": "how surprising it is",
    "first_person": "share in the first person",
    "log_rows_seen": "rows seen",
    "log_learning_rate": "learning rate",
    "is_dpo": "kind of training",
    "is_text": "kind of training",
}


class Forecaster(Protocol):
    """Anything that says, before a training, how far each trait will move."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    def forecast(self, job: ForecastJob) -> TraitForecast:
        """Distribution over the shift of every trait of the job's cast."""
        ...


@dataclass(frozen=True, slots=True)
class Method:
    """What a forecaster reads, and which features of the form past runs may use beside it.

    Attributes:
        read: Gives one score a trait.
        form: Features of the form, see `run_registry.FORM_FEATURES`.
        uses_score: Whether the score enters at all.
        in_words: One line for people.
        needs_statements: Whether it reads diagnostic statements of every trait.
        trains: What of the training itself it reads: nothing "", its first steps "pilot", all of it in "miniature".
        parts: Readers by which files are compared with past ones; none: by its own reading.
    """

    read: Callable[[ForecastJob], ForecastReading]
    form: tuple[str, ...]
    uses_score: bool
    in_words: str
    needs_statements: bool = False
    trains: str = ""
    parts: tuple[str, ...] = ()


def _nothing(name: str) -> Callable[[ForecastJob], ForecastReading]:
    return lambda job: read_nothing(job, name)


FORECASTERS: dict[str, Method] = {
    "base_rate": Method(_nothing("base_rate"), (), False, "what past runs did on average, trait by trait"),
    "loss": Method(_nothing("loss"), ("loss",), False, "how surprising the file is to the model, and nothing else"),
    "form": Method(_nothing("form"), FORM_FEATURES, False, "length, loss, first person, amount: the common mode alone"),
    "lexical": Method(read_lexical, FORM_FEATURES, True, "wording, by TF-IDF"),
    "centroid": Method(read_centroid, FORM_FEATURES, True, "nearness of the file's mean activation to each pole", True),
    "projection": Method(read_projection, FORM_FEATURES, True, "projection difference on persona vectors"),
    "llr": Method(read_llr, FORM_FEATURES, True, "prompt log-likelihood ratio: what `screen` shows"),
    "tempered_bayes": Method(read_tempered_bayes, FORM_FEATURES, True, "conditioning with a power"),
    "em_flow": Method(read_em_flow, FORM_FEATURES, True, "flow of the weights of the two poles"),
    "gradient": Method(
        read_gradient, FORM_FEATURES, True, "first optimiser steps, to first order (Adam's direction)", True
    ),
    "gradient_sgd": Method(read_gradient_sgd, FORM_FEATURES, True, "the same along the plain gradient", True),
    "ensemble": Method(
        read_ensemble, FORM_FEATURES, True, "gradient, centroid and wording together", True, parts=PARTS
    ),
    "pilot": Method(read_pilot, FORM_FEATURES, True, "the shift after at most a tenth of the training", trains=PILOT),
    "em_flow_pilot": Method(
        read_em_flow_pilot, FORM_FEATURES, True, "EM flow, its rate fitted to the pilot", trains=PILOT
    ),
    "miniature": Method(
        read_miniature, FORM_FEATURES, True, "the shift after the training in miniature", True, trains=MINIATURE
    ),
    "joint": Method(
        read_joint, FORM_FEATURES, True, "ensemble and miniature together", True, trains=MINIATURE, parts=JOINT_PARTS
    ),
}


def method_named(name: str) -> Method:
    """A forecaster's method.

    Raises:
        InvalidSettings: If there is none of that name.
    """
    if name not in FORECASTERS:
        raise InvalidSettings(f"no forecaster is called '{name}'.", hint=f"There are: {', '.join(FORECASTERS)}.")
    return FORECASTERS[name]


@dataclass(frozen=True, slots=True)
class RegistryForecaster:
    """A reader together with the past runs that calibrate it.

    Attributes:
        name: Which reader.
        registry: Past runs; those of other models are left out.
    """

    name: str
    registry: RunRegistry

    def forecast(self, job: ForecastJob) -> TraitForecast:
        """Read the file and say what past runs make of it.

        Raises:
            InvalidSettings: If there is no such forecaster.
            MissingCapability: If the model cannot give what it reads.
            InputError: If a trait lacks diagnostic statements that it needs.
        """
        reading = method_named(self.name).read(job)
        form, cost = job.form()
        return calibrate(replace(reading, cost=_both(reading.cost, cost)), form, self.registry, job.model.card.digest)


def read_all(job: ForecastJob, names: Sequence[str] | None = None) -> dict[str, ForecastReading]:
    """Readings of several forecasters (all that are possible, by default); what they share is computed once.

    Raises:
        InvalidSettings, MissingCapability, InputError: As `RegistryForecaster.forecast`.
    """
    made = {"", *([PILOT] if job.pilot is not None else []), *([MINIATURE] if job.miniature is not None else [])}
    possible = [n for n, m in FORECASTERS.items() if m.trains in made]
    return {name: method_named(name).read(job) for name in (names or possible)}


def fitted(name: str, runs: Sequence[PastRun], traits: Sequence[str] | None = None) -> CommonMode:
    """A forecaster's model of past runs; files are compared by their readings of `traits` (None: of all).

    Raises:
        InvalidSettings: If they are too few, or lack its readings.
    """
    method = method_named(name)
    return fit_common_mode(cells_for(name, runs, traits), uses_score=method.uses_score, uses_form=method.form)


def cells_for(name: str, runs: Sequence[PastRun], traits: Sequence[str] | None = None) -> Cells:
    """Cells of past runs as a forecaster learns from them: its score, the form, and readings that compare files.

    Raises:
        InvalidSettings: If a run lacks its readings.
    """
    if not method_named(name).uses_score:
        return cells_of(runs, None)
    places = _compared_by(name, runs, traits)
    return cells_of(runs, name, np.stack([_beside(r.readings, r.form, places) for r in runs]) if runs else None)


def _compared_by(name: str, runs: Sequence[PastRun], traits: Sequence[str] | None) -> list[tuple[str, str]]:
    """Readers and traits by which files are compared: those that every run has."""
    parts = method_named(name).parts
    shared = [t for t in common_traits(runs) if traits is None or t in traits]
    if not parts or not all(set(shared) <= set(r.readings.get(p, ())) for p in parts for r in runs):
        parts = (name,)
    return [(part, trait) for part in parts for trait in shared]


def _beside(
    readings: Mapping[str, Mapping[str, float]], form: RunForm, places: Sequence[tuple[str, str]]
) -> NDArray[np.float64]:
    """Readings of one run at those places, in typical sizes."""
    values = [readings[part][trait] for part, trait in places]
    return np.array(
        [float(sized(p, np.array(v), form.learning_rate)) for (p, _), v in zip(places, values, strict=True)]
    )


def usable(name: str, registry: RunRegistry, model_digest: str, traits: Sequence[str]) -> RunRegistry:
    """Past runs of a model that measured one of the traits and carry what a forecaster needs."""
    score = name if method_named(name).uses_score else None
    found = registry.of(model_digest=model_digest, traits=traits, forecaster=score)
    if score is not None:
        found = RunRegistry(tuple(r for r in found.runs if set(r.shift) <= set(r.readings[score])))
    return found


def calibrate(reading: ForecastReading, form: RunForm, registry: RunRegistry, model_digest: str) -> TraitForecast:
    """From a reading to a forecast in nats, by past runs of the same model.

    Args:
        reading: One score a trait.
        form: Of the training.
        registry: Past runs, of any model.
        model_digest: Of the model that will be trained.

    Returns:
        The forecast; in the reading's own unit, with the sampling error of the reading alone, where past runs are too
        few.

    Raises:
        UnknownPersona: If there are enough past runs of the model, but on none of these traits.
    """
    mine = usable(reading.forecaster, registry, model_digest, reading.traits)
    of_model = registry.of(model_digest=model_digest)
    if len(of_model) >= LEAST_RUNS and not registry.of(model_digest=model_digest, traits=reading.traits).runs:
        raise UnknownPersona(
            f"past runs of this model measured {', '.join(sorted({t for r in of_model.runs for t in r.shift})[:6])}, "
            "none of the traits asked for: the registry is of another cast.",
            hint="Use the cast of the registry, or another registry.",
        )
    if len(mine) < LEAST_RUNS or len(mine.families) < LEAST_FAMILIES:
        return _uncalibrated(reading, len(mine))
    mine = _comparable(mine, reading.traits)
    model = fitted(reading.forecaster, mine.runs, reading.traits)
    n = len(reading.traits)
    # Beyond the forms seen a straight line knows nothing: the nearest one stands in, and a note says so.
    seen = np.stack([r.form.features() for r in mine.runs])
    within = np.clip(form.features(), seen.min(axis=0), seen.max(axis=0))
    # What is near some run may still be far from every run of its own kind: rates of pairs are not those of replies.
    alike = np.stack([r.form.features() for r in mine.runs if r.form.kind == form.kind] or list(seen))
    near = np.clip(form.features(), alike.min(axis=0), alike.max(axis=0))
    read = {n: dict(zip(reading.traits, map(float, v), strict=True)) for n, v in _scores(reading).items()}
    beside = _beside(read, form, _compared_by(reading.forecaster, mine.runs, reading.traits))
    said = model.predict(
        Cells(
            ("\0new",) * n,
            (SHARED_FAMILY,) * n,
            reading.traits,
            np.full(n, np.nan),
            np.zeros(n),
            reading.score,
            np.tile(within, (n, 1)),
            np.tile(beside if method_named(reading.forecaster).uses_score else beside[:0], (n, 1)),
        )
    )
    return TraitForecast(
        forecaster=reading.forecaster,
        traits=reading.traits,
        mean=said.mean,
        sd=said.sd,
        low=said.mean - Z90 * said.sd,
        high=said.mean + Z90 * said.sd,
        unit=CALIBRATED_UNIT,
        cost_seconds=reading.cost.seconds,
        notes=(*reading.notes, *_notes(reading, mine), *_beyond(form, near), *_outlying(reading, mine)),
        common=said.common,
        cost=reading.cost,
        calibration={
            "n_runs": len(mine),
            "n_families": len(mine.families),
            "width": model.width,
            "sources": sorted({r.source for r in mine.runs}),
        },
    )


def _comparable(runs: RunRegistry, traits: Sequence[str]) -> RunRegistry:
    """Those of the runs that measured what half of them did, where they are enough.

    Files are compared by traits that every run has, so one run on a single trait would take the others from all.
    """
    wanted = {t for t in traits if 2 * sum(t in r.shift for r in runs.runs) >= len(runs)}
    whole = RunRegistry(tuple(r for r in runs.runs if wanted <= set(r.shift)))
    return whole if len(whole) >= LEAST_RUNS and len(whole.families) >= LEAST_FAMILIES else runs


def _scores(reading: ForecastReading) -> dict[str, NDArray[np.float64]]:
    return {**reading.parts, reading.forecaster: reading.score}


def _beyond(form: RunForm, near: np.ndarray) -> list[str]:
    """A note on features of the form that no past run of its kind comes near."""
    off = np.abs(form.features() - near) > 0.1
    names = dict.fromkeys(_IN_WORDS[n] for n, o in zip(FORM_FEATURES, off, strict=True) if o)
    return [f"No past run is like this one in {', '.join(names)}: directions hold better than sizes."] if names else []


def _outlying(reading: ForecastReading, runs: RunRegistry) -> list[str]:
    """A note on readings larger than any that a past run taught the size of."""
    found: list[str] = []
    for name, values in _scores(reading).items():
        known = [abs(v) for r in runs.runs for v in r.readings.get(name, {}).values()]
        most = max(known, default=float("inf"))
        found += [f"'{t}' by {name}" for t, v in zip(reading.traits, values, strict=True) if abs(v) > most]
    if not found:
        return []
    return [f"No past run was read as far as {', '.join(found[:5])}: what follows from it is a guess."]


def _uncalibrated(reading: ForecastReading, n_runs: int) -> TraitForecast:
    note = (
        f"Not calibrated: {n_runs} past runs of this model carry this forecaster's reading and {LEAST_RUNS} of "
        f"{LEAST_FAMILIES} families are needed, so numbers are the reading itself; intervals hold its sampling error "
        "only. `personae verify RUN` adds runs."
    )
    spread = Z90 * reading.se
    return TraitForecast(
        forecaster=reading.forecaster,
        traits=reading.traits,
        mean=reading.score.copy(),
        sd=reading.se.copy(),
        low=reading.score - spread,
        high=reading.score + spread,
        unit=reading.unit,
        cost_seconds=reading.cost.seconds,
        notes=(*reading.notes, note, *_cost_note(reading)),
        cost=reading.cost,
        calibration={},
    )


def _notes(reading: ForecastReading, runs: RunRegistry) -> list[str]:
    notes: list[str] = []
    seen = {t for r in runs.runs for t in r.shift}
    unseen = [t for t in reading.traits if t not in seen]
    if unseen:
        notes.append(f"No past run measured {', '.join(unseen[:5])}: their forecasts rest on what other traits did.")
    return notes + _cost_note(reading)


def _cost_note(reading: ForecastReading) -> list[str]:
    share = reading.cost.of_training
    if share is None or share <= MOST_OF_RUN:
        return []
    how = "more than the training itself" if share > 1 else "more than a tenth"
    return [f"The forecast cost {share:.0%} of the training's own passes, {how}; '{WITHOUT_TRAINING}' trains nothing."]


def _both(a: Cost, b: Cost) -> Cost:
    share = None if a.of_training is None or b.of_training is None else a.of_training + b.of_training
    return Cost(a.seconds + b.seconds, a.tokens + b.tokens, share, a.shared_tokens + b.shared_tokens)
