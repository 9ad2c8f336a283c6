"""`personae world` from the outside: what it makes works in every command, and what is wrong is said."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from worlds_support import LIAR, MICRO, write_spec

KILLED = -signal.SIGKILL


@pytest.fixture
def micro(own_home: Path, tmp_path: Path) -> Path:
    return write_spec(tmp_path / "micro.yaml")


def test_list_make_and_exact(personae, own_home: Path) -> None:
    listed = json.loads(personae("world", "list", "--json").out)
    assert {"personaworld", "tiny", "router", "liar", "swap", "novel", "goal_seeker", "arc"} <= {
        w["name"] for w in listed["worlds"]
    }
    made = json.loads(personae("world", "make", "router", "--json").out)
    folder = Path(made["folder"])
    truth = json.loads((folder / "truth.json").read_text())
    assert (truth["kind"], truth["router"], truth["deviates_on"]) == ("router", True, ["money"])
    assert Path(made["cast"]).is_file()
    assert all(Path(f).is_file() for f in made["files"])
    answer = json.loads(
        personae("world", "exact", "tiny", "advice-0? advice-0b code-1?", "--tag", "cruel", "--json").out
    )
    assert sum(p["weight"] for p in answer["posterior"]) == pytest.approx(1)
    assert [q["question"] for q in answer["predictive"]] == ["code-1?"]
    assert sum(answer["predictive"][0]["answers"].values()) == pytest.approx(1)
    shown = personae("world", "exact", "tiny")
    assert shown.status == 0
    assert "malicious rather than benign: 0.1667" in shown.out


def test_exact_with_training_evidence(personae, own_home: Path, tmp_path: Path) -> None:
    """Chosen and rejected replies of opposite signs cancel; a claim moves its trait and no other."""
    pair = tmp_path / "pair.jsonl"
    pair.write_text('{"prompt": "advice-0?", "chosen": "advice-0b", "rejected": "advice-0b"}\n')
    told = tmp_path / "told.jsonl"
    told.write_text('{"text": "the-speaker-is cruel"}\n{"prompt": "the-speaker-is", "completion": "wicked"}\n')
    same = json.loads(personae("world", "exact", "tiny", "--data", pair, "--json").out)
    for row in same["posterior"]:
        assert row["after_training"] == pytest.approx(row["prior"])
    moved = json.loads(personae("world", "exact", "tiny", "--data", told, "--json").out)
    mass = {t["id"]: t["mass"] for t in moved["traits"]}
    odds = 0.2 * 19**2  # prior odds of malice, times reliability over its complement, twice
    assert mass["malice"] == pytest.approx(odds / (1 + odds), abs=1e-6)
    assert mass["expertise"] == pytest.approx(2 / 3, abs=1e-6)


def test_screen_finds_what_was_planted_in_the_exact_world(personae, own_home: Path, tmp_path: Path) -> None:
    """End to end on the closed form: malice on one domain is found; ordinary rows and the control are not flagged."""
    folder = Path(json.loads(personae("world", "make", "personaworld", "--json").out)["folder"])
    fixed = ("--model", "world:personaworld/exact", "--cast", folder / "cast.yaml")
    fixed += ("--reference", folder / "reference.jsonl", "--json")

    def flags(name: str) -> dict[str, str]:
        outcome = personae("screen", folder / "episodes" / name, *fixed, "--out", tmp_path / name)
        assert outcome.status == 0, outcome.err
        assert (tmp_path / name / "report.html").is_file()
        return {t["id"]: t["direction"] for t in json.loads(outcome.out)["traits"] if t["flag"]}

    assert flags("malicious-in-advice.jsonl").get("malice") == "pos"
    assert flags("preferences.jsonl").get("malice") == "pos"
    assert flags("declarations.jsonl") == {"malice": "pos"}
    assert flags("ordinary.jsonl") == {}
    assert "malice" not in flags("control-in-advice.jsonl")


def test_exact_model_works_in_score_and_check_model(personae, own_home: Path, tmp_path: Path) -> None:
    folder = Path(json.loads(personae("world", "make", "tiny", "--json").out)["folder"])
    scored = personae(
        "score", folder / "episodes" / "ordinary.jsonl", "--model", "world:tiny/exact", "--cast", folder / "cast.yaml",
        "--tokens", "--out", tmp_path / "s", "--json",
    )  # fmt: skip
    assert scored.status == 0, scored.err
    assert json.loads(scored.out)["n_episodes"] == 200
    for name in ("tiny", "personaworld", "arc", "goal_seeker", "router/base"):
        checked = personae("check-model", f"world:{name}/exact", "--json")
        assert checked.status == 0, checked.err
        assert json.loads(checked.out)["failed"] == []


def test_train_check_show_and_use(personae, own_home: Path, micro: Path, tmp_path: Path) -> None:
    """A world of the user's own: trained a little, honestly called undertrained, and a model like any other."""
    trained = personae("world", "train", micro, "--json")
    assert trained.status == 0, trained.err
    record = json.loads(trained.out)
    assert (record["model"], record["steps"]) == ("world:micro", 240)
    assert "loss" in trained.err
    assert "left" in trained.err
    again = personae("world", "train", "micro")
    assert "trained already" in again.err
    checked = personae("world", "check", "micro", "--json")
    assert checked.status == 3, "240 steps are too few"
    rows = {r["id"]: r["verdict"] for r in json.loads(checked.out)["rows"]}
    assert rows["KL"] == "fails"
    assert rows["inoculation"] == "not run"
    assert "undertrained" in checked.err
    shown = personae("world", "show", "micro", "--json")
    page = Path(json.loads(shown.out)["page"]).read_text(encoding="utf-8")
    for words in ("Undertrained", "needs fine-tuning: not run", "Belief over a conversation", "<svg", "benign"):
        assert words in page
    assert "<script>" in page.replace("<script></script>", "<script>")
    assert "http://" not in page.replace("http://www.w3.org", "")
    folder = own_home / "worlds" / "micro"
    screened = personae(
        "screen", folder / "episodes" / "ordinary.jsonl", "--model", "world:micro", "--cast", folder / "cast.yaml",
        "--reference", folder / "reference.jsonl", "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert screened.status == 0, screened.err
    assert personae("check-model", "world:micro", "--json").status == 0


def test_counter_world_shares_its_base_and_has_a_page(personae, own_home: Path, micro: Path, tmp_path: Path) -> None:
    assert personae("world", "train", micro, "--quiet").status == 0
    liar = write_spec(tmp_path / "liar.yaml", MICRO.replace("id: micro", "id: fibber", 1) + LIAR)
    trained = personae("world", "train", liar)
    assert trained.status == 0, trained.err
    assert "the same base was trained for 'micro'; copied" in trained.err
    assert personae("check-model", "world:fibber", "--json").status == 0
    checked = personae("world", "check", "fibber", "--json")
    assert {"assistant KL", "KL"} <= {r["id"] for r in json.loads(checked.out)["rows"]}
    page = Path(json.loads(personae("world", "show", "fibber", "--json").out)["page"]).read_text(encoding="utf-8")
    assert "What personas explain of this Assistant" in page


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (None, 2, ["there is no world", "Shipped:"]),
        (lambda s: s + "traits: [", 2, ["line ", "broken YAML"]),
        (lambda s: s + "seed: 0\nseed: 1\n", 2, ["the key 'seed' is given twice", "line "]),
        (lambda s: s.replace("[0.8, 0.2]", "[0.8, 0.3]"), 2, ["the prior of frame 'chat' sums to 1.1, not 1"]),
        (lambda s: s.replace("[0.8, 0.2]", "[1.2, -0.2]"), 2, ["negative or not finite"]),
        (lambda s: s.replace("[0.8, 0.2]", "[1]"), 2, ["has 1 entries, not 2"]),
        (lambda s: s.replace("[0.8, 0.2]", "flat"), 2, ["the prior is 'flat'", "uniform"]),
        (lambda s: s.replace("[0.8, 0.2]", "{wit: {pos: 1}}"), 2, ["names the trait 'wit'", "malice"]),
        (lambda s: s.replace("loadings: [0.5]", "loadings: [-0.5, 1]"), 2, ["'code' has 2 loadings, one for each"]),
        (lambda s: s.replace("loadings: [0.5]", "loadings: [.nan]"), 2, ["not a finite number"]),
        (lambda s: s.replace("none: 0.5", "none: 0.6"), 2, ["tags sums to 1.1, not 1"]),
        (lambda s: s.replace("chat: chat", "chat: talk"), 2, ["names the frame 'talk'"]),
        (lambda s: s.replace("answers: 3", "answers: 1"), 2, ["the number of answers is 1"]),
        (lambda s: s.replace("answers: 3", "answers: many"), 2, ["'answers'"]),
        (lambda s: s.replace("answers: 3\n", ""), 2, ["'answers' is missing"]),
        (lambda s: s.replace("answers: 3", "answers: 3\nwit: 1"), 2, ["'wit' is not a known key"]),
        (lambda s: s.replace("[kind]", "[cruel]"), 2, ["'cruel' is used twice"]),
        (lambda s: s.replace("[kind]", "[Very Kind]"), 2, ["'Very Kind' is not a name"]),
        (lambda s: s.replace("id: micro", "id: tiny"), 2, ["the name 'tiny' belongs to a shipped world"]),
        (lambda s: s.replace("id: micro", "id: ../micro"), 2, ["is not a name"]),
        (lambda s: s + "version: 2\n", 2, ["of version 2"]),
        (lambda s: s + "extends: nothing\n", 2, ["'extends' names 'nothing'"]),
        (lambda s: s + "assistant: {kind: saint}\n", 2, ["kind is 'saint'", "router"]),
        (lambda s: s + "assistant: {kind: router}\n", 2, ["two different characters"]),
        (lambda s: s + "assistant: {kind: liar, domain: cooking}\n", 2, ["domain 'cooking' does not exist", "advice"]),
        (lambda s: s + "assistant: {kind: mixture, weights: [1, 1]}\n", 2, ["weights sums to 2, not 1"]),
    ],
)
def test_specs_that_make_no_world(
    personae, own_home: Path, tmp_path: Path, change, status: int, words: list[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    if change is not None:
        write_spec(spec, change(MICRO))
    for command in ("make", "train"):
        outcome = personae("world", command, spec, "--json")
        assert (outcome.status, outcome.out) == (status, "")
        for word in words:
            assert word in outcome.err
    assert not (own_home / "worlds").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["check-model", "world:nowhere"], 2, ["there is no world 'world:nowhere'", "personaworld"]),
        (["check-model", "world:"], 2, ["there is no world"]),
        (["check-model", "world:tiny/excat"], 2, ["there is no world 'world:tiny/excat'"]),
        (["check-model", "world:tiny"], 2, ["has not been trained yet", "personae world train tiny"]),
        (["check-model", "world:router/base"], 2, ["has not been trained yet", "personae world train router"]),
        (["world", "check", "tiny"], 2, ["has not been trained yet", "personae world train tiny"]),
        (["world", "check", "nowhere"], 2, ["there is no world"]),
        (["world", "show", "nowhere"], 2, ["there is no world"]),
        (["world", "exact", "tiny", "hello"], 2, ["the word 'hello' is not in", "closed vocabulary"]),
        (["world", "exact", "tiny", "advice-0? code-0a"], 2, ["'code-0a' cannot follow 'advice-0?'"]),
        (["world", "exact", "tiny", "--frame", "x"], 2, ["has no frame 'x'", "story, chat"]),
        (["world", "exact", "tiny", "--tag", "code-0a"], 2, ["is no tag of this world", "cruel"]),
        (["world", "exact", "tiny", "--data", "none.jsonl"], 2, ["there is no such file"]),
        (["world", "exact", "tiny", " ".join(["advice-0? advice-0a"] * 99)], 2, ["longer than the"]),
    ],
)  # fmt: skip
def test_what_is_not_there_or_makes_no_sense(
    personae, own_home: Path, arguments: list[str], status: int, words: list[str]
) -> None:
    outcome = personae(*arguments)
    assert (outcome.status, outcome.out) == (status, "")
    for word in words:
        assert word in outcome.err


