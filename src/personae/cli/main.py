"""The command line: `personae COMMAND`. Thin: every command is a file over the library.

Heavy imports happen inside commands, so that `personae --help` loads neither torch nor transformers. The
only catch-all is the last line here: an error of ours prints its message and hint and ends with its status.
"""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

from personae.cli.commands import (
    audit,
    calibrate,
    casts,
    check_model,
    infer,
    measure,
    models,
    profile,
    rerun,
    score,
    screen,
    sharpen,
    store,
    train,
    validate,
    vectors,
    verify,
    world,
)
from personae.errors import PersonaeError
from personae.report.text import clean

# The root of typer's usage errors, which typer exports only through its subclasses.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]
_INTERRUPTED = 130  # what typer makes of Ctrl-C, by the custom of shells

app = typer.Typer(
    name="personae",
    help="Which character is this model, and which one will your data make it?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _command in (
    screen,
    score,
    train,
    verify,
    measure,
    profile,
    audit,
    calibrate,
    sharpen,
    infer,
    validate,
    casts,
    models,
    check_model,
    rerun,
):
    app.command(_command.NAME)(_command.command)
app.add_typer(store.app, name=store.NAME)
app.add_typer(world.app, name=world.NAME)
app.add_typer(vectors.app, name=vectors.NAME)


def main() -> None:
    """Entry point of the `personae` script; ends the process with the command's exit status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and give its exit status: 0 done, 1 gate, 2 usage or input, 3 backend, 4 numerics."""
    debug = os.environ.get("PERSONAE_DEBUG") == "1"
    try:
        result = app(arguments or ["--help"], standalone_mode=False)
        if result == _INTERRUPTED:
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except PersonaeError as error:
        if debug:
            raise
        _complain(str(error), error.hint)
        return error.exit_status
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted.", "What was done is kept: the same command goes on from here.")
        return _INTERRUPTED
    except SystemExit:
        return 141  # how the parser ends when the reader of our output has left; 0 would hide a gate, 1 invent one
    except _CommandLineError as error:
        _complain(
            str(getattr(error, "format_message", error.__str__)()),  # names the option, which `str` does not
            "`personae --help` and `personae COMMAND --help` list what is accepted.",
        )
        return 2


def _complain(message: str, hint: str) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("error: ", style="bold red", end="")
    console.print(clean(message), markup=False)
    if hint:
        console.print(clean(hint), markup=False, style="dim")
