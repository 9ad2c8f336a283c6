"""What the commands of `personae world` share: from a name to a world, its folder, its model and its check."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli.workbench import say
from personae.errors import ModelNotFound
from personae.models.catalogue import home, resolve, training_record
from personae.models.load import load_model
from personae.models.protocol import LanguageModel
from personae.protocols.world_check import States, check_world
from personae.report.text import clean
from personae.running.run import write_json
from personae.tables.world_check import CHECK_VERSION, FAILS, WorldCheck
from personae.worlds.assistant import truth_of
from personae.worlds.exact import ExactWorld
from personae.worlds.explained import explain, heterogeneity
from personae.worlds.folder import find_world, made_worlds, world_folder, write_world
from personae.worlds.material import example_document, material_of
from personae.worlds.reading import read_world, shipped_worlds
from personae.worlds.spec import World

if TYPE_CHECKING:
    from personae.report.world_page import WorldView

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
    """Check a world's base, and its Assistant where it has one: NAME for the trained models, NAME/exact.

    Raises:
        ModelNotFound: If there is no such world, or it is not trained.
        CorruptModel: If its files are damaged.
    """
    which, *rest = name.removeprefix("world:").split("/")
    is_exact = rest[-1:] == ["exact"]
    ending = "/exact" if is_exact else ""
    source = resolve(f"world:{which}/base{ending}")
    whole = resolve(f"world:{which}{ending}")
    assert source.world is not None
    assert whole.world is not None
    say(f"Checking world:{which}{ending} against its exact answer …", quiet=quiet)
    model = load_model(source.name, device="cpu")
    states = None if is_exact else _states_of(model)
    losses = () if source.path is None else _pairs(training_record(source.path).get("losses", ()))
    bar = TINY_BAR if source.world.id == "tiny" else BAR
    assistant = None
    if whole.world.assistant is not None and rest[:1] != ["base"]:
        assistant = (load_model(whole.name, device="cpu"), ExactWorld(whole.world))
    result = check_world(
        model, ExactWorld(source.world), seed=seed, kl_bar=bar, states=states, losses=losses, assistant=assistant
    )
    return replace(result, model=whole.name)


def _states_of(model: LanguageModel) -> States:
    """What reads the last block of a trained model."""
    from personae.models.hf import HFModel
    from personae.models.hf_world import last_block_states

    assert isinstance(model, HFModel)
    return partial(last_block_states, model)


def _pairs(value: object) -> list[tuple[int, float]]:
    """Steps and losses of a training record."""
    return [(int(s), float(v)) for s, v in value] if isinstance(value, (list, tuple)) else []


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


def view_of(world: World, *, seed: int, quiet: bool) -> WorldView:
    """What the page of a world shows; the check is the stored one, or made now where the model is trained."""
    from personae.report.world_page import WorldView  # charts are slow to import

    folder = world_folder(home(), world.id)
    exact, base = ExactWorld(world), ExactWorld(world.base)
    record = training_record(folder / "base")
    check: WorldCheck | None = None
    last = training_record(folder / ("base" if world.assistant is None else "assistant"))
    if record.get("digest") == world.base.digest and last.get("digest") == world.digest:
        check = _stored(folder, world) or checked(world.id, seed=seed, quiet=quiet)
        keep_check(check)
    return WorldView(
        world,
        truth_of(world, base.base),
        example_document(base),
        check,
        _explained(exact, base) if world.assistant is not None else (),
        [(k.replace("_", " "), str(v)) for k, v in record.items() if k not in ("losses", "digest")],
        f"Train it: personae world train {world.id}",
    )


def keep_check(check: WorldCheck) -> None:
    """Store a check of trained models beside them, with what it was a check of."""
    folder = world_folder(home(), check.world)
    if "/" not in check.model and folder.is_dir():
        write_json(folder / "check.json", check.to_dict() | {"of": _checked_state(require_world(check.world))})


def _checked_state(world: World) -> list[object]:
    folder = world_folder(home(), world.id)
    return [CHECK_VERSION, *(training_record(folder / stage) for stage in ("base", "assistant"))]


def _stored(folder: Path, world: World) -> WorldCheck | None:
    """The check that was stored for these very trainings, if there is one."""
    try:
        value = json.loads((folder / "check.json").read_text(encoding="utf-8"))
        return WorldCheck.from_dict(value) if value["of"] == _checked_state(world) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _explained(exact: ExactWorld, base: ExactWorld) -> list[tuple[str, str]]:
    found, spread = explain(exact, base), heterogeneity(exact, base)
    top = np.argsort(-found.weights)[:3]
    mix = ", ".join(f"{found.weights[k]:.0%} {base.world.persona_ids[k]}" for k in top if found.weights[k] >= 0.005)
    return [
        ("from the base", f"{found.kl_base:.4f} nats an answer"),
        ("from the best mixture of personas", f"{found.kl_mixture:.4f} ± {found.standard_error:.4f} nats an answer"),
        ("explained by that mixture", f"{found.share:.0%}" if np.isfinite(found.share) else "nothing to explain"),
        ("the mixture", mix),
        ("Λ, domains wanting other mixtures", f"{spread.between_domains:.0f} ({spread.n:,} single answers)"),
        ("residual, what no mixture gives", f"{spread.residual:.0f}"),
    ]
