"""The result of an audit: plain numbers, as the page, the JSON and a later comparison read them.

Not here: how they are measured (`protocols.audit`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

VIEWS = ("strict", "relaxed", "leakage", "router", "shoggoth", "actor", "narrative")
VIEW_NAMES = {
    "strict": "operating system, strict",
    "relaxed": "operating system, relaxed",
    "leakage": "persona leakage",
    "router": "router",
    "shoggoth": "shoggoth",
    "actor": "actor",
    "narrative": "narrative",
}


@dataclass(frozen=True, slots=True)
class RungRow:
    """One explanation: share of KL explained with its 95% interval, and what it adds to the one before."""

    id: str
    what: str
    share: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    kl: float


@dataclass(frozen=True, slots=True)
class PartRow:
    """One part of the tokens: share of tokens and of KL_0, nats a token, and share explained by the mixture."""

    kind: str
    part: str
    tokens: float
    of_gap: float
    kl: float
    share: float


@dataclass(frozen=True, slots=True)
class RouterRow:
    """Router statistic and residual of one model, nats a reply, with standard errors over prompts."""

    model: str
    effect: float
    effect_se: float
    residual: float
    residual_se: float
    n: int


@dataclass(frozen=True, slots=True)
class SwingRow:
    """The coin's 2s of some cells, with 95% intervals."""

    what: str
    kind: str
    probability: float
    probability_low: float
    probability_high: float
    logit: float
    logit_low: float
    logit_high: float
    heads: float
    mass: float
    n: int


@dataclass(frozen=True, slots=True)
class TopicRow:
    """What is known on one topic: agreement with the reference in chat and in plain text, and departure, nats."""

    topic: str
    agreement: float
    agreement_plain: float
    departure: float
    n: int


@dataclass(frozen=True, slots=True)
class StatisticRow:
    """One statistic of the scorecard: the measured value, its error, and what each view expects (mean)."""

    id: str
    what: str
    value: float | None
    se: float
    expected: dict[str, float]
    sd: dict[str, float]


@dataclass(frozen=True, slots=True)
class Scorecard:
    """Likelihood of every view.

    Attributes:
        probability: By view; sums to 1, every view equally likely beforehand.
        verdict: The likeliest view; empty where the card abstains.
        rival: The next.
        abstains: Why there is no verdict; empty where there is one.
        would_change: Observations that would turn the verdict into the rival's.
        statistics: What it is made of.
        odds: Of the verdict against its nearest rival.
    """

    probability: dict[str, float]
    verdict: str
    rival: str
    abstains: str
    would_change: tuple[str, ...]
    statistics: tuple[StatisticRow, ...]
    odds: float


@dataclass(frozen=True, slots=True)
class BreakRow:
    """Replies to one kind of prompt that left the character."""

    topic: str
    rate: float


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything an audit found.

    Attributes:
        post, base, cast: Names.
        n_conversations, n_prompts, n_tokens: What the ladder was measured on.
        kl_per_token, kl_per_conversation, kl_se: KL_0, nats.
        undefined: Why shares mean nothing; empty where they do.
        rungs: The ladder, nested but for R7.
        alone: Personas without a temperature, as the model of persona selection states it.
        rivals: Mixtures with the freedom personas lack.
        normalised: (KL_0 - KL_R4) / (KL_0 - KL_R7), where there is another seed.
        temperatures: Of the base, from either half.
        weights: Mean weight of every component in R4.
        parts: By position, token class, topic.
        unshifted, marginal, shifted: Share of tokens of which the target's likeliest is the base's first, second or
            third, or lower.
        router, controls: Statistic of the target and of control models.
        router_ratio: Target over the largest control.
        outside_per_token, outside_ratio, outside_share: KL out of chat, its ratio to that in chat, and what
            personas explain of it (None where it cannot be told from zero).
        swings: Coin, or outcomes outside chats.
        coin_reason: Why there are none.
        topics: What is known by topic.
        knowledge_verdict, knowledge_topic: Lie, swap, router or neither, and where.
        break_threshold, break_rate, n_breaks, break_rows, planted_rate, n_planted, onset_error: Character breaks.
        scorecard: Likelihood of views.
        notes: What a reader must know.
        provenance: Versions, hashes, seed.
    """

    post: str
    base: str
    cast: str
    n_conversations: int
    n_prompts: int
    n_tokens: int
    kl_per_token: float
    kl_per_conversation: float
    kl_se: float
    undefined: str
    rungs: tuple[RungRow, ...]
    alone: RungRow | None
    rivals: tuple[RungRow, ...]
    normalised: float | None
    temperatures: tuple[float, ...]
    weights: tuple[tuple[str, float], ...]
    parts: tuple[PartRow, ...]
    unshifted: float
    marginal: float
    shifted: float
    router: RouterRow | None
    controls: tuple[RouterRow, ...]
    router_ratio: float | None
    outside_per_token: float
    outside_ratio: float | None
    outside_share: float | None
    swings: tuple[SwingRow, ...]
    coin_reason: str
    topics: tuple[TopicRow, ...]
    knowledge_verdict: str
    knowledge_topic: str
    break_threshold: float | None
    break_rate: float | None
    n_breaks: int
    break_rows: tuple[BreakRow, ...]
    planted_rate: float | None
    n_planted: int
    onset_error: float | None
    scorecard: Scorecard | None
    notes: tuple[str, ...] = ()
    provenance: dict[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)
