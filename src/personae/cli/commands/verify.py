"""`personae verify`: did the training do what was forecast?"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from personae.cli import options as opt
from personae.cli.attribution import Asked, attribute_run, check_attribution, write_rankings
from personae.cli.forecasting import ONCE_A_MODEL, default_forecaster, require_pilot, with_parts
from personae.cli.trained_run import TrainedRun, read_trained_run
from personae.cli.verified import print_verification
from personae.cli.workbench import Workbench, announced, open_model, say
from personae.domain.diagnostic import DiagnosticSet
from personae.domain.persona import Cast
from personae.errors import InputError
from personae.files.casts import load_casts
from personae.files.diagnostics import load_diagnostics
from personae.files.reference import load_reference, shipped_rows
from personae.instruments.forecasting import ForecastJob, require_statements, signed_statements
from personae.models.catalogue import home
from personae.protocols.attribution import METHODS
from personae.protocols.forecast import (
    DEFAULT_FORECASTER,
    FORECASTERS,
    MINIATURE,
    PILOT,
    WITHOUT_TRAINING,
    calibrate,
    method_named,
    read_all,
)
from personae.protocols.measure import MeasureSettings, Started, measure
from personae.protocols.pilot import pilot_steps
from personae.protocols.verify import past_run, verify
from personae.running.run import make_run_folder, provenance, write_json, write_table, write_text
from personae.running.run_registry import RegistryShelf
from personae.tables.run_registry import RunRegistry
from personae.tables.traits import TraitProfile
from personae.tables.verification import Verification

NAME = "verify"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a verification; the fields are the options, and what `rerun` reads back."""

    training: str
    forecaster: tuple[str, ...] = ()
    cast: tuple[str, ...] = ("core",)
    only: str | None = None
    items: tuple[str, ...] = ()
    rows: int = 64
    registry: str | None = None
    family: str | None = None
    register: bool = True
    out: str | None = None
    seed: int = 0
    json: bool = False
    quiet: bool = False
    device: str = "auto"
    dtype: str = "float32"
    attribution: str | None = None
    share: float = 0.1
    ranking: tuple[str, ...] = METHODS
    pilot: bool = False
    thorough: bool = False


