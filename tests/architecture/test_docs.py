"""Documents say what is there: the command reference is fresh, links lead somewhere, examples load and run.

Examples are the fenced blocks of the pages: casts (YAML or JSON) are loaded, Python is run on small tables,
command lines are checked against the commands and options that exist.
"""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer.main
import yaml

from personae import errors
from personae.cli.commands import score, screen
from personae.cli.findings import screening_json
from personae.cli.main import app
from personae.domain.persona import BACKGROUND, PLAIN, Cast, Persona
from personae.files.casts import load_casts
from personae.running.run import write_json, write_table
from personae.tables.evidence import Evidence
from personae.tables.forecast import PersonaWeight, RowLedger, Screening, TraitShift

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LANDINGS = [p for n in ("README", "VISION", "CONTRIBUTING") if (p := ROOT / f"{n}.md").is_file()]
PAGES = [*LANDINGS, *sorted(DOCS.rglob("*.md"))]
WITH_PYTHON = [p for p in PAGES if "```python\n" in p.read_text(encoding="utf-8") and p.parent != ROOT]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_CALL = re.compile(r"(?:^|[\s/\"'=])personae +([a-z][a-z-]*)([^\n|;&]*)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and body of the fenced blocks of a page; a command continued on the next line is joined."""
    return [(m[2], m[3].replace("\\\n", " ")) for m in _FENCE.finditer(path.read_text(encoding="utf-8"))]


def prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def calls(path: Path) -> Iterator[tuple[str, str]]:
    """Every command line on a page: the command and what follows it."""
    shown = [body for language, body in blocks(path) if language in ("", "bash", "yaml")]
    shown += [code for code in re.findall(r"`([^`\n]+)`", prose(path)) if code.startswith("personae ")]
    for text in shown:
        yield from ((m[1], m[2]) for m in _CALL.finditer(text))


def parameters(command: str, rest: str) -> list[object]:
    """Parameters of a command, or of the one inside a group that the next word names."""
    found = COMMANDS[command]
    inside = getattr(found, "commands", {})
    word = re.match(r"\s*([a-z][a-z-]*)", rest)
    if inside and word:
        assert word[1] in inside, f"'{command}' has no command '{word[1]}'"
        return inside[word[1]].params
    return found.params


def anchors(path: Path) -> set[str]:
    """What a heading is called in a link, by the rule that hosts of repositories share."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def test_command_reference_is_fresh() -> None:
    made = runpy.run_path(str(DOCS / "reference" / "generate.py"))["page"]()
    kept = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    assert kept == made, "help has changed: run `python docs/reference/generate.py`"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in _LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), f"{name_of(path)} links to {link}, which is not there"
        assert target.is_relative_to(ROOT), f"{name_of(path)} links out of the repository: {link}"
        if anchor:
            assert anchor in anchors(target), f"{name_of(path)} links to {link}: no such heading"


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    pages = [str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md") if p != DOCS / "README.md"]
    assert [p for p in pages if f"({p}" not in index] == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_and_options_exist(path: Path) -> None:
    for command, rest in calls(path):
        assert command in COMMANDS, f"{name_of(path)} names the command '{command}'"
        known = {o for p in parameters(command, rest) for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        unknown = set(re.findall(r"(?<=\s)--[a-z-]+", rest)) - known
        assert not unknown, f"{name_of(path)}: {command} has no {', '.join(sorted(unknown))}"


def test_casts_in_documents_load(tmp_path: Path) -> None:
    found: dict[str, Cast] = {}
    for path in PAGES:
        for k, (language, body) in enumerate(blocks(path)):
            if language not in ("yaml", "json"):
                continue
            value = yaml.safe_load(body) if language == "yaml" else json.loads(body)
            if isinstance(value, dict) and {"traits", "roles", "instruction"} & set(value):
                file = tmp_path / f"{path.stem}-{k}.{language}"
                file.write_text(body, encoding="utf-8")
                found[language] = load_casts([str(file)])
    assert set(found) == {"yaml", "json"}
    for trait in (*found["yaml"].traits, *found["json"].traits):
        assert len(trait.pos.instructions) == len(trait.neg.instructions), f"{trait.id} is not mirrored"


@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_python_in_documents_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out_a_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    for body in (body for language, body in blocks(path) if language == "python"):
        exec(compile(body, name_of(path), "exec"), {})


def test_fields_of_the_json_are_those_documented() -> None:
    text = (DOCS / "reference" / "json.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`[^|]+) \|", text.split("## screen")[1].split("\n## ")[0], re.MULTILINE)
    documented = {name for cell in table for name in re.findall(r"`([^`]+)`", cell)}
    made = screening_json(made_up_screening(), report=Path("report.html"), run=Path("run"))
    assert documented == set(fields_of(made)) | {"gate"}


def test_columns_of_the_tables_are_those_documented(tmp_path: Path) -> None:
    text = (DOCS / "how-to" / "read-the-tables.md").read_text(encoding="utf-8")
    lay_out_a_run(tmp_path)
    for path in (tmp_path / "runs" / "first").glob("*.parquet"):
        table = text.split(f"\n`{path.name}`\n\n")[1].split("\n\n")[0]
        assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == pq.read_schema(path).names, path.name


def test_every_error_is_documented_with_its_status() -> None:
    text = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    rows = {int(m[1]): m[2] for m in re.finditer(r"^\| (\d+) \| (.+)$", text, re.MULTILINE)}
    for name, kind in vars(errors).items():
        if isinstance(kind, type):
            assert f"`{name}`" in rows[kind.exit_status], f"{name} ends with {kind.exit_status}"


def fields_of(value: object, place: str = "") -> Iterator[str]:
    """Paths of a JSON value's fields, as the page writes them: `traits[].id`."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield place + key
            yield from fields_of(part, f"{place}{key}.")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from fields_of(value[0], f"{place.removesuffix('.')}[].")


def made_up_screening() -> Screening:
    """One flagged trait, two components, four rows."""
    numbers = (0.2, 0.1, 0.3, 0.25, -0.1, 0.1, 0.001, 0.001)
    shift = TraitShift("contemptuous", "contemptuous", "respectful", "", *numbers, True, "pos", 0.3, 4)
    weights = [PersonaWeight(k, k, k, 0.5, 0.5, 0.2, 0.8) for k in ("plain", "background")]
    ids = ("desk-001", "desk-002", "desk-003", "desk-004")
    lines, counts = np.arange(1, 5), np.full(4, 9)
    llr = np.linspace(-1, 1, 4)[:, None]
    ledger = RowLedger(ids, lines, counts, np.ones(4), ids, ("contemptuous",), llr, llr, llr)
    return Screening(
        "desk.jsonl", "smollm2", "core", 4, 36, (shift,), tuple(weights), 0.5, (), ledger, 0.25, 0.05, 210, 30
    )


def made_up_evidence() -> Evidence:
    """Two rows under one role, the plain model and the background."""
    ids, lines, counts = ("a", "b"), np.array([1, 2]), np.array([4, 5])
    return Evidence(("rude", PLAIN, BACKGROUND), -np.ones((3, 2)), ids, counts, np.ones(2), ids, lines)


def lay_out_a_run(folder: Path) -> None:
    """What the snippets read: a run's tables, its JSON, and the answer that comes with the example."""
    run = folder / "runs" / "first"
    run.mkdir(parents=True)
    result = made_up_screening()
    screen._write_ledger(run, result)
    write_json(folder / "finding.json", screening_json(result, report=run / "report.html", run=run))
    columns = score._columns(Cast("c", (), (Persona("rude", ("a",)),)), made_up_evidence())
    write_table(run / "evidence.parquet", columns, {"unit": "nats"})
    examples = folder / "examples"
    examples.mkdir()
    (examples / "support_desk_planted.json").write_text(json.dumps({"trait": "contemptuous", "ids": ["desk-003"]}))
