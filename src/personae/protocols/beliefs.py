"""Readers of belief for `reach`: in a truth world by its personas' answers, elsewhere by first words.

    world   answers to every question after the context  ->  read-out over all personas
    cast    first words after the context, at some probes ->  read-out over {persona, the model as it is, none of these}

A persona's behaviour comes from the world's tables, or from the scoring model put into the persona. Not here: curves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from personae.domain.episode import Turn
from personae.domain.persona import BACKGROUND, PLAIN, Persona
from personae.domain.probe_prompt import ProbePrompt
from personae.errors import ContextOverflow
from personae.inference.readout import minimise
from personae.instruments.judging import CastJudge, Component, WorldJudge
from personae.instruments.sampling import Script, Stage
from personae.instruments.speaking import SpeakingModel
from personae.models.protocol import LanguageModel, SamplingPlan
from personae.models.rendering import Frame, Renderer
from personae.protocols.first_words import coarsen, first_dialogue, join_answers
from personae.protocols.reach import Talk
from personae.protocols.world_measures import predictive, read_out
from personae.worlds.exact import ExactWorld

Floats = NDArray[np.float64]

WORLD_LEVELS, CAST_LEVELS = (0, 1, 2, 4, 8, 16), (0, 1, 2, 4, 8)
WORLD_CONTEXTS, CAST_CONTEXTS = 12, 2
_OWN_CONTEXTS, _OWN_ANSWERS = 6, 48
_CAST_ANSWERS = 12
_REPLY_TOKENS = 24
_TOLERANCE = 1e-7
_READ = (PLAIN, BACKGROUND)


class WorldBeliefs:
    """Beliefs of a model of a truth world, over all its personas.

    Args:
        target: The model studied.
        exact: The world before post-training.
        judge: Its personas.
        base: The model before post-training, if retention is wanted.
        n_contexts: Conversations of each persona.
        seed: Of conversations.
    """

    against = "all personas of the world"
    joint = True

    def __init__(
        self,
        target: LanguageModel,
        exact: ExactWorld,
        judge: WorldJudge,
        *,
        base: LanguageModel | None = None,
        n_contexts: int = WORLD_CONTEXTS,
        seed: int = 0,
    ) -> None:
        self._target, self._exact, self._base, self._n = target, exact, base, n_contexts
        self._rng = np.random.default_rng(seed)
        self.components: Sequence[Component] = judge.components[:-1]
        self._ids = [c.id for c in self.components]
        self._theta = np.exp(exact.base.log_theta)
        most = exact.world.n_turns - 1  # the last turn of a document is the one that is read
        self.levels = tuple(sorted({n for n in WORLD_LEVELS if n < most} | {most}))
        self._known: dict[tuple[Talk, bool], Floats] = {}

    def has_base(self) -> bool:
        """Whether the model before post-training is here."""
        return self._base is not None

    def contexts(self, component: Component | None) -> Sequence[Talk]:
        """Conversations of random questions answered from the persona's own table; of the equal mixture for None."""
        made: list[Talk] = []
        for _ in range(self._n):
            k = int(self._rng.integers(len(self._ids))) if component is None else self._ids.index(component.id)
            asked = self._rng.integers(len(self._theta[0]), size=self.levels[-1])
            made.append(tuple(self._turn(int(q), self._theta[k, q]) for q in asked))
        return made

    def weights(self, talks: Sequence[Talk], component: Component, *, base: bool) -> Floats:
        """Weight of a persona in the read-out over all of them."""
        new = [t for t in dict.fromkeys(talks) if (t, base) not in self._known]
        if new:
            read = read_out(self._predictive(new, base=base), self._theta)
            self._known.update({(t, base): w for t, w in zip(new, read, strict=True)})
        place = self._ids.index(component.id)
        return np.array([self._known[t, base][place] for t in talks])

    def own_turns(self, *, seed: int) -> tuple[Floats, Floats]:
        """Answers to every question before and after one answer of the target's own, in several contexts."""
        rng = np.random.default_rng([seed, 1])
        talks = [t[:2] for t in self.contexts(None)[:_OWN_CONTEXTS]]
        before = self._predictive(talks, base=False)
        longer: list[Talk] = []
        for talk, answers in zip(talks, before, strict=True):
            for q in rng.integers(len(answers), size=_OWN_ANSWERS):
                longer.append((*talk, self._turn(int(q), answers[q], rng)))
        after = self._predictive(longer, base=False)
        return before, after.reshape(len(talks), _OWN_ANSWERS, *before.shape[1:])

    def _turn(self, q: int, p: Floats, rng: np.random.Generator | None = None) -> tuple[str, str]:
        language = self._exact.language
        a = int((rng or self._rng).choice(len(p), p=p / p.sum()))
        return language.words[language.first_question + q], language.words[int(language.answers(q)[a])]

    def _predictive(self, talks: Sequence[Talk], *, base: bool) -> Floats:
        language = self._exact.language
        model = self._base if base and self._base is not None else self._target
        head = [language.ids["<bos>"], language.ids[f"<{self._exact.world.chat}>"], language.no_tag]
        rows = [np.array([*head, *(language.ids[w] for turn in talk for w in turn)]) for talk in talks]
        return predictive(model, self._exact, rows)


