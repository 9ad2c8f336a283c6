"""`personae profile` of a server: texts only, asked for once, and everything else left out in so many words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from personae.cli.profile_inputs import ProfileOptions, base_of, gives_only_text, read_brief
from personae.models.load import load_model
from personae.worlds.asking import world_prompts
from personae.worlds.exact import ExactWorld
from personae.worlds.material import material_of
from personae.worlds.reading import read_world
from unruly_server import Manners, Unruly

BASE, MADE = "world:tiny/base/exact", "world:tiny/exact"
N_PROMPTS, N_TURNS = 24, 8
N_REPLIES = N_PROMPTS * N_TURNS


@pytest.fixture(scope="module")
def world_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Conversations and cast of the world `tiny`."""
    exact = ExactWorld(read_world("tiny").base)
    folder = tmp_path_factory.mktemp("world")
    rows = [{"id": p.id, "topic": p.topic, "turns": p.turns} for p in world_prompts(exact, N_PROMPTS, turns=N_TURNS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (folder / "cast.yaml").write_text(material_of(exact)["cast.yaml"], encoding="utf-8")
    return folder / "prompts.jsonl", folder / "cast.yaml"


@pytest.fixture
def profile(personae, world_files) -> Callable:
    """`personae profile` with the world's prompts and cast, judged by its base."""

    def run(target: object, *more: object):
        prompts, cast = world_files
        return personae(
            "profile", target, "--scorer", BASE, "--cast", cast, "--prompts", prompts, "--max-tokens", 1, *more
        )

    return run


@pytest.fixture
def served() -> Callable[..., Unruly]:
    def start(name: str = MADE, **manners: object) -> Unruly:
        return Unruly(load_model(name), Manners(**{"style": "chat", **manners}))  # type: ignore[arg-type]

    return start


def test_a_server_is_profiled_by_its_texts_and_asked_once(profile, served, personae, tmp_path: Path) -> None:
    with served() as server:
        first = profile(server.url, "--reach", "--out", tmp_path / "one")
        assert first.status == 0, first.err
        assert server.n_completions == N_REPLIES
        assert "First words were not read: " in first.out
        assert "Reach was left out: " in first.out
        second = profile(server.url, "--reach", "--out", tmp_path / "two", "--json")
        again = personae("rerun", tmp_path / "one", "--out", tmp_path / "three", "--json")
        assert server.n_completions == N_REPLIES  # kept
    found = json.loads((tmp_path / "one" / "run.json").read_text())["result"]
    assert found["posterior"] == second.json["posterior"] == again.json["posterior"]
    assert (found["white_box"], found["reach"]) == (None, None)
    assert found["white_box_reason"] == found["reach_reason"]
    assert "is a server, of which only the texts are known" in found["reach_reason"]
    assert any(
        f"asked for {N_REPLIES} replies ({N_REPLIES} sampled now, 0 kept from before); 0 are empty" in n
        for n in found["notes"]
    )
    assert any(f"(0 sampled now, {N_REPLIES} kept from before)" in n for n in second.json["notes"])
    page = (tmp_path / "one" / "report.html").read_text()
    assert page.count("is a server, of which only the texts are known") == 2
    card = (tmp_path / "one" / "card.html").read_text()
    assert card.count("is a server, of which only the texts are known") == 2
    assert not (tmp_path / "one" / "first_words.parquet").exists()


def test_what_moved_between_servers_and_models(profile, served) -> None:
    with served(BASE) as server:
        nothing = profile(server.url, "--versus", server.url, "--json")
        moved = profile(server.url, "--system", "cruel", "--versus", server.url, "--json")
        assert server.n_completions == 3 * N_REPLIES  # the second time the other side was kept
        here = profile(server.url, "--system", "cruel", "--versus", BASE, "--json")
        assert server.n_completions == 3 * N_REPLIES
    assert nothing.status == 0, nothing.err
    assert nothing.json["versus"]["n_moved"] == 0
    for found in (moved.json, here.json):
        rows = {m["id"]: m for m in found["versus"]["moves"]}
        assert rows["malice"]["flag"]
        assert rows["malice"]["difference"] < 0  # the first was told to be cruel
        assert not rows["expertise"]["flag"]
    assert here.json["versus"]["other"] == BASE
    assert sum("sampled now" in n for n in moved.json["notes"]) == 2
    assert sum("sampled now" in n for n in here.json["notes"]) == 1  # a model that is here is no server


def test_a_system_turn_is_sent_and_kept_apart(profile, served) -> None:
    with served(message={"content": "a reply"}) as server:
        assert profile(server.url, "--limit", 6, "--system", "You shout.", "--json").status != 0  # no word of the world
        sent = [b["messages"] for b in server.bodies if "messages" in b]
    assert {m[0]["content"] for m in sent} == {"You shout."}
    assert {m[0]["role"] for m in sent} == {"system"}


def test_empty_and_refused_replies(personae, served, model_folder: Path, cast_file: Path, tmp_path: Path) -> None:
    fixed = ("--scorer", model_folder, "--cast", cast_file, "--quick", "--limit", 8, "--json")
    with served(message={"content": None, "reasoning": "hm"}) as server:
        silent = personae("profile", server.url, *fixed)
        assert silent.status == 3
        assert "answered all 8 prompts with nothing" in silent.err
        assert "--max-tokens" in silent.err
        assert server.n_completions == 16  # once more each
    with served(message={"content": None, "refusal": "I'm sorry, but I can't help with that."}) as server:
        refused = personae("profile", server.url, *fixed)
    assert refused.status == 0, refused.err
    assert (refused.json["n_refusals"], refused.json["n_empty"]) == (8, 0)
    assert any("open like a refusal" in n for n in refused.json["notes"])
    with served(message={"content": "Half a letter \ud83d"}) as server:
        cut = personae("profile", server.url, *fixed, "--out", tmp_path / "cut")
    assert cut.status == 0, cut.err
    assert '"Half a letter"' in (tmp_path / "cut" / "transcripts.jsonl").read_text()


def test_a_server_that_also_scores_is_one_model(profile, served, personae, tmp_path: Path) -> None:
    with served(style="vllm") as server:
        done = profile(server.url, "--scorer", server.url, "--tokenizer", MADE, "--limit", 8, "--reach", "--json")
        assert done.status == 0, done.err
        assert not any(path.endswith("chat/completions") for path, _ in server.log)
    assert done.json["scorer"] == server.url
    assert "does not give its distribution" in done.json["white_box_reason"]
    assert "does not give its distribution" in done.json["reach_reason"]
    assert not any("million parameters" in line for line in done.json["not_measurable"])  # a server does not tell


def test_who_judges_a_server_unless_told() -> None:
    url = "http://127.0.0.1:9/v1#far"
    brief = read_brief(ProfileOptions(url))
    assert (base_of(url), brief.scorer) == ("smollm2", "smollm2")
    assert any("smollm2 judges" in n for n in brief.notes)
    assert not any("judges" in n for n in read_brief(ProfileOptions(url, scorer="smollm2")).notes)
    assert gives_only_text(url, "smollm2")
    assert not gives_only_text(url, url)


def test_what_cannot_be_is_told_in_one_line(profile, served) -> None:
    for name in ("http://user:secret@127.0.0.1/v1#a", "http://"):
        assert profile(name).status == 2
    with served() as server:
        unknown = profile(server.url.replace("#tiny", "#other"))
        assert (unknown.status, "has no model 'other'" in unknown.err) == (2, True)
        needless = profile(server.url, "--tokenizer", MADE)
        assert (needless.status, "for a server that scores" in needless.err) == (2, True)
        assert profile(server.url, "--scorer", "nobody").status == 2
        text_only = profile(MADE, "--scorer", server.url, "--tokenizer", MADE)
        assert (text_only.status, "no log-probabilities" in text_only.err) == (2, True)


def test_a_damaged_reply_is_asked_for_again(profile, served, offline_home: Path, tmp_path: Path) -> None:
    with served() as server:
        profile(server.url, "--limit", 16, "--out", tmp_path / "one", "--quiet")
        (kept,) = (offline_home / "transcripts").rglob("*.json")
        body = kept.read_text()
        kept.write_text(body.replace('"text": "', '"text": "x', 1))
        asked = server.n_completions
        profile(server.url, "--limit", 16, "--out", tmp_path / "two", "--quiet")
        assert server.n_completions == 2 * asked
    one, two = ((tmp_path / n / "transcripts.jsonl").read_text() for n in ("one", "two"))
    assert one == two
