"""Evidence read in both directions: what a persona would say, and who would have said it.

    reply        log p(y | x, instruction)                                            `Scoring`, the definition
    description  log p(y | x) + log p(instruction | x, y) - log p(instruction)        by Bayes' rule the same number
    both         their mean

For a coherent reader the first two are equal; a small model is none, and errs differently in either direction, so the
mean separates better where replies are short and say what they hold (NOTES.md, 2026-11-21). Min et al. 2022 (arXiv
2108.04106) compare the two directions for classification as "noisy channel" and "direct". The second is a scoring like
any other with rows and instructions in each other's places: every row is a frame, every instruction a completion, so
store, batches and resumption are those of `Scoring`. `plain` and the background have no instruction and keep their
log-likelihood. Not here: what follows from the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from personae.domain.episode import Episode, Turn
from personae.domain.persona import PLAIN, Cast, Persona
from personae.errors import ContextOverflow, InvalidSettings
from personae.instruments.scoring import Scoring, Work, cast_frames
from personae.models.chat_template import place_of
from personae.models.protocol import LanguageModel
from personae.models.rendering import Frame, Renderer
from personae.running.store import EvidenceStore
from personae.tables.evidence import Evidence

READINGS = ("reply", "description", "both")
ASK = "What kind of person would say this? Describe them."
_TEMPLATE_ROOM = 128  # tokens left for what a template writes around instruction, question and answer
_LEAST_QUOTED = 16

Floats = NDArray[np.float64]


class Describing(Scoring):
    """A scoring whose log-likelihoods are read from descriptions, or from both directions.

    Args:
        model: Whose likelihoods are wanted.
        renderer: Renders for this model.
        store: As for `Scoring`.
        reading: "description" or "both"; "reply" is `Scoring`.

    Raises:
        InvalidSettings: If there is no such reading.
    """

    def __init__(self, model: LanguageModel, renderer: Renderer, store: EvidenceStore, *, reading: str) -> None:
        check_reading(reading)
        assert reading != "reply"
        super().__init__(model, renderer, store)
        self._reading = reading
        # A renderer of its own: the longest frame, which decides what is cut, is another one here.
        self._other = Renderer(model.tokenizer, context_length=model.card.context_length)
        self._backwards = Scoring(model, self._other, store)

    def evidence(
        self,
        cast: Cast,
        episodes: Sequence[Episode],
        *,
        started: Callable[[Work], Callable[[int], None]],
        shipped: pa.Table | None = None,
        meanwhile: Callable[[Frame], None] = lambda frame: None,
    ) -> Evidence:
        """As `Scoring.evidence`; the number of tokens stays that of the replies.

        Raises:
            ContextOverflow: If the cast's instructions leave no room in the context for what was said.
        """
        replies = super().evidence(cast, episodes, started=started, shipped=shipped, meanwhile=meanwhile)
        told, gain, n_cut = self._gains(cast, episodes, started)
        plain = replies.frame_log_likelihood[replies.frames_of(PLAIN)].mean(axis=0)
        values = replies.frame_log_likelihood.copy()
        for k, frame in enumerate(cast_frames(cast, self._renderer)):
            if frame.instruction:
                described = plain + gain[told[frame.instruction]]
                values[k] = described if self._reading == "description" else (values[k] + described) / 2
        provenance = {**replies.provenance, "reading": self._reading, "quotes_cut": n_cut}
        return replace(replies, frame_log_likelihood=values, provenance=provenance)

    def _gains(
        self, cast: Cast, episodes: Sequence[Episode], started: Callable[[Work], Callable[[int], None]]
    ) -> tuple[dict[str, int], Floats, int]:
        """Rows of the table by instruction; log p(instruction | row) - log p(instruction), nats; quotes cut."""
        texts = list(dict.fromkeys(i for p in cast.personas for i in p.instructions))
        asked = (Turn("user", ASK),)
        instructions = [Episode(f"instruction {k}", asked, text) for k, text in enumerate(texts)]
        quotes, n_cut = self._quotes(episodes, instructions)
        rows = [Persona(f"row {k}", (quote,)) for k, quote in enumerate(quotes)]
        found = self._backwards.evidence(Cast("rows", roles=tuple(rows)), instructions, started=started)
        log_p = np.stack([found.frame_log_likelihood[found.frames_of(p.id)].mean(axis=0) for p in rows])
        before = found.frame_log_likelihood[found.frames_of(PLAIN)].mean(axis=0)
        return {text: k for k, text in enumerate(texts)}, (log_p - before).T, n_cut

    def _quotes(self, episodes: Sequence[Episode], instructions: Sequence[Episode]) -> tuple[list[str], int]:
        """What was said, shortened where the context would overflow, and how often it was."""
        tokenizer = self._model.tokenizer
        longest = max((len(tokenizer.encode(e.completion)) for e in instructions), default=0)
        room = self._model.card.context_length - longest - len(tokenizer.encode(ASK)) - _TEMPLATE_ROOM
        if room < _LEAST_QUOTED:
            raise ContextOverflow(
                f"{place_of(episodes[0])}: the cast's longest instruction ({longest} tokens) leaves no room in the "
                f"model's {self._model.card.context_length} tokens for what was said.",
                hint="Use shorter instructions, or --reading reply.",
            )
        made, n_cut = [], 0
        for episode in episodes:
            text = quoted(episode)
            ids = tokenizer.encode(text)
            n_cut += len(ids) > room
            made.append(text if len(ids) <= room else tokenizer.decode(ids[:room]))
        return made, n_cut


def check_reading(name: str) -> None:
    """Whether there is such a reading.

    Raises:
        InvalidSettings: If there is not.
    """
    if name not in READINGS:
        raise InvalidSettings(f"--reading is '{name}'; it is one of {', '.join(READINGS)}.")


def quotes_cut(evidence: Evidence) -> int:
    """How many rows were quoted in part."""
    found = evidence.provenance.get("quotes_cut", 0)
    assert isinstance(found, int)
    return found


def quotes_note(cut: int, n_episodes: int) -> list[str]:
    """A sentence on them, if there are any."""
    return [f"{cut} of {n_episodes} replies were quoted in part, to fit the model's context."] if cut else []


def quoted(episode: Episode) -> str:
    """What was said and what it answered, in words that ask for nothing."""
    said = episode.completion.strip()
    if episode.is_document:
        return f'Someone wrote: "{said}"'
    if not episode.context:
        return f'Someone said: "{said}"'
    return f'Someone was asked: "{episode.context[-1].text.strip()}" They said: "{said}"'
