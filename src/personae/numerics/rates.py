"""Rates of events: Wilson and exact intervals, and what no event at all allows to say.

All from `scipy.stats.binomtest`; here only the choice of method, clusters, and the case of zero. Not here: means of
graded scores (`numerics.clustered`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scipy.stats import binomtest

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
            n / design_effect trials with the same rate (Korn & Graubard 1998), rounded down to whole trials.

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
    trials = max(int(effective), 1)
    # Shrinking n also rounds the events; rounding towards the nearest keeps 0 and n where they are.
    seen = events if trials == n else min(max(round(events / n * trials), 0), trials)
    interval = binomtest(seen, trials).proportion_ci(confidence_level=level, method=method)
    rate = events / n
    return Rate(events, n, rate, min(float(interval.low), rate), max(float(interval.high), rate), level, effective)


def upper_bound_of_zero(n: int, *, level: float = 0.95, design_effect: float = 1.0) -> float:
    """Largest rate that n trials without an event leave possible: 1 - (1 - level)^(1/n), about 3/n at 95%.

    One-sided and exact ("rule of three", Hanley & Lippman-Hand 1983). No event in 100 trials still allows 3%.

    Raises:
        InvalidSettings: As `rate_interval`.
    """
    if n < 1 or not 0 < level < 1 or design_effect < 1:
        raise InvalidSettings(f"{n} trials, level {level}, design effect {design_effect}: no bound can be given.")
    return float(1 - (1 - level) ** (design_effect / n))
