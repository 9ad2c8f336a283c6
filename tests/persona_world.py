"""PersonaWorld's answer tables: eight personas of three binary traits, sixteen questions, four answers each.

The exact posterior is naive Bayes. Used where the truth of a read-out or an update must be known.
"""

from __future__ import annotations

import numpy as np

MALICIOUS = (1, 3, 5, 7)


def answer_tables(seed: int = 0) -> np.ndarray:
    """P(answer | persona, question), shape (8, 16, 4)."""
    rng = np.random.default_rng(seed)
    traits = np.array([[1 if k >> b & 1 else -1 for b in range(3)] for k in range(8)])
    loadings = np.array([[1, 0.3, 0.3], [1, 0.5, 0.2], [0.2, 0.3, 1], [0.7, 0.2, 0.5]])[np.arange(16) // 4]
    base, u, own = rng.normal(size=(16, 4)), rng.normal(size=(16, 3, 4)), rng.normal(size=(8, 16, 4))
    logit = base + 1.2 * np.einsum("qr,kr,qra->kqa", loadings, traits, u) + 0.3 * own
    table = np.exp(logit)
    return table / table.sum(axis=-1, keepdims=True)


def beliefs(rng: np.random.Generator, theta: np.ndarray, n_documents: int, n_turns: int) -> np.ndarray:
    """Exact log posterior after each answer of random documents, shape (n_documents * n_turns, 8)."""
    rows = []
    for _ in range(n_documents):
        speaker, asked = rng.integers(len(theta)), rng.integers(theta.shape[1], size=n_turns)
        said = [rng.choice(theta.shape[2], p=theta[speaker, q]) for q in asked]
        rows.append(np.cumsum(np.log(theta[:, asked, said]), axis=1).T)
    logs = np.concatenate(rows)
    return logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)