def command(
    training: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a finished `personae train` run.")],
    forecaster: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(FORECASTERS)}, or 'all'; the first is shown, others only join the registry. "
            f"Default: {DEFAULT_FORECASTER}, or {WITHOUT_TRAINING} where the model cannot be trained."
        ),
    ] = None,
    cast: opt.CastNames = None,
    only: Annotated[str | None, typer.Option("--only", help="Comma-separated traits to look at, no others.")] = None,
    items: Annotated[
        list[str] | None, typer.Option(help="Diagnostic items for the cast's traits; repeatable. Default: built in.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the file that a forecaster reads.")] = 64,
    registry: Annotated[
        str | None, typer.Option(help="Folder of past runs. Default: past-runs in PERSONAE_HOME.")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="What this run shares with others of one origin. Default: the name of its file."),
    ] = None,
    register: Annotated[bool, typer.Option("--register/--no-register", help="Add the run to the past runs.")] = True,
    attribution: Annotated[
        str | None,
        typer.Option(
            metavar="TRAIT",
            help="Which rows moved this trait? Train again without those that are named, and without as many at "
            "random; kept in RUN, so the same command goes on.",
        ),
    ] = None,
    share: Annotated[float, typer.Option(help="Of the rows that --attribution leaves out.")] = 0.1,
    ranking: Annotated[
        list[str] | None,
        typer.Option(help=f"How --attribution names rows: {', '.join(METHODS)}; repeatable. Default: all of them."),
    ] = None,
    pilot: opt.Pilot = False,
    thorough: opt.Thorough = False,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Hold a training against its forecast, trait by trait, and learn from it."""
    return execute(
        Settings(
            training,
            tuple(forecaster or ()),
            tuple(cast or ("core",)),
            only,
            tuple(items or ()),
            rows,
            registry,
            family,
            register,
            out,
            seed,
            as_json,
            quiet,
            device,
            dtype,
            attribution,
            share,
            tuple(ranking or METHODS),
            pilot,
            thorough,
        )
    )


def execute(settings: Settings) -> int:
    """Forecast from the file, measure both models, compare; give the exit status."""
    for name in settings.forecaster:
        if name != "all":
            require_pilot(name, pilot=settings.pilot)
    run = read_trained_run(settings.training)
    best = default_forecaster(run.model)
    names = _named(settings, best)
    shown = best if "all" in settings.forecaster else names[0]
    cast, items = cast_and_items(settings.cast, settings.only, settings.items, thorough=settings.thorough)
    if any(FORECASTERS[name].needs_statements for name in names):
        require_statements(signed_statements(items), [t.id for t in cast.traits])
    if settings.pilot:
        pilot_steps(run.plan, 1)  # its number of steps is known, whatever the rows
    asked = _asked(settings)
    if asked is not None:
        check_attribution(asked, run, [t.id for t in cast.traits])
    shelf = RegistryShelf(Path(settings.registry) if settings.registry else home() / "past-runs")
    known = shelf.load()
    folder = make_run_folder(settings.out, NAME)
    bench = _opened(run, settings)
    say(f"Reading {run.data} with {', '.join(names)} …", quiet=settings.quiet)
    with announced(ONCE_A_MODEL, quiet=settings.quiet) as started:
        job = _job(settings, run, cast, items, bench, started)
        job, names, missed = _with_parts(settings, run, job, names, items)
        shown = shown if shown in names else names[0]
        readings = read_all(job, names)
    form, _ = job.form()
    of_others = RunRegistry(tuple(r for r in known.runs if r.run != _id(run)))  # never learn from the run itself
    forecast = calibrate(readings[shown], form, of_others, run.base_digest)
    before = _measured(bench, items, run.model, settings, kept=True)
    say(f"Loading {run.use} …", quiet=settings.quiet)
    after = _measured(
        open_model(run.use, device=settings.device, dtype=settings.dtype), items, run.use, settings, kept=False
    )
    left_out = ("So it was not added to the past runs.",) if settings.register and run.notes else ()
    result = verify(
        forecast,
        form,
        before,
        after,
        run=str(run.folder),
        data=run.data,
        model=run.model,
        cast=cast.id,
        notes=(*run.notes, *left_out, *missed),
    )
    if settings.register and not run.notes:  # the past runs are of plain trainings
        record = past_run(
            result,
            readings,
            run=_id(run),
            family=settings.family or Path(run.data).stem,
            model_digest=run.base_digest,
            items=_items_digest(items),
            seed=run.seed,
            source="verify",
        )
        result = replace(result, registered=str(shelf.put(record)))
    if asked is not None:
        whole = replace(job, most_rows=len(run.episodes), memo={})
        found, rankings = attribute_run(asked, run, whole, items, (before, after))
        result = replace(result, attribution=found)
        write_rankings(folder, run, rankings, asked.share)
    made = provenance([run.data, str(run.folder / "run.json")], seed=settings.seed)
    result = replace(result, provenance=made | {"model_card": bench.model.card.to_dict()})
    _write(folder, result, settings, made)
    return 0


def _opened(run: TrainedRun, settings: Settings) -> Workbench:
    """The base model, which must be what was trained."""
    say(f"Loading {run.model} …", quiet=settings.quiet)
    bench = open_model(run.model, device=settings.device, dtype=settings.dtype, truncate=run.training.truncate)
    if bench.model.card.digest != run.base_digest:
        raise InputError(
            f"'{run.model}' is not the model that was trained: its weights have changed since",
            path=str(run.folder / "run.json"),
            hint="Restore the base model, or train again.",
        )
    return bench


def _write(folder: Path, result: Verification, settings: Settings, made: dict[str, Any]) -> None:
    """The run's folder, and what is printed."""
    from personae.report.verify_page import render_verification  # charts are slow to import, and `--help` needs none

    report = folder / "report.html"
    write_text(report, render_verification(result))
    _write_table(folder, result)
    summary = result.to_dict() | {"report": str(report), "run": str(folder)}
    write_json(folder / "run.json", {"command": NAME, "settings": asdict(settings), **made, "result": summary})
    if settings.json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not settings.quiet:
        print_verification(result, report)


