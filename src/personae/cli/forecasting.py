"""The forecast that `screen` adds: how far training on the file would move each trait.

By default ("auto") it is made where past runs of the model give it a scale, with the forecaster that won the benchmark;
a forecaster that is named is used in any case. Not here: forecasters (`protocols.forecast`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli.workbench import Workbench, announced, say
from personae.domain.diagnostic import DiagnosticSet
from personae.domain.episode import Episode
from personae.domain.persona import Cast
from personae.errors import InvalidSettings, UnknownPersona
from personae.files.diagnostics import load_diagnostics
from personae.files.reference import shipped_rows
from personae.inference.common_mode import LEAST_FAMILIES, LEAST_RUNS
from personae.instruments.forecasting import ForecastJob, TrainingPlan, require_statements, signed_statements
from personae.models.catalogue import home
from personae.protocols.forecast import DEFAULT_FORECASTER, FORECASTERS, RegistryForecaster, method_named, usable
from personae.protocols.pilot import pilot_key, run_pilot
from personae.report.text import clean
from personae.running.progress import training_progress
from personae.running.run_registry import RegistryShelf
from personae.tables.trait_forecast import TraitForecast

AUTO, NONE = "auto", "none"
ONCE_A_MODEL = "Statements of the traits (once a model)"
PILOTED = "em_flow_pilot"  # what reads a pilot where no forecaster is named
_SHOWN = 8


def check_forecaster(name: str, cast: Cast, cast_names: Sequence[str], *, pilot: bool = False) -> None:
    """Refuse a forecaster that is none, or that lacks what it reads, before anything dear happens.

    Raises:
        InvalidSettings: With the names there are.
        InputError: If it reads diagnostic statements and a trait has none, or a record of a past run is damaged.
    """
    if name not in (AUTO, NONE) and name not in FORECASTERS:
        raise InvalidSettings(
            f"no forecaster is called '{name}'.", hint=f"There are: {', '.join(FORECASTERS)}; also 'auto' and 'none'."
        )
    if name != NONE:
        RegistryShelf(home() / "past-runs").load()  # a damaged record is told now, not after the scoring
    if name in FORECASTERS and FORECASTERS[name].needs_pilot and not pilot:
        raise InvalidSettings(
            f"'{name}' needs a pilot of the training.", hint="Make one with --pilot, or use 'ensemble' or 'llr'."
        )
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
    pilot_of: tuple[str, str] | None = None,
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
        pilot_of: Name of the model and device on which a pilot is trained; None for none.

    Raises:
        InputError, MissingCapability: If a forecaster that was named cannot read the file.
    """
    if name == NONE or not cast.traits:
        return None
    registry = RegistryShelf(home() / "past-runs").load()
    chosen = (DEFAULT_FORECASTER if pilot_of is None else PILOTED) if name == AUTO else name
    traits = tuple(t.id for t in cast.traits)
    if name == AUTO and pilot_of is None:
        # The runs that came with the package calibrate a forecast that was asked for; alone they are no reason to spend
        # minutes on one.
        own = RegistryShelf(home() / "past-runs").load(shipped=False)
        known = usable(chosen, own, bench.model.card.digest, traits)
        if len(known) < LEAST_RUNS or len(known.families) < LEAST_FAMILIES:
            return None
        measured = {t for r in known.runs for t in r.shift}
        traits = tuple(t for t in traits if t in measured)
    statements = _statements(cast_names)
    if name == AUTO and pilot_of is None and not set(traits) <= set(statements):
        return None
    method_named(chosen)
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
        if pilot_of is not None:
            items = load_diagnostics("+".join(cast_names))
            job = with_pilot(job, pilot_of[0], items, quiet=quiet, device=pilot_of[1])
        return RegistryForecaster(chosen, registry).forecast(job)


def with_pilot(job: ForecastJob, model: str, items: DiagnosticSet, *, quiet: bool, device: str) -> ForecastJob:
    """The job with the first tenth of its training, trained and measured; kept under the home, so it is made once.

    Raises:
        InvalidSettings: If a tenth of the run is less than one step.
        MissingCapability: If the model cannot be trained here.
    """
    folder = home() / "pilots" / pilot_key(job)
    with ExitStack() as stack:

        def started(n_steps: int) -> Callable[[int, float], None]:
            return stack.enter_context(training_progress("Pilot", n_steps, quiet=quiet, unit="nats a token"))

        pilot = run_pilot(job, model, items, folder=folder, device=device, started=started)
    return replace(job, pilot=pilot)


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