class CastBeliefs:
    """Beliefs of a language model about one persona of a cast at a time.

    Args:
        target: Who is studied.
        judge: The cast under its scorer.
        scorer: The scorer itself, which plays the personas.
        renderer: Its renderer.
        stage: Where the scorer's conversations are held and kept.
        components: Whose reach is wanted.
        probes: Prompts at which first words are read.
        openers: What the user asks in the conversations, two scripts at least.
        base: The scorer as a target, if it is not the target itself: then retention is measured.
        seed: Of conversations.
    """

    against = "the model as it is, and none of these"
    joint = False

    def __init__(
        self,
        target: SpeakingModel,
        judge: CastJudge,
        renderer: Renderer,
        stage: Stage,
        components: Sequence[Component],
        probes: Sequence[ProbePrompt],
        openers: Sequence[tuple[str, ...]],
        *,
        base: SpeakingModel | None = None,
        seed: int = 0,
    ) -> None:
        self._target, self._judge, self._base, self._seed = target, judge, base, seed
        self._renderer, self._stage, self._openers = renderer, stage, openers
        self.components, self._probes = components, probes
        self.levels = _fitting(target, CAST_LEVELS, probes, openers)
        self._instruction = {p.id: p.instructions for p in judge.cast.personas}
        self._theta: dict[str, list[tuple[NDArray[np.int64], Floats]]] = {}
        self._read: dict[tuple[Talk, bool], list[NDArray[np.float32]]] = {}

    def has_base(self) -> bool:
        """Whether the target is not the scorer itself."""
        return self._base is not None

    def contexts(self, component: Component | None) -> Sequence[Talk]:
        """Conversations that the scorer held in the persona's frame; as itself where None."""
        name = PLAIN if component is None else component.id
        texts = self._instruction.get(name, ()) or ("",)
        scripts = []
        for j in range(CAST_CONTEXTS):
            persona = Persona(name, (texts[-1 - j % len(texts)],) if texts[0] else (), kind="plain")
            frame: Frame = self._renderer.frames(persona)[0]
            asks = self._openers[(j + self._seed) % len(self._openers)][: self.levels[-1]]
            scripts.append(Script(f"{name}#{j}", name, frame, asks))
        plan = SamplingPlan(_REPLY_TOKENS, 1.0, self._seed)
        held = self._stage.hold(scripts, plan, started=lambda n: lambda amount: None)
        return [tuple(zip(t.script.asks, t.replies, strict=False)) for t in held]

    def weights(self, talks: Sequence[Talk], component: Component, *, base: bool) -> Floats:
        """Weight of the persona among itself, the scorer as it is, and none of these, from first words."""
        made = np.empty(len(talks))
        for i, talk in enumerate(talks):
            said = self._first_words(talk, base=base)
            parts = [
                _on(tokens, np.exp(p.astype(np.float64)), theta)
                for p, (tokens, theta) in zip(said, self._components(component), strict=True)
            ]
            words = join_answers([p.id for p in self._probes], parts)
            k = len(words.theta)
            found = minimise(
                words.p, words.theta, np.ones((1, len(words.p))), np.full((1, k), 1 / k), tolerance=_TOLERANCE
            )
            made[i] = found[0, 0]
        return made

    def own_turns(self, *, seed: int) -> tuple[Floats, Floats] | None:
        """First words before and after one question with the target's own answer."""
        ask = self._openers[0][0]
        plan = SamplingPlan(_REPLY_TOKENS, 1.0, seed)
        replies = self._target.reply([(Turn("user", ask),)] * _CAST_ANSWERS, plan)
        talks: list[Talk] = [((ask, r.text),) for r in replies if r.text.strip()]
        if len(talks) < 2:
            return None
        before = [np.exp(p.astype(np.float64)) for p in self._first_words((), base=False)]
        after = [[np.exp(p.astype(np.float64)) for p in self._first_words(t, base=False)] for t in talks]
        rows = []
        for q, p in enumerate(before):
            tokens, _, table = coarsen(p, np.stack([p, *(a[q] for a in after)]))
            rows.append((tokens, table[0], table))
        words = join_answers([p.id for p in self._probes], rows)
        return words.theta[0], words.theta[1:]

    def _components(self, component: Component) -> list[tuple[NDArray[np.int64], Floats]]:
        """Answer tokens of every probe and the components' probabilities of all tokens: persona first."""
        if component.id not in self._theta:
            found = []
            for prompt in self._probes:
                only = (component.id, *_READ)
                log_p = self._judge.first_words(first_dialogue(prompt), advance=lambda amount: None, only=only)
                assert log_p is not None
                theta = np.exp(log_p)  # in the cast's order: the persona comes before plain and background
                top = np.unique(np.argsort(-theta, axis=1)[:, :32])
                found.append((top, np.column_stack([theta[:, top], np.maximum(1 - theta[:, top].sum(axis=1), 1e-9)])))
            self._theta[component.id] = found
        return self._theta[component.id]

    def _first_words(self, talk: Talk, *, base: bool) -> list[NDArray[np.float32]]:
        speaker = self._base if base and self._base is not None else self._target
        if (talk, base) not in self._read:
            before = tuple(x for a, r in talk for x in (Turn("user", a), Turn("assistant", r)))
            self._read[talk, base] = [
                speaker.next_log_probs((*before, *first_dialogue(prompt))) for prompt in self._probes
            ]
        return self._read[talk, base]


