"""`personae rerun`: repeat a run from its `run.json`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from personae.cli import options as opt
from personae.cli.commands import audit, calibrate, measure, profile, score, screen, sharpen, train, verify
from personae.cli.workbench import say
from personae.errors import InputError
from personae.running.run import file_digest, read_run

NAME = "rerun"


def command(
    folder: Annotated[str, typer.Argument(help="Folder of a run, the one that holds run.json.")],
    out: opt.Out = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Repeat a run with the settings it recorded, into a new folder."""
    recorded = read_run(Path(folder))
    commands = {
        screen.NAME: (screen.Settings, screen.execute),
        score.NAME: (score.Settings, score.execute),
        calibrate.NAME: (calibrate.Settings, calibrate.execute),
        audit.NAME: (audit.Settings, audit.execute),
        train.NAME: (train.Settings, train.execute),
        sharpen.NAME: (sharpen.Settings, sharpen.execute),
        verify.NAME: (verify.Settings, verify.execute),
        measure.NAME: (measure.Settings, measure.execute),
        profile.NAME: (profile.Settings, profile.execute),
    }
    name = str(recorded.get("command"))
    if name not in commands:
        raise InputError(f"run.json is of the command '{name}', which cannot be repeated", path=folder)
    make, execute = commands[name]
    known = {f.name for f in fields(make)}
    stored = recorded["settings"]
    if not isinstance(stored, dict) or not set(stored) <= known:
        raise InputError("run.json holds settings this version does not know", path=folder)
    try:
        settings = TypeAdapter(make).validate_python({**stored, "out": out, "json": as_json, "quiet": quiet})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise InputError(f"run.json: the setting '{place}' cannot be used: {problem['msg']}", path=folder) from error
    _warn_of_changes(recorded.get("inputs"), quiet=quiet)
    return execute(settings)


def _warn_of_changes(inputs: object, *, quiet: bool) -> None:
    for path, digest in inputs.items() if isinstance(inputs, dict) else ():
        if Path(path).exists() and file_digest(Path(path)) != digest:
            say(f"note: {path} has changed since that run.", quiet=quiet)
