"""How belief in a persona grows with turns of evidence in the context: fits, critical n, retention, martingale.

    logit p(n) = b + gamma n^(1 - alpha)              power (Bigelow et al. 2025, arXiv 2511.00617; no steering term)
    logit p(n) = b + gamma n                          Bayes for exchangeable turns; with two hypotheses also the law of
                                                      Arora et al. 2024 (arXiv 2410.16531)
    logit p(n) = b + gamma (1 - exp(-n / tau))        saturating: evidence that stops counting
    R(n) = ( logit_post(n) - logit_base(n) ) / ( logit_post(0) - logit_base(0) )         1 if training is conditioning

The law is chosen by its error at turns left out of the fit. The critical n is where the curve first reaches one half;
where the observed range does not reach it, it is censored and not extrapolated. Log-odds beyond a bound are saturated
(a read-out cannot tell 0.997 from 1) and left out with all later turns. The martingale check is Falck et al. 2024
(arXiv 2406.00793). Not here: how beliefs are read (`protocols.reach`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from personae.errors import InvalidSettings

Floats = NDArray[np.float64]

LAWS = ("linear", "power", "saturating")
SATURATED = 5.8  # log-odds of a mass of 0.003
LEAST_LEVELS = 3
_STARTS = ((0.0, 3.0), (0.5, 1.0), (0.9, 10.0))
_MOST_ALPHA = 0.99


@dataclass(frozen=True, slots=True, eq=False)
class BeliefFit:
    """A belief curve.

    Attributes:
        law: Which of `LAWS` predicted left-out turns best; "none" with fewer than three usable levels.
        prior_log_odds: b, nats: belief without context.
        rate: gamma, nats per turn to the power 1 - alpha (saturating: nats in all).
        exponent: 1 - alpha, or 1 for the linear law; tau in turns for the saturating one.
        critical_n: Turns at which belief reaches one half; None where it does not in the observed range.
        critical_low, critical_high: 90% interval, contexts resampled; None is "beyond the range" at that end.
        n_most: Most turns observed (before saturation).
        rmse: Of the fit, nats.
        held_out_rmse: Of the chosen law at left-out turns, nats; NaN where not computed.
        n_saturated: Levels left out as saturated.
    """

    law: str
    prior_log_odds: float
    rate: float
    exponent: float
    critical_n: float | None
    critical_low: float | None
    critical_high: float | None
    n_most: float
    rmse: float
    held_out_rmse: float
    n_saturated: int

    @property
    def is_censored(self) -> bool:
        """Whether one half was not reached in the observed range."""
        return self.critical_n is None

    def predict(self, n: Floats) -> Floats:
        """Log-odds after n turns, nats."""
        return _predict(self.law, np.array([self.prior_log_odds, self.rate, self.exponent]), np.asarray(n, np.float64))


def fit_belief_curve(
    turns: Sequence[float], log_odds: Floats, *, saturated: float = SATURATED, n_draws: int = 200, seed: int = 0
) -> BeliefFit:
    """Fit a belief curve to log-odds after several numbers of turns.

    Args:
        turns: Numbers of turns, increasing, the first 0, shape (n_levels,).
        log_odds: Belief in each context after each of them, nats, shape (n_contexts, n_levels).
        saturated: Bound on the mean log-odds beyond which levels are left out.
        n_draws: Resamples of contexts for the interval of the critical n.
        seed: Of these.

    Raises:
        InvalidSettings: If shapes do not fit, turns do not increase from 0, or a log-odds is NaN.
    """
    n, odds = np.asarray(turns, np.float64), np.asarray(log_odds, np.float64)
    if odds.ndim != 2 or odds.shape[1] != len(n) or len(n) == 0 or len(odds) == 0:
        raise InvalidSettings(f"log-odds of shape {odds.shape} do not fit {len(n)} numbers of turns.")
    if n[0] != 0 or (np.diff(n) <= 0).any() or np.isnan(odds).any():
        raise InvalidSettings("turns must increase from 0 and log-odds be numbers.")
    odds = np.clip(odds, -2 * saturated, 2 * saturated)
    mean = odds.mean(axis=0)
    beyond = np.flatnonzero(np.abs(mean[1:]) >= saturated)
    # The first saturated level still says that one half was passed, so it is used for crossing and not for fitting.
    used = len(n) if len(beyond) == 0 else int(beyond[0]) + 1
    n_saturated = len(n) - used
    reached = n[: min(used + 1, len(n))]
    law, held = _choose(n[:used], mean[:used]) if used >= LEAST_LEVELS else ("none", float("nan"))
    theta = _fit(law, n[:used], mean[:used])
    critical = _crossing(law, theta, n, mean, used)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n_draws if len(odds) > 1 else 0):
        drawn = odds[rng.integers(len(odds), size=len(odds))].mean(axis=0)
        draws.append(_crossing(law, _fit(law, n[:used], drawn[:used], start=theta), n, drawn, used))
    low, high = _interval(draws, critical)
    rmse = float(np.sqrt(np.mean((_predict(law, theta, n[:used]) - mean[:used]) ** 2)))
    b, rate, exponent = (float(t) for t in theta)
    return BeliefFit(law, b, rate, exponent, critical, low, high, float(reached[-1]), rmse, held, n_saturated)


def _choose(n: Floats, mean: Floats) -> tuple[str, float]:
    """The law with the least error at turns left out, one at a time; the simplest within a tenth of the best."""
    errors: dict[str, float] = {}
    for law in LAWS:
        if len(n) <= (2 if law == "linear" else 3):
            continue
        gaps = []
        for out in range(1, len(n)):
            keep = np.arange(len(n)) != out
            theta = _fit(law, n[keep], mean[keep])
            gaps.append(_predict(law, theta, n[out : out + 1])[0] - mean[out])
        errors[law] = float(np.sqrt(np.mean(np.square(gaps))))
    best = min(errors.values())
    law = next(name for name in LAWS if name in errors and errors[name] <= 1.1 * best + 1e-9)
    return law, errors[law]


def _fit(law: str, n: Floats, mean: Floats, start: Floats | None = None) -> Floats:
    """b, gamma and the shape by least squares, from several starts of the shape."""
    if law in ("none", "linear"):
        rate = float(np.polyfit(n, mean, 1)[0]) if len(n) > 1 else 0.0
        return np.array([float(mean.mean() - rate * n.mean()), rate, 1.0])
    bounds = ([1 - _MOST_ALPHA], [2.0]) if law == "power" else ([0.05], [20 * max(float(n.max()), 1.0)])
    shapes = [1 - a for a, _ in _STARTS] if law == "power" else [t for _, t in _STARTS]
    shapes = shapes if start is None else [float(start[2])]

    def profile(shape: Floats) -> Floats:
        return _predict(law, _linear_part(law, float(shape[0]), n, mean), n) - mean

    found = [least_squares(profile, np.clip([s], *bounds), bounds=bounds, max_nfev=200) for s in shapes]
    best = min(found, key=lambda f: f.cost)
    return _linear_part(law, float(best.x[0]), n, mean)


def _linear_part(law: str, shape: float, n: Floats, mean: Floats) -> Floats:
    """For a given shape, b and gamma are linear."""
    design = np.stack([np.ones_like(n), _basis(law, shape, n)], axis=1)
    b, gamma = np.linalg.lstsq(design, mean, rcond=None)[0]
    return np.array([b, gamma, shape])


def _basis(law: str, shape: float, n: Floats) -> Floats:
    match law:
        case "power":
            return n**shape
        case "saturating":
            return 1 - np.exp(-n / shape)
        case _:
            return n


def _predict(law: str, theta: Floats, n: Floats) -> Floats:
    return theta[0] + theta[1] * _basis(law, float(theta[2]), n)


def _crossing(law: str, theta: Floats, n: Floats, mean: Floats, used: int) -> float | None:
    """Where the curve first reaches 0 in the observed range; straight to the first saturated level beyond the fit."""
    if _predict(law, theta, n[:1])[0] >= 0:
        return 0.0
    grid = np.linspace(0.0, n[used - 1], 2001)
    above = np.flatnonzero(_predict(law, theta, grid) >= 0)
    if len(above):
        return float(grid[above[0]])
    if used < len(n) and mean[used] > 0:
        left, right = min(float(mean[used - 1]), -1e-9), float(mean[used])
        return float(n[used - 1] + (n[used] - n[used - 1]) * -left / (right - left))
    return None


def _interval(draws: Sequence[float | None], value: float | None) -> tuple[float | None, float | None]:
    """5% and 95% of crossings; a censored one counts as beyond every number."""
    if not draws:
        return (value, value)
    low, high = np.quantile([np.inf if d is None else d for d in draws], [0.05, 0.95], method="nearest")
    return tuple(None if np.isinf(v) else float(v) for v in (low, high))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of a change in prior log-odds is left after contrary turns.

    Attributes:
        turns: Numbers of contrary turns, from 1.
        change_at_zero: logit_post(0) - logit_base(0), nats.
        ratio, low, high: R(n) with 90% interval, contexts resampled; strict conditioning says 1.
        reason: Why there is none, or empty.
    """

    turns: tuple[int, ...]
    change_at_zero: float
    ratio: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    reason: str = ""


