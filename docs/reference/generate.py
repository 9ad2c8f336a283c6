"""Write cli.md, the command reference, from `personae COMMAND --help`.

    python docs/reference/generate.py

A test compares the file with what this would write. Not here: any text about a command; that is its docstring
and the help of its options.
"""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from personae.cli.main import app

WIDTH = 100
TARGET = Path(__file__).with_name("cli.md")
HEAD = """# Commands

Written by `python docs/reference/generate.py` from the commands' own help; do not edit.

`personae` and `python -m personae` are the same. Results go to standard output, progress and notes to standard
error. What ends a command, and with which status: [errors](errors.md). What `--json` prints: [JSON](json.md).
`PERSONAE_HOME` names the folder in which models and scores are kept; `PERSONAE_DEBUG=1` shows the traceback of an
error.
"""


def main() -> None:
    """Write the page."""
    TARGET.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page: the list of commands, then each of them."""
    paths = [[str(command.name)] for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        inside = [[str(group.name), str(command.name)] for command in group.typer_instance.registered_commands]
        paths += [[str(group.name)], *inside]
    sections = [_section("personae", _help()), *(_section(" ".join(["personae", *p]), _help(*p)) for p in paths)]
    return "\n".join([HEAD, *sections])


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n```text\n{body}\n```\n"


def _help(*path: str) -> str:
    """What `personae PATH --help` prints on a terminal of fixed width."""
    result = CliRunner().invoke(app, [*path, "--help"], prog_name="personae", terminal_width=WIDTH)
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


if __name__ == "__main__":
    main()
