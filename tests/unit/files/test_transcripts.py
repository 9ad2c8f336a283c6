"""Transcripts: what was written is read back, and other people's rows too; bad rows are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from personae.cli.profile_output import write_transcripts
from personae.errors import InputError
from personae.files.transcripts import is_transcripts, read_transcripts
from personae.tables.transcripts import Said, Transcripts

SAID = Transcripts(
    "target",
    (
        Said("a", "t", 0, 0, "Hi?", "Hello.", 2, 11, -3.5),
        Said("a", "t", 0, 1, "And?", "", 1, 12, -0.5),
        Said("a", "t", 1, 0, "Hi?", "Hey", 1, 13, None),
        Said("b", "u", 0, 0, "Who?", "Me", 1, 14, -1.0),
    ),
)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    write_transcripts(tmp_path, "said", SAID)
    assert is_transcripts(str(tmp_path / f"said.{suffix}"))
    assert read_transcripts(tmp_path / f"said.{suffix}").replies == SAID.replies


def test_episodes_hold_what_came_before_and_no_empty_reply() -> None:
    episodes = SAID.episodes()
    assert [e.id for e in episodes] == ["a#0/0", "a#1/0", "b#0/0"]
    assert [e.group for e in episodes] == ["a#0", "a#1", "b#0"]
    assert SAID.n_empty == 1
    long = Transcripts("t", (Said("a", "t", 0, 0, "1?", "one"), Said("a", "t", 0, 1, "2?", "two")))
    assert [t.text for t in long.episodes()[1].context] == ["1?", "one", "2?"]


def test_rows_of_others_become_conversations_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "theirs.jsonl"
    rows = [
        {"prompt": "Hi?", "completion": "Hello"},
        {"prompt": "Hi?", "response": "Hey"},
        {"prompt": "Go?", "text": ""},
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = read_transcripts(path)
    assert [r.conversation for r in said.replies] == ["Hi?#0", "Hi?#1", "Go?#0"]
    assert said.replies[0].asked == "Hi?"
    assert said.replies[0].topic == "prompts"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a"}, "no reply"),
        ({"text": "a"}, "prompt is None"),
        ({"prompt": "a", "text": "b", "turn": -1}, "turn"),
        ({"prompt": "a", "text": "b", "sample": 1.5}, "sample"),
        ({"prompt": "a", "text": "b", "log_prob": 2.0}, "log_prob"),
        ({"prompt": "a", "text": "b", "topic": 3}, "topic"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, row: dict, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"prompt": "x", "text": "y"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=words) as caught:
        read_transcripts(path)
    assert caught.value.line == 2


def test_turns_that_do_not_stand_together_are_refused() -> None:
    with pytest.raises(InputError, match="stand together"):
        Transcripts("t", (Said("a", "t", 0, 1, "2?", "two"),))
    with pytest.raises(InputError, match="twice"):
        Transcripts(
            "t", (Said("a", "t", 0, 0, "?", "x"), Said("b", "t", 0, 0, "?", "y"), Said("a", "t", 0, 0, "?", "z"))
        )
