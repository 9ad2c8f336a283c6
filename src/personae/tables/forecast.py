"""What `screen` found: the tables behind its JSON, its Parquet files and its page.

Not here: how the numbers are made (`inference`, `protocols.screen`) or shown (`report`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from personae.tables.trait_forecast import TraitForecast

UNIT = "mean log-likelihood ratio per completion token above ordinary replies, nats (no rate fitted yet)"


@dataclass(frozen=True, slots=True)
class TraitShift:
    """Forecast for one trait.

    Attributes:
        id: The trait.
        positive, negative: Labels of the poles; positive numbers point to `positive`.
        description: One sentence.
        shift: The file's mean log-likelihood ratio per completion token minus that of the reference, nats a token.
        low, high: 90% interval of `shift`, clustered by conversation and by topic of the reference.
        raw: The file's own ratio before the reference is subtracted, nats a token.
        null_low, null_high: Where `shift` of an ordinary file of this size lies in 95% of cases.
        p: Two-sided probability of so large a shift or so heavy an upper tail in an ordinary file.
        q: p after Benjamini-Hochberg over the cast.
        flag: Whether the trait is flagged at the run's false discovery rate.
        direction: "pos" or "neg": the pole the file leans to.
        tail: Share of rows beyond the reference's 95th percentile on the side of `direction`.
        n: Episodes.
    """

    id: str
    positive: str
    negative: str
    description: str
    shift: float
    low: float
    high: float
    raw: float
    null_low: float
    null_high: float
    p: float
    q: float
    flag: bool
    direction: str
    tail: float
    n: int

    @property
    def sign(self) -> float:
        """+1 or -1: turns numbers that point to `positive` into numbers that point to the pole leant to."""
        return 1.0 if self.direction == "pos" else -1.0

    @property
    def leaning(self) -> str:
        """Label of the pole the file leans to."""
        return self.positive if self.direction == "pos" else self.negative


@dataclass(frozen=True, slots=True)
class PersonaWeight:
    """Posterior weight of one component of the cast, with its 90% interval."""

    persona: str
    label: str
    kind: str
    prior: float
    weight: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class TellingEpisode:
    """An episode that speaks most for a flagged (or leading) trait, token by token.

    Attributes:
        id, line: Which row.
        trait: For which trait.
        positive: Label of the pole it speaks for.
        llr: Its summed log-likelihood ratio towards the trait's positive pole, nats.
        z: `llr` in standard deviations of ordinary rows of its length.
        prompt: The last user turn, possibly shortened; empty for a document.
        tokens: The scored tokens as text.
        token_llr: What each token adds to `llr`, nats; they sum to it.
    """

    id: str
    line: int
    trait: str
    positive: str
    llr: float
    z: float
    prompt: str
    tokens: tuple[str, ...]
    token_llr: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RowLedger:
    """Every row under every trait.

    Attributes:
        episodes, line, n_tokens, weight: One entry an episode.
        excerpt: The start of each completion.
        traits: Trait ids.
        llr: Summed log-likelihood ratios, nats, shape (n_episodes, n_traits).
        z: The same in standard deviations of ordinary rows of that length.
        excess: `llr` less what is ordinary for that many tokens, nats: what the row adds to a trait's shift.
    """

    episodes: tuple[str, ...]
    line: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    weight: NDArray[np.float64]
    excerpt: tuple[str, ...]
    traits: tuple[str, ...]
    llr: NDArray[np.float64]
    z: NDArray[np.float64]
    excess: NDArray[np.float64]

    def order_towards(self, trait: TraitShift) -> NDArray[np.int64]:
        """Rows by what they add to the shift towards the pole the file leans to, most first, shape (n_episodes,).

        By nats and not by `z`: a long row that leans is more evidence than a short one that leans as much a
        token. A rejected reply counts the other way.
        """
        towards = trait.sign * self.excess[:, self.traits.index(trait.id)] * self.weight
        return np.argsort(-towards, kind="stable")


@dataclass(frozen=True, slots=True, eq=False)
class Screening:
    """All that `screen` found.

    Attributes:
        data: The file's path as given.
        model, cast: Their names.
        n_episodes, n_tokens: Episodes and completion tokens that counted.
        traits: In order of evidence, the strongest first.
        posterior: In order of weight; the background is among them.
        background: Weight of "none of these".
        telling: Episodes shown word by word.
        ledger: Every row.
        eta: Power on the likelihood in the posterior.
        eta_source: Where eta comes from, in words.
        fdr: False discovery rate of the flags.
        n_reference, n_topics: Size of the reference population.
        notes: Sentences a reader must know (skipped rows, truncation, small files).
        provenance: Model card, versions, dtype, noise floor, hashes, seed, date.
        training: What training on the file would do, where that was forecast.
    """

    data: str
    model: str
    cast: str
    n_episodes: int
    n_tokens: int
    traits: tuple[TraitShift, ...]
    posterior: tuple[PersonaWeight, ...]
    background: float
    telling: tuple[TellingEpisode, ...]
    ledger: RowLedger
    eta: float
    fdr: float
    n_reference: int
    n_topics: int
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)
    eta_source: str = "chosen, not calibrated"
    training: TraitForecast | None = None

    @property
    def flagged(self) -> tuple[TraitShift, ...]:
        """Traits that are flagged."""
        return tuple(t for t in self.traits if t.flag)
