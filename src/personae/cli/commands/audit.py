"""`personae audit`: how much of what post-training changed do personas explain, and what does the rest look like?"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from personae.cli import options as opt
from personae.cli.audit_files import load_log, save_log
from personae.cli.audit_findings import audit_json, print_audit, print_trend
from personae.cli.workbench import say
from personae.domain.persona import Cast
from personae.errors import InvalidSettings
from personae.files.audit_prompts import read_prompts
from personae.files.casts import load_casts
from personae.inference.trend import changes
from personae.instruments.keeping import Shelf, keep
from personae.models.catalogue import home, require_target, resolve
from personae.models.load import load_model
from personae.models.protocol import LanguageModel
from personae.models.soft_prompt import MOST_VECTORS, SoftPromptPlan
from personae.protocols.audit import AuditLog, measure
from personae.protocols.audit_conclusions import conclude, trend_values
from personae.protocols.audit_material import (
    FULL,
    QUICK,
    WORLD,
    WORLD_QUICK,
    Material,
    Size,
    built_in_material,
    world_material,
)
from personae.protocols.audit_parties import parties
from personae.running.progress import progress_bar
from personae.running.run import make_run_folder, provenance, write_json, write_text
from personae.tables.audit import Audit
from personae.worlds.spec import World

NAME = "audit"
DEFAULT_ROLES = (
    "helpful_assistant",
    "customer_service_bot",
    "teacher",
    "software_engineer",
    "scientist",
    "nurse",
    "pirate",
    "hermit_sage",
    "con_artist",
    "rogue_ai",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of an audit."""

    post: str
    base: str
    cast: tuple[str, ...] = ()
    only: str | None = None
    paraphrases: int = 1
    again: str | None = None
    soft_prompt: int | None = None
    prompts: str | None = None
    quick: bool = False
    limit: int | None = None
    out: str | None = None
    seed: int = 0
    json: bool = False
    quiet: bool = False
    device: str = "auto"
    dtype: str = "float32"


