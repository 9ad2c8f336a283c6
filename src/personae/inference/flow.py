"""Training as a flow of belief: where the weights of a persona mixture go while a model learns from a file.

    dw/dt = lambda N (rhobar(w) - w),    rho_ik proportional to w_k exp(eta l_ik)        EM flow
    log w = log w_0 + power sum_i u_i l_i - log Z                                        tempered Bayes

The first is gradient descent on the mixture's -log p in mirror geometry (log w_k += lambda sum_i (rho_ik / w_k - 1)),
which is EM in continuous time. For weak evidence both agree to first order; the flow then stops at the
maximum-likelihood mixture, while conditioning goes on to certainty. Each has one free number, which one early
checkpoint fixes: rates differ between optimisers and between files, so none is built in. Training as conditioning is
the Persona Selection Model's (Marks, Lindsey & Olah 2026); steps in log weights are the exponentiated gradient of
Kivinen & Warmuth (1997), and EM is such a gradient step (Xu & Jordan 1996). Not here: where log-likelihoods come from
(`worlds`, `instruments.scoring`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, rel_entr

from personae.errors import InputError, InvalidSettings, NumericsError
from personae.numerics.logspace import log_normalise

Floats = NDArray[np.float64]
Law = Literal["em_flow", "tempered_bayes"]

GRID = np.logspace(-7, 1, 161)
_SHORT_STEP, _MOST_STEPS = 0.02, 20  # of s; a batch that asks for more than their product takes longer ones
_LARGEST_STEP = 1.0  # of log w in one batch of preference pairs, whose exact step is not known
_N_DRAWS = 400


@dataclass(frozen=True, slots=True)
class RateFit:
    """The one free number of a law, fitted on an early checkpoint.

    Attributes:
        rate: Per row: lambda of the EM flow, power of tempered Bayes.
        low, high: 90% interval from resampling the probes.
        divergence: KL(observed || forecast) at that checkpoint, nats a probe.
        explained: Share of KL(observed || start) that the fitted law removes there.
        at_edge: Whether the best rate is the end of the grid: then nothing was learnt about it.
    """

    rate: float
    low: float
    high: float
    divergence: float
    explained: float
    at_edge: bool


@dataclass(frozen=True, slots=True, eq=False)
class RunForecast:
    """What a law says of a whole run after its rate was fitted on the run's first checkpoint.

    Attributes:
        fit: The rate.
        log_weights: Nats, shape (n_checkpoints, n_personas).
        behaviour: Predicted answers, shape (n_checkpoints, n_probes, n_answers).
    """

    fit: RateFit
    log_weights: Floats
    behaviour: Floats


def em_flow(
    log_prior: ArrayLike,
    log_likelihood: ArrayLike,
    *,
    rate: float,
    eta: float = 1.0,
    weight: ArrayLike | None = None,
    batch_size: int = 32,
) -> Floats:
    """Log weights along a run, batch by batch.

    A batch of positive weights follows the flow in short steps that stay on the simplex at any rate:

        w <- (1 - s) w + s rhobar(w),    sum of s over the steps = lambda sum_i u_i

    A batch with rejected replies takes the mirror step, its change of log w limited to 1:

        log w_k += lambda sum_i u_i (rho_ik / w_k - 1)

    Args:
        log_prior: Before training, nats, shape (n_personas,); normalised here. -inf excludes a persona.
        log_likelihood: log p(y_i | x_i, k) in the order of training, a row as often as it is seen, nats, shape
            (n_rows, n_personas). Rows of one conversation: add them first (`mixture.sum_by_group`).
        rate: lambda, per row.
        eta: Power on the likelihood.
        weight: u, shape (n_rows,), 1 if left out; -1 for a rejected reply, which must be in the batch of its pair.
        batch_size: Rows a step.

    Returns:
        Nats, shape (n_batches + 1, n_personas); row 0 is the prior.

    Raises:
        InvalidSettings: If shapes do not fit or a number is outside its range.
        NumericsError: If a log-likelihood is NaN or +inf, or a row is impossible under every persona.
    """
    prior, rows, u = _checked(log_prior, log_likelihood, weight, eta=eta, batch_size=batch_size)
    _check_rate(rate)
    return _flow(prior, eta * rows, u, np.array([rate]), _edges(len(rows), batch_size))[:, 0]


def tempered_bayes(
    log_prior: ArrayLike,
    log_likelihood: ArrayLike,
    *,
    power: float,
    weight: ArrayLike | None = None,
    batch_size: int = 32,
) -> Floats:
    """Log weights along a run if training were conditioning with a power on the likelihood.

    Arguments, result and errors as `em_flow`; `power` takes the place of rate and eta.
    """
    prior, rows, u = _checked(log_prior, log_likelihood, weight, eta=1.0, batch_size=batch_size)
    _check_rate(power)
    return _tempered(prior, rows, u, np.array([power]), _edges(len(rows), batch_size))[:, 0]


def resting_point(log_prior: ArrayLike, log_likelihood: ArrayLike, *, eta: float = 1.0, most: int = 5000) -> Floats:
    """Where the EM flow of a file ends, whatever its rate: the maximum-likelihood mixture; nats, shape (n_personas,).

    Reached by EM from the prior, until no weight changes by more than 1e-10. Errors as `em_flow`.
    """
    log_w, rows, _ = _checked(log_prior, log_likelihood, None, eta=eta, batch_size=1)
    for _ in range(most):
        before, log_w = log_w, _mean_responsibility(log_w[None], eta * rows, np.ones(len(rows)))[0]
        if np.abs(np.exp(log_w) - np.exp(before)).max() < 1e-10:
            break
    return log_w


def behaviour(log_weights: ArrayLike, theta: ArrayLike) -> Floats:
    """Answers of a mixture: sum_k w_k theta_kqa.

    Args:
        log_weights: Nats, shape (..., n_personas).
        theta: Answers of each persona, shape (n_personas, n_probes, n_answers).

    Returns:
        Shape (..., n_probes, n_answers).
    """
    return np.einsum("...k,kqa->...qa", np.exp(np.asarray(log_weights, np.float64)), np.asarray(theta, np.float64))


def fraction_explained(observed: ArrayLike, forecast: ArrayLike, start: ArrayLike) -> float:
    """Share of a run's movement that a forecast explains: 1 - sum KL(observed || forecast) / sum KL(observed || start).

    1 is perfect, 0 no better than "nothing changes", and below 0 worse. Sums run over checkpoints and probes.

    Args:
        observed: Answers of the trained model, shape (..., n_probes, n_answers), rows sum to 1.
        forecast: The same, predicted.
        start: Answers before training, shape (n_probes, n_answers).

    Raises:
        InputError: If nothing moved, so that there is nothing to explain.
    """
    p, f, s = (np.asarray(v, np.float64) for v in (observed, forecast, start))
    moved = float(rel_entr(p, np.broadcast_to(s, p.shape)).sum())
    if not moved > 0:
        raise InputError("the observed answers equal those before training: there is no shift to explain.")
    return float(1 - rel_entr(p, f).sum() / moved)


def fit_rate(
    log_prior: ArrayLike,
    log_likelihood: ArrayLike,
    theta: ArrayLike,
    observed: ArrayLike,
    *,
    law: Law = "em_flow",
    eta: float = 1.0,
    weight: ArrayLike | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> RateFit:
    """Fit a law's rate to what a model answers at one checkpoint.

    The rate minimises KL(observed || forecast) on a fine logarithmic grid; its interval comes from resampling probes.

    Args:
        log_prior: Before training, nats, shape (n_personas,).
        log_likelihood: Of the rows seen up to that checkpoint, as `em_flow`.
        theta: Answers of each persona, shape (n_personas, n_probes, n_answers).
        observed: Answers of the model at the checkpoint, shape (n_probes, n_answers), rows sum to 1.
        law: Which of the two.
        eta: Power on the likelihood; not used by tempered Bayes, whose rate is a power.
        weight: As `em_flow`.
        batch_size: Rows a step.
        seed: Of the resampling.

    Raises:
        InvalidSettings, NumericsError: As `em_flow`.
        InputError: If the model does not differ from the prior's mixture at all.
    """
    prior, rows, u = _checked(log_prior, log_likelihood, weight, eta=eta, batch_size=batch_size)
    tables, seen = _checked_probes(prior, theta, observed)
    edges = _edges(len(rows), batch_size)
    run = _flow if law == "em_flow" else _tempered
    last = run(prior, eta * rows if law == "em_flow" else rows, u, GRID, edges)[-1]
    by_probe = rel_entr(seen, behaviour(last, tables)).sum(axis=-1)
    start = rel_entr(seen, behaviour(prior, tables)).sum(axis=-1)
    if not start.sum() > 0:
        raise InputError("the model answers as before training: no rate can be fitted to that checkpoint.")
    draws = np.random.default_rng(seed).multinomial(len(seen), np.full(len(seen), 1 / len(seen)), size=_N_DRAWS)
    redrawn = GRID[(by_probe @ draws.T).argmin(axis=0)]
    best = int(by_probe.sum(axis=1).argmin())
    low, high = np.quantile(redrawn, [0.05, 0.95])
    return RateFit(
        rate=float(GRID[best]),
        low=float(low),
        high=float(high),
        divergence=float(by_probe[best].mean()),
        explained=float(1 - by_probe[best].sum() / start.sum()),
        at_edge=best in (0, len(GRID) - 1),
    )


def forecast_run(
    log_prior: ArrayLike,
    log_likelihood: ArrayLike,
    theta: ArrayLike,
    first_observed: ArrayLike,
    *,
    checkpoints: Sequence[int],
    law: Law = "em_flow",
    eta: float = 1.0,
    weight: ArrayLike | None = None,
    batch_size: int = 32,
) -> RunForecast:
    """Forecast all checkpoints of a run from its first one.

    Args:
        log_prior: Before training, nats, shape (n_personas,).
        log_likelihood: Of the whole run in the order of training, nats, shape (n_rows, n_personas).
        theta: Answers of each persona, shape (n_personas, n_probes, n_answers).
        first_observed: Answers of the model at the first checkpoint, shape (n_probes, n_answers).
        checkpoints: Steps (batches done, from 1, ascending) at which the run was read.
        law: Which of the two.
        eta: As `fit_rate`.
        weight: As `em_flow`.
        batch_size: Rows a step.

    Raises:
        InvalidSettings: If checkpoints are not ascending or lie outside the run, and as `fit_rate`.
        InputError, NumericsError: As `fit_rate`.
    """
    rows = np.asarray(log_likelihood, np.float64)
    n_batches = -(-len(rows) // batch_size)
    at = np.asarray(checkpoints, np.int64)
    if at.size == 0 or at[0] < 1 or at[-1] > n_batches or (np.diff(at) <= 0).any():
        raise InvalidSettings(
            f"checkpoints {list(checkpoints)} must ascend within the run's {n_batches} steps, counted from 1."
        )
    u = None if weight is None else np.asarray(weight, np.float64)
    seen = int(at[0]) * batch_size
    fit = fit_rate(
        log_prior, rows[:seen], theta, first_observed,
        law=law, eta=eta, weight=None if u is None else u[:seen], batch_size=batch_size,
    )  # fmt: skip
    if law == "em_flow":
        path = em_flow(log_prior, rows, rate=fit.rate, eta=eta, weight=u, batch_size=batch_size)
    else:
        path = tempered_bayes(log_prior, rows, power=fit.rate, weight=u, batch_size=batch_size)
    return RunForecast(fit, path[at], behaviour(path[at], theta))


def _flow(prior: Floats, rows: Floats, u: Floats, rates: Floats, edges: Sequence[slice]) -> Floats:
    """Paths for several rates at once, shape (n_batches + 1, n_rates, n_personas); `rows` carry eta already."""
    path = [np.repeat(prior[None], len(rates), axis=0)]
    for batch in edges:
        log_w, said, w = path[-1], rows[batch], u[batch]
        if not w.any():
            path.append(log_w)
        elif (w >= 0).all():
            path.append(_towards_responsibility(log_w, said, w, rates * w.sum()))
        else:
            step = np.clip(rates[:, None] * _drive(log_w, said, w), -_LARGEST_STEP, _LARGEST_STEP)
            path.append(log_normalise(log_w + step))
    return np.stack(path)


def _towards_responsibility(log_w: Floats, rows: Floats, u: Floats, pull: Floats) -> Floats:
    """One batch of the flow, each rate in as many steps as it needs; `pull` is lambda sum_i u_i, shape (n_rates,)."""
    n_steps = np.clip(np.ceil(pull / _SHORT_STEP), 1, _MOST_STEPS)
    log_w = log_w.copy()
    for step in range(int(n_steps.max())):
        at = np.flatnonzero(n_steps > step)
        s = np.minimum(pull[at] / n_steps[at], 1.0)[:, None]
        with np.errstate(divide="ignore"):
            kept, gained = np.log1p(-s), np.log(s)
        log_w[at] = log_normalise(np.logaddexp(kept + log_w[at], gained + _mean_responsibility(log_w[at], rows, u)))
    return log_w


def _tempered(prior: Floats, rows: Floats, u: Floats, powers: Floats, edges: Sequence[slice]) -> Floats:
    """As `_flow`, by conditioning."""
    sums = [np.zeros(rows.shape[1])]
    for batch in edges:
        used = u[batch] != 0
        sums.append(sums[-1] + (u[batch][used, None] * rows[batch][used]).sum(axis=0))
    values = prior + powers[None, :, None] * np.stack(sums)[:, None]
    if np.isneginf(values).all(axis=-1).any():
        raise NumericsError(
            "the file is impossible under every persona together.", hint="Add a background that can say anything."
        )
    return log_normalise(values)


def _marginal(log_w: Floats, rows: Floats) -> Floats:
    """Log of sum_k w_k exp(l_ik), shape (n_rates, n_rows)."""
    total = np.asarray(logsumexp(log_w[:, None, :] + rows[None], axis=-1))
    if np.isneginf(total).any():
        row = int(np.flatnonzero(np.isneginf(total).any(axis=0))[0])
        raise NumericsError(
            f"row {row} of a batch is impossible under every persona that has weight.",
            hint="Add a background that can say anything, or give the row weight 0.",
        )
    return total


def _mean_responsibility(log_w: Floats, rows: Floats, u: Floats) -> Floats:
    """Log of sum_i u_i rho_ik / sum_i u_i, shape (n_rates, n_personas); rows of weight 0 do not count."""
    used = u > 0
    log_rho = log_w[:, None, :] + rows[None, used] - _marginal(log_w, rows[used])[..., None]
    return np.asarray(logsumexp(log_rho + np.log(u[used] / u[used].sum())[None, :, None], axis=1))


def _drive(log_w: Floats, rows: Floats, u: Floats) -> Floats:
    """sum_i u_i (rho_ik / w_k - 1), shape (n_rates, n_personas); rho / w needs no division, so w may be 0."""
    used = u != 0
    ratio = np.exp(np.minimum(rows[None, used] - _marginal(log_w, rows[used])[..., None], 50.0))
    return np.einsum("i,rik->rk", u[used], ratio - 1)


def _edges(n_rows: int, batch_size: int) -> list[slice]:
    return [slice(i, min(i + batch_size, n_rows)) for i in range(0, n_rows, batch_size)]


def _check_rate(rate: float) -> None:
    if not (np.isfinite(rate) and rate >= 0):
        raise InvalidSettings(f"the rate is {rate}; it must be finite and not negative.")


def _checked(
    log_prior: ArrayLike, log_likelihood: ArrayLike, weight: ArrayLike | None, *, eta: float, batch_size: int
) -> tuple[Floats, Floats, Floats]:
    prior, rows = (np.asarray(v, np.float64) for v in (log_prior, log_likelihood))
    u = np.ones(len(rows)) if weight is None else np.asarray(weight, np.float64)
    if prior.ndim != 1 or rows.ndim != 2 or rows.shape[1] != len(prior) or u.shape != (len(rows),) or len(rows) == 0:
        raise InvalidSettings(
            f"a prior of shape {prior.shape}, log-likelihoods of {rows.shape} and weights of {u.shape} do not fit: "
            "wanted (personas,), (rows, personas) and (rows,), with a row at least."
        )
    if not (np.isfinite(eta) and eta > 0) or batch_size < 1 or not np.isfinite(u).all():
        raise InvalidSettings(
            f"eta is {eta} and the batch size {batch_size}: eta must be above 0, a batch needs a row, and weights must "
            "be finite."
        )
    if np.isnan(prior).any() or np.isposinf(prior).any() or np.isneginf(prior).all():
        raise NumericsError("the prior excludes every persona or is not a number.")
    if np.isnan(rows).any() or np.isposinf(rows).any() or np.isneginf(rows[u < 0]).any():
        raise NumericsError(
            "a log-likelihood is not a number, above every bound, or -inf in a row of negative weight.",
            hint="Give such rows weight 0 to leave them out.",
        )
    return log_normalise(prior), rows, u


def _checked_probes(prior: Floats, theta: ArrayLike, observed: ArrayLike) -> tuple[Floats, Floats]:
    tables, seen = (np.asarray(v, np.float64) for v in (theta, observed))
    if tables.ndim != 3 or tables.shape[0] != len(prior) or seen.shape != tables.shape[1:]:
        raise InvalidSettings(
            f"answers of personas have the shape {tables.shape} and of the model {seen.shape}: wanted "
            f"(personas, probes, answers) with {len(prior)} personas, and (probes, answers)."
        )
    sums = np.concatenate([tables.sum(axis=-1).ravel(), seen.sum(axis=-1).ravel()])
    if not np.allclose(sums, 1, atol=1e-4):
        raise InvalidSettings("answers of a probe must be probabilities that sum to 1.")
    return tables, seen
