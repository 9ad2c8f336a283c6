"""Cast x opening questions x model -> transcripts: conversations whose speaker is known.

    frame of a persona + what the user asks  ->  reply  ->  next question  ->  reply ...

Conversations are held in chunks fixed beforehand, each written when it is complete, so an interrupted run
goes on and ends with the same text. The user's turns are given and do not react. Not here: scoring.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from personae.domain.episode import Episode, Turn
from personae.errors import BackendError, ContextOverflow
from personae.instruments.speaking import stand_in
from personae.models.protocol import LanguageModel, SamplingPlan
from personae.models.rendering import Frame, Renderer
from personae.running.run import write_json

_CHUNK = 16


@dataclass(frozen=True, slots=True)
class Script:
    """A conversation to be held.

    Attributes:
        id: Unique.
        persona: Who speaks.
        frame: How the model is put into the persona.
        asks: What the user says, turn by turn.
    """

    id: str
    persona: str
    frame: Frame
    asks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation that was held: as many replies as were not empty."""

    script: Script
    replies: tuple[str, ...]

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """Every reply with what came before it; the frame is not part of it. The group is the conversation."""
        made: list[Episode] = []
        for t, reply in enumerate(self.replies):
            made.append(Episode(f"{self.script.id}/{t}", _context(self, t), reply, group=self.script.id))
        return tuple(made)


class Stage:
    """Where conversations are held: a model, its renderer, and a folder that keeps what was said.

    Args:
        model: Who speaks.
        renderer: Renders for this model.
        root: Folder of transcripts.
        space: What makes texts repeatable: model, tokenizer, dtype, rendering.
    """

    def __init__(self, model: LanguageModel, renderer: Renderer, root: Path, space: str) -> None:
        self._model, self._renderer, self._root, self._space = model, renderer, root, space
        self._stand_in = stand_in(model)

    def hold(
        self, scripts: Sequence[Script], plan: SamplingPlan, *, started: Callable[[int], Callable[[int], None]]
    ) -> list[Transcript]:
        """Hold every conversation; those already on disk are read.

        A turn whose reply is empty is asked once more with other random numbers; empty again, it ends the
        conversation. Conversations without any reply are left out of the result.

        Args:
            scripts: What to hold; ids unique.
            plan: Most tokens of a reply, temperature, seed.
            started: Called with the number of turns to sample; gives a function told of turns done.

        Raises:
            BackendError: If no conversation got a reply.
            ContextOverflow: If a conversation outgrows the model's context.
            StorageError: If transcripts cannot be kept.
        """
        folder = self._root / self._digest(scripts, plan)
        chunks = [list(scripts[at : at + _CHUNK]) for at in range(0, len(scripts), _CHUNK)]
        kept = [_read(folder / f"chunk-{k:05d}.json", chunk) for k, chunk in enumerate(chunks)]
        advance = started(
            sum(len(s.asks) for chunk, old in zip(chunks, kept, strict=True) if old is None for s in chunk)
        )
        made: list[Transcript] = []
        for k, (chunk, old) in enumerate(zip(chunks, kept, strict=True)):
            if old is None:
                old = self._hold_chunk(chunk, plan, k, advance)
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / f"chunk-{k:05d}.json", {t.script.id: list(t.replies) for t in old})
            made += old
        spoken = [t for t in made if t.replies]
        if not spoken:
            raise BackendError(
                f"{self._model.card.name} gave nothing but empty replies to {len(made)} conversations.",
                hint="A model that ends every reply at once cannot be calibrated; `personae check-model` tests it.",
            )
        return spoken

    def _hold_chunk(
        self, chunk: Sequence[Script], plan: SamplingPlan, k: int, advance: Callable[[int], None]
    ) -> list[Transcript]:
        held = [Transcript(s, ()) for s in chunk]
        for t in range(max(len(s.asks) for s in chunk)):
            speaking = [i for i, h in enumerate(held) if len(h.replies) == t and t < len(h.script.asks)]
            replies = self._replies([held[i] for i in speaking], plan, (k, t, 0))
            silent = [j for j, text in enumerate(replies) if not text]
            again = self._replies([held[speaking[j]] for j in silent], plan, (k, t, 1))
            for j, text in zip(silent, again, strict=True):
                replies[j] = text
            for i, text in zip(speaking, replies, strict=True):
                if text:
                    held[i] = Transcript(held[i].script, (*held[i].replies, text))
            advance(sum(t < len(s.asks) for s in chunk))
        return held

    def _replies(self, held: Sequence[Transcript], plan: SamplingPlan, place: tuple[int, int, int]) -> list[str]:
        """The next reply of every conversation; empty where the model said nothing."""
        if not held:
            return []
        prompts = [self._prompt(h, plan.max_tokens) for h in held]
        seed = int(np.random.SeedSequence([plan.seed, *place]).generate_state(1)[0])
        made = self._model.sample(prompts, SamplingPlan(plan.max_tokens, plan.temperature, seed))
        return [self._text(c.token_ids) for c in made]

    def _prompt(self, held: Transcript, room: int) -> tuple[int, ...]:
        asked = Episode(held.script.id, _context(held, len(held.replies)), self._stand_in)
        item = self._renderer.render(held.script.frame, asked)
        if item.start + room > self._model.card.context_length:
            raise ContextOverflow(
                f"conversation '{held.script.id}' outgrows the model's {self._model.card.context_length} tokens "
                f"({item.start} before the reply, up to {room} in it).",
                hint="Use fewer --turns or a smaller --max-tokens.",
            )
        return item.token_ids[: item.start]

    def _text(self, token_ids: Sequence[int]) -> str:
        """What was said: without the token that ends a turn, and only the speaker's own paragraph."""
        said = [i for i in token_ids if i not in self._model.tokenizer.stop_ids]
        text = self._model.tokenizer.decode(said).replace("\N{REPLACEMENT CHARACTER}", "").strip()
        # A model without a chat template has no end of turn: a blank line is where the next speaker begins.
        return text if self._model.card.is_chat else text.split("\n\n")[0].strip()

    def _digest(self, scripts: Sequence[Script], plan: SamplingPlan) -> str:
        body = json.dumps([self._space, asdict(plan), [asdict(s) for s in scripts]], sort_keys=True)
        return hashlib.blake2b(body.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _context(held: Transcript, t: int) -> tuple[Turn, ...]:
    """The turns before reply t."""
    turns: list[Turn] = []
    for ask, reply in zip(held.script.asks, held.replies[:t], strict=False):
        turns += [Turn("user", ask), Turn("assistant", reply)]
    return (*turns, Turn("user", held.script.asks[t]))


def _read(path: Path, chunk: Sequence[Script]) -> list[Transcript] | None:
    """A chunk from disk; None where it is missing or damaged, and then it is held again."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        held = [Transcript(s, tuple(stored[s.id])) for s in chunk]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sound = all(isinstance(r, str) and r.strip() for h in held for r in h.replies)
    return held if sound and all(len(h.replies) <= len(h.script.asks) for h in held) else None
