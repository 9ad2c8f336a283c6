"""The forecast that `screen` adds: how far training on the file would move each trait.

By default ("auto") it is made where past runs of the model give it a scale, with the forecaster that won the benchmark;
a forecaster that is named is used in any case. Not here: forecasters (`protocols.forecast`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli.workbench import Workbench, announced, say
from personae.domain.diagnostic import Diagnostic, DiagnosticSet
from personae.domain.episode import Episode
from personae.domain.persona import Cast
from personae.errors import (
    InvalidSettings,
    MissingCapability,
    NumericsError,
    OutOfMemory,
    RenderingError,
    UnknownPersona,
    UsageError,
)
from personae.files.diagnostics import load_diagnostics
from personae.files.reference import shipped_rows
from personae.inference.common_mode import LEAST_FAMILIES, LEAST_RUNS
from personae.instruments.forecasting import ForecastJob, TrainingPlan, require_statements, signed_statements
from personae.instruments.trainable import require_trainable
from personae.instruments.training_rows import default_rate, mean_rate, rows_for
from personae.instruments.training_settings import TrainingSettings
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
from personae.protocols.pilot import miniature_part, pilot_part, pilot_steps, run_miniature, run_pilot
from personae.report.text import clean
from personae.running.progress import training_progress
from personae.running.run_registry import RegistryShelf
from personae.tables.trait_forecast import TraitForecast

AUTO, NONE = "auto", "none"
ONCE_A_MODEL = "Statements of the traits (once a model)"
PILOTED = "em_flow_pilot"  # what reads a pilot where no forecaster is named
_SHOWN = 8
_UNFIT = (
    UsageError,
    RenderingError,
    NumericsError,
    OutOfMemory,
)  # what keeps one forecaster from a file that can be screened


@dataclass(frozen=True, slots=True)
class ForecastAsked:
    """The forecast that was asked for, as the options say.

    Attributes:
        name: A forecaster, "auto" or "none".
        model: Name of the model that would be trained.
        epochs, steps, batch_size: Of the training; `steps`, where given, decides.
        learning_rate: At its height; None: what `train` takes for the file's rows. It falls to 0, as there.
        truncate: Whether rows that do not fit are cut.
        pilot: Whether the training's first steps are made.
        seed: Of the training, and of the rows that are read.
        device: On which a part of the training is run.
        executor: Where scores are computed.
        is_edited: Whether the model runs under edits, which a training would not have.
        quiet: No progress.
    """

    name: str
    model: str
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 8
    learning_rate: float | None = None
    truncate: bool = False
    pilot: bool = False
    seed: int = 0
    device: str = "auto"
    executor: str = "serial"
    is_edited: bool = False
    quiet: bool = False

    def training(self, method: str) -> TrainingSettings:
        """The settings that `train` would use."""
        return TrainingSettings(
            method=method,
            epochs=self.epochs,
            steps=self.steps,
            learning_rate=default_rate(method) if self.learning_rate is None else self.learning_rate,
            batch_size=self.batch_size,
            truncate=self.truncate,
            seed=self.seed,
        )


def default_forecaster(model: str) -> str:
    """The best forecaster there is for a model: one that trains nothing where the model cannot be trained here."""
    try:
        require_trainable(model)
    except MissingCapability:
        return WITHOUT_TRAINING
    return DEFAULT_FORECASTER


def require_pilot(name: str, *, pilot: bool) -> None:
    """Refuse a forecaster that reads a pilot where none was asked for.

    Raises:
        InvalidSettings: If it does, or there is none of that name.
    """
    if method_named(name).trains == PILOT and not pilot:
        raise InvalidSettings(
            f"'{name}' needs a pilot of the training.", hint="Make one with --pilot, or use 'joint' or 'ensemble'."
        )


def check_forecast(
    asked: ForecastAsked, cast: Cast, cast_names: Sequence[str], episodes: Sequence[Episode] | None
) -> None:
    """Refuse what cannot be forecast as asked, before anything dear happens.

    Args:
        asked: What is checked.
        cast: Its traits are what would be forecast.
        cast_names: Whose statements would be read.
        episodes: The file; None where its replies are still to be asked for.

    Raises:
        InvalidSettings: With the names there are; or if options or rows do not go with the forecaster.
        MissingCapability: If it trains and the model cannot be trained here.
        InputError: If it reads diagnostic statements and a trait has none, or a record of a past run is damaged.
    """
    name = asked.name
    asked.training("sft")  # refuses numbers that no training could have
    if name not in (AUTO, NONE) and name not in FORECASTERS:
        raise InvalidSettings(
            f"no forecaster is called '{name}'.", hint=f"There are: {', '.join(FORECASTERS)}; also 'auto' and 'none'."
        )
    if name == NONE and asked.pilot:
        raise InvalidSettings("--pilot serves a forecast, and --forecaster is 'none'.")
    if name == NONE:
        return
    RegistryShelf(home() / "past-runs").load()  # a damaged record is told now, not after the scoring
    if name != AUTO or asked.pilot:
        _check_named(asked, PILOTED if name == AUTO else name, cast, cast_names)
        if episodes is not None:
            kind, rows, _ = rows_for(episodes, AUTO)
            if asked.pilot and kind != "text":  # a text may be many windows, so many steps
                pilot_steps(_plan(asked, kind), len(rows) // (2 if kind == "dpo" else 1))


def _check_named(asked: ForecastAsked, name: str, cast: Cast, cast_names: Sequence[str]) -> None:
    """Refuse options that do not go with a forecaster, and a forecaster without what it reads."""
    require_pilot(name, pilot=asked.pilot)
    method = method_named(name)
    if asked.pilot and method.trains != PILOT:
        raise InvalidSettings(f"'{name}' reads no pilot.", hint=f"Leave --pilot out, or use '{PILOTED}'.")
    if method.trains and asked.is_edited:
        what = "--pilot" if asked.pilot else f"the forecaster '{name}'"
        raise InvalidSettings(f"{what} trains the model without --steer and --cap.", hint="Leave one of them out.")
    if method.trains:
        require_trainable(asked.model)
    if asked.executor != "serial" and (method.trains or method.needs_statements):
        raise InvalidSettings(
            f"'{name}' reads the model in this process, and --executor is '{asked.executor}'.",
            hint="Leave --executor out, or use the forecaster 'llr'.",
        )
    if method.needs_statements or method.trains:
        items = _items(cast_names)
        require_statements(signed_statements(items) if items else {}, [t.id for t in cast.traits])


def is_tried(asked: ForecastAsked) -> bool:
    """Whether a forecast would be made at all, so that a model need not be opened in vain.

    Under "auto" it takes past runs of one's own, and a training has no edits.
    """
    if asked.name == NONE:
        return False
    if asked.name != AUTO or asked.pilot:
        return True
    return not asked.is_edited and len(RegistryShelf(home() / "past-runs").load(shipped=False)) >= LEAST_RUNS


def forecast_file(
    asked: ForecastAsked,
    bench: Workbench,
    cast: Cast,
    cast_names: Sequence[str],
    episodes: Sequence[Episode],
    reference: Sequence[Episode],
) -> tuple[TraitForecast | None, tuple[str, ...]]:
    """Forecast a training on a file; None where that was not asked for, or not possible under "auto".

    Args:
        asked: Checked by `check_forecast`.
        bench: The model.
        cast: Its traits are what is forecast.
        cast_names: Whose statements are read.
        episodes: The file.
        reference: Ordinary replies.

    Returns:
        The forecast, and why one that "auto" tried could not be made.

    Raises:
        InvalidSettings, InputError, MissingCapability: If a forecaster that was named cannot read the file.
    """
    if asked.name == NONE or not cast.traits:
        return None, ()
    if asked.name != AUTO or asked.pilot:
        name = PILOTED if asked.name == AUTO else asked.name
        return _forecast(asked, name, bench, cast, cast_names, episodes, reference), ()
    missed: list[str] = []
    alone = asked.is_edited or asked.executor != "serial"
    best = WITHOUT_TRAINING if alone else default_forecaster(asked.model)
    for name, traits in _calibrated(bench, cast, cast_names, dict.fromkeys([best, WITHOUT_TRAINING])):
        try:
            part = Cast(cast.id, tuple(t for t in cast.traits if t.id in traits))
            return _forecast(asked, name, bench, part, cast_names, episodes, reference), tuple(missed)
        except _UNFIT as error:
            missed.append(f"No forecast by '{name}': {error}")
            say(missed[-1], quiet=asked.quiet)
    return None, tuple(missed)


def _forecast(
    asked: ForecastAsked,
    name: str,
    bench: Workbench,
    cast: Cast,
    cast_names: Sequence[str],
    episodes: Sequence[Episode],
    reference: Sequence[Episode],
) -> TraitForecast:
    kind, rows, notes = rows_for(episodes, AUTO)
    items = _items(cast_names)
    say(f"Forecasting a training with {name} …", quiet=asked.quiet)
    with announced(ONCE_A_MODEL, quiet=asked.quiet) as started:
        job = ForecastJob(
            tuple(rows),
            cast,
            bench.model,
            bench.renderer,
            bench.scoring,
            tuple(reference),
            _plan(asked, kind),
            asked.training(kind),
            signed_statements(items) if items else {},
            shipped_rows(bench.space),
            kept=bench.kept(),
            started=started,
            seed=asked.seed,
        )
        if method_named(name).trains and items:
            parts = {method_named(name).trains}
            job = with_parts(job, parts, asked.model, items, quiet=asked.quiet, device=asked.device)
        made = RegistryForecaster(name, RegistryShelf(home() / "past-runs").load()).forecast(job)
    return replace(made, notes=(*notes, *made.notes))


def _plan(asked: ForecastAsked, kind: str) -> TrainingPlan:
    rate = mean_rate(asked.training(kind))
    return TrainingPlan(kind, asked.epochs, asked.steps, asked.batch_size, rate)


def _calibrated(
    bench: Workbench, cast: Cast, cast_names: Sequence[str], names: Iterable[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Forecasters that enough own past runs calibrate, with the traits they measured.

    The runs that came with the package calibrate a forecast that was asked for; alone they are no reason to spend
    minutes on one.
    """
    own = RegistryShelf(home() / "past-runs").load(shipped=False)
    items, traits = _items(cast_names), tuple(t.id for t in cast.traits)
    for name in names:
        known = usable(name, own, bench.model.card.digest, traits)
        if len(known) >= LEAST_RUNS and len(known.families) >= LEAST_FAMILIES:
            measured = {t for r in known.runs for t in r.shift}
            told = tuple(t for t in traits if t in measured)
            if items is not None and set(told) <= set(items.traits):
                yield name, told


