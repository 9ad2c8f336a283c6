"""Workers, servers, parts of large files, evidence on disk and the store, from the command line."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personae.cli.commands import score as score_command
from personae.models.load import load_model
from unruly_server import Manners, Unruly

MODEL = "world:tiny/exact"
RUN = (
    "import sys; import personae.instruments.scoring as s; s._SECONDS_BETWEEN_PIECES = 0.05; s._BATCH_EPISODES = 4\n"
    "from personae.cli.main import run; sys.exit(run(sys.argv[1:]))"
)


@pytest.fixture(scope="session")
def world_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Sixty rows of the world `tiny`, its cast and its reference."""
    from personae.worlds.exact import ExactWorld
    from personae.worlds.material import material_of
    from personae.worlds.reading import read_world

    folder = tmp_path_factory.mktemp("world")
    files = material_of(ExactWorld(read_world("tiny").base))
    lines = files["episodes/ordinary.jsonl"].splitlines()
    rows = [json.loads(line) | {"id": f"r{k}", "group": f"g{k // 2}"} for k, line in enumerate(lines[:60])]
    (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (folder / "cast.yaml").write_text(files["cast.yaml"], encoding="utf-8")
    (folder / "reference.jsonl").write_text(files["reference.jsonl"], encoding="utf-8")
    return folder / "data.jsonl", folder / "cast.yaml", folder / "reference.jsonl"


@pytest.fixture
def world_score(personae, world_files) -> Callable:
    """`personae score` of those rows with the closed form, or another model."""

    def run(*more: object, model: str = MODEL):
        data, cast, _ = world_files
        return personae("score", data, "--model", model, "--cast", cast, *more)

    return run


def table(path: Path, name: str = "evidence") -> pa.Table:
    return pq.read_table(path / f"{name}.parquet").replace_schema_metadata(None)


def test_workers_give_the_same_table_to_the_last_bit(
    world_score, tmp_path: Path, offline_home: Path, monkeypatch
) -> None:
    assert world_score("--out", tmp_path / "one", "--quiet").status == 0
    monkeypatch.setenv("PERSONAE_HOME", str(tmp_path / "other-home"))
    done = world_score("--executor", "processes", "--workers", 2, "--out", tmp_path / "two")
    assert done.status == 0, done.err
    assert "in 2 workers" in done.err
    assert table(tmp_path / "one").equals(table(tmp_path / "two"))
    settings = json.loads((tmp_path / "two" / "run.json").read_text())["settings"]
    assert (settings["executor"], settings["workers"]) == ("processes", 2)


def test_parts_make_the_same_tables_as_a_whole(world_score, personae, tmp_path: Path, monkeypatch) -> None:
    assert world_score("--tokens", "--out", tmp_path / "whole").status == 0
    whole = json.loads((tmp_path / "whole" / "run.json").read_text())["result"]
    monkeypatch.setenv("PERSONAE_HOME", str(tmp_path / "other-home"))
    monkeypatch.setattr(score_command, "PART", 7)
    done = world_score("--tokens", "--out", tmp_path / "parts")
    assert "part 1 of 9" in done.err
    assert "part 9 of 9" in done.err
    for name in ("evidence", "episodes", "tokens"):
        assert table(tmp_path / "whole", name).equals(table(tmp_path / "parts", name)), name
    parts = json.loads((tmp_path / "parts" / "run.json").read_text())["result"]
    assert {k: whole[k] for k in ("n_episodes", "n_tokens")} == {k: parts[k] for k in ("n_episodes", "n_tokens")}
    again = world_score("--out", tmp_path / "again")
    assert "pairs to score" not in again.err  # everything was in the store


def test_every_row_is_checked_before_the_first_is_scored(personae, world_files, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(score_command, "PART", 7)
    data = tmp_path / "data.jsonl"
    lines = world_files[0].read_text().splitlines()
    data.write_text("\n".join([*lines, lines[3]]) + "\n")
    refused = personae("score", data, "--model", MODEL, "--cast", world_files[1])
    assert refused.status == 2
    assert "line 61: the id 'r3' was already used on line 4" in refused.err
    data.write_text("\n".join([*lines[:50], "{broken", *lines[50:]]) + "\n")
    assert "line 51" in personae("score", data, "--model", MODEL, "--cast", world_files[1]).err
    kept = personae("score", data, "--model", MODEL, "--cast", world_files[1], "--skip-bad-rows", "--json")
    assert kept.status == 0
    assert kept.json["n_episodes"] == 60
    assert "1 of 61 rows" in kept.json["notes"][0]


def test_infer_gives_what_a_posterior_from_the_table_is(world_score, personae, tmp_path: Path) -> None:
    from personae.files.casts import load_casts
    from personae.inference.mixture import fit_mixture

    run = tmp_path / "run"
    assert world_score("--out", run, "--quiet").status == 0
    made = personae("infer", run, "--eta", 1, "--json").json
    cast = load_casts([str(json.loads((run / "run.json").read_text())["settings"]["cast"][0])])
    values = table(run)["log_likelihood"].to_numpy().reshape(60, -1)
    sums = values.reshape(30, 2, -1).sum(axis=1)  # two rows a conversation
    fit = fit_mixture(sums, cast.log_prior, eta=1.0, seed=0)
    weights = {r["persona"]: r["weight"] for r in made["posterior"]}
    np.testing.assert_allclose([weights[p] for p in cast.component_ids], fit.weight, atol=1e-12)
    assert (made["n_episodes"], made["n_conversations"], made["eta_source"]) == (60, 30, "given with --eta")
    assert json.loads((run / "infer.json").read_text())["posterior"] == made["posterior"]
    shown = personae("infer", run)
    assert "30 conversations" in shown.out
    assert "not calibrated" in shown.out


def test_infer_refuses_tables_that_do_not_belong_together(world_score, personae, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert world_score("--out", run, "--quiet").status == 0
    good = pq.read_table(run / "evidence.parquet")
    for spoilt, message in (
        (good.slice(0, good.num_rows - 1), "rows where"),
        (pa.concat_tables([good.slice(1, 1), good.slice(0, 1), good.slice(2)]), "not those of episodes.parquet"),
        (pa.concat_tables([good.slice(0, good.num_rows - 6), good.slice(0, 6)]), "not those of episodes.parquet"),
    ):
        pq.write_table(spoilt, run / "evidence.parquet")
        refused = personae("infer", run)
        assert refused.status == 2
        assert message in refused.err
    (run / "evidence.parquet").write_bytes(b"no table")
    assert personae("infer", run).status == 2
    (run / "evidence.parquet").unlink()
    assert "no such table" in personae("infer", run).err
    assert "run.json" in personae("infer", tmp_path / "nothing").err
    assert personae("infer", run, "--eta", 0).status == 2


def test_the_store_is_verified_and_cleared(world_score, personae, offline_home: Path, tmp_path: Path) -> None:
    assert world_score("--out", tmp_path / "one", "--quiet").status == 0
    sound = personae("store", "verify", "--json")
    assert (sound.status, sound.json["n_damaged"], len(sound.json["spaces"])) == (0, 0, 1)
    (piece,) = offline_home.glob("evidence/*/seg-*.parquet")
    body = piece.read_bytes()
    piece.write_bytes(body[:-40] + b"\0" * 40)
    damaged = personae("store", "verify")
    assert damaged.status == 3
    assert "set aside" in damaged.err
    again = world_score("--out", tmp_path / "two")
    assert "pairs to score" in again.err  # computed again
    assert table(tmp_path / "one").equals(table(tmp_path / "two"))
    cleared = personae("store", "gc", "--json").json
    assert cleared["spaces"][0]["n_removed"] == 1
    assert personae("store", "verify").status == 0
    assert "0 damaged" in personae("store", "verify").out


@pytest.fixture
def served():
    model = load_model(MODEL)

    def start(manners: Manners) -> Unruly:
        return Unruly(model, manners)

    return start


def test_a_servers_model_scores_like_the_model_itself(served, world_score, tmp_path: Path) -> None:
    assert world_score("--out", tmp_path / "here", "--quiet").status == 0
    with served(Manners("vllm")) as server:
        done = world_score("--tokenizer", MODEL, "--out", tmp_path / "there", model=server.url)
        assert done.status == 0, done.err
        assert "Asking http" in done.err
    a, b = (table(tmp_path / n)["log_likelihood"].to_numpy() for n in ("here", "there"))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_a_server_cannot_is_told_in_one_line(served, world_score, personae, tmp_path: Path) -> None:
    with served(Manners("chat")) as server:
        refused = world_score("--tokenizer", MODEL, model=server.url)
        assert refused.status == 2
        assert "no log-probabilities of given text" in refused.err
        assert personae("check-model", server.url, "--tokenizer", MODEL).status == 2
        workers = world_score("--executor", "processes", model=server.url)
        assert (workers.status, "spreads its own work" in workers.err) == (2, True)
    assert world_score("--tokenizer", MODEL).status == 2
    assert world_score(model="http://user:secret@127.0.0.1/v1#a").status == 2
    assert world_score("--executor", "threads").status == 2


def test_a_driver_killed_again_and_again_ends_with_every_row_once(
    served, world_files, world_score, start, tmp_path: Path
) -> None:
    rng = random.Random(0)
    data, cast, _ = world_files
    with served(Manners("vllm", stall=0.08)) as server:
        server.manners.faults += ["stall"] * 5000
        arguments = ["score", data, "--model", server.url, "--tokenizer", MODEL, "--cast", cast, "--workers", 1]
        for _ in range(2):
            asked = server.n_completions
            child = start(RUN, *arguments, "--quiet", "--out", tmp_path / "killed")
            wanted = 14 + rng.randrange(12)
            while server.n_completions < asked + wanted and child.poll() is None:
                time.sleep(0.01)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            child.communicate()
        server.manners.faults.clear()
        done = world_score("--tokenizer", MODEL, "--out", tmp_path / "killed", model=server.url)
        assert done.status == 0, done.err
    assert world_score("--out", tmp_path / "whole", "--quiet").status == 0
    killed, whole = table(tmp_path / "killed"), table(tmp_path / "whole")
    assert killed.drop_columns("log_likelihood").equals(whole.drop_columns("log_likelihood"))
    np.testing.assert_allclose(killed["log_likelihood"].to_numpy(), whole["log_likelihood"].to_numpy(), atol=1e-5)


def test_a_targets_own_answers_are_screened_and_asked_for_once(
    served, world_files, personae, offline_home: Path, tmp_path: Path
) -> None:
    data, cast, reference = world_files

    def screen(*more: object):
        fixed = ("--model", MODEL, "--cast", cast, "--reference", reference, "--max-tokens", 1, "--json")
        return personae("screen", data, *fixed, *more)

    with served(Manners("chat")) as server:
        first = screen("--target", server.url, "--out", tmp_path / "one")
        assert first.status == 0, first.err
        assert server.n_completions == 60
        second = screen("--target", server.url, "--out", tmp_path / "two")
        assert server.n_completions == 60  # kept
    assert "(60 sampled now, 0 kept from before)" in first.json["notes"][0]
    assert "(0 sampled now, 60 kept from before)" in second.json["notes"][0]
    assert first.json["traits"] == second.json["traits"]
    rows = [json.loads(line) for line in (tmp_path / "one" / "answers.jsonl").read_text().splitlines()]
    assert [r["id"] for r in rows] == [f"r{k}" for k in range(60)]
    given = [json.loads(line) for line in data.read_text().splitlines()]
    said = [r["messages"][-1]["content"] for r in rows]
    assert said != [g.get("completion") or g["messages"][-1]["content"] for g in given]
    local = screen("--target", MODEL, "--out", tmp_path / "three")
    assert local.status == 0, local.err
    assert personae("validate", tmp_path / "one" / "answers.jsonl").status == 0


def test_a_damaged_answer_is_asked_for_again(served, world_files, personae, offline_home: Path, tmp_path: Path) -> None:
    data, cast, reference = world_files
    fixed = ("--model", MODEL, "--cast", cast, "--reference", reference, "--max-tokens", 1, "--quiet")
    with served(Manners("chat")) as server:
        personae("screen", data, *fixed, "--target", server.url, "--out", tmp_path / "one")
        kept = sorted((offline_home / "answers").rglob("*.json"))
        assert len(kept) == 2
        body = kept[0].read_text()
        kept[0].write_text(body.replace('"text": "', '"text": "x', 1))
        personae("screen", data, *fixed, "--target", server.url, "--out", tmp_path / "two")
        assert 60 < server.n_completions < 120
    one, two = ((tmp_path / n / "answers.jsonl").read_text() for n in ("one", "two"))
    assert one == two
