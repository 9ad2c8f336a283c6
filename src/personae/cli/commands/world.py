"""`personae world`: worlds whose true answer is known: make, train, check, show, exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from personae.cli import options as opt
from personae.cli.workbench import say
from personae.cli.world_exact import exact_answer, print_exact
from personae.cli.world_models import checked, keep_check, make, print_check, require_world, state_of
from personae.errors import BackendError
from personae.models.catalogue import home, training_record
from personae.running.run import write_text
from personae.worlds.folder import made_worlds
from personae.worlds.reading import shipped_worlds

NAME = "world"

app = typer.Typer(
    help="Small worlds in which the true answer is known: make, train, check, show, exact.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Spec = Annotated[str, typer.Argument(help="A shipped world (`personae world list`) or a YAML spec.")]
Name = Annotated[str, typer.Argument(help="A world: shipped, or made here before.")]


@app.command("list")
def list_worlds(as_json: opt.AsJson = False) -> int:
    """List the shipped worlds and those made here, and whether they are trained."""
    names = sorted({*shipped_worlds(), *made_worlds(home())})
    rows = [state_of(name) for name in names]
    if as_json:
        typer.echo(json.dumps({"command": "world list", "worlds": rows, "home": str(home())}))
        return 0
    for row in rows:
        typer.echo(f"{row['name']:<14}{row['state']:<12}{row['description']}")
    typer.echo("\nworld:NAME is the trained model, world:NAME/base the one before post-training, world:NAME/exact the")
    typer.echo("closed form, which needs no training.")
    return 0


@app.command("make")
def make_world(spec: Spec, as_json: opt.AsJson = False, quiet: opt.Quiet = False) -> int:
    """Write a world's folder: spec, truth labels, a cast and example files in its words."""
    world, folder, files = make(spec)
    result = {
        "command": "world make",
        "world": world.id,
        "folder": str(folder),
        "cast": str(folder / "cast.yaml"),
        "reference": str(folder / "reference.jsonl"),
        "files": [str(folder / f) for f in files],
        "digest": world.digest,
    }
    if as_json:
        typer.echo(json.dumps(result))
    elif not quiet:
        typer.echo(f"{world.id}: {world.n_personas} personas, {world.n_questions} questions in {folder}")
        for file in files:
            typer.echo(f"  {file}")
        example = next(f for f in files if "-in-" in f and "control" not in f)
        typer.echo("\nTry it, without training, on the closed form:")
        typer.echo(
            f"  personae screen {folder / example} --model world:{world.id}/exact --cast {folder / 'cast.yaml'} "
            f"--reference {folder / 'reference.jsonl'}"
        )
    return 0


@app.command("train")
def train(spec: Spec, seed: opt.Seed = 0, as_json: opt.AsJson = False, quiet: opt.Quiet = False) -> int:
    """Train a world's small transformer on the CPU; the same command goes on after an interruption."""
    from personae.protocols.world_training import train_world
    from personae.running.progress import training_progress

    world, _, _ = make(spec)
    target = train_world(
        world,
        home(),
        seed=seed,
        started=lambda label, steps: training_progress(label, steps, quiet=quiet),
        say=lambda text: say(text, quiet=quiet),
    )
    record = training_record(target)
    result = {"command": "world train", "world": world.id, "model": f"world:{world.id}", "folder": str(target)}
    timing = {k: record.get(k) for k in ("seed", "steps", "seconds", "cpu_seconds")}
    if as_json:
        typer.echo(json.dumps(result | timing))
    elif not quiet:
        typer.echo(f"world:{world.id} is in {target} ({timing['steps']} steps, {timing['cpu_seconds']} CPU seconds).")
        typer.echo(f"Check it before you believe what it shows: personae world check {world.id}")
    return 0


@app.command("check")
def check(name: Name, seed: opt.Seed = 0, as_json: opt.AsJson = False, quiet: opt.Quiet = False) -> int:
    """Hold a trained world against its exact answer, row by row. Exit status 3 when a row fails."""
    result = checked(name, seed=seed, quiet=quiet or as_json)
    keep_check(result)
    if as_json:
        typer.echo(json.dumps({"command": "world check", **result.to_dict(), "failed": list(result.failed)}))
    elif not quiet:
        print_check(result)
    if result.failed:
        raise BackendError(
            f"'{result.model}' fails {len(result.failed)} of its checks: {', '.join(result.failed)}.",
            hint="The world is undertrained: do not interpret what is measured in it. Train longer "
            "(training.steps in a spec of your own).",
        )
    return 0


@app.command("show")
def show(
    name: Name,
    out: Annotated[str | None, typer.Option("--out", help="File to write. Default: world.html in its folder.")] = None,
    seed: opt.Seed = 0,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Write a page: the world, its truth, and the trained model against it where there is one."""
    from personae.cli.world_models import view_of
    from personae.report.world_page import render_world  # charts are slow to import

    world = require_world(name)
    folder = make(name)[1]
    path = Path(out) if out else folder / "world.html"
    write_text(path, render_world(view_of(world, seed=seed, quiet=quiet or as_json)))
    if as_json:
        typer.echo(json.dumps({"command": "world show", "world": world.id, "page": str(path)}))
    elif not quiet:
        typer.echo(str(path))
    return 0


@app.command("exact")
def exact(
    name: Name,
    context: Annotated[
        str, typer.Argument(help="Turns so far, in the world's words: 'advice-0? advice-0b'. Empty: none.")
    ] = "",
    frame: Annotated[str | None, typer.Option(help="Frame of the document. Default: the chat frame.")] = None,
    tag: Annotated[str | None, typer.Option(help="Word in the tag slot. Default: empty.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Episodes as training evidence: their weights count, negative ones against.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Before post-training.")] = False,
    limit: opt.Limit = None,
    as_json: opt.AsJson = False,
) -> int:
    """Print the exact posterior over who speaks, and the exact answer to every question, by enumeration."""
    world = require_world(name)
    answer = exact_answer(world.base if base else world, context, frame=frame, tag=tag, data=data, limit=limit)
    if as_json:
        typer.echo(json.dumps({"command": "world exact", "world": world.id, **answer}, allow_nan=False))
    else:
        print_exact(answer)
    return 0
