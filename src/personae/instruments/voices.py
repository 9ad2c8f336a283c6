"""Voices: a model in a frame, asked to hold a conversation or to say how it would have put another's words.

    Talk (what is asked)  + a voice  ->  Held (what was said, as token ids)
    Held + another voice             ->  its next-token distributions at the very same tokens

What was sampled is scored as the ids that were sampled, never re-encoded. A voice speaks in chat (the chat
template, or a dialogue in plain text for models without one) or goes on with a text that has no speaker. Not
here: any statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from personae.domain.episode import Episode, Turn
from personae.domain.persona import PLAIN
from personae.errors import ContextOverflow, MissingCapability
from personae.models.protocol import (
    GivesDistributions,
    KnowsPhrases,
    LanguageModel,
    SamplingPlan,
    Scorable,
    TokenDistributions,
)
from personae.models.rendering import BASE_STYLES, Frame, Renderer

# Contexts rendered lately: the same ones are wanted to sample a reply and to score it under every component. Beside
# each its renderer, so that a key, which names renderers by identity, cannot come to mean another one.
_CONTEXTS: dict[tuple[object, ...], tuple[Renderer, Scorable]] = {}
_MOST_CONTEXTS = 20_000


@dataclass(frozen=True, slots=True)
class Talk:
    """What is asked in one conversation.

    Attributes:
        id: Unique.
        cluster: Unit of resampling: talks that ask the same belong together.
        asks: What the user says, turn by turn; of a plain text, its pieces.
        topics: Topic of each ask.
        cue: System text before the talk, as a cue that every voice sees; empty for none.
        in_chat: False for text without a speaker.
    """

    id: str
    cluster: str
    asks: tuple[str, ...]
    topics: tuple[str, ...]
    cue: str = ""
    in_chat: bool = True


@dataclass(frozen=True, slots=True)
class Held:
    """A talk with its replies as token ids (the token that ended a reply is part of it) and as text."""

    talk: Talk
    replies: tuple[tuple[int, ...], ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens of all replies."""
        return sum(map(len, self.replies))


@dataclass(frozen=True, slots=True)
class Voice:
    """A model in a frame.

    Attributes:
        id: Unique among those compared.
        model: Who speaks.
        renderer: Renders for this model.
        frame: Its persona, if any.
        shots: Earlier turns that it is shown.
        label: What a person calls it.
    """

    id: str
    model: LanguageModel
    renderer: Renderer
    frame: Frame
    shots: tuple[Turn, ...] = ()
    label: str = ""

    def context(self, held: Held) -> Scorable:
        """Everything before the next reply, as a request whose span is a stand-in for it.

        Raises:
            ContextOverflow: If it does not fit the model.
        """
        talk = held.talk
        key = (*self.rendering, talk.id, talk.asks[: len(held.texts) + 1], talk.cue, talk.in_chat, held.texts)
        if key not in _CONTEXTS:
            if len(_CONTEXTS) >= _MOST_CONTEXTS:
                _CONTEXTS.clear()
            _CONTEXTS[key] = (self.renderer, self._context(held))
        return _CONTEXTS[key][1]

    def _context(self, held: Held) -> Scorable:
        if not held.talk.in_chat:
            return self._plain_context(held)
        turns = [*self.shots]
        for ask, text in zip(held.talk.asks, held.texts, strict=False):
            turns += [Turn("user", ask), Turn("assistant", text)]
        turns.append(Turn("user", held.talk.asks[len(held.texts)]))
        cue = (Turn("system", held.talk.cue),) if held.talk.cue else ()
        return self.renderer.render(self.frame, Episode(held.talk.id, (*cue, *turns), self._stand_in()))

    @property
    def rendering(self) -> tuple[int, Frame, tuple[Turn, ...]]:
        """What decides the token ids of its requests: voices that share it read the same ones."""
        return id(self.renderer), self.frame, self.shots

    def requests(self, held: Sequence[Held]) -> list[Scorable]:
        """Every reply of every conversation, with what this voice is shown before it."""
        items: list[Scorable] = []
        for talk in held:
            for t, reply in enumerate(talk.replies):
                before = self.context(replace(talk, replies=talk.replies[:t], texts=talk.texts[:t]))
                ids = (*before.token_ids[: before.start], *reply)
                self._require_room(talk, len(ids))
                items.append(Scorable(ids, before.start, before.shared))
        return items

    def distributions(
        self, held: Sequence[Held], requests: Sequence[Scorable] | None = None
    ) -> list[list[TokenDistributions]]:
        """For every conversation, how this voice would have gone on at each token of each reply.

        Args:
            held: The conversations.
            requests: Those of `requests(held)`, where they are known.

        Raises:
            MissingCapability: If the model does not give its distributions.
        """
        if not isinstance(self.model, GivesDistributions):
            raise MissingCapability(
                f"{self.model.card.name} gives no full next-token distributions, which the ladder needs.",
                hint="Use an embedded model, a Hugging Face folder or a world.",
            )
        made = iter(self.model.distributions(self.requests(held) if requests is None else requests))
        return [[next(made) for _ in talk.replies] for talk in held]

    def reply_ids(self, token_ids: Sequence[int]) -> tuple[tuple[int, ...], str]:
        """A sampled reply cut where the speaker ends, and its text without the token that ends it."""
        tokenizer, ids = self.model.tokenizer, tuple(token_ids)
        if not self.model.card.is_chat:
            # Without a chat template a blank line is where the next speaker begins.
            for n in range(1, len(ids)):
                if "\n\n" in tokenizer.decode(ids[:n]).lstrip():
                    ids = ids[:n]
                    break
        said = tokenizer.decode([i for i in ids if i not in tokenizer.stop_ids])
        return ids, said.replace("\N{REPLACEMENT CHARACTER}", "").strip()

    def _plain_context(self, held: Held) -> Scorable:
        tokenizer = self.model.tokenizer
        opening = tuple(tokenizer.bos_ids or tokenizer.encode("\n"))
        header = BASE_STYLES["story"].header.format(instruction=self.frame.instruction)
        pieces = [header.strip() + "\n\n"] if self.frame.instruction else []
        for k, ask in enumerate(held.talk.asks[: len(held.texts) + 1]):
            pieces += [ask, *held.texts[k : k + 1]]
        ids = tuple(tokenizer.encode(" ".join(pieces)))
        return Scorable((*opening, *ids, ids[-1]), len(opening) + len(ids))

    def _stand_in(self) -> str:
        """A reply that the tokenizer can write; only what stands before it is used."""
        tokenizer = self.model.tokenizer
        known = tokenizer.phrases if isinstance(tokenizer, KnowsPhrases) else None
        return known.replies[0].split()[0] if known else "."

    def _require_room(self, held: Talk | Held, n: int) -> None:
        most = self.model.card.context_length
        if n > most:
            name = held.id if isinstance(held, Talk) else held.talk.id
            raise ContextOverflow(
                f"conversation '{name}' as '{self.id}' has {n} tokens; {self.model.card.name} takes {most}.",
                hint="Use fewer shots, shorter prompts or a smaller --max-tokens.",
            )


