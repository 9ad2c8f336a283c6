"""A sequence of checkpoints: which statistic changed, and at which step? Family-wise error held.

    z = (x_{s+1} - x_s) / sqrt(se_s^2 + se_{s+1}^2),    p by the normal,  adjusted by Holm over statistics x steps

Checkpoints are asked the same prompts, which makes differences surer than this says: the test is conservative.
Source: Holm 1979. Not here: the audits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """Of one statistic between two checkpoints in a row.

    Attributes:
        statistic: Its name.
        step: Place of the later checkpoint.
        before, after: Values.
        p: Adjusted for the family of all statistics and steps.
        is_found: Whether p is below 0.05.
    """

    statistic: str
    step: int
    before: float
    after: float
    p: float
    is_found: bool


def changes(checkpoints: Sequence[Mapping[str, tuple[float, float]]]) -> list[Change]:
    """Every step of every statistic that all checkpoints have.

    Args:
        checkpoints: In order; by statistic its value and standard error.
    """
    names = [n for n in checkpoints[0] if all(n in c for c in checkpoints)] if checkpoints else []
    pairs = [(n, s) for n in names for s in range(1, len(checkpoints))]
    raw: list[float] = []
    for name, step in pairs:
        (x, a), (y, b) = checkpoints[step - 1][name], checkpoints[step][name]
        error = float(np.hypot(a, b))
        raw.append(float(2 * stats.norm.sf(abs(y - x) / error)) if error > 0 else float(x == y))
    adjusted = holm(raw)
    return [
        Change(n, s, checkpoints[s - 1][n][0], checkpoints[s][n][0], p, p < LEVEL)
        for (n, s), p in zip(pairs, adjusted, strict=True)
    ]


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values that hold the family-wise error.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    factor = len(p) - np.arange(len(p))
    stepped = np.minimum(np.maximum.accumulate(np.array(p)[order] * factor), 1.0)
    out = np.empty(len(p))
    out[order] = stepped
    return [float(round(x, 12)) for x in out]
