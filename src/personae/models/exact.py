"""A world's closed-form model behind the protocol of language models: no weights, no torch, no error.

It reads and writes exactly the documents that a trained model of the world was trained on, so every method
can be tried where the answer is known; it is the double that tests use. Not here: the mathematics
(`worlds.exact`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from personae.errors import RenderingError
from personae.models.protocol import (
    Completion,
    DenseDistributions,
    ModelCard,
    Phrases,
    SamplingPlan,
    Scorable,
    TokenLogprobs,
)
from personae.worlds.exact import ExactWorld
from personae.worlds.language import CLOSED_HINT, Kind, Language
from personae.worlds.spec import NO_TAG, WORLD_VERSION, World

_CHUNK_TOKENS = 2**14  # the distributions of so many words are held at once
_TOLERANCE = 1e-5  # log-probabilities are handed over in float32


class WorldTokenizer:
    """Words of a world. The template writes <bos>, the chat frame, the tag slot, then questions and answers."""

    def __init__(self, world: World, language: Language) -> None:
        self._language = language
        self._chat, self._plain = f"<{world.chat}>", f"<{world.plain}>"
        self._structural = language.structural
        self.phrases = phrases_of(language)
        self.answers = frozenset(np.flatnonzero(language.kind == Kind.ANSWER).tolist())

    @property
    def stop_ids(self) -> frozenset[int]:
        """None: an answer ends a turn and is the turn."""
        return frozenset()

    @property
    def has_template(self) -> bool:
        """Always: the chat frame."""
        return True

    @property
    def bos_ids(self) -> tuple[int, ...]:
        """What opens text without the template: <bos>, the plain frame, an empty tag slot."""
        return tuple(self._language.encode(f"<bos> {self._plain} {NO_TAG}"))

    def encode(self, text: str) -> list[int]:
        """Ids of words from outside.

        Raises:
            RenderingError: If a word is not of this world, or only the template may write it.
        """
        for word in text.split():
            if word in self._structural:
                raise RenderingError(f"the word '{word}' may only be written by the template.", hint=CLOSED_HINT)
        return self._language.encode(text)

    def encode_template(self, text: str) -> list[int]:
        """Ids of words that the template wrote."""
        return self._language.encode(text)

    def apply_template(self, messages: Sequence[dict[str, str]], *, open_reply: bool) -> str:
        """<bos> <chat> TAG, then the turns; a system turn is the tag. An open reply adds nothing."""
        first = messages[0] if messages else {"role": ""}
        tagged = first["role"] == "system"
        words = ["<bos>", self._chat, first["content"] if tagged else NO_TAG]
        words += [m["content"] for m in messages[1 if tagged else 0 :]]
        return " ".join(words) + " "

    def decode(self, token_ids: Sequence[int]) -> str:
        """Words of ids, separated by spaces."""
        return self._language.decode(token_ids)


def phrases_of(language: Language) -> Phrases:
    """Well-formed text of a world, for laws and examples; each reply goes on for a turn, so it can be cut."""
    asked = np.linspace(0, (language.kind == Kind.QUESTION).sum() - 1, 4).astype(int)
    question = [language.words[language.first_question + int(q)] for q in asked]
    answer = [language.words[int(language.answers(int(q))[k % language.n_answers])] for k, q in enumerate(asked)]
    replies = [f"{answer[k]} {question[k - 1]} {answer[k - 1]}" for k in range(4)]
    tags = [language.words[i] for i in (language.trait_tags[0], language.trait_tags[-1])]
    return Phrases(tuple(tags), tuple(question), tuple(replies))


class ExactModel:
    """The closed form of a world as a `LanguageModel` that gives its full distribution.

    Args:
        world: The world; with its Assistant, or `world.base`.
        name: What the user called it.
    """

    def __init__(self, world: World, name: str = "") -> None:
        self.exact = ExactWorld(world)
        language = self.exact.language
        self._tokenizer = WorldTokenizer(world, language)
        self._card = ModelCard(
            name=name or f"world:{world.id}/exact",
            digest=f"exact-{WORLD_VERSION}-{world.digest}",
            tokenizer_digest=f"words-{WORLD_VERSION}-{world.base.digest}",
            is_chat=True,
            n_parameters=0,
            context_length=world.document_length,
            vocab_size=len(language.words),
            dtype="float64",
            device="cpu",
            kernel="enumeration",
            tolerance=_TOLERANCE,
            licence="no weights",
        )

    @property
    def card(self) -> ModelCard:
        """Who the model is."""
        return self._card

    @property
    def tokenizer(self) -> WorldTokenizer:
        """Its tokenizer."""
        return self._tokenizer

    def score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
        """Log-probabilities of every span, in the order given; requests of one shape are computed together."""
        results: list[TokenLogprobs | None] = [None] * len(batch)
        for start, chunk, ids in _of_one_shape(batch):
            values = self.exact.log_probs(ids, start).astype(np.float32)
            for i, row in zip(chunk, values, strict=True):
                results[i] = TokenLogprobs(row)
        return [r for r in results if r is not None]

    def distributions(self, batch: Sequence[Scorable]) -> list[DenseDistributions]:
        """The distribution at every scored place, in the order given."""
        results: list[DenseDistributions | None] = [None] * len(batch)
        for start, chunk, ids in _of_one_shape(batch):
            for i, row in zip(chunk, self.exact.predictive(ids, start), strict=True):
                results[i] = DenseDistributions(row)
        return [r for r in results if r is not None]

    def next_token_log_probs(self, prompt: tuple[int, ...]) -> NDArray[np.float32]:
        """Log-probabilities of every next word, nats, shape (vocab_size,)."""
        return self.exact.next_log_probs(np.array([prompt], np.int64))[0].astype(np.float32)

    def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan) -> list[Completion]:
        """One completion for each prompt; an answer ends it, as an answer is a whole turn."""
        known = self._following(batch)

        def following(prefix: tuple[int, ...]) -> NDArray[np.float64]:
            if prefix not in known:
                known[prefix] = self.exact.next_log_probs(np.array([prefix], np.int64))[0]
            return known[prefix]

        made: list[Completion] = []
        for index, prompt in enumerate(batch):
            generator = np.random.default_rng([plan.seed, index])
            out: list[int] = []
            log_probs: list[float] = []
            while len(out) < plan.max_tokens and not (out and out[-1] in self._tokenizer.answers):
                log_p = following((*prompt, *out))
                out.append(_draw(log_p, plan.temperature, generator))
                log_probs.append(float(log_p[out[-1]]))
            made.append(Completion(tuple(out), np.asarray(log_probs, np.float32)))
        return made

    def _following(self, batch: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], NDArray[np.float64]]:
        """What may follow each distinct prompt, those of one length computed together."""
        distinct = list(dict.fromkeys(batch))
        # The word behind the prompt stands for any: only what comes before it is read.
        items = [Scorable((*prompt, prompt[-1]), len(prompt)) for prompt in distinct]
        return {p: d.values[0] for p, d in zip(distinct, self.distributions(items), strict=True)}


def _of_one_shape(batch: Sequence[Scorable]) -> Iterator[tuple[int, list[int], NDArray[np.int64]]]:
    """Where the span starts, places in the batch, and token ids as rows; not too many at once."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for i, item in enumerate(batch):
        shapes.setdefault((len(item.token_ids), item.start), []).append(i)
    for (length, start), members in shapes.items():
        rows = max(1, _CHUNK_TOKENS // length)
        for at in range(0, len(members), rows):
            chunk = members[at : at + rows]
            yield start, chunk, np.array([batch[i].token_ids for i in chunk], np.int64)


def _draw(log_p: NDArray[np.float64], temperature: float, generator: np.random.Generator) -> int:
    if temperature == 0:
        return int(log_p.argmax())
    weights = np.exp((log_p - log_p.max()) / temperature)
    return int(generator.choice(len(weights), p=weights / weights.sum()))
