"""`personae audit` end to end: a world, a tiny language model, the log, the page, and bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from personae.running import pieces
from personae.tables.audit import VIEWS

QUICK = ["--quick", "--json"]


@pytest.fixture(scope="module")
def router_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One audit of the router world, for all that reads its folder."""
    from personae.cli import main

    folder = tmp_path_factory.mktemp("audit") / "router"
    status = main.run(
        ["audit", "world:router/exact", "--base", "world:router/base/exact", "--quick", "--quiet", "--out", str(folder)]
    )
    assert status == 0
    return folder


def result_of(folder: Path) -> dict:
    return json.loads((folder / "audit.json").read_text(encoding="utf-8"))


def test_router_world_is_told_to_be_one(router_run: Path) -> None:
    found = result_of(router_run)
    assert found["undefined"] == ""
    assert found["router_ratio"] >= 5
    rival = {r["id"]: r for r in found["rivals"]}["by topic"]
    assert rival["gain_low"] > 0
    assert sum(found["scorecard"]["probability"].values()) == pytest.approx(1)
    assert set(found["scorecard"]["probability"]) == set(VIEWS)
    assert max(found["scorecard"]["probability"], key=found["scorecard"]["probability"].get) == "router"
    assert (router_run / "run.json").is_file()


def test_page_holds_every_section_and_needs_nothing_from_outside(router_run: Path) -> None:
    page = (router_run / "report.html").read_text(encoding="utf-8")
    for name in ("ladder", "parts", "router", "outside", "character", "views", "making"):
        assert f'id="{name}"' in page
    assert not re.search(r"(src|href)=\"https?:", page)
    assert "NaN" not in page
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", page)


def test_page_and_result_are_made_again_from_the_log_alone(router_run: Path, tmp_path: Path, personae) -> None:
    copy = Path(shutil.copytree(router_run, tmp_path / "copy"))
    before, page = result_of(copy), (copy / "report.html").read_text(encoding="utf-8")
    for name in ("audit.json", "report.html"):
        (copy / name).unlink()
    assert personae("audit", str(copy), "--rebuild", "--quiet").status == 0
    after = result_of(copy)
    assert {k: v for k, v in after.items() if k not in ("report", "run")} == {
        k: v for k, v in before.items() if k not in ("report", "run")
    }
    assert (copy / "report.html").read_text(encoding="utf-8") == page


def test_track_compares_finished_audits(router_run: Path, personae) -> None:
    made = personae("audit", "--track", str(router_run), str(router_run), "--json")
    assert made.status == 0
    assert made.json["found"] == 0
    assert {c["step"] for c in made.json["changes"]} == {1}
    assert "no change over 2 checkpoints" in personae("audit", "--track", str(router_run), str(router_run)).out


def test_language_model_against_itself_has_nothing_to_explain(model_folder: Path, cast_file: Path, personae) -> None:
    prompts = Path("prompts.txt")
    prompts.write_text(
        "\n".join(f"Tell me about {w}." for w in ("trains", "bread", "loans", "cats", "paint", "verbs", "stars", "tea"))
    )
    made = personae(
        "audit",
        str(model_folder),
        "--base",
        str(model_folder),
        "--cast",
        str(cast_file),
        "--prompts",
        str(prompts),
        *QUICK,
    )
    assert made.status == 0, made.err
    assert "rounding" in made.json["undefined"]
    assert made.json["scorecard"]["verdict"] == ""
    assert "nothing to explain" in made.json["finding"].lower()
    page = Path(made.json["report"]).read_text(encoding="utf-8")
    assert "Nothing to explain" in page


