"""Trait profiles: where a model stands on every trait, item by item, and what moved between two models.

Not here: how answers become readings (`inference.traits`), where answers come from (`instruments.diagnosing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from personae.tables.items import ItemTable

Floats = NDArray[np.float64]

REPLIES, STATEMENTS = "replies", "statements"


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a model said about every item, before any judgement.

    Attributes:
        items: Ids.
        traits: Trait of every item.
        topics: Topic of every item.
        kinds: Kind of every item.
        replies: Log-likelihood of the replies of pos and neg, nats, shape (n_items, 2); NaN for other kinds.
        n_tokens: Their tokens, same shape; 0 for other kinds.
        choices: By template, log-probability of two options in two askings, nats, shape (n_items, 2, 2); NaN where an
            item was not asked so. A choice is asked in two orders, its options are the letters; agreement is asked of
            the pos and of the neg statement, its options are Yes and No.
    """

    items: tuple[str, ...]
    traits: tuple[str, ...]
    topics: tuple[str, ...]
    kinds: tuple[str, ...]
    replies: Floats
    n_tokens: NDArray[np.int64]
    choices: Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class TemplateCoverage:
    """Whether a model answers a template.

    Attributes:
        template: Its name.
        coverage: Mean probability of the two options together.
        measurable: Whether that is at least the threshold.
        order_bias: Mean log-odds of the first option over the second (or of Yes over No), nats: removed from scores.
    """

    template: str
    coverage: float
    measurable: bool
    order_bias: float


@dataclass(frozen=True, slots=True)
class TraitReading:
    """Where a model stands on one trait.

    Attributes:
        trait: Id.
        log_odds: Mean score of its items, nats towards the positive pole; NaN where not measurable.
        low, high: 95% interval, clustered by topic.
        se: Standard error.
        n_items: Items behind it.
        measurable: Whether there is a number.
        reason: Why not; empty if there is one.
        part: "replies" or "statements".
        p: Two-sided probability of a mean so far from 0 if the truth is 0.
    """

    trait: str
    log_odds: float
    low: float
    high: float
    se: float
    n_items: int
    measurable: bool
    reason: str
    part: str = REPLIES
    p: float = float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class TraitProfile:
    """Where a model stands on every trait.

    Attributes:
        model: Its name.
        cast: Name of the cast or of the items.
        readings: The headline, one a trait.
        parts: The same for "replies" and "statements" apart.
        items: Scores of every item that counts for the headline, arm = the model.
        item_traits, item_parts: Trait and part of every row of `items`.
        coverage: Which templates the model answers.
        system: The system prompt it was measured under; empty for none.
        n_tokens: Tokens that were run for it; 0 if everything was known.
        notes: Sentences a reader must know.
        provenance: Card and settings.
    """

    model: str
    cast: str
    readings: tuple[TraitReading, ...]
    parts: Mapping[str, tuple[TraitReading, ...]]
    items: ItemTable
    item_traits: tuple[str, ...]
    item_parts: tuple[str, ...]
    coverage: tuple[TemplateCoverage, ...] = ()
    system: str = ""
    n_tokens: int = 0
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)

    def of(self, trait: str) -> TraitReading:
        """The headline of one trait; KeyError if it was not measured."""
        return {r.trait: r for r in self.readings}[trait]

    def of_part(self, trait: str, part: str) -> ItemTable:
        """The item scores of one trait and part; IndexError-free: empty selections raise InputError."""
        rows = [
            k for k, (t, p) in enumerate(zip(self.item_traits, self.item_parts, strict=True)) if (t, p) == (trait, part)
        ]
        return self.items.take(np.array(rows, np.int64))


@dataclass(frozen=True, slots=True)
class TraitChange:
    """How one trait differs between two models, item by item.

    Attributes:
        trait: Id.
        change: Mean over items of the second's score less the first's, nats towards the positive pole.
        low, high: 95% interval, clustered by topic.
        se: Standard error.
        p: Two-sided.
        q: Of Benjamini & Hochberg over the traits compared.
        n_items: Items in both.
        measurable, reason: As in `TraitReading`.
    """

    trait: str
    change: float
    low: float
    high: float
    se: float
    p: float
    q: float
    n_items: int
    measurable: bool = True
    reason: str = ""


def plain_values(row: TraitReading | TraitChange | TemplateCoverage) -> dict[str, object]:
    """A row as plain values; what is not a number becomes None."""
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(row).items()}
