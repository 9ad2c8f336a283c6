"""The shape of the package: floors, size of modules, exported names, what is imported when."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import personae

ROOT = Path(personae.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))


def test_import_contracts_hold() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    result = subprocess.run(command, cwd=ROOT.parents[1], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_public_names_are_sorted_and_resolve() -> None:
    assert personae.__all__ == sorted(personae.__all__)
    for name in personae.__all__:
        assert getattr(personae, name) is not None
    assert personae.__all__ == [
        "Cast", "Episode", "Evidence", "Persona", "PersonaeError", "Renderer", "Screening", "Trait", "Turn",
        "check_laws", "load_casts", "load_model", "load_reference", "read_episodes", "screen",
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = personae.nothing


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_stay_small_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno <= 90, node.name
            if not node.name.startswith("_"):
                assert node.args.kwarg is None, f"{node.name} takes **{node.args.kwarg}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "bare except"
            assert not (isinstance(node.type, ast.Name) and node.type.id == "Exception"), "broad except"


def test_no_module_imports_the_package_root() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module != "personae", path
            if isinstance(node, ast.Import):
                assert all(alias.name != "personae" for alias in node.names), path


@pytest.mark.parametrize("statement", ["import personae", "import personae.cli.main"])
def test_heavy_packages_stay_out_of_the_way(statement: str) -> None:
    heavy = ["torch", "transformers", "altair", "vl_convert", "sklearn", "numba"]
    code = f"import sys; {statement}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_error_has_its_exit_status() -> None:
    errors = importlib.import_module("personae.errors")
    tree = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type)}
    drawn = errors.__doc__ or ""
    for name, cls in tree.items():
        assert name in drawn, f"{name} is missing from the drawing"
        assert cls.exit_status in (2, 3, 4)
