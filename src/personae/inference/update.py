"""Who is speaking? Prior times weighted evidence gives the posterior over personas for one speaker.

    log w_k = log prior_k + eta * sum_i weight_i * log p(y_i | x_i, k) - log Z

One persona speaks in all episodes, so their evidence adds; a file written by many is a mixture
(`inference.mixture`). Log-odds are linear in the weights. Stated rules for impossible episodes: weight 0 leaves an
episode out, also an impossible one; a positive weight of an impossible episode rules a persona out; a negative one
is refused, since "discouraged although impossible" has no value.

This is the update of the Persona Selection Model (Marks, Lindsey & Olah 2026, "post-training as updating") with a
power eta on the likelihood (Holmes & Walker 2017, arXiv 1701.08515, equation 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from personae.errors import InvalidSettings, NumericsError
from personae.inference.mixture import sum_by_group
from personae.numerics.logspace import log_normalise
from personae.tables.evidence import Evidence
from personae.tables.posterior import Posterior

Floats = NDArray[np.float64]


def update(
    log_prior: ArrayLike,
    log_likelihood: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    eta: float = 1.0,
    personas: Sequence[str] | None = None,
) -> Posterior:
    """Posterior after all episodes at once.

    Args:
        log_prior: Nats, shape (n_personas,); normalised here. -inf excludes a persona.
        log_likelihood: log p(y_i | x_i, k), nats, shape (n_episodes, n_personas); -inf is legal.
        weight: Of each episode, shape (n_episodes,), 1 if left out; negative for what is discouraged.
        eta: Power on the likelihood, above 0. With 1 and unit weights this is Bayes' rule.
        personas: Ids; "0", "1", ... if left out.

    Returns:
        The posterior; its log_marginal_likelihood is None unless eta is 1 and every weight is 0 or 1. Without episodes
        it is the prior.

    Raises:
        InvalidSettings: If shapes do not fit, or eta or a weight is outside its range.
        NumericsError: If a log-likelihood is NaN or +inf, an impossible episode has a negative weight, or the evidence
            is impossible under every persona.
    """
    prior, evidence, w = _checked(log_prior, log_likelihood, weight, eta)
    unnormalised = prior + eta * _total(evidence, w)
    return _posterior(prior, unnormalised, _marginal(unnormalised, w, eta), personas, has_steps=False)


def update_by_step(
    log_prior: ArrayLike,
    log_likelihood: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    eta: float = 1.0,
    personas: Sequence[str] | None = None,
) -> Posterior:
    """Posterior after each episode in turn (filtering); the last step equals `update`.

    Arguments and errors as there. The result has a step axis of n_episodes + 1: step 0 is the prior.
    """
    prior, evidence, w = _checked(log_prior, log_likelihood, weight, eta)
    steps = [prior]
    for row, one in zip(evidence, w, strict=True):
        steps.append(steps[-1] if one == 0 else steps[-1] + eta * one * row)
    unnormalised = np.stack(steps)
    return _posterior(prior, unnormalised, _marginal(unnormalised[-1], w, eta), personas, has_steps=True)


def condition(
    evidence: Evidence, personas: Sequence[str], log_prior: ArrayLike, *, eta: float = 1.0, by_step: bool = False
) -> Posterior:
    """Posterior over `personas` from a table of evidence, its episodes weighted as the table says.

    Args:
        evidence: Log-likelihoods of the same tokens under every persona.
        personas: Ids in the table, such as `cast.component_ids`.
        log_prior: Nats, shape (n_personas,), in the same order, such as `cast.log_prior`.
        eta: Power on the likelihood.
        by_step: Whether to give the posterior after each episode.

    Raises:
        IncomparableEvidence: If the table lacks a persona.
        InvalidSettings: As `update`.
        NumericsError: As `update`.
    """
    run = update_by_step if by_step else update
    return run(log_prior, evidence.matrix(personas), weight=evidence.weight, eta=eta, personas=personas)


def _checked(
    log_prior: ArrayLike, log_likelihood: ArrayLike, weight: ArrayLike | None, eta: float
) -> tuple[Floats, Floats, Floats]:
    prior, evidence = (np.asarray(v, dtype=np.float64) for v in (log_prior, log_likelihood))
    w = np.ones(len(evidence)) if weight is None else np.asarray(weight, dtype=np.float64)
    if prior.ndim != 1 or evidence.ndim != 2 or evidence.shape[1] != len(prior) or w.shape != (len(evidence),):
        raise InvalidSettings(
            f"a prior of shape {prior.shape}, evidence of {evidence.shape} and weights of {w.shape} do not fit: wanted "
            "(personas,), (episodes, personas), (episodes,)."
        )
    if not (np.isfinite(eta) and eta > 0 and np.isfinite(w).all()):
        raise InvalidSettings(f"eta is {eta}; it must be above 0 and every weight finite.")
    if np.isnan(prior).any() or np.isposinf(prior).any() or np.isneginf(prior).all():
        raise NumericsError("the prior excludes every persona or is not a number.")
    used = evidence[w != 0]
    if np.isnan(used).any() or np.isposinf(used).any():
        raise NumericsError("a log-likelihood is not a number, or above every bound.")
    if np.isneginf(evidence[w < 0]).any():
        episode = int(np.flatnonzero(np.isneginf(evidence).any(axis=1) & (w < 0))[0])
        raise NumericsError(
            f"episode {episode} (from 0) has a negative weight and is impossible under a persona: its sum is "
            "undefined.",
            hint="Give it weight 0 to leave it out.",
        )
    return log_normalise(prior), evidence, w


def _total(evidence: Floats, weight: Floats) -> Floats:
    if not weight.any():
        return np.zeros(evidence.shape[1])
    return sum_by_group(evidence, ["one speaker"] * len(evidence), weight)[0]


def _marginal(unnormalised: Floats, weight: Floats, eta: float) -> float | None:
    """A marginal likelihood only where the likelihood is one: each episode once or not at all, no power."""
    is_likelihood = eta == 1.0 and bool(np.isin(weight, (0.0, 1.0)).all())
    return float(np.asarray(logsumexp(unnormalised))) if is_likelihood else None


def _posterior(
    prior: Floats, unnormalised: Floats, marginal: float | None, personas: Sequence[str] | None, *, has_steps: bool
) -> Posterior:
    if np.isneginf(unnormalised).all(axis=-1).any():
        raise NumericsError(
            "the evidence is impossible under every persona.", hint="Add a background persona that can say anything."
        )
    ids = tuple(str(k) for k in range(len(prior))) if personas is None else tuple(personas)
    return Posterior(ids, prior, log_normalise(unnormalised), marginal, has_steps=has_steps)
