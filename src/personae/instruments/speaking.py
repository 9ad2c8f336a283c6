"""Target x prompts -> Transcripts: what a model says when it is asked, kept piece by piece.

    GivesText.reply(dialogues) -> texts         all that a profile needs of a target

Anything that gives text for messages is a target; `SpeakingModel` makes one of a `LanguageModel`, with a system turn if
wanted, and `Instructed` puts a system turn before one of which only the text is known. Replies are sampled in chunks
fixed beforehand, each written when it is complete, so an interrupted run goes on and ends with the same text. Not here:
who is speaking (`instruments.judging`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from personae.domain.episode import Episode, Turn
from personae.domain.persona import PLAIN, Persona
from personae.domain.probe_prompt import ProbePrompt
from personae.errors import BackendError, ContextOverflow
from personae.instruments.target import checksum
from personae.models.protocol import (
    GivesFullDistribution,
    GivesText,
    KnowsPhrases,
    LanguageModel,
    Reply,
    SamplingPlan,
)
from personae.models.rendering import Frame, Renderer
from personae.running.run import write_json
from personae.tables.transcripts import Said, Transcripts

_CHUNK = 16
Dialogue = tuple[Turn, ...]  # ends with a user turn


class SpeakingModel:
    """A language model as a target.

    Args:
        model: Who speaks.
        renderer: Renders for this model.
        space: What names its weights, tokenizer, dtype and rendering.
        system: A system turn before every dialogue; empty for none.
        name: What a reader calls it; the model's own name if left out.
    """

    def __init__(
        self, model: LanguageModel, renderer: Renderer, space: str, *, system: str = "", name: str = ""
    ) -> None:
        self._model, self._renderer = model, renderer
        persona = Persona(PLAIN, (system,) if system.strip() else (), kind="plain")
        self._frame: Frame = renderer.frames(persona)[0]
        self.name = name or model.card.name
        self.digest = f"{space}|{system}"
        self._stand_in = stand_in(model)

    @property
    def model(self) -> LanguageModel:
        """The model itself."""
        return self._model

    @property
    def gives_distribution(self) -> bool:
        """Whether the whole next-token distribution can be read."""
        return isinstance(self._model, GivesFullDistribution)

    def prompt_ids(self, dialogue: Dialogue, *, room: int = 1) -> tuple[int, ...]:
        """Tokens up to where the reply begins.

        Raises:
            ContextOverflow: If fewer than `room` tokens are left for it.
        """
        item = self._renderer.render(self._frame, Episode("asked", dialogue, self._stand_in))
        if item.start + room > self._model.card.context_length:
            raise ContextOverflow(
                f"a dialogue of {len(dialogue)} turns fills {item.start} of the model's "
                f"{self._model.card.context_length} tokens and leaves none of {room} for the reply.",
                hint="Use shorter prompts, fewer turns or a smaller --max-tokens.",
            )
        return item.token_ids[: item.start]

    def reply(self, dialogues: Sequence[Dialogue], plan: SamplingPlan) -> list[Reply]:
        """One reply for each dialogue."""
        made = self._model.sample([self.prompt_ids(d, room=plan.max_tokens) for d in dialogues], plan)
        return [
            Reply(self._text(c.token_ids), len(c.token_ids), float(c.log_probs.astype(np.float64).sum())) for c in made
        ]

    def next_log_probs(self, dialogue: Dialogue) -> NDArray[np.float32]:
        """Log-probabilities of the reply's first token, nats, shape (vocab_size,)."""
        assert isinstance(self._model, GivesFullDistribution)
        return self._model.next_token_log_probs(self.prompt_ids(dialogue))

    def _text(self, token_ids: Sequence[int]) -> str:
        said = [i for i in token_ids if i not in self._model.tokenizer.stop_ids]
        text = self._model.tokenizer.decode(said).replace("\N{REPLACEMENT CHARACTER}", "").strip()
        # A model without a chat template has no end of turn: a blank line is where the next speaker begins.
        return text if self._model.card.is_chat else text.split("\n\n")[0].strip()


class Instructed:
    """A target of which only the text is known, under a system turn.

    Args:
        target: Who speaks.
        system: The turn before every dialogue.
        name: What a reader calls it.
    """

    def __init__(self, target: GivesText, system: str, name: str) -> None:
        self._target, self._before, self.name = target, Turn("system", system), name
        self.digest = f"{target.digest}|{system}"

    def reply(self, dialogues: Sequence[Dialogue], plan: SamplingPlan) -> list[Reply]:
        """One reply for each dialogue."""
        return self._target.reply([(self._before, *d) for d in dialogues], plan)


def stand_in(model: LanguageModel) -> str:
    """A text that stands for a reply where only the tokens before it are wanted."""
    tokenizer = model.tokenizer
    phrases = tokenizer.phrases if isinstance(tokenizer, KnowsPhrases) else None
    return "." if phrases is None else phrases.replies[0].split()[0]