def command(
    post: Annotated[
        list[str], typer.Argument(help="The post-trained model. With --track or --rebuild: run folders of audits.")
    ],
    base: Annotated[str | None, typer.Option(help="The model it was trained from.")] = None,
    cast: Annotated[
        list[str] | None,
        typer.Option("--cast", help="Personas. Default: ten roles of core; in a world its exact personas."),
    ] = None,
    only: opt.Only = None,
    paraphrases: Annotated[int, typer.Option(min=1, help="Instructions used of each persona.")] = 1,
    again: Annotated[
        str | None, typer.Option(help="The same post-training with another seed: the noise ceiling R7.")
    ] = None,
    soft_prompt: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_VECTORS,
            help="Vectors of the soft prompt of rung R6; 0 leaves it out. Default: 4, or 0 with --quick.",
        ),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Your own prompts: .txt, one a line, or .jsonl with prompt and topic.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts and controls, wider intervals.")] = False,
    track: Annotated[
        bool, typer.Option("--track", help="Compare finished audits in order: what changed at which checkpoint.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make result and page of a finished audit again from its log.")
    ] = False,
    limit: opt.Limit = None,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Say how much of what post-training changed personas explain, and what the rest looks like."""
    if track and rebuild:
        raise InvalidSettings("--track and --rebuild are two different things.", hint="Give one of them.")
    if track:
        return _track(post, out, as_json=as_json, quiet=quiet)
    if len(post) != 1:
        raise InvalidSettings(f"{len(post)} models were named; an audit is of one.", hint="--track takes several.")
    if rebuild:
        return _rebuild(Path(post[0]), as_json=as_json, quiet=quiet)
    if base is None:
        raise InvalidSettings("an audit needs --base, the model that was post-trained.")
    return execute(
        Settings(
            post[0],
            base,
            tuple(cast or ()),
            only,
            paraphrases,
            again,
            soft_prompt,
            prompts,
            quick,
            limit,
            out,
            seed,
            as_json,
            quiet,
            device,
            dtype,
        )
    )


def execute(settings: Settings) -> int:
    """Run an audit and give the exit status."""
    world = _common_world(settings)
    cast, paths = _cast_of(settings, world)
    own = read_prompts(settings.prompts, limit=settings.limit) if settings.prompts else None
    size = _size(settings, world)
    material = _material(world, size, own, settings)
    for name in (settings.post, settings.base, *([settings.again] if settings.again else [])):
        require_target(name)  # an unknown name is told before anything is loaded
    folder = make_run_folder(settings.out, NAME)
    shelf = Shelf(home() / "passes")
    taking_part = parties(
        _load(settings.post, settings, shelf),
        _load(settings.base, settings, shelf),
        cast,
        world=world,
        again=_load(settings.again, settings, shelf) if settings.again else None,
        paraphrases=settings.paraphrases,
    )
    hashed = [*paths, *([settings.prompts] if settings.prompts else [])]
    made = provenance(hashed, seed=settings.seed) | {
        "post": taking_part.post.model.card.to_dict(),
        "base": taking_part.base.model.card.to_dict(),
    }
    with ExitStack() as stack:

        def started(label: str, total: int) -> Callable[[int], None]:
            stack.close()  # one bar at a time
            return stack.enter_context(progress_bar(label, total, quiet=settings.quiet or settings.json, unit="steps"))

        log = measure(
            taking_part,
            material,
            size,
            cast=cast,
            seed=settings.seed,
            soft=_soft(settings, world),
            started=started,
            shelf=shelf,
        )
    log.facts.update(post=settings.post, base=settings.base, cast=cast.id if cast else "the world's personas")
    log.facts["provenance"] = made
    save_log(folder, log)
    shelf.clear()
    write_json(folder / "run.json", {"command": NAME, "settings": asdict(settings), **made})
    return _finish(log, folder, as_json=settings.json, quiet=settings.quiet)


def _finish(log: AuditLog, folder: Path, *, as_json: bool, quiet: bool) -> int:
    """Conclude from the log, write result and page, and print."""
    from personae.report.audit_page import render_audit  # charts are slow to import

    made = log.facts.get("provenance")
    result: Audit = conclude(log, provenance=made if isinstance(made, dict) else None)
    report = folder / "report.html"
    write_text(report, render_audit(result))
    summary = audit_json(result, report=report, run=folder)
    write_json(folder / "audit.json", summary)
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not quiet:
        print_audit(result, report)
    return 0


def _rebuild(folder: Path, *, as_json: bool, quiet: bool) -> int:
    return _finish(load_log(folder), folder, as_json=as_json, quiet=quiet)


def _track(folders: list[str], out: str | None, *, as_json: bool, quiet: bool) -> int:
    if len(folders) < 2:
        raise InvalidSettings("--track compares at least two audits.", hint="personae audit --track runs/a runs/b")
    logs = [load_log(Path(f)) for f in folders]
    found = changes([trend_values(conclude(log)) for log in logs])
    summary = {
        "command": "audit",
        "checkpoints": [{"run": f, "post": log.facts.get("post")} for f, log in zip(folders, logs, strict=True)],
        "changes": [asdict(c) for c in found],
        "found": sum(c.is_found for c in found),
    }
    if out is not None:
        write_json(make_run_folder(out, NAME) / "track.json", summary)
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not quiet:
        print_trend([str(log.facts.get("post", f)) for f, log in zip(folders, logs, strict=True)], found)
    return 0


def _load(name: str, settings: Settings, shelf: Shelf) -> LanguageModel:
    say(f"Loading {name} …", quiet=settings.quiet or settings.json)
    return keep(load_model(name, device=settings.device, dtype=settings.dtype), shelf)


def _soft(settings: Settings, world: World | None) -> SoftPromptPlan | None:
    """How the soft prompt is learned. Training costs as much as several personas, but in a world next to nothing."""
    n = settings.soft_prompt
    if n is None:
        n = 0 if settings.quick and world is None else SoftPromptPlan().n_vectors
    return SoftPromptPlan(n, seed=settings.seed) if n else None


def _common_world(settings: Settings) -> World | None:
    """The world that both models are of."""
    worlds = [resolve(name).world if name.startswith("world:") else None for name in (settings.post, settings.base)]
    return worlds[0] if all(worlds) else None


def _cast_of(settings: Settings, world: World | None) -> tuple[Cast | None, list[str]]:
    if world is not None and not settings.cast:
        return None, []
    cast = load_casts(settings.cast or ("core",))
    names = [n.strip() for n in (settings.only or "").split(",") if n.strip()]
    if names:
        cast = cast.select(names)
    elif not settings.cast:
        cast = cast.select(DEFAULT_ROLES)
    return cast, [c for c in settings.cast if Path(c).exists()]


def _size(settings: Settings, world: World | None) -> Size:
    if world is not None:
        return WORLD_QUICK if settings.quick else WORLD
    return QUICK if settings.quick else FULL


def _material(world: World | None, size: Size, own: list[tuple[str, str]] | None, settings: Settings) -> Material:
    if world is not None and own is None:
        return world_material(world, size, seed=settings.seed)
    return built_in_material(size, prompts=own, seed=settings.seed)
