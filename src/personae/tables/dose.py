"""Dose and response of steering: what every coefficient does to a trait and costs in fluency.

Not here: measuring it (`protocols.steering`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Dose:
    """What one coefficient does.

    Attributes:
        coefficient: In median residual norms, over all layers together.
        effect: Change of the trait's log-odds, nats a token.
        low, high: Its 90 % interval, questions being independent.
        cost: Loss of log-probability of ordinary replies, nats a token; negative is a gain.
        random_effect: Mean of the effect of random directions.
        random_largest: Largest size of it among them.
        random_cost: Mean of their cost.
    """

    coefficient: float
    effect: float
    low: float
    high: float
    cost: float
    random_effect: float
    random_largest: float
    random_cost: float


@dataclass(frozen=True, slots=True)
class DoseCurve:
    """A dose-response curve.

    Attributes:
        vector: Its id or expression.
        positive: What its positive end is.
        model: Steered.
        layers: 0-based blocks.
        doses: In order of the coefficient, 0 among them.
        n_items: Questions.
        n_random: Random directions.
        slope: Of the effect on the coefficient near 0 (the two doses next to it), nats a token and residual norm.
        is_monotone: Whether the effect never falls from one dose to the next by more than its error.
    """

    vector: str
    positive: str
    model: str
    layers: tuple[int, ...]
    doses: tuple[Dose, ...]
    n_items: int
    n_random: int
    slope: float
    is_monotone: bool

    @property
    def beats_random(self) -> bool:
        """Whether some dose moves the trait in its own direction further than every random direction at that dose."""
        return any(
            np.sign(d.coefficient) * d.effect > d.random_largest and d.low * d.high > 0
            for d in self.doses
            if d.coefficient
        )

    def effect_at_cost(self, cost: float) -> float:
        """Effect of the positive doses where the cost first reaches `cost`, nats a token, by linear interpolation.

        The largest dose's effect where the cost is never reached.
        """
        rising = [d for d in self.doses if d.coefficient >= 0]
        for before, after in itertools.pairwise(rising):
            if after.cost >= cost:
                share = (cost - before.cost) / (after.cost - before.cost) if after.cost > before.cost else 0.0
                return before.effect + share * (after.effect - before.effect)
        return rising[-1].effect
