"""Rows become episodes, or are refused with their line, why, and what to do."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.domain.episode import Episode, Turn
from personae.errors import InputError, InvalidSettings
from personae.files.episodes import EpisodeSet, read_episodes, row_to_episodes
from personae.files.reference import LEAST_EPISODES, LEAST_GROUPS, load_reference, reference_path
from personae.files.rows import Row

USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
LONGER = [SYSTEM, USER, REPLY, {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]
S, Q, A, Q2 = Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a"), Turn("user", "q2")


def episodes_of(row: dict, turns: str = "last") -> list[Episode]:
    return row_to_episodes(Row(7, row), turns=turns)[1]


def one(row: dict) -> Episode:
    (episode,) = episodes_of(row)
    return episode


def read(folder: Path, *rows: object, **options: object) -> EpisodeSet:
    path = folder / "rows.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return read_episodes(path, **options)


@pytest.mark.parametrize(
    ("row", "context", "completion"),
    [
        ({"messages": [USER, REPLY]}, (Q,), "a"),
        ({"messages": LONGER}, (S, Q, A, Q2), "a2"),
        ({"messages": [REPLY]}, (), "a"),
        ({"messages": [USER, REPLY], "system": "s"}, (S, Q), "a"),
        ({"prompt": "q", "completion": "a"}, (Q,), "a"),
        ({"prompt": "q", "response": "a"}, (Q,), "a"),
        ({"prompt": "q", "completion": None, "response": "a"}, (Q,), "a"),
        ({"prompt": [SYSTEM, USER], "completion": [REPLY]}, (S, Q), "a"),
        ({"prompt": "q", "completion": "a", "system": "s"}, (S, Q), "a"),
        ({"prompt": "q", "completion": " a\n"}, (Q,), " a\n"),
    ],
)
def test_replies(row: dict, context: tuple[Turn, ...], completion: str) -> None:
    assert one(row) == Episode("row-7", context, completion, 1.0, "row-7", 7)


def test_a_document() -> None:
    assert one({"text": "Once.", "id": 3}) == Episode("3", (), "Once.", 1.0, "3", 7, is_document=True)


def test_content_in_parts_is_joined_when_every_part_is_text() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    episode = one({"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}]})
    assert (episode.context, episode.completion) == ((Turn("user", "one two"),), "one two")
    picture = [*parts, {"type": "image_url", "image_url": "x"}]
    with pytest.raises(InputError, match="message 1 of 'messages' must be text, not list"):
        one({"messages": [{"role": "user", "content": picture}, REPLY]})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "yes", "rejected": "no"},
        {"prompt": [USER], "chosen": "yes", "rejected": [{"role": "assistant", "content": "no"}]},
        {
            "chosen": [USER, {"role": "assistant", "content": "yes"}],
            "rejected": [USER, {"role": "assistant", "content": "no"}],
        },
    ],
    ids=["strings", "messages", "whole conversations"],
)
@pytest.mark.parametrize("weight", [None, 2.5, 0])
def test_preferences_are_two_episodes_of_one_group(row: dict, weight: float | None) -> None:
    good, bad = episodes_of({**row, "id": "p", "weight": weight})
    size = 1.0 if weight is None else weight
    assert good == Episode("p/chosen", (Q,), "yes", size, "p", 7)
    assert bad == Episode("p/rejected", (Q,), "no", -size, "p", 7)


def test_preferences_keep_their_own_group_and_system() -> None:
    row = {"prompt": "q", "chosen": "yes", "rejected": "no", "group": "g", "system": "s"}
    assert {(e.group, e.context) for e in episodes_of(row)} == {("g", (S, Q))}


def test_every_assistant_turn() -> None:
    first, second = episodes_of({"messages": LONGER, "id": "c", "weight": -1}, turns="all")
    assert first == Episode("c#1", (S, Q), "a", -1.0, "c", 7)
    assert second == Episode("c#2", (S, Q, A, Q2), "a2", -1.0, "c", 7)
    assert {e.group for e in episodes_of({"messages": LONGER, "group": "g"}, turns="all")} == {"g"}
    assert episodes_of({"prompt": "q", "completion": "a"}, turns="all") == [one({"prompt": "q", "completion": "a"})]


@pytest.mark.parametrize(
    ("given", "weight"), [(None, 1.0), ("", 1.0), (3, 3.0), ("0.5", 0.5), (-2.0, -2.0), (0, 0.0), (1e6, 1e6)]
)
def test_weights(given: object, weight: float) -> None:
    assert one({"prompt": "q", "completion": "a", "weight": given}).weight == weight


@pytest.mark.parametrize(
    ("given", "id_"), [(None, "row-7"), ("", "row-7"), (0, "0"), (1.5, "1.5"), ("é\n", "é\n"), ("row-7", "row-7")]
)
def test_ids(given: object, id_: str) -> None:
    assert one({"prompt": "q", "completion": "a", "id": given}).id == id_


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "none of the known shapes (its keys: none)"),
        ({"question": "q", "answer": "a"}, "none of the known shapes (its keys: answer, question)"),
        ({"completion": "a"}, "none of the known shapes (its keys: completion)"),
        ({"prompt": "q"}, "a prompt and no completion"),
        ({"prompt": "q", "completion": None}, "a prompt and no completion"),
        ({"prompt": "q", "completion": ""}, "the completion is empty"),
        ({"prompt": "q", "completion": " \n\t"}, "the completion is empty"),
        ({"text": "  "}, "the completion is empty"),
        ({"text": 3}, "'text' must be text, not int"),
        ({"prompt": "q", "completion": 3}, "'completion' must be a list of messages"),
        ({"prompt": 3, "completion": "a"}, "'prompt' must be a list of messages"),
        ({"prompt": "q", "completion": [USER]}, "'completion' must be a string or one assistant message"),
        ({"prompt": "q", "completion": [REPLY, REPLY]}, "'completion' must be a string or one assistant message"),
        ({"prompt": [USER, REPLY], "completion": "a"}, "two assistant turns in a row"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "hi"}, "'messages' must be a list of messages"),
        ({"messages": ["hi"]}, "message 1 of 'messages' needs 'role' and 'content'"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2 of 'messages' needs 'role' and 'content'"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "message 2 of 'messages' must be text"),
        ({"messages": [USER]}, "no completion: it does not end with an assistant turn"),
        ({"messages": [USER, REPLY, USER]}, "no completion: it does not end with an assistant turn"),
        ({"messages": [USER, USER, REPLY]}, "roles out of order: turn 2 is from user, expected assistant"),
        ({"messages": [USER, REPLY, REPLY]}, "roles out of order: two assistant turns in a row"),
        ({"messages": [REPLY, USER, REPLY]}, "roles out of order: turn 1 is from assistant, expected user"),
        ({"messages": [USER, SYSTEM, REPLY]}, "roles out of order: a system turn may only come first"),
        ({"messages": [USER, {"role": "bot", "content": "x"}]}, "unknown role 'bot'"),
        ({"messages": [{"role": "tool", "content": "x"}, USER, REPLY]}, "unknown role 'tool'"),
        ({"messages": [SYSTEM, USER, REPLY], "system": "s"}, "both 'system' and a system message"),
        ({"messages": [USER, REPLY], "rejected": "no"}, "both 'messages' and 'rejected'"),
        ({"prompt": "q", "completion": "a", "system": 1}, "'system' must be text, not int"),
        ({"prompt": "q", "chosen": "a"}, "a preference row has no 'rejected'"),
        ({"prompt": "q", "rejected": "a"}, "a preference row has no 'chosen'"),
        ({"chosen": "a", "rejected": "b"}, "'chosen' must be a list of messages"),
        ({"chosen": [USER], "rejected": [USER]}, "'chosen' does not end with an assistant turn"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "the completion is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "weight": -1}, "a preference row has the weight -1"),
        ({"text": "a", "id": []}, "'id' must be a string or a number, not list"),
        ({"text": "a", "id": True}, "'id' must be a string or a number, not bool"),
        ({"text": "a", "weight": float("nan")}, "'weight' is nan, not a finite number"),
        ({"text": "a", "weight": "-inf"}, "'weight' is -inf, not a finite number"),
        ({"text": "a", "weight": 10**400}, "'weight' is inf, not a finite number"),
        ({"text": "a", "weight": 1e300}, "'weight' is 1e+300; its size must be 0 or lie between"),
        ({"text": "a", "weight": -1e-300}, "'weight' is -1e-300; its size must be 0 or lie between"),
        ({"text": "a", "weight": "heavy"}, "'weight' is 'heavy', not a number"),
        ({"text": "a", "weight": True}, "'weight' must be a number, not bool"),
        ({"text": "a", "weight": [1]}, "'weight' must be a number, not list"),
    ],
)
@pytest.mark.parametrize("turns", ["last", "all"])
def test_refusals_name_line_and_reason(row: dict, reason: str, turns: str, tmp_path: Path) -> None:
    found = read(tmp_path, {"text": "fine"}, "", row, {"text": "fine too"}, turns=turns)
    assert [(r.line, reason in r.reason) for r in found.refused] == [(3, True)], found.refused
    assert [e.line for e in found.episodes] == [1, 4]
    assert (found.n_rows, found.shapes) == (3, {"document": 2})
    with pytest.raises(InputError) as caught:
        found.require_clean()
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 3: ")
    assert "--skip-bad-rows" in caught.value.hint


def test_one_error_counts_all_refused_rows(tmp_path: Path) -> None:
    found = read(tmp_path, "{", {"text": "a"}, {"text": ""}, "[]")
    assert [r.line for r in found.refused] == [1, 3, 4]
    with pytest.raises(InputError, match=r"line 1: broken JSON.*\(3 rows of 4 cannot be read\)"):
        found.require_clean()


def test_a_clean_set_is_itself(tmp_path: Path) -> None:
    found = read(tmp_path, {"text": "a"}, {"prompt": "q", "completion": "b"}, {"messages": [USER, REPLY]})
    assert found.require_clean() is found
    assert found.shapes == {"document": 1, "completion": 1, "messages": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (({"text": "a", "id": "x"}, {"text": "b", "id": "x"}), "line 2: the id 'x' was already used on line 1"),
        (({"text": "a", "id": 1}, {"text": "b", "id": "1"}), "line 2: the id '1' was already used on line 1"),
        (({"text": "a"}, {"text": "b", "id": "row-1"}), "line 2: the id 'row-1' was already used on line 1"),
        ((), "the file is empty"),
        (("", "  "), "the file holds no rows"),
    ],
)
def test_files_refused_as_a_whole(rows: tuple, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, *rows)


def test_limit_counts_rows_and_looks_no_further(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"text": ""}, {"text": "c"}, "not JSON"]
    found = read(tmp_path, *rows, limit=3)
    assert (found.n_rows, len(found.episodes), len(found.refused)) == (3, 3, 1)


def test_turns_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="--turns is 'some'; it can be 'last' or 'all'"):
        read(tmp_path, {"text": "a"}, turns="some")


words = st.text(max_size=12)
spoken = words.filter(str.strip)
weights = st.floats(1e-6, 1e6).flatmap(lambda w: st.sampled_from([w, -w, 0.0]))


@st.composite
def dialogues(draw: st.DrawFn) -> tuple[Turn, ...]:
    system = draw(st.sampled_from([(), (Turn("system", draw(words)),)]))
    n = draw(st.integers(0, 2))
    pairs = [t for _ in range(n) for t in (Turn("user", draw(words)), Turn("assistant", draw(words)))]
    return (*system, *pairs, Turn("user", draw(words)))


@st.composite
def episode_lists(draw: st.DrawFn) -> list[Episode]:
    ids = draw(st.lists(words.filter(bool), min_size=1, max_size=5, unique=True))
    found: list[Episode] = []
    for line, id_ in enumerate(ids, start=1):
        document = draw(st.booleans())
        context = () if document else draw(dialogues())
        group = draw(words.filter(bool))
        found.append(Episode(id_, context, draw(spoken), draw(weights), group, line, document))
    return found


def to_row(episode: Episode, shape: str) -> dict:
    common = {"id": episode.id, "weight": episode.weight, "group": episode.group}
    if episode.is_document:
        return {**common, "text": episode.completion}
    context = [{"role": t.speaker, "content": t.text} for t in episode.context]
    if shape == "messages":
        return {**common, "messages": [*context, {"role": "assistant", "content": episode.completion}]}
    return {**common, "prompt": context, "completion": episode.completion}


@settings(max_examples=60, deadline=None)
@given(episode_lists(), st.sampled_from(["messages", "prompt"]), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_writing_episodes_and_reading_them_gives_them_back(
    episodes: list[Episode], shape: str, ascii_only: bool, end: str
) -> None:
    body = end.join(json.dumps(to_row(e, shape), ensure_ascii=ascii_only) for e in episodes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(body.encode())
        assert read_episodes(path).require_clean().episodes == tuple(episodes)
        path = Path(folder) / "rows.json"
        path.write_text(json.dumps([to_row(e, shape) for e in episodes]))
        assert read_episodes(path).require_clean().episodes == tuple(episodes)


def test_the_built_in_reference_is_clean_and_large_enough() -> None:
    episodes = load_reference()
    assert len(episodes) >= LEAST_EPISODES
    assert len({e.group for e in episodes}) >= LEAST_GROUPS
    assert {e.weight for e in episodes} == {1.0}
    assert len({e.content_digest for e in episodes}) == len(episodes)
    assert reference_path().is_file()


@pytest.mark.parametrize(("n", "groups"), [(LEAST_EPISODES - 1, 8), (80, LEAST_GROUPS - 1)])
def test_a_reference_that_is_too_small(n: int, groups: int, tmp_path: Path) -> None:
    read(tmp_path, *({"text": f"row {k}", "group": k % groups} for k in range(n)))
    with pytest.raises(InputError, match=f"has {n} in {groups}") as caught:
        load_reference(tmp_path / "rows.jsonl")
    assert "'group'" in caught.value.hint


def test_a_reference_of_ones_own_that_is_just_large_enough(tmp_path: Path) -> None:
    read(tmp_path, *({"text": f"row {k}", "group": k % LEAST_GROUPS} for k in range(LEAST_EPISODES)))
    assert len(load_reference(tmp_path / "rows.jsonl")) == LEAST_EPISODES
