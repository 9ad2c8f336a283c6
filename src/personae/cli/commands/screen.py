"""`personae screen`: which character does this file select?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from personae.cli import options as opt
from personae.cli.findings import print_findings, screening_json
from personae.cli.forecasting import AUTO, ForecastAsked, check_forecast, forecast_file, is_tried, print_forecast
from personae.cli.gate import parse_gates
from personae.cli.power import choose_power
from personae.cli.workbench import (
    Inputs,
    ScoringSettings,
    Workbench,
    announced,
    counted,
    open_target,
    open_workbench,
    read_inputs,
    say,
)
from personae.domain.episode import Episode, require_weight
from personae.domain.persona import Cast
from personae.files.reference import load_reference, shipped_rows
from personae.instruments.target import Answers, ask_target
from personae.models.catalogue import DEFAULT_MODEL, home, require_target, without_sharpening
from personae.models.protocol import SamplingPlan
from personae.protocols.screen import DEFAULT_FDR, Population, ScreenSettings, screen
from personae.running.run import make_run_folder, provenance, write_json, write_table, write_text
from personae.tables.forecast import Screening
from personae.tables.trait_forecast import TraitForecast

NAME = "screen"


@dataclass(frozen=True, slots=True)
class Settings(ScoringSettings):
    """All settings of a screening."""

    reference: str | None = None
    eta: float | None = None
    fdr: float = DEFAULT_FDR
    fail_on: tuple[str, ...] = ()
    forecaster: str = AUTO
    epochs: float = 1.0
    learning_rate: float | None = None
    _: KW_ONLY
    steps: int | None = None
    batch_size: int = 8
    target: str | None = None
    max_tokens: int = 256
    temperature: float = 1.0
    pilot: bool = False

    def forecast(self) -> ForecastAsked:
        """The forecast that was asked for."""
        return ForecastAsked(
            self.forecaster,
            without_sharpening(self.model),
            self.epochs,
            self.steps,
            self.batch_size,
            self.learning_rate,
            self.truncate,
            self.pilot,
            self.seed,
            self.device,
            self.executor,
            is_edited=bool(self.steer or self.cap),
            quiet=self.quiet,
        )


def command(
    data: opt.Data,
    model: opt.Model = DEFAULT_MODEL,
    cast: opt.CastNames = None,
    only: opt.Only = None,
    paraphrases: opt.Paraphrases = None,
    fail_on: Annotated[
        list[str] | None, typer.Option(help="Gate, e.g. 'contemptuous>0.2'; repeatable. Exit status 1 when one trips.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Your own ordinary replies, rows with a 'group' (topic). Default: built in.")
    ] = None,
    eta: opt.Eta = None,
    fdr: Annotated[float, typer.Option(help="False discovery rate of the flags.")] = DEFAULT_FDR,
    forecaster: opt.Forecaster = AUTO,
    epochs: Annotated[float, typer.Option(help="Of the training that is forecast.")] = 1.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Of that training; instead of --epochs.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Of that training.")] = 8,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of that training, at its height. Default: as `train`, by the kind of rows.")
    ] = None,
    pilot: opt.Pilot = False,
    target: opt.Target = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a target's answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="Temperature of a target's answers.")] = 1.0,
    turns: opt.Turns = "last",
    limit: opt.Limit = None,
    skip_bad_rows: opt.SkipBadRows = False,
    steer: opt.Steer = None,
    cap: opt.Cap = None,
    vectors: opt.Vectors = None,
    truncate: opt.Truncate = False,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    executor: opt.ExecutorName = "serial",
    workers: opt.Workers = None,
    address: opt.Address = None,
    gpus_per_worker: opt.GpusPerWorker = 0.0,
    tokenizer: opt.TokenizerName = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Say which character a training file selects, before you train on it."""
    return execute(
        Settings(
            data,
            model,
            tuple(cast or ("core",)),
            only,
            paraphrases,
            out,
            seed,
            limit,
            turns,
            as_json,
            quiet,
            device,
            dtype,
            truncate,
            skip_bad_rows,
            tuple(steer or ()),
            tuple(cap or ()),
            tuple(vectors or ()),
            reference,
            eta,
            fdr,
            tuple(fail_on or ()),
            forecaster,
            epochs,
            learning_rate,
            steps=steps,
            batch_size=batch_size,
            executor=executor,
            workers=workers,
            address=address,
            gpus_per_worker=gpus_per_worker,
            tokenizer=tokenizer,
            target=target,
            max_tokens=max_tokens,
            temperature=temperature,
            pilot=pilot,
        )
    )