LEAST_CHANGE = 0.3  # nats: below it the ratio divides noise by noise


def retention(turns: Sequence[int], base: Floats, post: Floats, *, n_draws: int = 400, seed: int = 0) -> Retention:
    """R(n) of a change between two models read in the same contexts.

    Args:
        turns: Numbers of contrary turns, the first 0, shape (n_levels,).
        base: Log-odds of the persona that moved, unclipped, nats, shape (n_contexts, n_levels).
        post: The same after the change.
        n_draws: Resamples of contexts.
        seed: Of these.
    """
    change = (post - base).mean(axis=0)
    if abs(change[0]) < LEAST_CHANGE:
        return Retention(
            (), float(change[0]), (), (), (), f"the change is below {LEAST_CHANGE} nats: nothing to retain"
        )
    if np.abs(np.concatenate([base[:, 0], post[:, 0]])).max() >= SATURATED:
        return Retention((), float(change[0]), (), (), (), "belief is saturated without any context")
    rng = np.random.default_rng(seed)
    drawn = np.stack([(post - base)[rng.integers(len(base), size=len(base))].mean(axis=0) for _ in range(n_draws)])
    ratios = drawn[:, 1:] / drawn[:, :1]
    low, high = np.quantile(ratios, [0.05, 0.95], axis=0)
    return Retention(
        tuple(int(t) for t in turns[1:]),
        float(change[0]),
        tuple((change[1:] / change[0]).tolist()),
        tuple(low.tolist()),
        tuple(high.tolist()),
    )


