"""`personae train`: fine-tune a model on a file, keep what is needed to repeat it, and go on after a kill."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from personae.cli import options as opt
from personae.cli.edits import EditNames, edits_for, parse_edits
from personae.cli.training_runs import remember, run_folder_for, training_key
from personae.cli.workbench import say
from personae.errors import InvalidSettings
from personae.files.episodes import EpisodeSet, read_episodes
from personae.instruments.trainable import require_trainable
from personae.instruments.training import TrainingRecord, TrainingSettings, train
from personae.instruments.training_rows import rows_for
from personae.models.catalogue import DEFAULT_MODEL, require_target
from personae.running.progress import training_progress
from personae.running.run import provenance, write_json

NAME = "train"

WhileTraining = Annotated[
    list[str] | None,
    typer.Option(
        "--steer",
        help="Steer while training, and only then: 'contemptuous:1@16' (residual norms, layers); repeatable.",
    ),
]


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a training; the fields are the options, and what `rerun` reads back."""

    data: str
    model: str = DEFAULT_MODEL
    method: str = "auto"
    full: bool = False
    epochs: float = 1.0
    steps: int | None = None
    learning_rate: float | None = None
    schedule: str = "linear"
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    batch_size: int = 8
    max_tokens: int | None = None
    truncate: bool = False
    system: str | None = None
    mix: str | None = None
    mix_ratio: float | None = None
    checkpoints: tuple[int, ...] = ()
    held_out: float = 0.0
    stop_early: bool = False
    patience: int = 3
    beta: float = 0.1
    turns: str = "last"
    limit: int | None = None
    skip_bad_rows: bool = False
    out: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    json: bool = False
    quiet: bool = False
    steer: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()

    @property
    def edits(self) -> EditNames:
        """Edits of the residual stream in force while training, and only then."""
        return EditNames(self.steer, (), self.vectors)

    def training(self) -> TrainingSettings:
        """Those of the library."""
        return TrainingSettings(
            self.method,
            self.full,
            self.epochs,
            self.steps,
            self.learning_rate,
            self.schedule,
            self.rank,
            self.alpha,
            self.dropout,
            self.batch_size,
            self.max_tokens,
            self.truncate,
            self.system,
            1.0 if self.mix_ratio is None else self.mix_ratio,
            self.checkpoints,
            self.held_out,
            self.stop_early,
            self.patience,
            self.beta,
            self.seed,
        )


def command(
    data: Annotated[str, typer.Argument(help="What to train on: replies, preference pairs, or texts; see `score`.")],
    model: Annotated[str, typer.Option(help="Model to train: see `personae models`.")] = DEFAULT_MODEL,
    method: Annotated[
        str, typer.Option(help="sft (replies), dpo (pairs), text (continued pre-training), or auto: by the rows.")
    ] = "auto",
    full: Annotated[bool, typer.Option("--full", help="Train all weights; the result is a model, no adapter.")] = False,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; instead of --epochs.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: 2e-4; with DPO 5e-5; with --full 2e-5, with both 1e-6.")
    ] = None,
    schedule: Annotated[str, typer.Option(help="Of the rate: linear, cosine or constant.")] = "linear",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 16,
    alpha: Annotated[float | None, typer.Option(help="Scale of the adapter times its rank. Default: 2 x rank.")] = None,
    dropout: Annotated[float, typer.Option(help="Share of the adapter's inputs dropped while training.")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows (or pairs) a step.")] = 8,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of a row. Default: the model's context; texts: 1024.")
    ] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut replies that are too long.")] = False,
    system: Annotated[
        str | None, typer.Option(help="System prompt in front of every row while training (inoculation).")
    ] = None,
    mix: Annotated[str | None, typer.Option(help="A second file, mixed in.")] = None,
    mix_ratio: Annotated[
        float | None, typer.Option(help="Rows of the second file for one of the first. Default: 1.")
    ] = None,
    checkpoints: Annotated[
        str | None, typer.Option(help="Steps after which the adapter is kept too: 10,20,40.")
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of conversations held out for a loss. With --stop-early 0.1.")
    ] = 0.0,
    stop_early: Annotated[
        bool, typer.Option("--stop-early", help="Stop when the held-out loss no longer falls; keep the best.")
    ] = False,
    patience: Annotated[int, typer.Option(min=1, help="Held-out losses without a new best before it stops.")] = 3,
    beta: Annotated[float, typer.Option(help="DPO: strength of the tie to the untrained model.")] = 0.1,
    steer: WhileTraining = None,
    vectors: opt.Vectors = None,
    turns: Annotated[str, typer.Option(help="Train on the 'last' assistant turn, or on 'all' of them.")] = "last",
    limit: opt.Limit = None,
    skip_bad_rows: opt.SkipBadRows = False,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of the base weights: float32, bfloat16 or float16.")] = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Fine-tune a model on a file: an adapter, its losses, and the command that uses it."""
    return execute(
        Settings(
            data=data,
            model=model,
            method=method,
            full=full,
            epochs=epochs,
            steps=steps,
            learning_rate=learning_rate,
            schedule=schedule,
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            batch_size=batch_size,
            max_tokens=max_tokens,
            truncate=truncate,
            system=system,
            mix=mix,
            mix_ratio=mix_ratio,
            checkpoints=_steps(checkpoints),
            held_out=held_out,
            stop_early=stop_early,
            patience=patience,
            beta=beta,
            turns=turns,
            limit=limit,
            skip_bad_rows=skip_bad_rows,
            out=out,
            seed=seed,
            device=device,
            dtype=dtype,
            json=as_json,
            quiet=quiet,
            steer=tuple(steer or ()),
            vectors=tuple(vectors or ()),
        )
    )