def _with_parts(
    settings: Settings, run: TrainedRun, job: ForecastJob, names: tuple[str, ...], items: DiagnosticSet
) -> tuple[ForecastJob, tuple[str, ...], tuple[str, ...]]:
    """The job with what its training does in part, the forecasters that can be read, and why another one cannot.

    What nobody asked for may fail: the default then trains nothing.

    Raises:
        InputError: If the items do not measure what a forecaster that was named trains.
    """
    parts = {method_named(name).trains for name in names} | ({PILOT} if settings.pilot else set())
    try:
        job = with_parts(job, parts, run.model, items, quiet=settings.quiet, device=settings.device, dtype=run.dtype)
    except InputError as error:
        if settings.forecaster or settings.pilot:
            raise
        return job, (WITHOUT_TRAINING,), (f"No forecast by '{DEFAULT_FORECASTER}': {error}",)
    return job, names, ()


def _named(settings: Settings, best: str) -> tuple[str, ...]:
    """The forecasters that were asked for; all that are possible for "all".

    Where none was, the best one, and the one without training beside it, whose readings it has made already: the run
    then calibrates either.
    """
    if "all" not in settings.forecaster:
        return settings.forecaster or tuple(dict.fromkeys([best, WITHOUT_TRAINING]))
    unmade = {*([] if settings.pilot else [PILOT]), *([MINIATURE] if best == WITHOUT_TRAINING else [])}
    return tuple(name for name, m in FORECASTERS.items() if m.trains not in unmade)


def _asked(settings: Settings) -> Asked | None:
    """The attribution that was asked for."""
    if settings.attribution is None:
        return None
    return Asked(
        settings.attribution,
        settings.share,
        settings.ranking,
        settings.seed,
        settings.device,
        settings.dtype,
        settings.quiet,
    )


def cast_and_items(
    names: tuple[str, ...], only: str | None, files: tuple[str, ...], *, thorough: bool = False
) -> tuple[Cast, DiagnosticSet]:
    """The cast's traits that have diagnostic items, and those items.

    Raises:
        InputError: If no trait of the cast has items.
        UnknownPersona: If the cast comes without items and none were given, or a trait does not exist.
    """
    cast = load_casts(names)
    if only is not None:
        cast = cast.select([n.strip() for n in only.split(",") if n.strip()])
    items = load_diagnostics("+".join(names), files, thorough=thorough)
    shared = [t.id for t in cast.traits if t.id in items.traits]
    if not shared:
        raise InputError(
            f"no trait of the cast '{cast.id}' has diagnostic items",
            hint=f"The items are of {', '.join(items.traits[:6])}. Give others with --items FILE.",
        )
    return Cast(cast.id, tuple(t for t in cast.traits if t.id in shared)), items.select(traits=shared)


def _job(
    settings: Settings, run: TrainedRun, cast: Cast, items: DiagnosticSet, bench: Workbench, started: Started
) -> ForecastJob:
    return ForecastJob(
        run.episodes,
        cast,
        bench.model,
        bench.renderer,
        bench.scoring,
        load_reference(),
        run.plan,
        run.training,
        signed_statements(items),
        shipped_rows(bench.space),
        kept=bench.kept(),
        started=started,
        most_rows=settings.rows,
        seed=settings.seed,
    )


def _measured(bench: Workbench, items: DiagnosticSet, name: str, settings: Settings, *, kept: bool) -> TraitProfile:
    """The profile on test items; answers of the base model are kept, those of a trained one are asked once."""
    with announced(f"Measuring {name}", quiet=settings.quiet) as started:
        return measure(
            bench.model,
            items,
            settings=MeasureSettings(split="test", quick=True),
            renderer=bench.renderer,
            store=bench.store if kept else None,
            started=started,
            name=name,
        )


def _id(run: TrainedRun) -> str:
    """One id a training, wherever its folder lies: what was trained, on what, how and from which seed."""
    about = json.dumps([run.base_digest, [e.content_digest.hex() for e in run.episodes], asdict(run.plan), run.seed])
    return f"{Path(run.data).stem}-{hashlib.blake2b(about.encode(), digest_size=6).hexdigest()}"


def _items_digest(items: DiagnosticSet) -> str:
    body = json.dumps([[i.id, i.pos, i.neg, i.prompt, i.split] for i in items.items])
    return hashlib.blake2b(body.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _write_table(folder: Path, result: Verification) -> None:
    rows = [asdict(r) for r in result.traits]
    columns = {name: [r[name] for r in rows] for name in rows[0]}
    write_table(folder / "verified.parquet", columns, {"unit": result.unit, "forecaster": result.forecaster})
