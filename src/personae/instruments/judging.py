"""Who may be speaking, and how likely each makes what was said: a cast under a scorer, or a world's own personas.

    conversations x components  ->  log-likelihoods, nats        black box: text is enough
    prompts x components        ->  next-token log-probabilities  white box: what each would say first

Two judges behind one seam. `CastJudge` puts a scoring model into every persona of a cast. `WorldJudge` knows the
personas of a truth world in closed form; there methods are held against the answer. Not here: what follows from the
numbers (`inference.persona_mix`, `inference.readout`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from personae.domain.episode import Episode
from personae.domain.persona import BACKGROUND, Cast
from personae.inference.mixture import sum_by_group
from personae.instruments.scoring import Scoring, Work, cast_frames
from personae.instruments.speaking import Dialogue, stand_in
from personae.models.protocol import (
    GivesDistributions,
    GivesFullDistribution,
    LanguageModel,
    ModelCard,
    Scorable,
    TokenDistributions,
)
from personae.models.rendering import Frame, Renderer
from personae.worlds.exact import ExactWorld
from personae.worlds.language import Kind

Floats = NDArray[np.float64]
Started = Callable[[Work], Callable[[int], None]]


@dataclass(frozen=True, slots=True)
class Component:
    """One hypothesis about who speaks: its id, label, and kind ("pole", "role", "persona", "plain", "background")."""

    id: str
    label: str
    kind: str


@dataclass(frozen=True, slots=True)
class TraitSides:
    """A trait as sets of components: those of its positive and of its negative pole, with their labels."""

    id: str
    positive: str
    negative: str
    components_pos: tuple[str, ...]
    components_neg: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """Conversations under every component.

    Attributes:
        conversations: Ids, in order of first appearance.
        log_likelihood: Nats a conversation, shape (n_conversations, n_components); never divided by length.
        trait_ratio: Log-likelihood ratio of each trait's poles, nats a conversation, shape (n_conversations, n_traits);
            the mean over paraphrases, as in `screen`. In a world, the log-odds of the pole under equal personas.
        n_tokens: Scored tokens, shape (n_conversations,).
        notes: Sentences a reader must know.
    """

    conversations: tuple[str, ...]
    log_likelihood: Floats
    trait_ratio: Floats
    n_tokens: NDArray[np.int64]
    notes: tuple[str, ...] = ()


class Judge(Protocol):
    """Knows a set of components and how they speak."""

    @property
    def name(self) -> str:
        """Name of the set."""
        ...

    @property
    def scorer(self) -> str:
        """Whose likelihoods they are."""
        ...

    @property
    def components(self) -> tuple[Component, ...]:
        """Every component, in the order of columns; the background last."""
        ...

    @property
    def traits(self) -> tuple[TraitSides, ...]:
        """Traits of the components."""
        ...

    @property
    def log_prior(self) -> Floats:
        """Nats, shape (n_components,)."""
        ...

    @property
    def card(self) -> ModelCard | None:
        """The scoring model, if there is one."""
        ...

    @property
    def n_frames(self) -> int:
        """Passes of the model for each prompt of the white-box route."""
        ...

    def hear(self, episodes: Sequence[Episode], *, started: Started) -> Heard:
        """Log-likelihoods of conversations under every component."""
        ...

    def expect(self, dialogues: Sequence[Dialogue]) -> None:
        """Know that `first_words` of these dialogues will be wanted: `hear` may read them where that is cheap."""
        ...

    def read_ahead(self, dialogues: Sequence[Dialogue], *, advance: Callable[[int], None]) -> None:
        """Do together what `first_words` of these dialogues needs: the same numbers, sooner."""
        ...

    def first_words(self, dialogue: Dialogue, *, advance: Callable[[int], None]) -> Floats | None:
        """Next-token log-probabilities of every component, (n_components, vocab_size); None if they are hidden."""
        ...


class CastJudge:
    """A scoring model put into every persona of a cast.

    Args:
        scoring: Scores for the model.
        model: The same model.
        renderer: The same renderer as `scoring` uses.
        cast: The personas.
        name: What a reader calls the scorer.
    """

    def __init__(self, scoring: Scoring, model: LanguageModel, renderer: Renderer, cast: Cast, name: str = "") -> None:
        self._scoring, self._model, self._renderer, self._cast = scoring, model, renderer, cast
        self.name, self.scorer, self.card = cast.id, name or model.card.name, model.card
        kinds = {p.id: p.kind for p in cast.personas} | {BACKGROUND: "background"}
        self.components = tuple(Component(c, cast.label_of(c), kinds[c]) for c in cast.component_ids)
        self.traits = tuple(
            TraitSides(t.id, t.pos.label or t.pos.id, t.neg.label or t.neg.id, (t.pos.id,), (t.neg.id,))
            for t in cast.traits
        )
        self.log_prior = cast.log_prior
        self._frames = cast_frames(cast, renderer)
        self._ahead: dict[tuple[Frame, Dialogue], TokenDistributions] = {}
        self._expected: tuple[Dialogue, ...] = ()

    @property
    def cast(self) -> Cast:
        """The personas."""
        return self._cast

    def hear(self, episodes: Sequence[Episode], *, started: Started) -> Heard:
        """Log-likelihoods of conversations under every component.

        Raises:
            ContextOverflow, RenderingError: If a conversation does not fit or cannot be written by the template.
            StorageError: If scores cannot be kept.
        """
        evidence = self._scoring.evidence(
            self._cast, episodes, started=started, meanwhile=lambda frame: self._read_frame(frame, self._expected)
        )
        table = sum_by_group(evidence.matrix(self._cast.component_ids), evidence.group, evidence.weight)
        tokens = sum_by_group(evidence.n_tokens[:, None].astype(np.float64), evidence.group, evidence.weight)
        ratios = np.zeros((len(episodes), len(self._cast.traits)))
        for k, t in enumerate(self._cast.traits):
            ratios[:, k] = evidence.log_likelihood_ratio(t.pos.id, t.neg.id)
        ratios = sum_by_group(ratios, evidence.group, evidence.weight)
        names = tuple(dict.fromkeys(e.group for e in episodes))
        return Heard(names, table, ratios, tokens[:, 0].astype(np.int64))

    def expect(self, dialogues: Sequence[Dialogue]) -> None:
        """Have `hear` read the first words of these dialogues under a frame while its pass is at hand."""
        self._expected = tuple(dialogues)

    def read_ahead(self, dialogues: Sequence[Dialogue], *, advance: Callable[[int], None]) -> None:
        """Read first words frame by frame: dialogues of one frame share its pass. `advance` is told of each.

        Kept are the states that distributions are made from, which are small.
        """
        for frame in self._frames:
            self._read_frame(frame, dialogues)
            advance(len(dialogues))

    def _read_frame(self, frame: Frame, dialogues: Sequence[Dialogue]) -> None:
        new = [d for d in dialogues if (frame, d) not in self._ahead]
        if new and isinstance(self._model, GivesDistributions):
            items = [self._asked(frame, d) for d in new]
            made = self._model.distributions([Scorable(i.token_ids[: i.start + 1], i.start, i.shared) for i in items])
            self._ahead.update(((frame, d), m) for d, m in zip(new, made, strict=True))

    def first_words(
        self, dialogue: Dialogue, *, advance: Callable[[int], None], only: Collection[str] | None = None
    ) -> Floats | None:
        """Next-token log-probabilities of every component (of those named); paraphrases of a persona are mixed."""
        if not isinstance(self._model, GivesFullDistribution):
            return None
        said: dict[str, list[Floats]] = {}
        for frame in self._frames:
            if only is None or frame.persona in only:
                known = self._ahead.get((frame, dialogue))
                row = self._next(self._model, frame, dialogue) if known is None else known.log_probs(0, 1)[0]
                said.setdefault(frame.persona, []).append(row.astype(np.float64))
                advance(int(known is None))
        return np.stack([np.logaddexp.reduce(rows, axis=0) - np.log(len(rows)) for rows in said.values()])

    @property
    def n_frames(self) -> int:
        """Frames that are read for each prompt of the white-box route."""
        return len(self._frames)

    def _next(self, model: GivesFullDistribution, frame: Frame, dialogue: Dialogue) -> Floats:
        item = self._asked(frame, dialogue)
        return model.next_token_log_probs(item.token_ids[: item.start]).astype(np.float64)

    def _asked(self, frame: Frame, dialogue: Dialogue) -> Scorable:
        """A dialogue under a frame up to where the reply begins, with a stand-in for it."""
        return self._renderer.render(frame, Episode("asked", dialogue, stand_in(self._model)))


class WorldJudge:
    """A truth world's personas in closed form.

    The background is a stranger of whom nothing is known but that it has a table of answers of its own, Dirichlet(1):
    every first answer alike, one given before likelier the second time (Polya's urn). A world's base model would not
    do: it is a mixture of the personas, so the two could trade.

    Args:
        exact: The world before post-training.
    """

    def __init__(self, exact: ExactWorld) -> None:
        self._exact = exact
        world = exact.world
        self.name, self.scorer, self.card = f"personas of {world.id}", f"world:{world.id}/base/exact", None
        ids = world.persona_ids
        self.components = (
            *(Component(i, i.replace("-", " "), "persona") for i in ids),
            Component(BACKGROUND, "none of these", "background"),
        )
        self.traits = tuple(
            TraitSides(
                t.id,
                t.positive,
                t.negative,
                tuple(i for i, s in zip(ids, world.signs[:, r], strict=True) if s > 0),
                tuple(i for i, s in zip(ids, world.signs[:, r], strict=True) if s < 0),
            )
            for r, t in enumerate(world.traits)
        )
        k = len(self.components)
        self.log_prior = np.full(k, -np.log(k))
        theta = np.exp(exact.base.log_theta)
        self._theta = theta

    @property
    def n_frames(self) -> int:
        """Nothing is run for the white-box route."""
        return 0

    def hear(self, episodes: Sequence[Episode], *, started: Started) -> Heard:
        """Log-likelihoods of conversations under every persona and the background.

        Answers that do not belong to their question say nothing of who speaks and count for nobody.
        """
        place = {g: i for i, g in enumerate(dict.fromkeys(e.group for e in episodes))}
        n, k = len(place), len(self._theta)
        said, tokens = np.zeros((n, k)), np.zeros(n, np.int64)
        strange = np.zeros(n)
        urn: dict[tuple[int, int], NDArray[np.int64]] = {}  # answers so far, by conversation and question
        n_foreign = 0
        for episode in episodes:
            found = self._answer(episode)
            if found is None:
                n_foreign += 1
                continue
            row = place[episode.group]
            said[row] += np.log(self._theta[:, found[0], found[1]])
            tokens[row] += 1
            before = urn.setdefault((row, found[0]), np.zeros(self._theta.shape[2], np.int64))
            strange[row] += np.log((1 + before[found[1]]) / (len(before) + before.sum()))
            before[found[1]] += 1
        ids = [c.id for c in self.components]
        ratios = np.zeros((n, len(self.traits)))
        for r, t in enumerate(self.traits):
            pos, neg = ([ids.index(i) for i in side] for side in (t.components_pos, t.components_neg))
            ratios[:, r] = np.asarray(logsumexp(said[:, pos], axis=1)) - np.asarray(logsumexp(said[:, neg], axis=1))
        notes = (f"{n_foreign} replies were no answers to their question and count for nobody.",) if n_foreign else ()
        return Heard(tuple(place), np.column_stack([said, strange]), ratios, tokens, notes)

    def expect(self, dialogues: Sequence[Dialogue]) -> None:
        """Nothing: tables are at hand."""

    def read_ahead(self, dialogues: Sequence[Dialogue], *, advance: Callable[[int], None]) -> None:
        """Nothing: tables are at hand."""

    def first_words(self, dialogue: Dialogue, *, advance: Callable[[int], None]) -> Floats | None:
        """Log-probabilities of every word as the answer to the last question, under every component."""
        language = self._exact.language
        question = language.id_of(dialogue[-1].text) - language.first_question
        out = np.full((len(self.components), len(language.words)), -np.inf)
        answers = language.answers(question)
        out[:-1, answers] = np.log(self._theta[:, question])
        out[-1, answers] = -np.log(language.n_answers)
        return out

    def _answer(self, episode: Episode) -> tuple[int, int] | None:
        """Question and answer of a reply by their places; None where they do not belong together."""
        language = self._exact.language
        asked, words = episode.context[-1].text, episode.completion.split()
        q, a = language.ids.get(asked), language.ids.get(words[0])
        if q is None or a is None or language.kind[q] != Kind.QUESTION or language.kind[a] != Kind.ANSWER:
            return None
        question, place = q - language.first_question, a - language.first_answer
        return (question, place % language.n_answers) if place // language.n_answers == question else None
