"""Dose and response: what steering along a vector does to a trait, what it costs, beside random directions.

    effect(c)   mean over questions of [log p(y+ | x, c) - log p(y- | x, c)] / n tokens, less the same at c = 0
    cost(c)     mean log p of ordinary replies at 0 less that at c

both in nats a token. y+ and y- are replies of the two poles to questions that made no vector, said under a paraphrase
that made none, cut to the same number of tokens; the prompts carry no instruction. A random direction of the same
length at the same layers is the control: any push costs fluency, and only a direction of the trait moves its
log-odds. Not here: choosing vectors (`protocols.vectors`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from personae.domain.episode import Episode
from personae.domain.persona import PLAIN, Persona
from personae.errors import InvalidSettings
from personae.instruments.reading import origin_of
from personae.instruments.sampling import Script, Stage
from personae.instruments.steering import random_like, steering
from personae.models.activations import Edit, EditableModel, check_layers
from personae.models.protocol import LanguageModel, SamplingPlan, Scorable
from personae.models.rendering import Renderer
from personae.numerics.clustered import cluster_mean
from personae.protocols.vector_material import Contrast, rate, split_frames
from personae.tables.dose import Dose, DoseCurve
from personae.tables.space import PersonaVector

LEVEL = 0.90


@dataclass(frozen=True, slots=True)
class TraitItem:
    """A question with a reply of either pole.

    Attributes:
        question: What the user says.
        positive: Reply of the positive pole.
        negative: Reply of the negative pole.
    """

    question: str
    positive: Episode
    negative: Episode


def trait_items(
    stage: Stage,
    model: LanguageModel,
    renderer: Renderer,
    contrast: Contrast,
    questions: Sequence[str],
    plan: SamplingPlan,
    *,
    n_samples: int = 2,
    sampling: Callable[[int], Callable[[int], None]] = lambda _n: lambda _done: None,
) -> list[TraitItem]:
    """Replies of both poles to questions, under the held-out paraphrase; of several, the one most of its pole.

    Which one that is, is said by the likelihoods under the first paraphrase: no judge is asked.

    Raises:
        InvalidSettings: If fewer than three questions got a reply of either pole.
    """
    scripts: list[Script] = []
    for side, persona in (("pos", contrast.positive), ("neg", contrast.negative)):
        frame = split_frames(renderer, persona)[1][0]
        for q in questions:
            scripts += [Script(f"item|{contrast.id}|{side}|{k}|{q}", side, frame, (q,)) for k in range(n_samples)]
    held = stage.hold(scripts, plan, started=sampling)
    replies = [t.episodes[0] for t in held]
    ratings = rate(model, renderer, contrast, replies, held_out=False)
    best: dict[tuple[str, str], tuple[float, Episode]] = {}
    for transcript, reply, rating in zip(held, replies, ratings, strict=True):
        side, q = transcript.script.persona, transcript.script.asks[0]
        towards = rating if side == "pos" else -rating
        if (q, side) not in best or towards > best[q, side][0]:
            best[q, side] = (towards, reply)
    both = [q for q in questions if (q, "pos") in best and (q, "neg") in best]
    items = [TraitItem(q, best[q, "pos"][1], best[q, "neg"][1]) for q in both]
    if len(items) < 3:
        raise InvalidSettings(
            f"'{contrast.id}': only {len(items)} questions got a reply of either pole.",
            hint="Allow longer replies with --max-tokens or more questions with --n-test.",
        )
    return items


class DoseMeter:
    """Measures effect and cost of edits of a model, always on the same texts.

    Args:
        model: Unedited.
        renderer: Renders for it.
        items: Of the trait.
        ordinary: Replies whose fluency is the cost.
    """

    def __init__(
        self, model: EditableModel, renderer: Renderer, items: Sequence[TraitItem], ordinary: Sequence[Episode]
    ) -> None:
        self._model = model
        frame = renderer.frames(Persona(PLAIN, ()))[0]
        self._pairs = [
            same_length(renderer.render(frame, i.positive), renderer.render(frame, i.negative)) for i in items
        ]
        self._ordinary = [renderer.render(frame, e) for e in ordinary]
        self._base = self._log_odds(model)
        self._fluency = self._ordinary_log_prob(model)

    @property
    def n_items(self) -> int:
        """Questions that effects are measured on."""
        return len(self._pairs)

    def measure(
        self, vector: PersonaVector, coefficient: float, layers: Sequence[int]
    ) -> tuple[NDArray[np.float64], float]:
        """Effect on every item and cost, nats a token."""
        if coefficient == 0:
            return np.zeros(len(self._pairs)), 0.0
        return self.under(steering(vector, coefficient, layers))

    def under(self, edits: Sequence[Edit]) -> tuple[NDArray[np.float64], float]:
        """Effect on every item and cost of any edits, nats a token."""
        with self._model.steered(edits) as view:
            return self._log_odds(view) - self._base, self._fluency - self._ordinary_log_prob(view)

    def cost(self, edits: Sequence[Edit]) -> float:
        """Cost of any edits alone, nats a token."""
        with self._model.steered(edits) as view:
            return self._fluency - self._ordinary_log_prob(view)

    def _log_odds(self, model: LanguageModel) -> NDArray[np.float64]:
        scored = model.score([part for pair in self._pairs for part in pair])
        per_token = np.array([r.log_likelihood / len(r.log_probs) for r in scored])
        return per_token[::2] - per_token[1::2]

    def _ordinary_log_prob(self, model: LanguageModel) -> float:
        scored = model.score(self._ordinary)
        return float(sum(r.log_likelihood for r in scored) / sum(len(r.log_probs) for r in scored))


def dose_curve(
    meter: DoseMeter,
    model: EditableModel,
    vector: PersonaVector,
    coefficients: Sequence[float],
    layers: Sequence[int],
    *,
    n_random: int = 3,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _n: None,
) -> DoseCurve:
    """Measure a vector and random directions of its length at every coefficient.

    Args:
        meter: What is measured.
        model: Steered.
        vector: Along which.
        coefficients: In median residual norms; 0 is added.
        layers: 0-based blocks that share the coefficient.
        n_random: Random directions.
        seed: Of them.
        advance: Told of doses done.

    Raises:
        InvalidSettings: If a layer does not exist, or the vector is zero there.
        IncomparableEvidence: If the vector is of another model.
    """
    check_layers(layers, model.n_layers)
    vector.origin.require_same(origin_of(model, model.card))
    rng = np.random.default_rng([seed, 31])
    controls = [random_like(vector, rng) for _ in range(n_random)]
    doses: list[Dose] = []
    for c in sorted({0.0, *coefficients}):
        effects, cost = meter.measure(vector, c, layers)
        spread = cluster_mean(effects, list(range(len(effects))), level=LEVEL)
        drawn = [meter.measure(control, c, layers) for control in controls] or [(np.zeros(1), 0.0)]
        means = np.array([float(e.mean()) for e, _ in drawn])
        doses.append(
            Dose(
                c,
                spread.value,
                spread.low,
                spread.high,
                cost,
                float(means.mean()),
                float(np.abs(means).max()),
                float(np.mean([d for _, d in drawn])),
            )
        )
        advance(1)
    return DoseCurve(
        vector.id,
        vector.positive,
        model.card.name,
        tuple(layers),
        tuple(doses),
        meter.n_items,
        n_random,
        _slope(doses),
        all(b.effect >= a.effect - max(b.high - b.effect, 0.0) for a, b in itertools.pairwise(doses)),
    )


def _slope(doses: Sequence[Dose]) -> float:
    at = next(i for i, d in enumerate(doses) if d.coefficient == 0)
    first, last = doses[max(0, at - 1)], doses[min(len(doses) - 1, at + 1)]
    run = last.coefficient - first.coefficient
    return (last.effect - first.effect) / run if run else 0.0


def same_length(a: Scorable, b: Scorable) -> tuple[Scorable, Scorable]:
    """Both spans cut to the shorter one, so that no reply counts for more by being longer."""
    n = min(a.n_scored, b.n_scored)
    return replace(a, token_ids=a.token_ids[: a.start + n]), replace(b, token_ids=b.token_ids[: b.start + n])
