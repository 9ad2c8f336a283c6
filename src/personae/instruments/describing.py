"""Evidence read in both directions: what a persona would say, and who would have said it.

    reply        log p(y | x, instruction)                                                `Scoring`, the definition
    description  log p(y | x) + log p(instruction | x, y) - log p(instruction | x)        by Bayes' rule the same number
    both         their mean

For a coherent reader the first two are equal; a small model is none, and errs differently in either direction, so the
mean separates better where replies are short and say what they hold (NOTES.md, 2026-11-21). Min et al. 2022 (arXiv
2108.04106) compare the two directions for classification as "noisy channel" and "direct". The second is a scoring like
any other with rows and instructions in each other's places: every row, and every x alone, is a frame and every
instruction a completion, so store, batches and resumption are those of `Scoring`. `plain` and the background have no
instruction and keep their log-likelihood. Not here: what follows from the numbers; the null of `inference.shift` does
not, since it takes an ordinary ratio to grow with the length of the reply, and a description's does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from personae.domain.episode import Episode, Turn
from personae.domain.persona import PLAIN, Cast, Persona
from personae.errors import ContextOverflow, InvalidSettings
from personae.instruments.scoring import Scoring, Work, cast_frames
from personae.models.chat_template import place_of
from personae.models.protocol import KnowsPhrases, LanguageModel
from personae.models.rendering import BASE_STYLES, Frame, Renderer
from personae.running.store import EvidenceStore
from personae.tables.evidence import Evidence

READINGS = ("reply", "description", "both")
ASK = "What kind of person would say this? Describe them."
# A model without a chat template does not answer questions; shown a few it goes on in their manner.
_SHOWN = (
    (
        "What will you do at the weekend?",
        "I never plan it, I just see where the day takes me.",
        "You are someone who lives from day to day, likes surprises and does not care for plans.",
    ),
    (
        "Did you check the bill?",
        "Twice. Sums calm me, and I like to go over each of them again.",
        "You are careful and exact, you love numbers and you check everything.",
    ),
    (
        "Would you bend the rules to win?",
        "I would rather lose a game than cheat in it.",
        "This speaker finds fairness more important than winning.",
    ),
    (
        "Shall we walk past the kennels?",
        "No, I cross the street when I see a dog coming.",
        "You do not like animals, and you say things like how dogs are noisy and cats are rude.",
    ),
)
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
        InvalidSettings: If there is no such reading, or the model's vocabulary is closed.
    """

    def __init__(self, model: LanguageModel, renderer: Renderer, store: EvidenceStore, *, reading: str) -> None:
        check_reading(reading)
        assert reading != "reply"
        if isinstance(model.tokenizer, KnowsPhrases) and model.tokenizer.phrases is not None:
            raise InvalidSettings(
                f"{model.card.name} knows the words of its world alone and cannot be asked who speaks.",
                hint="Use --reading reply.",
            )
        super().__init__(model, renderer, store)
        self._reading = reading
        self._shown = "" if model.tokenizer.has_template else _examples()
        # A renderer of its own: the longest frame, which decides what is cut, is another one here.
        other = Renderer(model.tokenizer, context_length=model.card.context_length)
        self._backwards = Scoring(model, other, store)

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
        frames = cast_frames(cast, self._renderer)
        self._renderer.reserve(frames)
        told, gain, n_cut = self._gains(cast, episodes, started)
        # Of a description alone only what has no instruction is read from the replies.
        read = cast if self._reading == "both" else Cast(cast.id)
        replies = super().evidence(read, episodes, started=started, shipped=shipped, meanwhile=meanwhile)
        plain = replies.frame_log_likelihood[replies.frames_of(PLAIN)].mean(axis=0)
        values = np.empty((len(frames), len(episodes)))
        for k, frame in enumerate(frames):
            if not frame.instruction:
                values[k] = replies.frame_log_likelihood[replies.frames_of(frame.persona)[0]]
                continue
            values[k] = plain + gain[told[frame.instruction]]
            if self._reading == "both":
                said = replies.frame_log_likelihood[k]
                # What no persona can say has no description to add to.
                values[k] = (said + np.where(np.isneginf(plain), said, values[k])) / 2
        return Evidence(
            tuple(f.persona for f in frames),
            values,
            replies.episodes,
            replies.n_tokens,
            replies.weight,
            replies.group,
            replies.line,
            {**replies.provenance, "reading": self._reading, "quotes_cut": n_cut},
        )

    def _gains(
        self, cast: Cast, episodes: Sequence[Episode], started: Callable[[Work], Callable[[int], None]]
    ) -> tuple[dict[str, int], Floats, int]:
        """Rows of the table by instruction; log p(instruction | x, y) - log p(instruction | x), nats; quotes cut."""
        texts = list(dict.fromkeys(i for p in cast.personas for i in p.instructions))
        asked = (Turn("user", ASK),)
        instructions = [Episode(f"instruction {k}", asked, text) for k, text in enumerate(texts)]
        quotes, n_cut = self._quotes(episodes, instructions)
        place = {text: k for k, text in enumerate(dict.fromkeys(t for pair in quotes for t in pair))}
        rows = tuple(
            Persona(f"quote {k}", (self._shown + text,) if self._shown + text else ()) for text, k in place.items()
        )
        if not texts:
            return {}, np.zeros((0, len(episodes))), n_cut
        found = self._backwards.evidence(Cast("quotes", roles=rows), instructions, started=started)
        # Frames of a cast come in its order, one a quote here; plain and background follow.
        log_p = found.frame_log_likelihood[: len(rows)]
        with np.errstate(invalid="ignore"):
            gain = log_p[[place[whole] for whole, _ in quotes]] - log_p[[place[before] for _, before in quotes]]
        # An instruction that is impossible either way is told nothing about.
        return {text: k for k, text in enumerate(texts)}, np.where(np.isnan(gain), 0.0, gain).T, n_cut

    def _quotes(
        self, episodes: Sequence[Episode], instructions: Sequence[Episode]
    ) -> tuple[list[tuple[str, str]], int]:
        """What was said with what went before, and the latter alone, shortened where the context would overflow.

        The reply is kept before what it answers, and of that the end. Also how many were shortened.
        """
        tokenizer = self._model.tokenizer
        longest = max((len(tokenizer.encode(e.completion)) for e in instructions), default=0)
        room = self._model.card.context_length - longest - len(tokenizer.encode(self._shown + ASK)) - _TEMPLATE_ROOM
        if room < _LEAST_QUOTED:
            raise ContextOverflow(
                f"{place_of(episodes[0])}: the cast's longest instruction ({longest} tokens) leaves no room in the "
                f"model's {self._model.card.context_length} tokens for what was said.",
                hint="Use shorter instructions, or --reading reply.",
            )
        made, n_cut = [], 0
        for episode in episodes:
            kept = self._renderer.kept_of_cut(episode)
            said = tokenizer.decode(self._renderer.completion_ids(episode)) if kept else episode.completion
            reply, before = quoted(episode, said), quoted_context(episode)
            ids, before_ids = tokenizer.encode(reply), tokenizer.encode(before)
            n_cut += len(ids) + len(before_ids) > room
            if len(ids) > room:
                reply = tokenizer.decode(ids[:room])
            left = max(0, room - len(ids))
            if len(before_ids) > left:
                before = tokenizer.decode(before_ids[len(before_ids) - left :]) if left else ""
            made.append((f"{before} {reply}".strip(), before.strip()))
        return made, n_cut


