"""How many clusters of items a comparison needs, and what a given number can show.

    se^2 = arms * sd^2 * deff / (n_clusters * cluster_size),    deff = 1 + (cluster_size - 1) * icc

Paired arms (arms = 1): sd and icc are those of the item differences. Unpaired arms (arms = 2): those of the scores,
with n_clusters in each arm. The test is the t test of `numerics.clustered`, so power comes from the non-central t with
arms * (n_clusters - 1) degrees of freedom, not from the normal (which promises too much below some 30 clusters).
The parts of sd^2 follow Miller 2024 (arXiv 2411.00640, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import integrate, optimize, stats

from personae.errors import InvalidSettings
from personae.numerics.clustered import design_effect

_MOST_CLUSTERS = 10_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """A comparison to be made.

    Attributes:
        n_clusters: Clusters (in each arm when unpaired), at least 2.
        cluster_size: Items a cluster, at least 1.
        sd: Standard deviation of item differences (paired) or of item scores (unpaired), above 0.
        icc: Intraclass correlation of the same.
        is_paired: Whether both arms answer the same items.
        alpha: Level of the two-sided test.
    """

    n_clusters: int
    cluster_size: float = 1.0
    sd: float = 1.0
    icc: float = 0.0
    is_paired: bool = True
    alpha: float = 0.05

    def __post_init__(self) -> None:
        fine = self.n_clusters >= 2 and self.cluster_size >= 1 and self.sd > 0
        if not (fine and 0 < self.alpha < 1 and -1 / max(self.cluster_size - 1, 1) < self.icc <= 1):
            raise InvalidSettings(
                f"{self} cannot be: it needs 2 clusters or more, of 1 item or more, sd above 0, icc at most 1 and "
                "alpha in (0, 1)."
            )

    @property
    def se(self) -> float:
        """Standard error of the difference."""
        arms = 1 if self.is_paired else 2
        effect = design_effect([self.cluster_size], self.icc)
        return float(np.sqrt(arms * self.sd**2 * effect / (self.n_clusters * self.cluster_size)))

    @property
    def df(self) -> float:
        """Degrees of freedom of the test."""
        return (1 if self.is_paired else 2) * (self.n_clusters - 1)


def sd_of_differences(
    sd_items: float, *, noise_first: float = 0.0, noise_second: float = 0.0, answers: int = 1, correlation: float = 0.0
) -> float:
    """Standard deviation of one item's difference between two arms, for a paired `Plan`.

        sd^2 = 2 (1 - correlation) sd_items^2 + (noise_first^2 + noise_second^2) / answers

    Args:
        sd_items: Between items, of an arm's expected score.
        noise_first: Within an item, of single answers of the first arm; 0 for scores read from probabilities.
        noise_second: Likewise of the second arm.
        answers: Answers sampled an item and averaged.
        correlation: Of the arms' expected scores over items.

    Raises:
        InvalidSettings: If a value is outside its range.
    """
    if min(sd_items, noise_first, noise_second) < 0 or answers < 1 or not -1 <= correlation <= 1:
        raise InvalidSettings("standard deviations must be 0 or more, answers 1 or more, the correlation in [-1, 1].")
    return float(np.sqrt(2 * (1 - correlation) * sd_items**2 + (noise_first**2 + noise_second**2) / answers))


def power_of_difference(plan: Plan, difference: float) -> float:
    """Probability that a true difference is found (two-sided t test at plan.alpha, either sign counts)."""
    return _power(abs(difference) / plan.se, plan.df, plan.alpha)


def power_of_equivalence(plan: Plan, margin: float, *, difference: float = 0.0) -> float:
    """Probability that two one-sided tests at plan.alpha show |difference| < margin.

    The standard error is itself random, chi with plan.df degrees: the integral over it is taken numerically.

    Raises:
        InvalidSettings: If the margin is not above 0.
    """
    if not margin > 0:
        raise InvalidSettings(f"the margin is {margin}; it must be above 0.")
    reach = stats.t.isf(plan.alpha, plan.df)

    def inside(s: float) -> float:
        room = (margin - reach * s * plan.se) / plan.se
        shift = difference / plan.se
        chance = stats.norm.cdf(room - shift) - stats.norm.cdf(-room - shift)
        return max(float(chance), 0.0) * float(stats.chi.pdf(s * np.sqrt(plan.df), plan.df)) * float(np.sqrt(plan.df))

    most = margin / (reach * plan.se)  # a larger error never allows the claim
    spread = 10 / np.sqrt(2 * plan.df)
    low, high = max(0.0, 1 - spread), min(most, 1 + spread)
    return float(integrate.quad(inside, low, high, limit=200)[0]) if high > low else 0.0


def clusters_needed(plan: Plan, difference: float, *, power: float = 0.8) -> int:
    """Smallest number of clusters (in each arm when unpaired) that finds a difference with probability `power`.

    `plan.n_clusters` is ignored.

    Raises:
        InvalidSettings: If the difference is 0, the power outside (alpha, 1), or ten million clusters are not enough.
    """
    if difference == 0 or not plan.alpha < power < 1:
        raise InvalidSettings(
            f"difference {difference}, power {power}: the first must not be 0, the second lie between alpha and 1."
        )
    low, high = 1, 2
    while power_of_difference(_with_clusters(plan, high), difference) < power:
        low, high = high, high * 2
        if high > _MOST_CLUSTERS:
            raise InvalidSettings(f"a difference of {difference} needs more than {_MOST_CLUSTERS} clusters.")
    while high - low > 1:
        middle = (low + high) // 2
        enough = power_of_difference(_with_clusters(plan, middle), difference) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def detectable_difference(plan: Plan, *, power: float = 0.8) -> float:
    """Smallest difference that the plan finds with probability `power`, in the unit of plan.sd.

    Raises:
        InvalidSettings: If the power is outside (alpha, 1).
    """
    return detectable_from_error(plan.se, plan.df, alpha=plan.alpha, power=power)


def detectable_from_error(se: float, df: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest difference found with probability `power` when its standard error is `se` with `df` degrees.

    Raises:
        InvalidSettings: If the power is outside (alpha, 1).
    """
    if not alpha < power < 1:
        raise InvalidSettings(f"the power is {power}; it must lie between alpha ({alpha}) and 1.")
    most = 10.0
    while _power(most, df, alpha) < power:
        most *= 2
    return float(np.asarray(optimize.brentq(lambda shift: _power(shift, df, alpha) - power, 0.0, most))) * se


def _power(shift: float, df: float, alpha: float) -> float:
    """Power of a two-sided t test when the truth is `shift` standard errors away."""
    reach = stats.t.isf(alpha / 2, df)
    wrong_side = np.nan_to_num(stats.nct.cdf(-reach, df, shift))  # SciPy's is NaN where it underflows
    return float(stats.nct.sf(reach, df, shift) + wrong_side)


def _with_clusters(plan: Plan, n_clusters: int) -> Plan:
    return Plan(n_clusters, plan.cluster_size, plan.sd, plan.icc, plan.is_paired, plan.alpha)
