"""`personae store verify` and `personae store gc`: look after the scores that are kept."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from personae.cli import options as opt
from personae.errors import StorageError
from personae.models.catalogue import home
from personae.running.store_care import PLAN_DAYS, gc, spaces, verify

NAME = "store"
app = typer.Typer(help="Check and clear the scores that are kept.", add_completion=False, rich_markup_mode=None)


@app.command("verify")
def verify_command(as_json: opt.AsJson = False, quiet: opt.Quiet = False) -> int:
    """Read every stored score; damaged pieces are set aside, to be computed again when they are needed."""
    root = home() / "evidence"
    reports = [verify(folder) for folder in spaces(root)]
    damaged = [f"{r.folder}/{name}" for r in reports for name in r.damaged]
    if as_json:
        rows = [
            {
                "space": r.space,
                "folder": str(r.folder),
                "n_pieces": r.n_pieces,
                "n_rows": r.n_rows,
                "n_bytes": r.n_bytes,
                "n_plans": r.n_plans,
                "damaged": list(r.damaged),
            }
            for r in reports
        ]
        typer.echo(
            json.dumps({"command": "store verify", "store": str(root), "spaces": rows, "n_damaged": len(damaged)})
        )
    elif not quiet:
        for r in reports:
            typer.echo(
                f"{r.folder.name}  {r.n_pieces:>6,} pieces  {r.n_rows:>11,} scores  {r.n_bytes / 1e6:>9.1f} MB"
                f"  {len(r.damaged)} damaged  {r.space.split('|')[0][:24]}"
            )
        typer.echo(f"{len(reports)} spaces under {root}")
    if damaged:
        raise StorageError(
            f"{len(damaged)} pieces are damaged and were set aside: {', '.join(damaged[:3])}.",
            hint="No run reads them; what they held is computed again when it is needed. `personae store gc` removes "
            "them. Damage that comes back points to the disk.",
        )
    return 0


@app.command("gc")
def gc_command(
    plan_days: Annotated[
        float, typer.Option(min=0, help="Forget interrupted requests older than this many days.")
    ] = PLAN_DAYS,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Remove what was set aside or abandoned and merge small pieces; no score is lost."""
    root = home() / "evidence"
    cleanings = [gc(folder, plan_days=plan_days) for folder in spaces(root)]
    freed = sum(c.n_bytes_freed for c in cleanings)
    if as_json:
        rows = [
            {
                "folder": str(c.folder),
                "n_removed": c.n_removed,
                "n_merged": c.n_merged,
                "n_pieces": c.n_pieces,
                "n_bytes_freed": c.n_bytes_freed,
            }
            for c in cleanings
        ]
        typer.echo(json.dumps({"command": "store gc", "store": str(root), "spaces": rows, "n_bytes_freed": freed}))
    elif not quiet:
        for c in cleanings:
            typer.echo(
                f"{c.folder.name}  {c.n_merged:,} pieces merged, {c.n_removed:,} files removed, {c.n_pieces:,} left"
            )
        typer.echo(f"{freed / 1e6:.1f} MB freed under {root}")
    return 0
