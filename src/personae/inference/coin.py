"""Is an outcome likelier because the Assistant would like it? The coin's swing, in probability and in logits.

    2s = mean P(heads | the preferred task is heads) - mean P(heads | the preferred task is tails)

A plain leaning to the word "heads" cancels. Errors resample preferred and dispreferred tasks both, as crossed
levels (Owen 2007, the pigeonhole bootstrap). Source of the protocol: Marks, Lindsey & Olah 2026, figure 6;
heads and tails are renormalised, and the mass on both is reported. Not here: how the coin is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Flip:
    """One cell as one model completes it.

    Attributes:
        model: "post" or "base".
        frame: Where the coin is thrown: whose words are continued.
        kind: "real" or a placebo: "alike" (two tasks of one sort).
        preferred, other: Places of the two tasks.
        heads_preferred: Whether heads brings the preferred task.
        first_preferred: Whether the preferred task is named first.
        log_heads, log_tails: Log-probabilities of all spellings of the two outcomes.
    """

    model: str
    frame: str
    kind: str
    preferred: int
    other: int
    heads_preferred: bool
    first_preferred: bool
    log_heads: float
    log_tails: float


@dataclass(frozen=True, slots=True)
class Swing:
    """Of one model in one frame, or of one minus another.

    Attributes:
        what: In words.
        probability, probability_low, probability_high: 2s and its 95% interval.
        logit, logit_low, logit_high: The same in logits, which do not saturate.
        heads: Mean P(heads): the word's own pull.
        mass: Mean probability of heads or tails.
        n: Cells.
    """

    what: str
    probability: float
    probability_low: float
    probability_high: float
    logit: float
    logit_low: float
    logit_high: float
    heads: float
    mass: float
    n: int

    @property
    def is_found(self) -> bool:
        """Whether the interval of the logit leaves 0 out."""
        return self.logit_low > 0 or self.logit_high < 0


def swing(flips: Sequence[Flip], what: str, *, rng: np.random.Generator, n_draws: int = 1000) -> Swing:
    """2s of some cells.

    Args:
        flips: Cells of one model, frame and kind.
        what: What they are, in words.
        rng: Source of randomness.
        n_draws: Resamples.
    """
    return _swing(flips, [], what, rng, n_draws)


def contrast(
    flips: Sequence[Flip], minus: Sequence[Flip], what: str, *, rng: np.random.Generator, n_draws: int = 1000
) -> Swing:
    """2s of some cells minus 2s of others on the same tasks, which are resampled together."""
    return _swing(flips, minus, what, rng, n_draws)


def _swing(a: Sequence[Flip], b: Sequence[Flip], what: str, rng: np.random.Generator, n_draws: int) -> Swing:
    sign = np.array([1.0 if f.heads_preferred else -1.0 for f in (*a, *b)])
    arm = np.repeat([1.0, -1.0], [len(a), len(b)])
    logit = np.array([f.log_heads - f.log_tails for f in (*a, *b)])
    p = 1 / (1 + np.exp(-np.clip(logit, -700, 700)))
    rows, columns = np.array([f.preferred for f in (*a, *b)]), np.array([f.other for f in (*a, *b)])
    one = np.ones((1, len(sign)))
    value_p, value_l = (float(_difference(x, sign, arm, one)[0]) for x in (p, logit))
    weight = _draws(rows, n_draws, rng)[:, rows] * _draws(columns, n_draws, rng)[:, columns]
    spread = []
    for values in (p, logit):
        drawn = _difference(values, sign, arm, weight)
        spread.append(np.nanquantile(drawn, [0.025, 0.975]))
    mass = float(np.mean([np.exp(f.log_heads) + np.exp(f.log_tails) for f in a]))
    (p_low, p_high), (l_low, l_high) = spread
    return Swing(
        what,
        value_p,
        float(p_low),
        float(p_high),
        value_l,
        float(l_low),
        float(l_high),
        float(p[: len(a)].mean()),
        mass,
        len(a),
    )


def _difference(values: Floats, sign: Floats, arm: Floats, weight: Floats) -> Floats:
    """Mean over heads-preferred cells minus mean over the others, of the first arm minus the second."""
    total = np.zeros(len(weight))
    for side in (1.0, -1.0):
        mine = arm == side
        if not mine.any():
            continue
        for half in (1.0, -1.0):
            w = weight[:, mine & (sign == half)]
            with np.errstate(invalid="ignore", divide="ignore"):
                total = total + side * half * (w @ values[mine & (sign == half)]) / w.sum(axis=1)
    return total


def _draws(level: NDArray[np.int64], n_draws: int, rng: np.random.Generator) -> Floats:
    """How often each task is drawn, shape (n_draws, highest place + 1)."""
    names = np.unique(level)
    out = np.zeros((n_draws, int(level.max()) + 1))
    out[:, names] = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_draws)
    return out
