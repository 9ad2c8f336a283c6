"""The distribution over personas of a model: weights, traits, topics, reach, and what cannot be measured.

Not here: how it is computed (`protocols.profile`, `protocols.reach`), the page and the card (`report.profile_page`,
`report.card`). Weights are probabilities, information and log-odds are nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

BACKGROUND_KIND, PLAIN_KIND = "background", "plain"


@dataclass(frozen=True, slots=True)
class PersonaShare:
    """Weight of one component.

    Attributes:
        persona: Its id.
        label: Its name for people.
        kind: "pole", "role", "persona", "plain" or "background".
        prior, weight: Before and after what was said.
        low, high: 90% interval of the weight.
    """

    persona: str
    label: str
    kind: str
    prior: float
    weight: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Favour:
    """Whom the scorer favours, from conversations whose speaker is known.

    Attributes:
        n_conversations: Of each persona.
        offsets: By persona, nats a token that were added to its likelihood; negative where it was favoured.
        confusion: By persona that spoke, mean responsibility of every persona, in the order of `offsets`.
        recovered: Weights by turning the confusion round: id, weight and 90% interval, the heaviest first.
        log_loss, log_loss_without: Of the labels, nats, with offsets and by the power alone.
    """

    n_conversations: int
    offsets: tuple[tuple[str, float], ...]
    confusion: tuple[tuple[float, ...], ...]
    recovered: tuple[tuple[str, float, float, float], ...]
    log_loss: float
    log_loss_without: float


@dataclass(frozen=True, slots=True)
class TraitMargin:
    """A trait in the distribution.

    Attributes:
        trait: Its id.
        positive, negative: Labels of the poles.
        mass_pos, mass_pos_low, mass_pos_high: Weight of all components of the positive pole, with 90% interval.
        mass_neg, mass_neg_low, mass_neg_high: The same of the negative pole.
        lean, lean_low, lean_high: Mean log-likelihood ratio of the poles, nats a token, with 90% interval by prompt;
            only its change from one model to another means something (no ordinary replies are subtracted).
    """

    trait: str
    positive: str
    negative: str
    mass_pos: float
    mass_pos_low: float
    mass_pos_high: float
    mass_neg: float
    mass_neg_low: float
    mass_neg_high: float
    lean: float
    lean_low: float
    lean_high: float


@dataclass(frozen=True, slots=True)
class TopicRow:
    """One topic: its conversations, its leading components, and whether its mix differs (p, q as in `topics`)."""

    topic: str
    n: int
    leading: tuple[PersonaShare, ...]
    p: float
    q: float


@dataclass(frozen=True, slots=True)
class Topics:
    """How the mix changes with the topic.

    Attributes:
        p: That it does not, by permutation of prompts among topics; None where there is no test.
        effect, effect_null: Lambda / 2N beyond its mean under permutation, and the largest permuted one; nats.
        rows: Topic by topic.
        reason: Why there is no test, or empty.
    """

    p: float | None
    effect: float
    effect_null: float
    rows: tuple[TopicRow, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TellingPrompt:
    """A prompt and what its answers told of who speaks: information in nats, a mean over `n` conversations."""

    prompt: str
    topic: str
    asked: str
    information: float
    n: int


@dataclass(frozen=True, slots=True)
class WhiteBox:
    """The read-out of next-token distributions, and whether it agrees with what was said.

    Attributes:
        shares: Weights, in the order of components; the interval resamples prompts.
        n_prompts: Prompts read.
        misfit: Cross-fitted KL from the target's first words to the best mixture, nats a prompt.
        is_identified: Whether the prompts tell all components apart.
        total_variation: Between these weights and those of the texts.
        inside: Share of components whose weight lies in the texts' interval, give or take 0.02.
        agrees: Whether `inside` is at least 0.8 and `total_variation` at most 0.25.
        notes: Sentences a reader must know.
    """

    shares: tuple[PersonaShare, ...]
    n_prompts: int
    misfit: float
    is_identified: bool
    total_variation: float
    inside: float
    agrees: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """One measure in two targets.

    Attributes:
        id, label: The component or trait.
        kind: Of the component, or "trait".
        first, second: Weight in each target (components) or lean in nats a token (traits).
        difference, low, high: Paired by prompt, second less first, with 90% interval; of responsibilities under one
            fit to both (components) or of leans (traits).
        p, q: Two-sided by sign flips; after Benjamini-Hochberg over all measures.
    """

    id: str
    label: str
    kind: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    q: float


@dataclass(frozen=True, slots=True)
class Versus:
    """Two targets on the same prompts; `moves` are in order of p, `fdr` says which count as moved."""

    other: str
    n_prompts: int
    moves: tuple[Move, ...]
    fdr: float

    @property
    def found(self) -> tuple[Move, ...]:
        """Measures that moved at the false discovery rate."""
        return tuple(m for m in self.moves if m.q <= self.fdr)


@dataclass(frozen=True, slots=True)
class ReachRow:
    """How far one persona is.

    Attributes:
        persona, label: Who.
        weight: Belief without any context, a probability among the components of the reach (see `Reach.against`).
        critical_n: Turns of its own behaviour in the context that bring belief to one half; None where it never does.
        low, high: 90% interval; None is beyond the range.
        n_most: Most turns tried.
        law: Which belief curve fits.
        log_odds: Mean belief after each of `turns`, nats.
        turns: Numbers of turns.
        note: What to bear in mind, or empty.
    """

    persona: str
    label: str
    weight: float
    critical_n: float | None
    low: float | None
    high: float | None
    n_most: float
    law: str
    log_odds: tuple[float, ...]
    turns: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Reach:
    """Reach of every persona, and how far the model conditions as Bayes would.

    Attributes:
        rows: Nearest first, censored last.
        against: What belief is measured against, in words.
        retained_persona: Whose change was followed; empty where retention was not measured.
        retention_turns, retention, retention_low, retention_high: R(n) with 90% interval; 1 is strict conditioning.
        change_at_zero: The change in log-odds without context, nats.
        retention_reason: Why there is none, or empty.
        martingale_drift, martingale_noise, martingale_p: Total variation by which the model's own answers move its
            predictions on average, what sampling alone gives, and p; None where not measured.
        notes: Sentences a reader must know.
    """

    rows: tuple[ReachRow, ...]
    against: str
    retained_persona: str = ""
    retention_turns: tuple[int, ...] = ()
    retention: tuple[float, ...] = ()
    retention_low: tuple[float, ...] = ()
    retention_high: tuple[float, ...] = ()
    change_at_zero: float | None = None
    retention_reason: str = ""
    martingale_drift: float | None = None
    martingale_noise: float | None = None
    martingale_p: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SelfDescription:
    """What the target says of itself against what it does elsewhere.

    Attributes:
        described, behaved: Leading components of the topic "self-description" and of all others.
        total_variation: Between the two mixes.
        p: That they are one mix: the topic's own test.
    """

    described: tuple[PersonaShare, ...]
    behaved: tuple[PersonaShare, ...]
    total_variation: float
    p: float


@dataclass(frozen=True, slots=True)
class Profile:
    """All that `profile` found about one target.

    Attributes:
        target, system: Who was asked, and under which system turn.
        scorer, cast: Whose likelihoods, over which components.
        n_prompts, n_conversations, n_tokens: What it rests on; tokens are those scored.
        n_empty, n_refusals: Replies in which nothing was said, and that open like a refusal.
        shares: Every component, the heaviest first.
        background: Weight of "none of these".
        traits: In the cast's order.
        topics: How the mix changes.
        telling: Prompts that told most, best first.
        classes: Labels of components that said the same here, with the weight of each class.
        eta, eta_source: Power on the likelihood and where it comes from.
        is_identified: Whether the conversations see every direction of the weights.
        rank: Directions they see.
        self_description: See its class; None without such a topic.
        white_box, versus, reach: See their classes; None where not measured.
        white_box_reason: Why there is no white-box route, or empty.
        reach_reason: Why reach was asked for and left out, or empty.
        favour: Whom the scorer favours, where that was measured; weights are without it.
        not_measurable: What cannot be said of this model with this scorer, in sentences.
        notes: What a reader must know.
        provenance: Versions, hashes, seeds.
    """

    target: str
    system: str
    scorer: str
    cast: str
    n_prompts: int
    n_conversations: int
    n_tokens: int
    n_empty: int
    n_refusals: int
    shares: tuple[PersonaShare, ...]
    background: float
    traits: tuple[TraitMargin, ...]
    topics: Topics
    telling: tuple[TellingPrompt, ...]
    classes: tuple[tuple[tuple[str, ...], float], ...]
    eta: float
    eta_source: str
    is_identified: bool
    rank: int
    self_description: SelfDescription | None = None
    white_box: WhiteBox | None = None
    white_box_reason: str = ""
    versus: Versus | None = None
    reach: Reach | None = None
    reach_reason: str = ""
    favour: Favour | None = None
    not_measurable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)

    @property
    def leading(self) -> PersonaShare:
        """The heaviest component that is not the background."""
        return next(s for s in self.shares if s.kind != BACKGROUND_KIND)

    @property
    def leading_persona(self) -> PersonaShare | None:
        """The heaviest component that is neither the model as it is nor the background."""
        return next((s for s in self.shares if s.kind not in (BACKGROUND_KIND, PLAIN_KIND)), None)

    def share_of(self, persona: str) -> PersonaShare | None:
        """The row of a component, if there is one."""
        return next((s for s in self.shares if s.persona == persona), None)

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)