def next_log_probs(model: LanguageModel, contexts: Sequence[Sequence[int]]) -> list[NDArray[np.floating]]:
    """Log-probabilities of every next token after each context, nats, shape (vocab_size,) each.

    Raises:
        MissingCapability: If the model does not give its distributions.
    """
    if not isinstance(model, GivesDistributions):
        raise MissingCapability(f"{model.card.name} gives no full next-token distributions.")
    # The last token stands in for the next one, which is not read.
    items = [Scorable((*ids, ids[-1]), len(ids)) for ids in contexts]
    return [d.log_probs(0, 1)[0] for d in model.distributions(items)]


def plain_frame(renderer: Renderer) -> Frame:
    """The frame without a persona, in the first style of a renderer."""
    return Frame(PLAIN, "", renderer.styles[0])


def hold(
    voices: Sequence[Voice],
    talks: Sequence[Talk],
    plan: SamplingPlan,
    *,
    begun: Sequence[Held] | None = None,
    advance: Callable[[int], None] = lambda amount: None,
) -> list[Held]:
    """Hold every talk with the voice of the same place, turn by turn.

    Args:
        voices: One for each talk; equal models are asked together.
        talks: What is asked.
        plan: Most tokens of a reply, temperature, seed.
        begun: Turns already held of every talk, which are gone on from.
        advance: Told of every turn that was sampled.
    """
    held = [Held(t) for t in talks] if begun is None else list(begun)
    for turn in range(max((len(t.asks) for t in talks), default=0)):
        groups: dict[int, list[int]] = {}
        for i, h in enumerate(held):
            if len(h.replies) == turn < len(h.talk.asks):
                groups.setdefault(id(voices[i].model), []).append(i)
        for place, members in enumerate(groups.values()):
            contexts = [voices[i].context(held[i]) for i in members]
            for i, item in zip(members, contexts, strict=True):
                voices[i]._require_room(talks[i], item.start + plan.max_tokens)
            seed = int(np.random.SeedSequence([plan.seed, turn, place]).generate_state(1)[0])
            settings = SamplingPlan(plan.max_tokens, plan.temperature, seed)
            made = voices[members[0]].model.sample([c.token_ids[: c.start] for c in contexts], settings)
            for i, completion in zip(members, made, strict=True):
                ids, text = voices[i].reply_ids(completion.token_ids)
                if text or turn == 0:
                    held[i] = Held(talks[i], (*held[i].replies, ids), (*held[i].texts, text))
            advance(len(members))
    return held
