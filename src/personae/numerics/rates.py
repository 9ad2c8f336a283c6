"""Rates of events: Wilson and exact intervals, and what no event at all allows to say.

`scipy.stats.binomtest` for whole trials; the same formulas with real numbers where clustering leaves fewer.
Not here: means of graded scores (`numerics.clustered`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from personae.errors import InvalidSettings


@dataclass(frozen=True, slots=True)
class Rate:
    """Share of trials with an event.

    Attributes:
        events, n: What was counted.
        rate: events / n.
        low, high: Two-sided interval of `level`.
        level: Mass of the interval.
        n_effective: Independent trials that say as much as the n clustered ones.
    """

    events: int
    n: int
    rate: float
    low: float
    high: float
    level: float
    n_effective: float


def rate_interval(
    events: int,
    n: int,
    *,
    level: float = 0.95,
    method: Literal["wilson", "exact"] = "wilson",
    design_effect: float = 1.0,
) -> Rate:
    """A rate with its interval.

    Args:
        events: Trials with the event, 0 to n.
        n: Trials, at least 1.
        level: Mass of the two-sided interval.
        method: "wilson" (1927) covers at its level on average; "exact" (Clopper & Pearson 1934) at least at its level.
        design_effect: Of clustered trials (`numerics.clustered.design_effect`), at least 1. The interval is that of
            n / design_effect trials with the same rate (Korn & Graubard 1998).

    Raises:
        InvalidSettings: If the counts or the level are impossible, or the design effect is below 1.
    """
    if not (0 <= events <= n and n >= 1):
        raise InvalidSettings(f"{events} events in {n} trials is not a rate.")
    if not 0 < level < 1 or design_effect < 1:
        raise InvalidSettings(
            f"level {level}, design effect {design_effect}: the first must lie in (0, 1), the second be 1 or more."
        )
    effective = n / design_effect
    if design_effect == 1:
        interval = stats.binomtest(events, n).proportion_ci(confidence_level=level, method=method)
        low, high = float(interval.low), float(interval.high)
    else:
        low, high = (_wilson if method == "wilson" else _exact)(events / design_effect, effective, level)
    return Rate(events, n, events / n, max(low, 0.0), min(high, 1.0), level, effective)


def _wilson(events: float, n: float, level: float) -> tuple[float, float]:
    z = float(stats.norm.isf((1 - level) / 2))
    centre = (events + z**2 / 2) / (n + z**2)
    reach = z / (n + z**2) * float(np.sqrt(events * (n - events) / n + z**2 / 4))
    return centre - reach, centre + reach


def _exact(events: float, n: float, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, events, n - events + 1)) if events > 0 else 0.0
    high = float(stats.beta.isf(tail, events + 1, n - events)) if events < n else 1.0
    return low, high


def upper_bound_of_zero(n: int, *, level: float = 0.95, design_effect: float = 1.0) -> float:
    """Largest rate that n trials without an event leave possible: 1 - (1 - level)^(1/n), about 3/n at 95%.

    One-sided and exact ("rule of three", Hanley & Lippman-Hand 1983). No event in 100 trials still allows 3%.

    Raises:
        InvalidSettings: As `rate_interval`.
    """
    if n < 1 or not 0 < level < 1 or design_effect < 1:
        raise InvalidSettings(f"{n} trials, level {level}, design effect {design_effect}: no bound can be given.")
    return float(1 - (1 - level) ** (design_effect / n))