def execute(settings: Settings) -> int:
    """Run a screening and give the exit status."""
    from personae.report.page import render_report  # charts are slow to import, and `--help` needs none

    chosen = ScreenSettings(fdr=settings.fdr, seed=settings.seed)
    if settings.eta is not None:
        chosen = replace(chosen, eta=settings.eta, eta_source="given with --eta")
    inputs = read_inputs(settings)
    asked = settings.forecast()
    check_forecast(asked, inputs.cast, settings.cast, inputs.data.episodes if settings.target is None else None)
    gates = parse_gates(settings.fail_on, [t.id for t in inputs.cast.traits])
    require_weight(inputs.data.episodes)
    ordinary = load_reference(settings.reference)
    _check_target(settings.target)
    folder = make_run_folder(settings.out, NAME)
    with closing(open_workbench(settings)) as bench:
        if settings.eta is None:
            power, source = choose_power(bench.model.card, inputs.whole)
            chosen = replace(chosen, eta=power, eta_source=source)
        episodes, told = inputs.data.episodes, ()
        if settings.target is not None:
            answers = _answers(settings, bench, episodes)
            episodes, told = answers.episodes, (answers.note(settings.target),)
            _write_answers(folder, answers)
        with (
            announced("Reference", quiet=settings.quiet) as first,
            announced("Scoring", quiet=settings.quiet) as second,
        ):
            result, evidence = screen(
                bench.scoring,
                bench.renderer,
                inputs.cast,
                episodes,
                Population(ordinary, None if settings.reference else shipped_rows(bench.space)),
                settings=chosen,
                data=settings.data,
                model=settings.model,
                started=(first, second),
                notes=(*inputs.notes, *told, *_scorer_notes(settings)),
            )
        apart = asked.model != settings.model
        forecast, missed = (None, ()) if apart else _forecast(settings, asked, bench, inputs, episodes, ordinary)
    if apart and is_tried(asked):
        with closing(open_workbench(replace(settings, model=asked.model))) as own:
            forecast, missed = _forecast(settings, asked, own, inputs, episodes, ordinary)
    hashed = [*inputs.paths, *([settings.reference] if settings.reference else [])]
    made = provenance(hashed, seed=settings.seed) | dict(evidence.provenance)
    result = replace(result, provenance=made, training=forecast, notes=(*result.notes, *missed))
    report = folder / "report.html"
    write_text(report, render_report(result))
    _write_ledger(folder, result)
    summary = screening_json(result, report=report, run=folder)
    write_json(folder / "run.json", {"command": NAME, "settings": settings.to_dict(), **made, "result": summary})
    by_id = {t.id: t for t in result.traits}
    tripped = [reason for gate in gates if (reason := gate.trips(by_id[gate.trait]))]
    if settings.json:
        typer.echo(json.dumps(summary | {"gate": tripped}, allow_nan=False))
    elif not settings.quiet:
        print_findings(result, report)
        if forecast is not None:
            print_forecast(forecast)
    for reason in tripped:
        say(f"gate: {reason}", quiet=False)
    return 1 if tripped else 0


def _check_target(name: str | None) -> None:
    """Refuse to screen what a sharpened scorer says."""
    if name is not None:
        require_target(name)


def _scorer_notes(settings: Settings) -> tuple[str, ...]:
    """What does not carry over to a scorer that learnt to tell characters apart."""
    if without_sharpening(settings.model) == settings.model:
        return ()
    return (
        f"{settings.model} learnt to tell characters apart: read traits and rows. The posterior over personas and its "
        '"none of these" rest on likelihoods that it no longer gives.',
    )


def _forecast(
    settings: Settings,
    asked: ForecastAsked,
    bench: Workbench,
    inputs: Inputs,
    episodes: Sequence[Episode],
    ordinary: Sequence[Episode],
) -> tuple[TraitForecast | None, tuple[str, ...]]:
    """A forecast for the model that would be trained, which a sharpened scorer is not; and what to tell of it."""
    # --paraphrases is about scores: past runs were read by all instructions, and so is what they calibrate.
    kept = {t.id for t in inputs.cast.traits}
    cast = Cast(inputs.cast.id, tuple(t for t in inputs.whole.traits if t.id in kept))
    forecast, missed = forecast_file(asked, bench, cast, settings.cast, episodes, ordinary)
    if forecast is not None and asked.model != settings.model:
        missed += (f"The forecast is of a training of {asked.model}, which {settings.model} was made of.",)
    return forecast, missed


def _answers(settings: Settings, bench: Workbench, episodes: Sequence[Episode]) -> Answers:
    """The target's answers to the file's prompts, kept under the home."""
    assert settings.target is not None
    say(f"Asking {settings.target} …", quiet=settings.quiet)
    target = open_target(settings.target, settings, bench)
    plan = SamplingPlan(settings.max_tokens, settings.temperature, settings.seed)
    with counted("Asking", quiet=settings.quiet) as started:
        return ask_target(target, episodes, plan, root=home() / "answers", started=started)


def _write_answers(folder: Path, answers: Answers) -> None:
    """What was said, as a file that every command reads."""
    rows = (
        {
            "id": e.id,
            "messages": [
                *({"role": t.speaker, "content": t.text} for t in e.context),
                {"role": "assistant", "content": e.completion},
            ],
            "weight": e.weight,
            "group": e.group,
        }
        for e in answers.episodes
    )
    write_text(folder / "answers.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_ledger(folder: Path, result: Screening) -> None:
    ledger = result.ledger
    n, k = ledger.llr.shape
    notes = {"unit": "nats, summed over completion tokens", "model": result.model, "cast": result.cast}
    write_table(
        folder / "llr.parquet",
        {
            "episode": [e for e in ledger.episodes for _ in range(k)],
            "line": ledger.line.repeat(k),
            "trait": list(ledger.traits) * n,
            "llr": ledger.llr.ravel(),
            "n_tokens": ledger.n_tokens.repeat(k),
            "excess": ledger.excess.ravel(),
            "z": ledger.z.ravel(),
        },
        notes,
    )
