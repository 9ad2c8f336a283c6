"""From KL of every token to shares of KL explained, with intervals by resampling clusters.

    FVE(M) = 1 - sum_c mean_{i in c} KL_M(i) / sum_c mean_{i in c} KL_0(i)        clusters c weigh the same

Numerator and denominator are resampled together (a ratio); the delta method's standard error stands beside as
a check. The share is undefined where KL_0 cannot be told from zero. Not here: how KL is measured
(`inference.exhaustiveness`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.numerics.clustered import cluster_index

Floats = NDArray[np.float64]

FEWEST_CLUSTERS = 8
LEAST_KL = 1e-4  # nats a token: below it two copies of one model differ by rounding
LEAST_ERRORS = 5.0  # standard errors by which KL_0 must exceed zero


@dataclass(frozen=True, slots=True)
class Share:
    """Share of KL explained.

    Attributes:
        value, low, high: FVE and its 95% interval.
        delta_se: Standard error by the delta method.
        kl: Mean KL of a conversation that is left, nats.
        gain, gain_low, gain_high: FVE minus that of the explanation before it.
    """

    value: float
    low: float
    high: float
    delta_se: float
    kl: float
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True, slots=True)
class Gap:
    """KL_0.

    Attributes:
        per_conversation, se: Mean over clusters and its standard error, nats.
        per_token: Nats a token.
        n_clusters: Clusters.
        is_defined: Whether it can be told from zero, so that shares of it mean something.
        reason: Why not; empty where it is.
    """

    per_conversation: float
    se: float
    per_token: float
    n_clusters: int
    is_defined: bool
    reason: str = ""


def gap_of(kl: Floats, n_tokens: Floats, clusters: Sequence[str]) -> Gap:
    """KL_0 from its sum for every conversation, shape (n,)."""
    means, tokens = _cluster_means(kl, clusters), _cluster_means(n_tokens, clusters)
    n = len(means)
    se = float(means.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf")
    per_token = float(means.sum() / max(tokens.sum(), 1e-300))
    reason = ""
    if per_token < LEAST_KL:
        reason = f"the two models differ by {per_token:.1e} nats a token, which is rounding"
    elif not means.mean() > LEAST_ERRORS * se:
        reason = (
            f"KL from post to base is {means.mean():.3g} +- {se:.2g} nats: less than {LEAST_ERRORS:g} errors from 0"
        )
    return Gap(float(means.mean()), se, per_token, n, not reason, reason)


def shares(
    base: Floats, left: Floats, clusters: Sequence[str], *, rng: np.random.Generator, n_draws: int = 1000
) -> list[Share]:
    """Shares explained by several explanations in a row.

    Args:
        base: KL_0 of every conversation, shape (n,).
        left: KL under every explanation, shape (n_explanations, n).
        clusters: Of each conversation.
        rng: Source of randomness.
        n_draws: Resamples of clusters.
    """
    zero = _cluster_means(base, clusters)
    rest = np.stack([_cluster_means(row, clusters) for row in left])
    counts = rng.multinomial(len(zero), np.full(len(zero), 1 / len(zero)), size=n_draws)
    whole = np.maximum(counts @ zero, 1e-300)
    drawn = 1 - (counts @ rest.T) / whole[:, None]
    value = 1 - rest.sum(axis=1) / max(zero.sum(), 1e-300)
    gains = np.diff(drawn, axis=1, prepend=0.0)
    out: list[Share] = []
    for k in range(len(rest)):
        low, high = np.quantile(drawn[:, k], [0.025, 0.975])
        gain_low, gain_high = np.quantile(gains[:, k], [0.025, 0.975])
        gain = float(value[k] - (value[k - 1] if k else 0.0))
        out.append(
            Share(
                float(value[k]),
                float(low),
                float(high),
                _delta_se(zero, rest[k]),
                float(rest[k].mean()),
                gain,
                float(gain_low),
                float(gain_high),
            )
        )
    return out


def _delta_se(zero: Floats, rest: Floats) -> float:
    """Of the ratio of means rest/zero: sqrt(Var(M) - 2 R Cov(M, 0) + R^2 Var(0)) / mean(0)."""
    n = len(zero)
    if n < 2 or zero.mean() <= 0:
        return float("nan")
    r = rest.mean() / zero.mean()
    return float(np.sqrt(((rest - r * zero) ** 2).sum() / (n - 1) / n) / zero.mean())


def _cluster_means(values: Floats, clusters: Sequence[str]) -> Floats:
    index, n = cluster_index(clusters)
    return np.bincount(index, weights=values, minlength=n) / np.bincount(index, minlength=n)
