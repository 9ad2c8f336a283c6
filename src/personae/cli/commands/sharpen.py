"""`personae sharpen`: teach a scorer to tell who would say what, and say on traits left out what it gained."""

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
from personae.cli.training_runs import remember, run_folder_for, training_key
from personae.cli.workbench import say
from personae.domain.diagnostic import DiagnosticSet
from personae.domain.persona import Cast
from personae.files.casts import built_in_casts, load_casts
from personae.files.diagnostics import load_diagnostics, load_texts
from personae.instruments.sharpening import (
    SHARPENING_VERSION,
    SharpeningRecord,
    SharpeningSettings,
    sharpen,
    texts_of,
)
from personae.instruments.trainable import require_trainable
from personae.models.catalogue import DEFAULT_MODEL
from personae.running.progress import training_progress
from personae.running.run import provenance, write_json

NAME = "sharpen"
_FEW = 4  # fewer traits left out show nothing
DEFAULT_CASTS = ("dispositions", "core")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a sharpening; the fields are the options, and what `rerun` reads back."""

    model: str = DEFAULT_MODEL
    cast: tuple[str, ...] = DEFAULT_CASTS
    items: tuple[str, ...] = ()
    only: str | None = None
    steps: int | None = None
    learning_rate: float = 3e-4
    rank: int = 16
    texts: int = 5
    held_out: float = 0.1
    out: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    json: bool = False
    quiet: bool = False

    def sharpening(self) -> SharpeningSettings:
        """Those of the library."""
        return SharpeningSettings(self.steps, self.learning_rate, self.rank, self.texts, self.held_out, self.seed)


def command(
    model: Annotated[str, typer.Argument(help="Scorer to sharpen: see `personae models`.")] = DEFAULT_MODEL,
    cast: Annotated[
        list[str] | None,
        typer.Option(
            "--cast",
            help="Traits to learn from: built-in cast, YAML file or folder; repeatable. Default: dispositions, core.",
        ),
    ] = None,
    items: Annotated[
        list[str] | None,
        typer.Option("--items", help="File of texts by trait, as `measure` takes them. Default: those of the cast."),
    ] = None,
    only: opt.Only = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps, one trait each. Default: twice the traits.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="At its height.")] = 3e-4,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 16,
    texts: Annotated[int, typer.Option(min=1, help="Most texts of either pole in a step.")] = 5,
    held_out: Annotated[float, typer.Option(help="Share of the traits that are left out and judge the result.")] = 0.1,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of the base weights: float32, bfloat16 or float16.")] = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Teach a scorer to tell who would say what: an adapter, and what it gains on traits left out."""
    return execute(
        Settings(
            model=model,
            cast=tuple(cast or DEFAULT_CASTS),
            items=tuple(items or ()),
            only=only,
            steps=steps,
            learning_rate=learning_rate,
            rank=rank,
            texts=texts,
            held_out=held_out,
            out=out,
            seed=seed,
            device=device,
            dtype=dtype,
            json=as_json,
            quiet=quiet,
        )
    )


def execute(settings: Settings) -> int:
    """Sharpen and write the run; give the exit status."""
    chosen = settings.sharpening()  # refuses values out of range before anything is read
    require_trainable(settings.model)
    cast, items, paths = _material(settings)
    texts_of(cast, items)  # so does this, before a model is loaded
    made = provenance(paths, seed=settings.seed)
    key = training_key(asdict(settings) | {"command": NAME, "version": SHARPENING_VERSION}, made["inputs"])
    folder, kept = run_folder_for(key, settings.out, NAME)
    result = kept.get("result") if kept is not None else None
    if isinstance(result, dict):
        say(f"This is done already, in {folder}.", quiet=settings.quiet)
        return _tell(settings, result)
    if kept is not None:
        say(f"Going on in {folder} …", quiet=settings.quiet)
    about = {"command": NAME, "key": key, "settings": asdict(settings), **made}
    write_json(folder / "run.json", about)
    with remember(key, folder):
        say(f"Loading {settings.model} …", quiet=settings.quiet)
        record = _sharpen(settings, chosen, cast, items, folder)
        summary = {"command": NAME, **record.to_dict(), "run": str(folder)}
        write_json(folder / "run.json", about | {"result": summary})
    return _tell(settings, summary)


def _material(settings: Settings) -> tuple[Cast, DiagnosticSet, list[Path]]:
    """The cast, the texts of its traits, and the files both come from."""
    cast = load_casts(settings.cast)
    if settings.only is not None:
        cast = cast.select([n.strip() for n in settings.only.split(",") if n.strip()])
    paths = [built_in_casts().get(c, Path(c)) for c in settings.cast]
    if settings.items:
        return cast, load_diagnostics(files=settings.items), [*paths, *map(Path, settings.items)]
    items, read = load_texts(settings.cast)
    return cast, items, [*paths, *read]


def _sharpen(
    settings: Settings, chosen: SharpeningSettings, cast: Cast, items: DiagnosticSet, folder: Path
) -> SharpeningRecord:
    with ExitStack() as stack:

        def started(n_steps: int) -> Callable[[int, float], None]:
            return stack.enter_context(
                training_progress("Sharpening", n_steps, quiet=settings.quiet, unit="nats a text")
            )

        return sharpen(
            settings.model,
            cast,
            items,
            folder=folder,
            settings=chosen,
            device=settings.device,
            dtype=settings.dtype,
            started=started,
            say=lambda text: say(text, quiet=settings.quiet),
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


def _lines(r: Mapping[str, Any]) -> Iterator[str]:
    went_on = f", going on after step {r['resumed_from']}" if r["resumed_from"] else ""
    gain, low, high = r["gain"]["value"], *r["gain"]["ci"]
    yield (
        f"{r['model']}: {r['n_traits']:,} traits, {r['n_texts']:,} texts, {r['n_steps']:,} steps, "
        f"{r['n_tokens']:,} tokens, {r['seconds']:.0f} s{went_on}"
    )
    yield f"loss          {r['first_loss']:.3f} -> {r['last_loss']:.3f} nats a text (first and last tenth of the steps)"
    yield (
        f"left out      {len(r['held_out'])} traits: AUROC {r['auroc_before']:.3f} -> {r['auroc_after']:.3f}, "
        f"{gain:+.3f} (90% {low:+.3f} to {high:+.3f})"
    )
    if low <= 0 or len(r["held_out"]) < _FEW:
        yield "              No gain is shown: leave out more traits, or sharpen longer, before you use it."
    yield f"adapter       {r['adapter']}"
    yield ""
    yield f"Use it to score, never as the model under study: personae screen DATA --model {shlex.quote(r['use'])}"
