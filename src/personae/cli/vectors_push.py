"""`personae vectors push`: the shift of the stream that moves a trait most for what it costs ordinary text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli import options as opt
from personae.cli.traits import labels_of, load_items
from personae.cli.workbench import open_model, say
from personae.files.reference import load_reference, reference_path
from personae.inference.push import COST, JudgedPush
from personae.models.activations import require_activations
from personae.models.catalogue import DEFAULT_MODEL, home, require_target
from personae.numerics.clustered import cluster_mean
from personae.protocols.push import make_push, ordinary_gradients
from personae.report.text import clean
from personae.running.progress import progress_bar
from personae.running.run import make_run_folder, provenance, write_json
from personae.tables.space import PersonaVector

NAME = "vectors push"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings."""

    model: str = DEFAULT_MODEL
    cast: str = "core"
    only: str | None = None
    items: tuple[str, ...] = ()
    ordinary: str | None = None
    n_ordinary: int = 60
    out: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    json: bool = False
    quiet: bool = False


def push(
    model: opt.Model = DEFAULT_MODEL,
    cast: Annotated[str, typer.Option(help="Cast whose diagnostic items are used.")] = "core",
    only: Annotated[str | None, typer.Option(help="Comma-separated traits, no others.")] = None,
    items: Annotated[
        list[str] | None, typer.Option(help="Your own diagnostic items instead of the cast's; repeat to join.")
    ] = None,
    ordinary: Annotated[
        str | None, typer.Option(help="Ordinary replies whose fluency is the cost, with a 'group'. Default: built in.")
    ] = None,
    n_ordinary: Annotated[int, typer.Option("--n-ordinary", min=8, help="Ordinary replies that are read.")] = 60,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Make vectors for steering from gradients: most effect on written replies for the least cost to ordinary ones."""
    return execute(
        Settings(model, cast, only, tuple(items or ()), ordinary, n_ordinary, out, seed, device, dtype, as_json, quiet)
    )


def execute(settings: Settings) -> int:
    """Make the vectors, keep them for --steer, and give the exit status."""
    from personae.models.hf_vectors import library_path, save_vectors

    source = load_items(settings.model, settings.cast, settings.items, settings.only)
    reference = load_reference(settings.ordinary)
    require_target(settings.model)
    folder = make_run_folder(settings.out, NAME.replace(" ", "-"))
    say(f"Loading {settings.model} …", quiet=settings.quiet)
    bench = open_model(settings.model, device=settings.device, dtype=settings.dtype)
    model = require_activations(bench.model)
    step = max(1, len(reference) // settings.n_ordinary)
    some = reference[::step][: settings.n_ordinary]
    topics = list(dict.fromkeys(e.group for e in some))
    made: dict[str, PersonaVector] = {}
    rows: list[dict[str, object]] = []
    traits = source.items.traits
    with progress_bar("Differentiating", len(some) + len(traits), quiet=settings.quiet, unit="parts") as done:
        halves = [[e for e in some if topics.index(e.group) % 2 == k] for k in (0, 1)]
        first, second = (ordinary_gradients(model, bench.renderer, half, advance=done) for half in halves)
        for k, trait in enumerate(traits):
            rng = np.random.default_rng([settings.seed, 81, k])
            vector, judged = make_push(
                model, bench.renderer, trait, source.items.items, (first, second),
                positive=labels_of(source)[trait][0], rng=rng,
            )  # fmt: skip
            made[vector.id] = vector
            asked = [i.topic for i in source.items.items if (i.trait, i.kind, i.split) == (trait, "reply", "test")]
            rows.append(_row(vector, judged, asked))
            done(1)
    path = save_vectors(folder / "vectors.safetensors", made)
    kept = save_vectors(library_path(home(), bench.model.card), made, keep=True)
    inputs = [*source.paths, settings.ordinary or str(reference_path())]
    record = provenance(inputs, seed=settings.seed) | {"model_card": bench.model.card.to_dict()}
    summary = {
        "command": NAME,
        "model": settings.model,
        "cost": COST,
        "unit": "nats a token, predicted to second order",
        "n_ordinary": [len(h) for h in halves],
        "vectors": rows,
        "file": str(path),
        "kept": str(kept),
        "run": str(folder),
    }
    write_json(folder / "run.json", {"command": NAME, "settings": asdict(settings), **record, "result": summary})
    if settings.json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not settings.quiet:
        _print(rows, path)
    return 0


def _row(vector: PersonaVector, judged: JudgedPush, topics: list[str]) -> dict[str, object]:
    spread = cluster_mean(judged.effects, topics, level=0.95)
    return {
        "id": vector.id,
        "positive": vector.positive,
        "best_layer": vector.best_layer,
        "effect": spread.value,
        "low": spread.low,
        "high": spread.high,
        "null_high": judged.high,
        "p": judged.p,
        "n_test": len(judged.effects),
    }


def _print(rows: list[dict[str, object]], path: Path) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("vector", "layer", "effect", "95% interval", "swapped", "p", "items"):
        table.add_column(column, justify="left" if column == "vector" else "right", no_wrap=True)
    for r in rows:
        table.add_row(
            Text(clean(str(r["id"]))), str(r["best_layer"]), f"{r['effect']:+.3f}", f"{r['low']:+.3f} {r['high']:+.3f}",
            f"{r['null_high']:+.3f}", f"{r['p']:.3g}", str(r["n_test"]),
        )  # fmt: skip
    console.print(table)
    console.print(
        Text(
            f"effect: gain of the log-odds of held-out replies that the push at its layer promises where ordinary "
            f"replies lose {COST:g} nats a token; to second order, so measure a dose with `personae vectors steer`. "
            "swapped: what 97.5 % of test items with swapped poles stay below.",
            style="dim",
        )
    )
    console.print(Text(f"\nVectors: {path}"), soft_wrap=True)