def _examples() -> str:
    """Descriptions of other speakers, in the words in which base models are asked."""
    style = BASE_STYLES["dialogue"]
    return "".join(
        f'Someone was asked: "{asked}" They said: "{said}"\n\n{style.user} {ASK}\n\n{style.assistant} {told}\n\n'
        for asked, said, told in _SHOWN
    )


def scoring_of(model: LanguageModel, renderer: Renderer, store: EvidenceStore, reading: str) -> Scoring:
    """The scoring that reads in the direction wanted; "reply" is `Scoring` itself.

    Raises:
        InvalidSettings: If there is no such reading, or the model cannot be asked.
    """
    if reading == "reply":
        return Scoring(model, renderer, store)
    return Describing(model, renderer, store, reading=reading)


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


def quoted(episode: Episode, said: str) -> str:
    """What was said, in words that ask for nothing."""
    said = said.strip()
    if episode.is_document:
        return f'Someone wrote: "{said}"'
    return f'They said: "{said}"' if episode.context else f'Someone said: "{said}"'


def quoted_context(episode: Episode) -> str:
    """What the speaker was told and asked, and said before; empty where nothing went before."""
    if episode.is_document:
        return ""
    words = {"system": "told", "user": "asked"}
    parts: list[str] = []
    for turn in episode.context:
        who = "They" if parts else "Someone"
        verb = "said" if turn.speaker == "assistant" else f"{'were' if parts else 'was'} {words[turn.speaker]}"
        parts.append(f'{who} {verb}: "{turn.text.strip()}"')
    return " ".join(parts)