def with_parts(
    job: ForecastJob,
    parts: Collection[str],
    model: str,
    items: DiagnosticSet,
    *,
    quiet: bool,
    device: str,
    dtype: str = "float32",
) -> ForecastJob:
    """The job with what its training does in part, trained and measured; kept under the home, so it is made once.

    Args:
        job: What is forecast.
        parts: Of `PILOT` (its first steps) and `MINIATURE`; others are nothing.
        model: Name of the job's model.
        items: Of which the dev half is asked.
        quiet: No progress.
        device: As `train`.
        dtype: Of the base weights in training.

    Raises:
        InvalidSettings: If a tenth of the run is less than one step, for a pilot.
        InputError: If the dev items do not measure every trait of the job.
        MissingCapability: If the model cannot be trained here.
    """
    unit = "a pair" if job.method == "dpo" else "nats a token"
    with ExitStack() as stack:

        def steps(what: str) -> Callable[[int], Callable[[int, float], None]]:
            return lambda n: stack.enter_context(training_progress(what, n, quiet=quiet, unit=unit))

        if PILOT in parts:
            folder = home() / "pilots" / pilot_part(job).key(job, items, dtype)
            made = run_pilot(job, model, items, folder=folder, device=device, dtype=dtype, started=steps("Pilot"))
            job = replace(job, pilot=made)
            _forget_weights(folder)
        if MINIATURE in parts:
            folder = home() / "miniatures" / miniature_part(job).key(job, items, dtype)
            begin = steps("Miniature")
            made = run_miniature(job, model, items, folder=folder, device=device, dtype=dtype, started=begin)
            job = replace(job, miniature=made)
            _forget_weights(folder)
    return job


def _forget_weights(folder: Path) -> None:
    """What was measured is noted; 20 MB and more of weights a file are asked for by nobody."""
    for name in ("adapter", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _items(cast_names: Sequence[str]) -> DiagnosticSet | None:
    """Diagnostic items of the built-in casts among those named; forecasters that need others say so."""
    found: list[Diagnostic] = []
    for name in cast_names:
        try:
            found += load_diagnostics(name).items
        except UnknownPersona:
            continue
    return DiagnosticSet("+".join(cast_names), tuple(found)) if found else None


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
