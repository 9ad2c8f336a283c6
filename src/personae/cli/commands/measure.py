"""`personae measure`: where a model stands on every trait, without a judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from personae.cli import options as opt
from personae.cli.edits import EditNames, parse_edits
from personae.cli.traits import Source, labels_of, load_items, print_profile, profile_json
from personae.cli.workbench import announced, open_model, say
from personae.errors import InvalidSettings
from personae.models.catalogue import require_target
from personae.protocols.measure import MeasureSettings, compare_profiles, measure
from personae.running.run import make_run_folder, provenance, write_json, write_table, write_text
from personae.tables.traits import TraitProfile

NAME = "measure"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a measurement; the fields are the options, and what `rerun` reads back."""

    model: str
    cast: str = "core"
    only: str | None = None
    items: tuple[str, ...] = ()
    system: str = ""
    versus: str | None = None
    split: str | None = None
    quick: bool = False
    out: str | None = None
    seed: int = 0
    json: bool = False
    quiet: bool = False
    device: str = "auto"
    dtype: str = "float32"
    steer: tuple[str, ...] = ()
    cap: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    thorough: bool = False

    @property
    def edits(self) -> EditNames:
        """Edits of the residual stream that the model is measured under."""
        return EditNames(self.steer, self.cap, self.vectors)

    def to_dict(self) -> dict[str, object]:
        """Plain values for `run.json`."""
        return asdict(self)


def command(
    model: Annotated[str, typer.Argument(help="Model to measure: see `personae models`.")],
    cast: Annotated[str, typer.Option(help="Cast whose traits are measured.")] = "core",
    only: Annotated[str | None, typer.Option(help="Comma-separated traits to measure, no others.")] = None,
    items: Annotated[
        list[str] | None, typer.Option(help="Your own diagnostic items instead of the cast's; repeat to join.")
    ] = None,
    system: Annotated[str, typer.Option(help="Measure the model under this system prompt.")] = "",
    versus: Annotated[
        str | None,
        typer.Option(
            help="Compare with this model, item by item, unsteered; the same name: with and without --system and edits."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only one half of the items: 'dev' or 'test'.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the paired replies, which make the headline.")] = False,
    thorough: opt.Thorough = False,
    steer: opt.Steer = None,
    cap: opt.Cap = None,
    vectors: opt.Vectors = None,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Say where a model stands on every trait of a cast, without a judge, and what moved from another."""
    chosen = (model, cast, only, tuple(items or ()), system.strip(), versus, split, quick)
    edits = (tuple(steer or ()), tuple(cap or ()), tuple(vectors or ()))
    return execute(Settings(*chosen, out, seed, as_json, quiet, device, dtype, *edits, thorough))


def execute(settings: Settings) -> int:
    """Run a measurement and give the exit status."""
    from personae.report.traits_page import MeasureView, render_measure  # charts are slow to import

    asked = MeasureSettings(system=settings.system, split=settings.split, quick=settings.quick)
    if settings.thorough and settings.split == "dev":
        raise InvalidSettings("all further items are test items.", hint="Leave out --thorough or --split dev.")
    changed = parse_edits(settings.edits)
    if settings.versus == settings.model and not settings.system and not changed:
        raise InvalidSettings(
            "--versus is the model itself.", hint="Give another model, or --system, --steer or --cap as well."
        )
    for name in (settings.model, settings.versus):
        if name is not None:
            require_target(name)  # an unknown name is told before anything dear
    source = load_items(settings.model, settings.cast, settings.items, settings.only, thorough=settings.thorough)
    folder = make_run_folder(settings.out, NAME)
    profile = _measured(settings, settings.model, source, asked, settings.edits)
    versus = None
    if settings.versus is not None:
        plain = replace(asked, system="") if settings.versus == settings.model else asked
        versus = _measured(settings, settings.versus, source, plain)
    changes = compare_profiles(versus, profile) if versus is not None else ()
    labels = labels_of(source)
    made = provenance((*source.paths, *settings.vectors), seed=settings.seed) | dict(profile.provenance)
    view = MeasureView(profile, labels, versus, changes, _facts(settings, made))
    report = folder / "report.html"
    write_text(report, render_measure(view))
    _write_items(folder / "items.parquet", [p for p in (profile, versus) if p is not None])
    summary = profile_json(profile, labels, versus, changes, report=report, run=folder)
    summary |= {"model": settings.model, "thorough": settings.thorough, "edits": list(settings.edits.lines)}
    write_json(folder / "traits.json", summary)
    write_json(folder / "run.json", {"command": NAME, "settings": settings.to_dict(), **made, "result": summary})
    if settings.json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not settings.quiet:
        print_profile(view, report)
    return 0


def _measured(
    settings: Settings, name: str, source: Source, asked: MeasureSettings, edits: EditNames = EditNames()
) -> TraitProfile:
    say(f"Loading {name} …", quiet=settings.quiet)
    bench = open_model(name, device=settings.device, dtype=settings.dtype, edits=edits)
    with closing(bench), announced("Measuring", quiet=settings.quiet) as started:
        return measure(
            bench.model,
            source.items,
            settings=asked,
            renderer=bench.renderer,
            store=bench.store,
            started=started,
            name=f"{name} ({', '.join(edits.lines)})" if edits.lines else name,
        )


def _write_items(path: Path, profiles: Sequence[TraitProfile]) -> None:
    """The item scores of all profiles; two of one model are told apart by their prompt."""
    names = [p.model for p in profiles]
    arms = (
        names
        if len(set(names)) == len(names)
        else [f"{p.model} under the prompt" if p.system else p.model for p in profiles]
    )
    rows = [(p, arm) for p, arm in zip(profiles, arms, strict=True)]
    columns: dict[str, list[object]] = {
        "item": [i for p, _ in rows for i in p.items.item],
        "cluster": [c for p, _ in rows for c in p.items.cluster],
        "template": [t for p, _ in rows for t in p.items.template],
        "seed": [s for p, _ in rows for s in p.items.seed],
        "arm": [arm for p, arm in rows for _ in p.items.item],
        "score": [float(s) for p, _ in rows for s in p.items.score],
        "trait": [t for p, _ in rows for t in p.item_traits],
        "part": [t for p, _ in rows for t in p.item_parts],
    }
    write_table(path, columns, {"unit": "nats towards the positive pole"})


def _facts(settings: Settings, made: dict[str, object]) -> tuple[tuple[str, str], ...]:
    versions = made.get("versions")
    facts = [
        ("model", settings.model),
        (
            "items",
            ", ".join(settings.items) or settings.cast + (", with the further ones" if settings.thorough else ""),
        ),
        ("half", settings.split or "both"),
        *((("edits", "; ".join(settings.edits.lines)),) if settings.edits.lines else ()),
        ("date", str(made.get("date", ""))),
        ("machine", str(made.get("machine", ""))),
    ]
    if isinstance(versions, dict):
        facts.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return tuple(facts)