class Interview:
    """Asks a target prompts and keeps what it says.

    Args:
        target: Who is asked.
        root: Folder in which pieces are kept.
    """

    def __init__(self, target: GivesText, root: Path) -> None:
        self._target, self._root = target, root

    def hold(
        self,
        prompts: Sequence[ProbePrompt],
        plan: SamplingPlan,
        *,
        n_samples: int,
        started: Callable[[int], Callable[[int], None]],
    ) -> Transcripts:
        """Ask every prompt `n_samples` times; what is on disk already is read.

        A turn whose reply is empty is asked once more with other random numbers; empty again, it ends the
        conversation and is kept as empty.

        Args:
            prompts: What is asked; ids unique.
            plan: Most tokens of a reply, temperature, seed.
            n_samples: Conversations from every prompt.
            started: Called with the number of turns to sample; gives a function told of turns done.

        Raises:
            BackendError: If the target said nothing at all.
            ContextOverflow: If a prompt does not fit.
            StorageError: If transcripts cannot be kept.
        """
        chunks = [
            (s, k, prompts[at : at + _CHUNK])
            for s in range(n_samples)
            for k, at in enumerate(range(0, len(prompts), _CHUNK))
        ]
        paths = [self._path(chunk, s, plan) for s, _, chunk in chunks]
        kept = [_read(path, chunk, s) for path, (s, _, chunk) in zip(paths, chunks, strict=True)]
        todo = sum(len(p.turns) for (_, _, ps), old in zip(chunks, kept, strict=True) if old is None for p in ps)
        advance = started(todo)
        made: list[Said] = []
        for path, (s, k, chunk), old in zip(paths, chunks, kept, strict=True):
            if old is None:
                old = self._hold_chunk(chunk, plan, (s, k), advance)
                path.parent.mkdir(parents=True, exist_ok=True)
                rows = [asdict(r) for r in old]
                write_json(path, {"checksum": checksum(rows), "replies": rows})
            made += old
        place = {p.id: i for i, p in enumerate(prompts)}
        result = Transcripts(self._target.name, tuple(sorted(made, key=lambda r: (place[r.prompt], r.sample, r.turn))))
        if not result.spoken:
            raise BackendError(
                f"{self._target.name} answered all {len(result.replies)} prompts with nothing.",
                hint="A target that ends every reply at once has no profile. A larger --max-tokens may help: reasoning "
                "models can spend all of it before they answer.",
            )
        return result

    def _hold_chunk(
        self, chunk: Sequence[ProbePrompt], plan: SamplingPlan, place: tuple[int, int], advance: Callable[[int], None]
    ) -> list[Said]:
        held: list[list[Said]] = [[] for _ in chunk]
        for t in range(max(len(p.turns) for p in chunk)):
            speaking = [
                i for i, p in enumerate(chunk) if t < len(p.turns) and (not held[i] or held[i][-1].text.strip())
            ]
            replies = self._ask([(chunk[i], held[i]) for i in speaking], t, plan, (*place, t, 0))
            silent = [j for j, r in enumerate(replies) if not r.text.strip()]
            again = self._ask([(chunk[speaking[j]], held[speaking[j]]) for j in silent], t, plan, (*place, t, 1))
            for j, reply in zip(silent, again, strict=True):
                replies[j] = reply
            for i, reply in zip(speaking, replies, strict=True):
                held[i].append(replace(reply, sample=place[0]))
            advance(sum(t < len(p.turns) for p in chunk))
        return [r for turns in held for r in turns]

    def _ask(
        self,
        asked: Sequence[tuple[ProbePrompt, Sequence[Said]]],
        t: int,
        plan: SamplingPlan,
        place: tuple[int, int, int, int],
    ) -> list[Said]:
        if not asked:
            return []
        seed = int(np.random.SeedSequence([plan.seed, *place]).generate_state(1)[0])
        dialogues = [
            (*(x for r in before for x in (Turn("user", r.asked), Turn("assistant", r.text))), Turn("user", p.turns[t]))
            for p, before in asked
        ]
        replies = self._target.reply(dialogues, replace(plan, seed=seed))
        return [
            Said(p.id, p.topic, 0, t, p.turns[t], r.text, r.n_tokens, seed, r.log_prob)
            for (p, _), r in zip(asked, replies, strict=True)
        ]

    def _path(self, chunk: Sequence[ProbePrompt], sample: int, plan: SamplingPlan) -> Path:
        body = json.dumps([self._target.digest, asdict(plan), sample, [asdict(p) for p in chunk]], sort_keys=True)
        name = hashlib.blake2b(body.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        return self._root / name[:2] / f"{name}.json"


def _read(path: Path, chunk: Sequence[ProbePrompt], sample: int) -> list[Said] | None:
    """A chunk from disk; None where it is missing or damaged, and then it is held again."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        stored = [Said(**r) for r in kept["replies"]]
        whole = kept.get("checksum") in (None, checksum(kept["replies"]))  # earlier versions wrote none
        sound = (
            whole and {r.prompt for r in stored} == {p.id for p in chunk} and all(r.sample == sample for r in stored)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stored if sound else None