def _on(tokens: NDArray[np.int64], p: Floats, theta: Floats) -> tuple[tuple[int, ...], Floats, Floats]:
    """A target's distribution on given answer tokens and "any other"."""
    rest = max(float(1 - p[tokens].sum()), 1e-9)
    row = np.append(p[tokens], rest)
    return (*tokens.tolist(), -1), row / row.sum(), theta / theta.sum(axis=1, keepdims=True)


def _fitting(
    target: SpeakingModel, levels: Sequence[int], probes: Sequence[ProbePrompt], openers: Sequence[tuple[str, ...]]
) -> tuple[int, ...]:
    """The levels whose longest context leaves room, replies taken as long as they may get.

    Raises:
        ContextOverflow: If not even two levels fit.
    """
    probe = max(probes, key=lambda p: len(p.turns[0]))
    filler = "so " * _REPLY_TOKENS
    kept: list[int] = []
    for n in levels:
        asks = max((o[:n] for o in openers), key=lambda o: sum(map(len, o)))
        talk = tuple(x for a in asks for x in (Turn("user", a), Turn("assistant", filler)))
        try:
            target.prompt_ids((*talk, *first_dialogue(probe)))
        except ContextOverflow:
            break
        kept.append(n)
    if len(kept) < 2:
        raise ContextOverflow(
            "not even one turn of evidence fits the model's context, so reach cannot be measured.",
            hint="Leave --reach out, or use a model with a longer context.",
        )
    return tuple(kept)