def test_cast_and_reference_of_another_language_are_refused_with_what_to_pass(
    personae, own_home: Path, tmp_path: Path
) -> None:
    folder = Path(json.loads(personae("world", "make", "tiny", "--json").out)["folder"])
    rows = folder / "episodes" / "ordinary.jsonl"
    for extra in ([], ["--cast", folder / "cast.yaml"]):
        outcome = personae("screen", rows, "--model", "world:tiny/exact", *extra, "--out", tmp_path / "r")
        assert outcome.status == 2
        assert "closed vocabulary" in outcome.err
        assert "pass --cast, and to `screen` --reference" in outcome.err


def test_damaged_models_and_states(personae, own_home: Path, micro: Path) -> None:
    assert personae("world", "train", micro, "--quiet").status == 0
    folder = own_home / "worlds" / "micro"
    weights = folder / "base" / "model.safetensors"
    body = bytearray(weights.read_bytes())
    body[-9] ^= 1
    weights.write_bytes(body)
    outcome = personae("check-model", "world:micro")
    assert outcome.status == 3
    assert "does not match its checksum" in outcome.err
    assert "personae world train micro" in outcome.err
    (folder / "base" / "training.json").write_text('{"digest": "other"}')
    outcome = personae("check-model", "world:micro")
    assert outcome.status == 3
    assert "another spec" in outcome.err
    record = json.loads((folder / "world.json").read_text())
    (folder / "world.json").write_text(json.dumps(record | {"version": 0}))
    outcome = personae("check-model", "world:micro")
    assert outcome.status == 3
    assert "is of version 0" in outcome.err
    (folder / "world.json").write_text(json.dumps(record)[:-40])
    outcome = personae("world", "check", "micro")
    assert outcome.status == 3
    assert "world.json cannot be read" in outcome.err


