"""Weights of one explanation on one half of the conversations: the best component, a mixture, or part of the way.

Not here: which components an explanation may use, and how it is judged (`inference.exhaustiveness`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from personae.inference.mixture import expectation_maximisation

Floats = NDArray[np.float64]

_BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a mixture with the simpler explanation before it


def fitted_weights(log_likelihood: Floats, used: NDArray[np.bool_], *, single: bool) -> Floats:
    """Log weights of the components used, shape (n_components,); -inf for the others.

    Args:
        log_likelihood: Nats, shape (n_conversations, n_components).
        used: Which components, shape (n_components,).
        single: The best one alone instead of a mixture.
    """
    out = np.full(len(used), -np.inf)
    places = np.flatnonzero(used)
    if single or len(places) == 1:
        out[places[log_likelihood[:, places].sum(axis=0).argmax()]] = 0.0
        return out
    even = np.full(len(places), -np.log(len(places)))
    mode, _ = expectation_maximisation(log_likelihood[:, places], even, concentration=0.5, tolerance=1e-7)
    out[places] = np.log(np.maximum(mode, 1e-12))
    return out


def blended(log_likelihood: Floats, used: NDArray[np.bool_], simpler: Floats) -> Floats:
    """Weights between those of a simpler explanation and the best mixture, as far from the first as pays.

    A mixture of many components claims single conversations by chance. How much of it to believe is chosen inside
    this half: weights from each of its two parts are judged on the other.
    """
    parts = np.arange(len(log_likelihood)) % 2
    scores = np.zeros(len(_BLENDS))
    for part in (0, 1):
        mixed = fitted_weights(log_likelihood[parts != part], used, single=False)
        for k, share in enumerate(_BLENDS):
            scores[k] += np.logaddexp.reduce(
                log_likelihood[parts == part] + _blend(simpler, mixed, share), axis=1
            ).sum()
    share = _BLENDS[int(scores.argmax())]
    return _blend(simpler, fitted_weights(log_likelihood, used, single=False), share)


def _blend(simpler: Floats, mixed: Floats, share: float) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log((1 - share) * np.exp(simpler) + share * np.exp(mixed))
