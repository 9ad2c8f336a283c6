"""A world's diagnostic items, in its own words: for every trait and question, the answer most typical of each pole.

    score of an answer = log sum_{k has pos} P(k) theta_k(answer) - log sum_{k has neg} P(k) theta_k(answer)

with P the personas' prior in the chat frame, each pole's normalised. The pair of a question is the answer with the
highest and the one with the lowest score. Answers are one word, so all pairs have equal length. Here the items come
from the truth: what a model prefers is exact for a closed form. Not here: how items are asked
(`instruments.diagnosing`).
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from personae.domain.diagnostic import SPLITS, Diagnostic, DiagnosticSet
from personae.worlds.exact import ExactWorld
from personae.worlds.spec import World


def world_diagnostics(world: World) -> DiagnosticSet:
    """Reply pairs for every trait and question; topics are questions, and every other one of a domain is in "dev"."""
    exact = ExactWorld(world.base)
    language, theta = exact.language, exact.tables.log_theta
    prior = exact.frame_prior(world.chat)[: world.n_personas]
    place = np.concatenate([np.arange(d.n_questions) for d in world.domains])
    items: list[Diagnostic] = []
    for r, trait in enumerate(world.traits):
        lean = _pole(theta, prior, world.signs[:, r] > 0) - _pole(theta, prior, world.signs[:, r] < 0)
        for q in range(world.n_questions):
            answers = language.answers(q)
            pos, neg = (language.words[int(answers[pick(lean[q])])] for pick in (np.argmax, np.argmin))
            asked = language.words[language.first_question + q]
            topic = asked.rstrip("?")
            name = f"{trait.id}/reply/{topic}"
            split = SPLITS[int(place[q]) % 2]
            items.append(Diagnostic(name, trait.id, "reply", topic, pos, neg, asked, split))
    return DiagnosticSet(world.id, tuple(items))


def _pole(log_theta: np.ndarray, log_prior: np.ndarray, has: np.ndarray) -> np.ndarray:
    """Log-probability of every answer under one pole, shape (n_questions, n_answers)."""
    log_w = log_prior[has]
    if np.isneginf(log_w).all():  # a pole that the frame leaves out is still a pole
        log_w = np.zeros(len(log_w))
    log_w = log_w - logsumexp(log_w)
    return np.asarray(logsumexp(log_w[:, None, None] + log_theta[has], axis=0))