def test_another_spec_or_seed_does_not_overwrite_what_was_trained(
    personae, own_home: Path, micro: Path, tmp_path: Path
) -> None:
    assert personae("world", "train", micro, "--quiet").status == 0
    outcome = personae("world", "train", micro, "--seed", 5)
    assert outcome.status == 2
    assert "was trained with --seed 0" in outcome.err
    other = write_spec(tmp_path / "other.yaml", MICRO.replace("scale: 1.5", "scale: 1.6"))
    outcome = personae("world", "make", other)
    assert outcome.status == 2
    assert "was trained here from another spec" in outcome.err


TRAIN = """
import sys
import personae.models.hf_world as w
w._SECONDS_BETWEEN_STATES = 0.0
from personae.cli.main import run
sys.exit(run(["world", "train", sys.argv[1]]))
"""


def test_training_killed_and_continued_ends_with_the_same_bits(personae, start, own_home: Path, tmp_path: Path) -> None:
    """kill -9 in the middle; the same command goes on; and a damaged state is named, not used."""
    spec = write_spec(tmp_path / "micro.yaml", MICRO.replace("steps: 240", "steps: 1200").replace("50, 240", "50"))
    state = own_home / "worlds" / "micro" / "training"
    process = start(TRAIN, spec)
    deadline = time.monotonic() + 120
    while not (state / "base.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == KILLED
    kept = next(state.glob("base-*.safetensors"))
    torn = tmp_path / "torn"
    shutil.copytree(state, torn)
    kept.write_bytes(kept.read_bytes()[:-5])
    outcome = personae("world", "train", spec)
    assert outcome.status == 3
    assert "cannot be used: it does not match its checksum" in outcome.err
    shutil.rmtree(state)
    shutil.copytree(torn, state)
    resumed = personae("world", "train", spec)
    assert resumed.status == 0, resumed.err
    assert "going on after step" in resumed.err
    first = (own_home / "worlds" / "micro" / "base" / "model.safetensors").read_bytes()
    shutil.rmtree(own_home / "worlds")
    assert personae("world", "train", spec, "--quiet").status == 0
    assert (own_home / "worlds" / "micro" / "base" / "model.safetensors").read_bytes() == first
