"""`personae casts`: list, show and validate casts."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from personae.cli import options as opt
from personae.domain.persona import Cast
from personae.files.casts import built_in_casts, load_casts
from personae.report.text import clean

NAME = "casts"


def command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Casts to show and validate: built-in names, files or folders.")
    ] = None,
    as_json: opt.AsJson = False,
) -> int:
    """List the built-in casts, or show and validate the named ones."""
    if names:
        cast = load_casts(names)
        typer.echo(json.dumps(_full(cast)) if as_json else clean(_page(cast)))
        return 0
    rows = [_brief(name, load_casts([name])) for name in built_in_casts()]
    if as_json:
        typer.echo(json.dumps({"command": NAME, "casts": rows}))
    else:
        for row in rows:
            typer.echo(f"{row['id']:<14}{row['n_traits']:>4} traits {row['n_roles']:>4} roles   {row['description']}")
        typer.echo(
            "\n`personae casts NAME` shows one; --cast takes names, YAML files and folders of role or trait files."
        )
    return 0


def _brief(name: str, cast: Cast) -> dict[str, object]:
    return {
        "id": name,
        "n_traits": len(cast.traits),
        "n_roles": len(cast.roles),
        "n_instructions": cast.n_instructions,
        "description": cast.description,
    }


def _full(cast: Cast) -> dict[str, object]:
    return {
        "command": NAME,
        **_brief(cast.id, cast),
        "traits": [
            {
                "id": t.id,
                "description": t.description,
                "pos": {"label": t.pos.label, "instructions": list(t.pos.instructions)},
                "neg": {"label": t.neg.label, "instructions": list(t.neg.instructions)},
            }
            for t in cast.traits
        ],
        "roles": [{"id": r.id, "label": r.label, "instructions": list(r.instructions)} for r in cast.roles],
    }


def _page(cast: Cast) -> str:
    lines = [
        f"{cast.id}: {len(cast.traits)} traits, {len(cast.roles)} roles, {cast.n_instructions} instructions. Valid."
    ]
    for t in cast.traits:
        lines += ["", f"{t.id}: {t.pos.label} / {t.neg.label}" + (f" - {t.description}" if t.description else "")]
        lines += [f"  + {i}" for i in t.pos.instructions] + [f"  - {i}" for i in t.neg.instructions]
    for r in cast.roles:
        lines += ["", f"{r.id}" + (f" - {r.description}" if r.description else "")]
        lines += [f"    {i}" for i in r.instructions]
    return "\n".join(lines)
