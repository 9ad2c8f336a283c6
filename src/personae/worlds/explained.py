"""How much of an Assistant a mixture of personas explains, with exact components: are a world's labels real?

    KL0 = mean KL(pi || base),  KL_M = mean KL(pi || m_w),  share = 1 - KL_M / KL0      on documents of pi
    m_w: weights fitted to one half of the documents, updated along each document of the other half

    Lambda = 2 [sum_d max_w l_d(w) - max_w l(w)],  residual = 2 [l_saturated - sum_d max_w l_d(w)]
    l(w) = sum over single answers of log sum_k w_k theta_kq(a), d over domains

A mixture that may not switch inside a document leaves a router unexplained; Lambda says that domains want
different weights, the residual that no weights will do. Personas are exact here, so what is left is the
deviation itself and no fault of elicitation. Not here: models that must be scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, xlogy

from personae.worlds.exact import ExactWorld
from personae.worlds.language import Kind
from personae.worlds.sampling import sample_documents

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """Of an Assistant, on its own documents; nats an answer.

    Attributes:
        kl_base: KL from the Assistant to the world before post-training.
        kl_mixture: KL from the Assistant to the best mixture of personas, cross-fitted.
        share: 1 - kl_mixture / kl_base; NaN where the Assistant is the base.
        standard_error: Of `kl_mixture`, documents as units.
        weights: Mean fitted weights, shape (n_personas,).
    """

    kl_base: float
    kl_mixture: float
    share: float
    standard_error: float
    weights: Floats


def explain(assistant: ExactWorld, base: ExactWorld, *, n: int = 400, seed: int = 0) -> Explained:
    """Fit a mixture of the base's personas to documents of the Assistant, and measure what is left.

    Args:
        assistant: The world after post-training.
        base: The world before.
        n: Documents, half of them to fit and half to measure, in turn.
        seed: Of the documents.
    """
    world = assistant.world
    chat = world.frame_index(world.chat)
    ids = sample_documents(assistant, n, np.random.default_rng([seed, 5]), frame=chat, tagged=False).ids
    personas = base.evidence(ids)
    log_pi, log_base = _predictive(assistant, ids), _predictive(base, ids)
    is_question = assistant.language.kind[ids[:, 3::2]] == Kind.QUESTION
    total = personas[:, 3:].sum(axis=1)
    halves = np.arange(n) % 2 == 0
    fits = {True: fit_weights(total[halves]), False: fit_weights(total[~halves])}
    log_m = np.empty_like(log_pi)
    for half, w in fits.items():
        rows = halves != half
        before = np.cumsum(personas[rows, 3:], axis=1)[:, ::2] + np.log(w)  # after each question, before its answer
        log_w = before - np.asarray(logsumexp(before, axis=-1, keepdims=True))
        log_m[rows] = _mixed(base, ids[rows], log_w)
    kl_base, kl_mixture = (_kl(log_pi, q, is_question) for q in (log_base, log_m))
    gap, left = float(kl_base.mean()), float(kl_mixture.mean())
    error = float(kl_mixture.std(ddof=1) / np.sqrt(n))
    share = 1 - left / gap if gap > 1e-9 else float("nan")
    return Explained(gap, left, share, error, (fits[True] + fits[False]) / 2)


def fit_weights(log_likelihood: Floats, *, most: int = 2000) -> Floats:
    """Maximum-likelihood weights of a mixture by EM; rows of log-likelihoods (n, n_components), nats."""
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    w = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    for _ in range(most):
        share = likelihood * w
        new = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
        moved = np.abs(new - w).max()
        w = new
        if moved < 1e-9:
            break
    return np.maximum(w, 1e-12) / np.maximum(w, 1e-12).sum()


@dataclass(frozen=True, slots=True)
class Heterogeneity:
    """Lambda and residual of single answers, both twice a log-likelihood, and the number of answers."""

    between_domains: float
    residual: float
    n: int


def heterogeneity(assistant: ExactWorld, base: ExactWorld, *, per_question: int = 200, seed: int = 0) -> Heterogeneity:
    """Do the domains want different mixtures of personas, and is any mixture enough? On single-turn answers."""
    world = assistant.world
    rng = np.random.default_rng([seed, 6])
    chat = world.frame_index(world.chat)
    # Single turns: each question asked first in a document of its own, the same number of times.
    question = np.repeat(np.arange(world.n_questions), per_question)
    counts = np.zeros((world.n_questions, world.n_answers))
    language = assistant.language
    head = [language.ids["<bos>"], language.first_frame + chat, language.no_tag]
    for q in range(world.n_questions):
        row = np.array([[*head, language.first_question + q]])
        p = np.exp(assistant.next_log_probs(row)[0, language.answers(q)])
        counts[q] = rng.multinomial(per_question, p / p.sum())
    theta = np.exp(base.tables.log_theta)
    whole = _best(counts, theta)
    parts = [base.tables.domain_of == d for d in range(len(world.domains))]
    by_domain = sum(_best(counts[part], theta[:, part]) for part in parts)
    saturated = float(xlogy(counts, counts / per_question).sum())
    return Heterogeneity(2 * (by_domain - whole), 2 * (saturated - by_domain), len(question))


def _best(counts: Floats, theta: Floats) -> float:
    """Largest log-likelihood of counts (n_questions, n_answers) under a mixture of tables, by EM."""
    flat, table = counts.ravel(), theta.reshape(len(theta), -1)
    w = np.full(len(table), 1 / len(table))
    for _ in range(5000):
        new = w * (table @ (flat / (w @ table))) / flat.sum()
        moved = np.abs(new - w).max()
        w = new
        if moved < 1e-9:
            break
    return float(xlogy(flat, w @ table).sum())


def _predictive(exact: ExactWorld, ids: Ids) -> Floats:
    """Log-probabilities of all answers at every turn, shape (n, n_turns, n_answers); claims read as question 0."""
    before = exact.running_log_weights(ids)[:, 3::2]
    return _mixed(exact, ids, before)


def _mixed(exact: ExactWorld, ids: Ids, log_w: Floats) -> Floats:
    language = exact.language
    asked = np.where(language.kind[ids[:, 3::2]] == Kind.QUESTION, ids[:, 3::2] - language.first_question, 0)
    theta = np.moveaxis(exact.tables.log_theta, 0, -1)[asked]
    if exact.agent is not None:
        agent = exact.agent.log_answers[exact.agent_states(ids)[:, 3::2], asked]
        theta = np.concatenate([theta, agent[..., None]], axis=-1)
    return np.asarray(logsumexp(log_w[..., None, :] + theta, axis=-1))


def _kl(log_p: Floats, log_q: Floats, counted: NDArray[np.bool_]) -> Floats:
    """Mean KL of each document over its counted turns, shape (n,)."""
    each = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return np.where(counted, each, 0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
