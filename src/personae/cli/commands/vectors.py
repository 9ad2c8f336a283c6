"""`personae vectors`: personas as directions of the residual stream. A command is a file over the library."""

from __future__ import annotations

import typer

from personae.cli import (
    vectors_conditions,
    vectors_extract,
    vectors_features,
    vectors_files,
    vectors_push,
    vectors_space,
    vectors_steer,
    vectors_watch,
)

NAME = "vectors"

app = typer.Typer(
    help="Personas in the activations: extract directions, test them against nulls, steer, cap, and map the space.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("extract")(vectors_extract.extract)
app.command("push")(vectors_push.push)
app.command("steer")(vectors_steer.steer)
app.command("space")(vectors_space.space)
app.command("monitor")(vectors_watch.monitor)
app.command("diff")(vectors_watch.diff)
app.command("features")(vectors_features.features)
app.command("conditions")(vectors_conditions.conditions)
app.command("show")(vectors_files.show)
app.command("compare")(vectors_files.compare)
app.command("export")(vectors_files.export)
app.command("import")(vectors_files.bring)