@dataclass(frozen=True, slots=True)
class MartingaleCheck:
    """Whether predictions stay put on average when the model's own answers are added to the context.

    Attributes:
        drift: Mean over probes of the total variation between the averaged and the original prediction.
        noise: The same that sampling alone gives.
        p: That sampling alone gives as much.
        n_answers: Own answers averaged over.
    """

    drift: float
    noise: float
    p: float
    n_answers: int


def martingale_check(before: Floats, after: Floats, *, n_draws: int = 999, seed: int = 0) -> MartingaleCheck:
    """Test E[ p(. | h, y) ] = p(. | h) over y sampled from the model.

    Args:
        before: p(. | h) on probes, shape (n_probes, n_answers), or read in several contexts h,
            shape (n_contexts, n_probes, n_answers).
        after: p(. | h, y) for sampled y, shape (n_sampled, n_probes, n_answers), or by context,
            shape (n_contexts, n_sampled, n_probes, n_answers).
        n_draws: Of the null: residuals around their mean, resampled.
        seed: Of the null.
    """
    h, y = (before, after) if before.ndim == 3 else (before[None], after[None])
    n = y.shape[1]
    residual = y - y.mean(axis=1, keepdims=True)
    seen = _variation(y.mean(axis=1) - h)
    rng = np.random.default_rng(seed)
    grow = np.sqrt(n / max(n - 1, 1))
    null = np.array([_variation(grow * residual[:, rng.integers(n, size=n)].mean(axis=1)) for _ in range(n_draws)])
    p = (1 + int((null >= seen).sum())) / (1 + n_draws)
    return MartingaleCheck(seen, float(null.mean()), float(p), n)


def _variation(gap: Floats) -> float:
    return float(0.5 * np.abs(gap).sum(axis=-1).mean())
