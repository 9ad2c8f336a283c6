"""Every public name of the statistics core and the read-outs is in the reference."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import personae

ROOT = Path(personae.__file__).parent
PAGE = (ROOT.parents[1] / "docs" / "reference" / "statistics.md").read_text(encoding="utf-8")
MODULES = (
    "numerics/clustered", "numerics/resampling", "numerics/rates", "numerics/power", "numerics/subspaces",
    "tables/items", "tables/posterior", "files/items", "inference/effects", "inference/update", "inference/readout",
    "inference/probe",
)  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_in_the_reference(module: str) -> None:
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    public = [name for name in names if not name.startswith("_")]
    assert public
    assert [name for name in public if f"`{name}`" not in PAGE] == []
    assert f"`personae.{module.replace('/', '.')}`" in PAGE