def test_too_few_prompts_say_how_many_are_needed(model_folder: Path, cast_file: Path, personae) -> None:
    prompts = Path("few.jsonl")
    prompts.write_text('{"prompt": "Hello?", "topic": "a"}\n{"prompt": "And you?"}\n')
    made = personae(
        "audit",
        str(model_folder),
        "--base",
        str(model_folder),
        "--cast",
        str(cast_file),
        "--prompts",
        str(prompts),
        *QUICK,
    )
    assert made.status == 2
    assert "2 prompts" in made.err
    assert "at least 8" in made.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["world:router/exact"], "needs --base"),
        (["world:router/exact", "--base", "world:tiny/exact"], "vocabulary of"),
        (["world:router/exact", "world:arc/exact", "--base", "world:router/base/exact"], "2 models were named"),
        (["runs/none", "--rebuild"], "no readable log"),
        (["--track", "runs/none"], "at least two audits"),
        (["--track", "--rebuild", "a"], "two different things"),
        (["world:router/exact", "--base", "nowhere"], "there is no model 'nowhere'"),
        (["world:router/exact", "--base", "world:router/base/exact", "--prompts", "none.txt"], "cannot be read"),
    ],
)
def test_bad_input_is_refused_in_words(arguments: list[str], message: str, personae) -> None:
    made = personae("audit", *arguments)
    assert made.status == 2
    assert message in made.err


def test_damaged_log_is_refused(router_run: Path, tmp_path: Path, personae) -> None:
    copy = Path(shutil.copytree(router_run, tmp_path / "copy"))
    (copy / "tokens.parquet").write_bytes(b"nothing")
    made = personae("audit", str(copy), "--rebuild")
    assert made.status == 2
    assert "no readable log" in made.err


KILLED = """
import os, signal, sys
import personae.running.pieces as pieces
whole, left = pieces.write_arrays, [int(sys.argv[1])]
def write(path, body):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    whole(path, body)
pieces.write_arrays = write
from personae.cli.main import run
sys.exit(run(sys.argv[2:]))
"""


def pieces_of(home: Path) -> dict[str, int]:
    """Pieces of work in a home, and when each was written."""
    return {p.name: p.stat().st_mtime_ns for p in (home / "passes").rglob("*.npz")}


def test_killed_audit_goes_on_and_ends_with_the_same_numbers(
    personae, start, offline_home: Path, tmp_path: Path, monkeypatch
) -> None:
    from worlds_support import LIAR, MICRO, write_spec

    spec = write_spec(tmp_path / "micro.yaml", MICRO.replace("id: micro", "id: fibber") + LIAR)
    assert personae("world", "train", spec, "--quiet").status == 0
    command = ["audit", "world:fibber", "--base", "world:fibber/base", "--quick", "--json", "--soft-prompt", "2"]
    other = Path(shutil.copytree(offline_home, tmp_path / "other-home"))
    killed = start(KILLED, "9", *command, "--out", tmp_path / "killed")
    killed.communicate()
    assert killed.returncode == -9
    before = pieces_of(offline_home)
    assert len(before) == 9
    assert not (tmp_path / "killed" / "log.json").exists()
    written: list[str] = []
    whole = pieces.write_arrays
    monkeypatch.setattr(pieces, "write_arrays", lambda path, body: (written.append(path.name), whole(path, body)))
    resumed = personae(*command, "--out", tmp_path / "killed")
    assert resumed.status == 0, resumed.err
    n_resumed = len(written)
    assert not set(written) & set(before), "nothing is done twice"
    monkeypatch.setenv("PERSONAE_HOME", str(other))
    straight = personae(*command, "--out", tmp_path / "straight")
    assert straight.status == 0, straight.err
    assert len(written) - n_resumed == n_resumed + len(before)
    same = [{k: v for k, v in o.json.items() if k not in ("report", "run")} for o in (resumed, straight)]
    assert same[0] == same[1]
    assert "R6" in {r["id"] for r in same[0]["rungs"]}
    tables = [(tmp_path / run / "tokens.parquet").read_bytes() for run in ("killed", "straight")]
    assert tables[0] == tables[1]


def test_soft_prompt_is_an_option_of_a_language_model_too(model_folder: Path, cast_file: Path, personae) -> None:
    prompts = Path("prompts.txt")
    prompts.write_text(
        "\n".join(f"Tell me about {w}." for w in ("trains", "bread", "cats", "paint", "tea", "a", "b", "c"))
    )
    fixed = ["--cast", str(cast_file), "--prompts", str(prompts), *QUICK]
    pair = ["audit", str(model_folder), "--base", str(model_folder)]
    assert "R6" not in {r["id"] for r in personae(*pair, *fixed).json["rungs"]}
    assert "R6" in {r["id"] for r in personae(*pair, *fixed, "--soft-prompt", "3").json["rungs"]}
    assert personae(*pair, *fixed, "--soft-prompt", "99").status == 2
