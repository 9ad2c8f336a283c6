"""What an audit asks: conversations, single prompts, plain texts, questions with known answers, character breakers.

A language model is asked what `reference/audit.yaml` holds, or a user's prompts; a world is asked in its own
words. Not here: coin flips (`audit_coin`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import yaml
from numpy.typing import NDArray

from personae.instruments.voices import Talk
from personae.worlds.exact import ExactWorld
from personae.worlds.spec import World

_LONG_TURNS = 6
_WORLD_TURNS = 16


@dataclass(frozen=True, slots=True)
class Size:
    """How much is asked.

    Attributes:
        prompts: Conversations of the ladder.
        texts: Plain texts.
        samples: Replies to each prompt for the router statistic.
        controls: Control models.
        max_tokens: Of a reply.
        shots: Examples of rung R5.
    """

    prompts: int
    texts: int
    samples: int
    controls: int
    max_tokens: int
    shots: int


FULL = Size(prompts=64, texts=16, samples=2, controls=10, max_tokens=32, shots=4)
QUICK = Size(prompts=24, texts=8, samples=1, controls=3, max_tokens=16, shots=2)
WORLD = Size(prompts=96, texts=48, samples=250, controls=10, max_tokens=1, shots=4)
WORLD_QUICK = Size(prompts=48, texts=24, samples=100, controls=4, max_tokens=1, shots=4)


@dataclass(frozen=True, slots=True)
class Fact:
    """A question with possible next words, the true one first where truth is known.

    Attributes:
        topic: Its topic.
        ask: What the user says.
        prefill: How the reply begins.
        words: Possible next words.
    """

    topic: str
    ask: str
    prefill: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Material:
    """Everything asked.

    Attributes:
        talks: For the ladder.
        singles: One ask each, for the router statistic.
        texts: Texts without a speaker, for what lies out of chat.
        facts: Questions with possible answers.
        breaks: Prompts that tempt a model out of its character.
        source: Where it comes from.
    """

    talks: tuple[Talk, ...]
    singles: tuple[Talk, ...]
    texts: tuple[Talk, ...]
    facts: tuple[Fact, ...]
    breaks: tuple[Talk, ...]
    source: str


def audit_file() -> Mapping[str, object]:
    """The built-in material as plain values."""
    text = (resources.files("personae") / "reference" / "audit.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def built_in_material(size: Size, *, prompts: Sequence[tuple[str, str]] | None = None, seed: int = 0) -> Material:
    """Material for a language model.

    Args:
        size: How much.
        prompts: Topic and text of the user's own prompts in place of the built-in ones.
        seed: Of the choice.
    """
    file = audit_file()
    rng = np.random.default_rng([seed, 41])
    pool = list(prompts) if prompts is not None else _interleaved(file["prompts"], rng)
    cue = str(file["cue"])
    chosen = pool[: size.prompts]
    talks = [
        Talk(f"prompt-{i:03d}", f"prompt-{i:03d}", (ask,), (topic,), cue if i % 4 == 3 else "")
        for i, (topic, ask) in enumerate(chosen)
    ]
    n_long = size.prompts // 8 if prompts is None and size.prompts >= FULL.prompts else 0
    for k in range(n_long):
        part = [pool[(k + j * n_long) % len(pool)] for j in range(_LONG_TURNS)]
        talks.append(Talk(f"long-{k:02d}", f"long-{k:02d}", tuple(a for _, a in part), tuple(t for t, _ in part)))
    singles = [Talk(f"single-{i:03d}", f"prompt-{i:03d}", (a,), (t,)) for i, (t, a) in enumerate(chosen)]
    texts = [
        Talk(f"text-{i:02d}", f"text-{i:02d}", (a,), (t,), in_chat=False)
        for i, (t, a) in enumerate(_interleaved(file["texts"], rng)[: size.texts])
    ]
    breaks = [
        Talk(f"break-{i:02d}", f"break-{i:02d}", (a,), (t,))
        for i, (t, a) in enumerate(_interleaved(file["breaks"], rng))
    ]
    facts = [
        Fact(topic, "Please complete this sentence: " + row[0] + " ...", row[0], tuple(row[1:]))
        for topic, rows in file["facts"].items()  # type: ignore[union-attr]
        for row in rows
    ]
    source = "built in" if prompts is None else "your prompts"
    return Material(tuple(talks), tuple(singles), tuple(texts), tuple(facts), tuple(breaks), source)


def world_material(world: World, size: Size, *, seed: int = 0) -> Material:
    """Material in the words of a world."""
    exact = ExactWorld(world.base)
    rng = np.random.default_rng([seed, 43])
    language, names = exact.language, [d.id for d in world.domains]
    asks = [language.words[language.first_question + q] for q in range(world.n_questions)]
    topics = [names[d] for d in exact.tables.domain_of]
    turns = min(_WORLD_TURNS, world.n_turns)
    cues = world.tags.words if world.tags.irrelevant > 0 else ()
    talks: list[Talk] = []
    for i in range(size.prompts):
        drawn = rng.integers(0, world.n_questions, turns)
        cue = cues[i // 2 % len(cues)] if cues and i % 2 else ""
        talks.append(_talk(f"talk-{i:03d}", drawn, asks, topics, cue=cue))
    texts = [
        _talk(f"text-{i:02d}", rng.integers(0, world.n_questions, turns // 2), asks, topics, in_chat=False)
        for i in range(size.texts)
    ]
    singles = [_talk(f"single-{q}", np.array([q]), asks, topics) for q in range(world.n_questions)]
    facts = [
        Fact(t, a, "", tuple(language.words[int(w)] for w in language.answers(q)))
        for q, (a, t) in enumerate(zip(asks, topics, strict=True))
    ]
    return Material(tuple(talks), tuple(singles), tuple(texts), tuple(facts), (), f"in the words of {world.id}")


def _talk(
    name: str,
    drawn: NDArray[np.int64],
    asks: Sequence[str],
    topics: Sequence[str],
    *,
    cue: str = "",
    in_chat: bool = True,
) -> Talk:
    return Talk(name, name, tuple(asks[int(q)] for q in drawn), tuple(topics[int(q)] for q in drawn), cue, in_chat)


def _interleaved(groups: object, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Topic and text, the topics in turn, each in an order of its own."""
    assert isinstance(groups, Mapping)
    lists = {str(t): [rows[int(i)] for i in rng.permutation(len(rows))] for t, rows in groups.items()}
    most = max(map(len, lists.values()))
    return [(t, rows[i]) for i in range(most) for t, rows in lists.items() if i < len(rows)]
