"""`personae validate`: what a file holds, what is refused and why."""

from __future__ import annotations

import json

import typer

from personae.cli import options as opt
from personae.files.episodes import EpisodeSet, read_episodes
from personae.report.text import clean

NAME = "validate"
_SHOWN = 50


def command(data: opt.Data, turns: opt.Turns = "last", limit: opt.Limit = None, as_json: opt.AsJson = False) -> int:
    """Read a file of episodes and say what was read and what was refused, with line numbers."""
    found = read_episodes(data, turns=turns, limit=limit)
    if as_json:
        typer.echo(json.dumps(_summary(found)))
    else:
        _print(found)
    return 2 if found.refused else 0


def _summary(found: EpisodeSet) -> dict[str, object]:
    weights = [e.weight for e in found.episodes]
    return {
        "command": NAME,
        "data": found.path,
        "n_rows": found.n_rows,
        "n_episodes": len(found.episodes),
        "n_groups": len({e.group for e in found.episodes}),
        "shapes": dict(found.shapes),
        "n_negative_weight": sum(w < 0 for w in weights),
        "n_zero_weight": sum(w == 0 for w in weights),
        "refused": [{"line": r.line, "reason": r.reason, "hint": r.hint} for r in found.refused],
    }


def _print(found: EpisodeSet) -> None:
    s = _summary(found)
    shapes = ", ".join(f"{count} {shape}" for shape, count in found.shapes.items()) or "none"
    told = f"{found.path}: {found.n_rows} rows, {s['n_episodes']} episodes in {s['n_groups']} groups ({shapes})"
    typer.echo(clean(told))
    for name in ("n_negative_weight", "n_zero_weight"):
        if s[name]:
            typer.echo(f"{s[name]} episodes of {name[2:].replace('_', ' ')}")
    for refusal in found.refused[:_SHOWN]:
        hint = f"  ({refusal.hint})" if refusal.hint else ""
        typer.echo(clean(f"refused, line {refusal.line}: {refusal.reason}{hint}"))
    if len(found.refused) > _SHOWN:
        typer.echo(f"... and {len(found.refused) - _SHOWN} more (--json lists all)")
    if not found.refused:
        typer.echo("Nothing was refused.")
