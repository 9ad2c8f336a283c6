"""What moved between two targets that were asked the same prompts.

    d_p = mean over A's conversations of prompt p of f  -  the same of B's        f: responsibility of a component, or
                                                                                 a trait's ratio a token
    p   = share of sign patterns of whole prompts whose |mean d| is as large      exact when the arms are equal

Responsibilities are taken under one fit to both arms, so that they are comparable. All features together are one
family of Benjamini & Hochberg (1995). Not here: the size of a change in weights, which each arm's own fit gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from personae.errors import InvalidSettings
from personae.numerics.statistics import benjamini_hochberg

Floats = NDArray[np.float64]

LEAST_PROMPTS = 6
_FLIPS = 9999
_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """Paired differences, second arm less the first, one entry a feature.

    Attributes:
        difference, low, high: Mean over prompts with its 90% interval (t, by prompt).
        p, q: Two-sided, by sign flips of prompts; after Benjamini-Hochberg.
        n_prompts: Prompts that both arms answered.
    """

    difference: Floats
    low: Floats
    high: Floats
    p: Floats
    q: Floats
    n_prompts: int


def moved(
    first: Floats, first_prompt: Sequence[str], second: Floats, second_prompt: Sequence[str], *, seed: int = 0
) -> Moves:
    """Compare two arms prompt by prompt.

    Args:
        first: Features of the first arm's conversations, shape (n_conversations, n_features).
        first_prompt: Prompt of each of them.
        second: The second arm's.
        second_prompt: Their prompts.
        seed: Of the sign flips.

    Raises:
        InvalidSettings: If fewer than six prompts were answered by both: no p could be small.
    """
    shared = [p for p in dict.fromkeys(first_prompt) if p in set(second_prompt)]
    if len(shared) < LEAST_PROMPTS:
        raise InvalidSettings(
            f"only {len(shared)} prompts were answered by both targets; a paired comparison needs {LEAST_PROMPTS}.",
            hint="Ask both the same prompts, and more of them.",
        )
    d = _means(second, second_prompt, shared) - _means(first, first_prompt, shared)
    rng = np.random.default_rng(seed)
    seen = np.abs(d.sum(axis=0))
    as_large = np.zeros(d.shape[1])
    for at in range(0, _FLIPS, _AT_ONCE):
        signs = rng.choice([-1.0, 1.0], size=(min(_AT_ONCE, _FLIPS - at), len(shared)))
        as_large += (np.abs(signs @ d) >= seen - 1e-12).sum(axis=0)
    p = (1 + as_large) / (1 + _FLIPS)
    n = len(shared)
    reach = stats.t.isf(0.05, n - 1) * d.std(axis=0, ddof=1) / np.sqrt(n)
    return Moves(
        d.mean(axis=0),
        d.mean(axis=0) - reach,
        d.mean(axis=0) + reach,
        p,
        benjamini_hochberg(p),
        len(shared),
    )


def _means(values: Floats, prompt: Sequence[str], shared: Sequence[str]) -> Floats:
    place = {p: i for i, p in enumerate(shared)}
    sums, n = np.zeros((len(shared), values.shape[1])), np.zeros(len(shared))
    for row, name in zip(values, prompt, strict=True):
        if name in place:
            sums[place[name]] += row
            n[place[name]] += 1
    return sums / n[:, None]
