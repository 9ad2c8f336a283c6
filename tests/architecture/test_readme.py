"""What the README shows runs, and every command it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from personae.cli.main import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_python_snippets_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
    assert "160 episodes" in capsys.readouterr().out


def test_named_commands_exist() -> None:
    named = set(re.findall(r"^(?:\$ )?personae ([a-z-]+)", README, flags=re.M))
    known = {entry.name for entry in (*app.registered_commands, *app.registered_groups)}
    assert named
    assert named <= known


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make ([a-z]+)", README, flags=re.M)):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
