"""What the commands of `personae world` share: from a name to a world, its folder, its model and its check."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli.workbench import say
from personae.errors import ModelNotFound
from personae.models.catalogue import home, resolve, training_record
from personae.models.load import load_model
from personae.protocols.world_check import States, check_world
from personae.report.text import clean
from personae.tables.world_check import FAILS, WorldCheck
from personae.worlds.assistant import truth_of
from personae.worlds.exact import ExactWorld
from personae.worlds.folder import find_world, made_worlds, world_folder, write_world
from personae.worlds.material import material_of
from personae.worlds.reading import read_world, shipped_worlds
from personae.worlds.spec import World

TINY_BAR, BAR = 0.02, 0.010  # nats an answer; methods, section 7


def require_world(name: str) -> World:
    """The world of that name, shipped or made here.

    Raises:
        ModelNotFound: If there is none.
    """
    world = find_world(home(), name.removeprefix("world:"))
    if world is None:
        known = sorted({*shipped_worlds(), *made_worlds(home())})
        raise ModelNotFound(
            f"there is no world '{name}'.",
            hint=f"Worlds: {', '.join(known)}. `personae world make SPEC` makes one from a YAML spec.",
        )
    return world


def make(spec: str) -> tuple[World, Path, list[str]]:
    """Write the folder of a shipped world, of one made before, or of a YAML spec; give world, folder and files."""
    made = spec in made_worlds(home()) and spec not in shipped_worlds() and not Path(spec).is_file()
    world = require_world(spec) if made else read_world(spec)
    exact = ExactWorld(world.base)
    files = material_of(exact)
    folder = write_world(home(), world, truth_of(world, exact.base), files)
    return world, folder, ["world.json", "truth.json", *files]


def state_of(name: str) -> dict[str, object]:
    """Whether a world is trained, made, or neither."""
    world = require_world(name)
    folder = world_folder(home(), name)
    last = folder / ("base" if world.assistant is None else "assistant")
    trained = training_record(last).get("digest") == world.digest
    state = "trained" if trained else "made" if folder.is_dir() else "shipped"
    return {
        "name": name,
        "state": state,
        "kind": "base" if world.assistant is None else world.assistant.kind,
        "description": world.description,
        "folder": str(folder),
    }


def checked(name: str, *, seed: int, quiet: bool) -> WorldCheck:
    """Check the base of a world: world:NAME[/base][/exact], or NAME for the trained one."""
    model_name = name if name.startswith("world:") else f"world:{name}"
    if "/base" not in model_name:
        head, *rest = model_name.split("/")
        model_name = "/".join([head, "base", *rest])
    source = resolve(model_name)
    assert source.world is not None
    say(f"Checking {model_name} against its exact answer …", quiet=quiet)
    model = load_model(model_name, device="cpu")
    states: States | None = None
    if source.kind == "world":
        from personae.models.hf import HFModel
        from personae.models.hf_world import last_block_states

        assert isinstance(model, HFModel)
        loaded = model
        states = lambda ids: last_block_states(loaded, ids)  # noqa: E731
    bar = TINY_BAR if source.world.id == "tiny" else BAR
    return check_world(model, ExactWorld(source.world), seed=seed, kl_bar=bar, states=states)


def print_check(result: WorldCheck) -> None:
    """One row a check."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "measured", "accepted if"):
        table.add_column(column)
    for row in result.rows:
        style = "bold red" if row.verdict == FAILS else ""
        table.add_row(
            Text(row.verdict, style=style), Text(row.id), Text(clean(row.value or row.note)), Text(row.accept)
        )
    console.print(table)
    typer.echo(f"\n{result.model}: {'undertrained' if result.failed else 'every row that was run passes'}.")
