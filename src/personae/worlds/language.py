"""The words of a world, in the order of their ids, and what each word says about who speaks.

    <unk> <bos> | frames | <none> trait tags, irrelevant tags | the-speaker-is | questions | answers

An answer's id is first_answer + question * n_answers + answer, so every question has answers of its own and
evidence is local to one word. Question 2 of domain `medicine` reads "medicine-2?", its answers "medicine-2a",
"medicine-2b". Not here: text with several turns (`models.exact` and the trained model's chat template).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from personae.errors import RenderingError
from personae.worlds.spec import BOS, CLAIM, NO_TAG, UNKNOWN, World
from personae.worlds.tables import Tables


class Kind(IntEnum):
    """What sort of word it is."""

    UNKNOWN, BOS, FRAME, TAG, CLAIM, QUESTION, ANSWER = range(7)


@dataclass(frozen=True, slots=True, eq=False)
class Language:
    """Words of a world by id.

    Attributes:
        words: Every word.
        ids: Id of every word.
        kind: `Kind` of every word, shape (n_words,).
        first_frame, first_tag, first_question, first_answer: Ids where each group begins.
        claim: Id of the word that opens a statement about the speaker.
        n_answers: Answers a question.
        trait_tags: Ids of the tags that name a trait.
    """

    words: tuple[str, ...]
    ids: dict[str, int]
    kind: NDArray[np.int64]
    first_frame: int
    first_tag: int
    claim: int
    first_question: int
    first_answer: int
    n_answers: int
    trait_tags: tuple[int, ...]

    @classmethod
    def of(cls, world: World, tables: Tables) -> Language:
        """The language of a world."""
        names = [d.id for d in world.domains]
        questions = [f"{names[d]}-{i}" for d, spec in enumerate(world.domains) for i in range(spec.n_questions)]
        letters = [chr(ord("a") + a) for a in range(world.n_answers)]
        groups = (
            (Kind.UNKNOWN, [UNKNOWN]),
            (Kind.BOS, [BOS]),
            (Kind.FRAME, [f"<{f.id}>" for f in world.frames]),
            (Kind.TAG, [w for w, _ in tables.tag_words]),
            (Kind.CLAIM, [CLAIM]),
            (Kind.QUESTION, [f"{q}?" for q in questions]),
            (Kind.ANSWER, [f"{q}{a}" for q in questions for a in letters]),
        )
        words = tuple(w for _, group in groups for w in group)
        kind = np.array([k for k, group in groups for _ in group])
        first = {k: int(np.flatnonzero(kind == k)[0]) for k in Kind}
        tags = tuple(first[Kind.TAG] + i for i, (_, meaning) in enumerate(tables.tag_words) if meaning is not None)
        return cls(
            words,
            {w: i for i, w in enumerate(words)},
            kind,
            first[Kind.FRAME],
            first[Kind.TAG],
            first[Kind.CLAIM],
            first[Kind.QUESTION],
            first[Kind.ANSWER],
            world.n_answers,
            tags,
        )

    @property
    def no_tag(self) -> int:
        """Id of the word for an empty tag slot."""
        return self.ids[NO_TAG]

    @property
    def structural(self) -> frozenset[str]:
        """Words that only a template writes."""
        kinds = (Kind.UNKNOWN, Kind.BOS, Kind.FRAME)
        return frozenset(w for w, k in zip(self.words, self.kind, strict=True) if k in kinds or w == NO_TAG)

    def answers(self, question: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Ids of a question's answers, given its place among the questions; shape (..., n_answers)."""
        return self.first_answer + np.asarray(question)[..., None] * self.n_answers + np.arange(self.n_answers)

    def encode(self, text: str) -> list[int]:
        """Ids of words separated by white space.

        Raises:
            RenderingError: If a word is not of this world.
        """
        return [self.id_of(word) for word in text.split()]

    def id_of(self, word: str) -> int:
        """Id of a word.

        Raises:
            RenderingError: If it is not of this world.
        """
        if word not in self.ids:
            raise RenderingError(unknown_word(word), hint=CLOSED_HINT)
        return self.ids[word]

    def decode(self, ids: Sequence[int]) -> str:
        """Words of ids, separated by spaces."""
        return " ".join(self.words[i] for i in ids)


CLOSED_HINT = (
    "A world's model knows the words of its world and no others. `personae world make NAME` writes a cast.yaml, a "
    "reference.jsonl and examples in them: pass --cast, and to `screen` --reference."
)


def unknown_word(word: str) -> str:
    """What to say of a word that a closed vocabulary lacks."""
    return f"the word '{word}' is not in the model's closed vocabulary."
