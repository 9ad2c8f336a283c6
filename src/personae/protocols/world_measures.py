"""What a world's check measures with: answers of a model, the personas they speak for, a probe for beliefs.

Not here: what is accepted (`protocols.world_check`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from personae.models.protocol import LanguageModel, Scorable
from personae.worlds.exact import ExactWorld

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


def predictive(model: LanguageModel, exact: ExactWorld, contexts: Sequence[Ids]) -> Floats:
    """The model's answers to every question after each context, renormalised.

    Args:
        model: Scores the answers.
        exact: Whose words they are.
        contexts: Rows of ids that end where a question may come.

    Returns:
        Shape (n_contexts, n_questions, n_answers).
    """
    language, n_questions = exact.language, exact.world.n_questions
    options = language.answers(np.arange(n_questions))
    batch = [
        Scorable((*context.tolist(), language.first_question + q, int(a)), len(context) + 1, len(context))
        for context in contexts
        for q in range(n_questions)
        for a in options[q]
    ]
    scores = np.array([r.log_likelihood for r in model.score(batch)]).reshape(len(contexts), n_questions, -1)
    p = np.exp(scores)
    return p / p.sum(axis=-1, keepdims=True)


def read_out(p: Floats, theta: Floats, *, most: int = 4000, tolerance: float = 1e-7) -> Floats:
    """Weights of the mixture of personas nearest to given answers (A3 of the methods), by EM from uniform weights.

    w_k <- w_k mean_q sum_a p_q(a) theta_kq(a) / m_q(a),  m = sum_k w_k theta_k: monotone in the convex
    objective sum_q KL(p_q || m_q).

    Args:
        p: Shape (n, n_questions, n_answers).
        theta: Shape (n_personas, n_questions, n_answers).
        most: Most iterations.
        tolerance: Largest change of a weight at which it stops.

    Returns:
        Shape (n, n_personas).
    """
    flat, table = p.reshape(len(p), -1), theta.reshape(len(theta), -1)
    w = np.full((len(p), len(theta)), 1 / len(theta))
    n_questions = p.shape[1]
    for _ in range(most):
        new = w * ((flat / (w @ table)) @ table.T) / n_questions
        moved = np.abs(new - w).max()
        w = new
        if moved < tolerance:
            break
    return w / w.sum(axis=1, keepdims=True)


def trait_mass(exact: ExactWorld, weights: Floats) -> Floats:
    """Mass on the positive pole of every trait, shape (..., n_traits), from weights of personas."""
    return weights @ (exact.world.signs > 0)


def probe_r2(features: Floats, target: Floats, *, folds: int = 5) -> float:
    """Held-out R² of ridge regression, documents never split between training and test (A8 of the methods).

    Args:
        features: Shape (n_documents, n_places, width).
        target: Shape (n_documents, n_places).
        folds: Parts of the documents; the penalty is chosen inside the training part.
    """
    place = np.arange(len(target)) % folds
    predicted = np.empty_like(target)
    for fold in range(folds):
        train, inner = place != fold, (place != fold) & (place != (fold + 1) % folds)
        held = place == (fold + 1) % folds
        penalties = (1e-2, 1.0, 1e2, 1e4)
        errors = [
            float(((_ridge(features[inner], target[inner], s)(features[held]) - target[held]) ** 2).mean())
            for s in penalties
        ]
        best = penalties[int(np.argmin(errors))]
        predicted[place == fold] = _ridge(features[train], target[train], best)(features[place == fold])
    return float(1 - ((predicted - target) ** 2).sum() / ((target - target.mean()) ** 2).sum())


def _ridge(features: Floats, target: Floats, penalty: float) -> Callable[[Floats], Floats]:
    x = features.reshape(-1, features.shape[-1]).astype(np.float64)
    centre, level = x.mean(axis=0), target.mean()
    gram = (x - centre).T @ (x - centre) + penalty * np.eye(x.shape[1])
    w = np.linalg.solve(gram, (x - centre).T @ (target.ravel() - level))
    return lambda new: (new - centre) @ w + level
