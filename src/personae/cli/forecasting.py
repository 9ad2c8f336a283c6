"""The forecast that `screen` adds: how far training on the file would move each trait.

By default ("auto") it is made where past runs of the model give it a scale, with the forecaster that won the benchmark;
a forecaster that is named is used in any case. Not here: forecasters (`protocols.forecast`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli.workbench import Workbench, announced, say
from personae.domain.diagnostic import DiagnosticSet
from personae.domain.episode import Episode
from personae.domain.persona import Cast
from personae.errors import InvalidSettings, MissingCapability, UnknownPersona
from personae.files.diagnostics import load_diagnostics
from personae.files.reference import shipped_rows
from personae.inference.common_mode import LEAST_FAMILIES, LEAST_RUNS
from personae.instruments.forecasting import ForecastJob, TrainingPlan, require_statements, signed_statements
from personae.instruments.trainable import require_trainable
from personae.models.catalogue import home
from personae.protocols.forecast import (
    DEFAULT_FORECASTER,
    FORECASTERS,
    MINIATURE,
    PILOT,
    WITHOUT_TRAINING,
    RegistryForecaster,
    method_named,
    usable,
)
from personae.protocols.pilot import pilot_key, run_miniature, run_pilot
from personae.report.text import clean
from personae.running.progress import training_progress
from personae.running.run_registry import RegistryShelf
from personae.tables.trait_forecast import TraitForecast

AUTO, NONE = "auto", "none"
ONCE_A_MODEL = "Statements of the traits (once a model)"
PILOTED = "em_flow_pilot"  # what reads a pilot where no forecaster is named
_SHOWN = 8


def default_forecaster(model: str) -> str:
    """The best forecaster there is for a model: one that trains nothing where the model cannot be trained here."""
    try:
        require_trainable(model)
    except MissingCapability:
        return WITHOUT_TRAINING
    return DEFAULT_FORECASTER


def trains(name: str) -> bool:
    """Whether a forecaster trains a part of what it forecasts."""
    return name in FORECASTERS and bool(FORECASTERS[name].trains)


def require_pilot(name: str, *, pilot: bool) -> None:
    """Refuse a forecaster that reads a pilot where none was asked for.

    Raises:
        InvalidSettings: If it does, or there is none of that name.
    """
    if method_named(name).trains == PILOT and not pilot:
        raise InvalidSettings(
            f"'{name}' needs a pilot of the training.", hint="Make one with --pilot, or use 'joint' or 'ensemble'."
        )


def check_forecaster(name: str, cast: Cast, cast_names: Sequence[str], *, model: str, pilot: bool = False) -> None:
    """Refuse a forecaster that is none, or that lacks what it reads, before anything dear happens.

    Raises:
        InvalidSettings: With the names there are.
        MissingCapability: If it trains and the model cannot be trained here.
        InputError: If it reads diagnostic statements and a trait has none, or a record of a past run is damaged.
    """
    if name not in (AUTO, NONE) and name not in FORECASTERS:
        raise InvalidSettings(
            f"no forecaster is called '{name}'.", hint=f"There are: {', '.join(FORECASTERS)}; also 'auto' and 'none'."
        )
    if name != NONE:
        RegistryShelf(home() / "past-runs").load()  # a damaged record is told now, not after the scoring
    if name in FORECASTERS:
        require_pilot(name, pilot=pilot)
    if trains(name):
        require_trainable(model)
    if pilot and name == NONE:
        raise InvalidSettings("--pilot serves a forecast, and --forecaster is 'none'.")
    if pilot:
        require_statements(_statements(cast_names), [t.id for t in cast.traits])
    if name in FORECASTERS and FORECASTERS[name].needs_statements:
        require_statements(_statements(cast_names), [t.id for t in cast.traits])


def forecast_file(
    name: str,
    bench: Workbench,
    cast: Cast,
    cast_names: Sequence[str],
    episodes: Sequence[Episode],
    reference: Sequence[Episode],
    plan: TrainingPlan,
    *,
    seed: int,
    quiet: bool,
    model: str,
    device: str = "auto",
    pilot: bool = False,
    is_edited: bool = False,
) -> TraitForecast | None:
    """Forecast a training on a file, or None where that was not asked for, or not possible under "auto".

    Args:
        name: The forecaster.
        bench: The model.
        cast: Its traits are what is forecast.
        cast_names: Whose statements are read.
        episodes: The file.
        reference: Ordinary replies.
        plan: The training.
        seed: Of the sample.
        quiet: No progress.
        model: Name of the model.
        device: On which a part of the training is run, where the forecaster reads one.
        pilot: Whether the first steps are trained.
        is_edited: Whether the model runs under edits, which a training would not have.

    Raises:
        InputError, MissingCapability: If a forecaster that was named cannot read the file.
    """
    if name == NONE or not cast.traits:
        return None
    registry = RegistryShelf(home() / "past-runs").load()
    statements = _statements(cast_names)
    chosen, traits = name, tuple(t.id for t in cast.traits)
    if name == AUTO and pilot:
        chosen = PILOTED
    elif name == AUTO:
        best = WITHOUT_TRAINING if is_edited else default_forecaster(model)
        chosen, traits = _calibrated(bench, traits, dict.fromkeys([best, WITHOUT_TRAINING]))
        if not chosen or not set(traits) <= set(statements):
            return None
    method = method_named(chosen)
    say(f"Forecasting a training with {chosen} …", quiet=quiet)
    with announced(ONCE_A_MODEL, quiet=quiet) as started:
        job = ForecastJob(
            tuple(episodes),
            Cast(cast.id, tuple(t for t in cast.traits if t.id in traits)),
            bench.model,
            bench.renderer,
            bench.scoring,
            tuple(reference),
            plan,
            statements,
            shipped_rows(bench.space),
            kept=bench.kept(),
            started=started,
            seed=seed,
        )
        parts = {method.trains, PILOT if pilot else ""}
        if parts != {""}:
            job = with_parts(job, parts, model, load_diagnostics("+".join(cast_names)), quiet=quiet, device=device)
        return RegistryForecaster(chosen, registry).forecast(job)


def _calibrated(bench: Workbench, traits: tuple[str, ...], names: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """The first forecaster that enough own past runs calibrate, and the traits they measured; "" for none.

    The runs that came with the package calibrate a forecast that was asked for; alone they are no reason to spend
    minutes on one.
    """
    own = RegistryShelf(home() / "past-runs").load(shipped=False)
    for name in names:
        known = usable(name, own, bench.model.card.digest, traits)
        if len(known) >= LEAST_RUNS and len(known.families) >= LEAST_FAMILIES:
            measured = {t for r in known.runs for t in r.shift}
            return name, tuple(t for t in traits if t in measured)
    return "", traits


def with_parts(
    job: ForecastJob, parts: Collection[str], model: str, items: DiagnosticSet, *, quiet: bool, device: str
) -> ForecastJob:
    """The job with what its training does in part, trained and measured; kept under the home, so it is made once.

    Args:
        job: What is forecast.
        parts: Of `PILOT` (its first steps) and `MINIATURE`; others are nothing.
        model: Name of the job's model.
        items: Of which the dev half is asked.
        quiet: No progress.
        device: As `train`.

    Raises:
        InvalidSettings: If a tenth of the run is less than one step, for a pilot.
        MissingCapability: If the model cannot be trained here.
    """
    key = pilot_key(job, items)
    with ExitStack() as stack:

        def steps(what: str) -> Callable[[int], Callable[[int, float], None]]:
            return lambda n: stack.enter_context(training_progress(what, n, quiet=quiet, unit="nats a token"))

        if PILOT in parts:
            folder = home() / "pilots" / key
            made = run_pilot(job, model, items, folder=folder, device=device, started=steps("Pilot"))
            job = replace(job, pilot=made)
        if MINIATURE in parts:
            folder = home() / "miniatures" / key
            made = run_miniature(job, model, items, folder=folder, device=device, started=steps("Miniature"))
            job = replace(job, miniature=made)
    return job


def _statements(cast_names: Sequence[str]) -> dict[str, tuple[Episode, ...]]:
    """Diagnostic statements of the built-in casts among those named; forecasters that need others say so."""
    found: dict[str, tuple[Episode, ...]] = {}
    for name in cast_names:
        try:
            found |= signed_statements(load_diagnostics(name))
        except UnknownPersona:
            continue
    return found


def print_forecast(forecast: TraitForecast) -> None:
    """Raw shift, interval and shift net of the common mode, the largest net first."""
    console = Console(highlight=False)
    unit = "nats of log-odds" if forecast.is_calibrated else clean(forecast.unit)
    console.print(Text(f"\nForecast of training on it ({clean(forecast.forecaster)}; {unit}):"))
    table = Table(box=None, pad_edge=False)
    for column in ("trait", "shift", "90% interval", "common to its form", "net"):
        table.add_column(column, justify="left" if column == "trait" else "right", no_wrap=True)
    order = sorted(range(len(forecast.traits)), key=lambda k: -abs(float(forecast.net[k])))
    for k in order[:_SHOWN]:
        table.add_row(
            Text(clean(forecast.traits[k])),
            f"{forecast.mean[k]:+.3g}",
            f"{forecast.low[k]:+.3g} {forecast.high[k]:+.3g}",
            f"{forecast.shared[k]:+.3g}",
            f"{forecast.net[k]:+.3g}",
        )
    console.print(table)
    for note in forecast.notes:
        console.print(Text(f"note: {clean(note)}", style="dim"), soft_wrap=True)