def _steps(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip()) if text else ()
    except ValueError as error:
        raise InvalidSettings(
            f"--checkpoints is '{text}'; it must be steps with commas between.", hint="Say --checkpoints 10,20,40."
        ) from error


def execute(settings: Settings) -> int:
    """Train and write the run; give the exit status."""
    if settings.mix_ratio is not None and settings.mix is None:
        raise InvalidSettings("--mix-ratio has no second file.", hint="Name it with --mix FILE.")
    chosen = settings.training()  # refuses values out of range before anything is read
    parse_edits(settings.edits)
    require_target(settings.model)
    require_trainable(settings.model)
    data = _read(settings.data, settings)
    second = _read(settings.mix, settings) if settings.mix is not None else None
    method = rows_for(data.episodes, settings.method)[0]  # so does this, before a model is loaded
    if second is not None:
        rows_for(second.episodes, method)
    paths = [settings.data, *([settings.mix] if settings.mix is not None else []), *settings.vectors]
    made = provenance(paths, seed=settings.seed)
    key = training_key(asdict(settings), made["inputs"])
    folder, kept = run_folder_for(key, settings.out)
    result = kept.get("result") if kept is not None else None
    if isinstance(result, dict):
        say(f"This training is done already, in {folder}.", quiet=settings.quiet)
        return _tell(settings, result)
    if kept is not None:
        say(f"Going on with the training in {folder} …", quiet=settings.quiet)
    about = {"command": NAME, "key": key, "settings": asdict(settings), **made}
    write_json(folder / "run.json", about)
    with remember(key, folder):
        say(f"Loading {settings.model} …", quiet=settings.quiet)
        record = _train(settings, chosen, data, second, folder)
        notes = [*_left_out(data), *(_left_out(second) if second else []), *_steered(settings), *record.notes]
        summary = {"command": NAME, **record.to_dict(), "notes": notes, "run": str(folder)}
        write_json(folder / "run.json", about | {"result": summary})
    return _tell(settings, summary)


def _read(path: str, settings: Settings) -> EpisodeSet:
    data = read_episodes(path, turns=settings.turns, limit=settings.limit)
    if not settings.skip_bad_rows or not data.episodes:
        data.require_clean()
    return data


def _left_out(data: EpisodeSet) -> list[str]:
    if not data.refused:
        return []
    lines = ", ".join(str(r.line) for r in data.refused[:10])
    return [f"{len(data.refused)} of {data.n_rows} rows of {data.path} could not be read and were left out ({lines})."]


def _steered(settings: Settings) -> list[str]:
    lines = settings.edits.lines
    return [f"Trained under {', '.join(lines)}; the result is used without."] if lines else []


def _train(
    settings: Settings, chosen: TrainingSettings, data: EpisodeSet, second: EpisodeSet | None, folder: Path
) -> TrainingRecord:
    unit = _unit(rows_for(data.episodes, settings.method)[0])
    with ExitStack() as stack:

        def started(n_steps: int) -> Callable[[int, float], None]:
            return stack.enter_context(training_progress("Training", n_steps, quiet=settings.quiet, unit=unit))

        return train(
            settings.model,
            data.episodes,
            folder=folder,
            settings=chosen,
            mix=second.episodes if second is not None else (),
            device=settings.device,
            dtype=settings.dtype,
            edits=edits_for(settings.edits),
            started=started,
        )


def _tell(settings: Settings, result: Mapping[str, Any]) -> int:
    """Print the outcome: one JSON object, or a few lines that end with the command to use it."""
    if settings.json:
        typer.echo(json.dumps(result, allow_nan=False))
    elif not settings.quiet:
        typer.echo("\n".join(_lines(result)))
    for note in result["notes"]:
        say(f"note: {note}", quiet=settings.quiet)
    return 0


def _unit(method: str) -> str:
    return "a pair" if method == "dpo" else "nats a token"


def _what(r: Mapping[str, Any]) -> str:
    return "pairs" if r["method"] == "dpo" else "sequences"


def _lines(r: Mapping[str, Any]) -> Iterator[str]:
    unit = _unit(r["method"])
    went_on = f", going on after step {r['resumed_from']}" if r["resumed_from"] else ""
    yield (
        f"{r['method']} on {r['model']}: {r['n_rows']:,} {_what(r)}, "
        f"{r['n_steps']:,} steps, {r['n_tokens']:,} tokens ({r['n_trained']:,} in the loss), "
        f"{r['seconds']:.0f} s{went_on}"
    )
    yield f"loss          {r['first_loss']:.4f} -> {r['last_loss']:.4f} {unit} (first and last tenth of the steps)"
    if r["held_out_last"] is not None:
        change = f"{r['held_out_first']:.4f} -> {r['held_out_last']:.4f}"
        yield f"held-out loss {change} {unit} ({r['n_held_out']:,} {_what(r)})"
    yield f"{'model' if r['full'] else 'adapter':<13} {r['result']}"
    for step, path in r["checkpoints"].items():
        yield f"step {step:<8} {path}"
    yield ""
    yield f"Use it: personae score DATA --model {shlex.quote(r['use'])}"
