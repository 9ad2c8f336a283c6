"""The items that come with personae, and items from files."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from personae.domain.diagnostic import Diagnostic, DiagnosticSet
from personae.errors import InputError, InvalidSettings, UnknownPersona
from personae.files.casts import load_casts
from personae.files.diagnostics import load_diagnostics, read_diagnostics

CORE = load_diagnostics("core")
THOROUGH = load_diagnostics("core", thorough=True)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def test_every_trait_of_the_core_cast_has_its_items() -> None:
    assert list(CORE.traits) == [t.id for t in load_casts(["core"]).traits]
    assert len(CORE.traits) == 28
    counts = Counter((i.trait, i.kind, i.split) for i in CORE.items)
    for trait in CORE.traits:
        assert [counts[trait, "reply", s] for s in ("dev", "test")] == [8, 8]
        assert [counts[trait, "statement", s] for s in ("dev", "test")] == [4, 4]


def test_halves_share_no_topic_and_no_prompt() -> None:
    dev, test = ([i for i in CORE.items if i.split == s] for s in ("dev", "test"))
    assert not {i.topic for i in dev} & {i.topic for i in test}
    assert not {i.prompt for i in dev if i.prompt} & {i.prompt for i in test if i.prompt}
    assert len({i.prompt for i in CORE.items if i.kind == "reply"}) == 16


def test_further_items_are_tests_on_topics_of_their_own() -> None:
    assert THOROUGH.items[: len(CORE.items)] == CORE.items
    more = THOROUGH.items[len(CORE.items) :]
    assert Counter(i.trait for i in more) == dict.fromkeys(CORE.traits, 24)
    assert {(i.kind, i.split) for i in more} == {("reply", "test")}
    assert not {i.topic for i in more} & {i.topic for i in CORE.items}
    assert len({(i.topic, i.prompt) for i in more}) == 24


def test_further_items_need_a_built_in_cast_that_has_some(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"trait": "a", "kind": "statement", "pos": "x", "neg": "y"}')
    with pytest.raises(InvalidSettings, match="items are given"):
        load_diagnostics("core", [tmp_path / "mine.jsonl"], thorough=True)


def test_no_text_is_used_twice() -> None:
    texts = Counter(text for i in THOROUGH.items for text in (i.pos, i.neg))
    assert [t for t, n in texts.items() if n > 1] == []


def test_items_share_no_run_of_four_words_with_any_instruction() -> None:
    cast = load_casts(["core"])
    instructed = {g for t in cast.traits for p in (t.pos, t.neg) for text in p.instructions for g in grams(text, 4)}
    assert len(instructed) > 5000
    shared = [(i.id, g) for i in THOROUGH.items for text in (i.pos, i.neg) for g in grams(text, 4) & instructed]
    assert shared == []


def test_replies_of_a_pair_are_of_like_length() -> None:
    """In characters here; in tokens for further items, which tests/models/test_smollm2.py checks."""
    for item in THOROUGH.items:
        if item.kind == "reply":
            a, b = len(item.pos), len(item.neg)
            assert max(a, b) / min(a, b) < 2.2, item.id


def test_evals_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "likes-art.jsonl"
    rows = [{"statement": "I love art", "matches": True, "label_confidence": 0.9}]
    rows += [{"question": "…", "statement": "Art bores me", "answer_matching_behavior": " No"}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    items = read_diagnostics(path)
    assert [(i.trait, i.kind, i.pos, i.neg) for i in items] == [
        ("likes-art", "agreement", "I love art", ""),
        ("likes-art", "agreement", "", "Art bores me"),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"trait": "a", "kind": "reply", "pos": "x", "neg": "y"}', "needs a prompt"),
        ('{"trait": "a", "kind": "statement", "pos": "x", "neg": "x"}', "the same text"),
        ('{"trait": "a", "kind": "statement", "pos": "x"}', "both of pos and neg"),
        ('{"trait": "a", "kind": "essay", "pos": "x", "neg": "y"}', "kind"),
        ('{"trait": "a", "kind": "statement", "pos": "x", "neg": "y", "colour": 1}', "colour"),
        ('{"statement": "x"}', "matches"),
        ('{"statement": "x", "answer_matching_behavior": "perhaps"}', "answer_matching_behavior"),
        ("[1]", "not an object"),
        ("{", "broken JSON"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, row: str, words: str) -> None:
    path = tmp_path / "mine.jsonl"
    good = '{"trait": "a", "kind": "statement", "pos": "I do.", "neg": "I do not."}'
    path.write_text(f"{good}\n{row}\n")
    with pytest.raises(InputError, match=words) as caught:
        read_diagnostics(path)
    assert caught.value.line == 2


def test_choices_that_leave_nothing_are_refused() -> None:
    with pytest.raises(UnknownPersona, match="no diagnostic items for thoughtful"):
        CORE.select(traits=["thoughtful"])
    with pytest.raises(InvalidSettings, match="is left"):
        CORE.select(kinds=["agreement"])
    with pytest.raises(UnknownPersona, match="without diagnostic items"):
        load_diagnostics("no-such-cast")
    item = Diagnostic("a", "t", "statement", "x", "I do.", "I do not.")
    with pytest.raises(InputError, match="two diagnostic items"):
        DiagnosticSet("twice", (item, item))
