"""Probe prompts: the built-in ones are as promised, and files with errors are refused with their line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from personae.domain.probe_prompt import spread
from personae.errors import InputError, InvalidSettings
from personae.files.prompts import TOPICS, built_in_prompts, read_prompts


def test_built_in_prompts_cover_every_topic_and_differ() -> None:
    prompts = built_in_prompts()
    assert len(prompts) >= 120
    assert len({p.id for p in prompts}) == len({p.turns for p in prompts}) == len(prompts)
    assert set(Counter(p.topic for p in prompts)) == set(TOPICS)
    assert min(Counter(p.topic for p in prompts).values()) >= 12
    assert {p.topic for p in prompts if p.is_diagnostic} == set(TOPICS)


def test_spread_takes_topics_in_turn_and_keeps_their_order() -> None:
    prompts = built_in_prompts()
    few = spread(prompts, 15)
    counts = Counter(p.topic for p in few)
    assert sum(counts.values()) == 15
    assert max(counts.values()) - min(counts.values()) <= 1
    assert [prompts.index(p) for p in few] == sorted(prompts.index(p) for p in few)
    assert spread(prompts, 10_000) == prompts
    with pytest.raises(InvalidSettings):
        spread(prompts, 0)


def test_own_prompts_in_two_formats(tmp_path: Path) -> None:
    rows = tmp_path / "mine.jsonl"
    rows.write_text('{"prompt": "Hi?", "topic": "t"}\n\n{"id": 7, "turns": ["A?", "B?"], "diagnostic": true}\n')
    first, second = read_prompts(rows)
    assert (first.id, first.topic, first.turns, first.is_diagnostic) == ("prompt-1", "t", ("Hi?",), False)
    assert (second.id, second.topic, second.turns, second.is_diagnostic) == ("7", "prompts", ("A?", "B?"), True)
    lines = tmp_path / "mine.txt"
    lines.write_text("One?\n\nTwo?\n")
    assert [p.turns[0] for p in read_prompts(lines)] == ["One?", "Two?"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"prompt": "   "}', "empty"),
        ('{"prompt": 3}', "not a text"),
        ('{"question": "Hi?"}', "its keys: question"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', "messages"),
        ('{"prompt": "a", "turns": ["b"]}', "both"),
        ('{"turns": []}', "no prompt"),
        ('{"turns": ["a", 2]}', "not a text"),
        ('{"prompt": "a", "topic": 4}', "topic"),
        ('{"prompt": "a", "diagnostic": "yes"}', "diagnostic"),
        ('{"prompt": "a", "id": true}', "id"),
        ('{"prompt": "a"', "broken JSON"),
        ("[1]", "not an object"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "fine?"}\n' + row + "\n")
    with pytest.raises(InputError, match=said) as caught:
        read_prompts(path)
    assert caught.value.line == 2
    assert caught.value.hint


def test_ids_are_unique_and_a_file_holds_something(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"id": "x", "prompt": "a"}\n{"id": "x", "prompt": "b"}\n')
    with pytest.raises(InputError, match="already used on line 1"):
        read_prompts(path)
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    with pytest.raises(InputError, match="no prompts"):
        read_prompts(blank)
    with pytest.raises(InputError):
        read_prompts(tmp_path / "absent.jsonl")
