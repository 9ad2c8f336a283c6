"""Does a direction tell how far a prompt moves a trait, or only what kind of prompt it is?

    pooled        r of projections with trait scores over prompts of all types
    within types  the same after the mean of each type is taken off both

A pooled correlation is near 1 as soon as a direction and a trait differ between "told to" and "told not to". What a
monitor needs is the second: telling a strong instruction from a weak one, three examples from one. Both go through the
whole null battery, each with its own layer (Chen et al. 2025, arXiv 2507.21509, report both for prompts; their
replication found the second to fall to 0.25 to 0.81). Not here: prompts (`protocols.conditions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from personae.errors import InvalidSettings
from personae.inference.nulls import N_PERMUTATIONS, N_RANDOM, Judged, Poles, Tested, null_battery

Floats = NDArray[np.float64]
LEAST = 3  # prompts of a type


@dataclass(frozen=True, slots=True)
class ConditionTest:
    """What a direction says about trait scores under prompts of several types.

    Attributes:
        pooled: Correlation over all prompts, with nulls.
        within: Correlation within types, with nulls.
        by_type: Correlation within each type alone at the layer of `within`; 0 where projections do not differ.
        share_of_types: Share of the scores' variance that lies between types: what a pooled correlation can live on.
    """

    pooled: Tested
    within: Tested
    by_type: dict[str, float]
    share_of_types: float


def judge_conditions(
    poles: Poles,
    values: ArrayLike,
    scores: ArrayLike,
    types: Sequence[str],
    *,
    rng: np.random.Generator,
    others: ArrayLike | None = None,
    n_permutations: int = N_PERMUTATIONS,
    n_random: int = N_RANDOM,
) -> ConditionTest:
    """Judge a mean-difference direction by the trait scores of prompts that made no part of it.

    Args:
        poles: What the direction is made from.
        values: Activations of each prompt, shape (n_prompts, n_layers, d_model).
        scores: Measured trait of each prompt, any unit, shape (n_prompts,).
        types: Type of each prompt; at least two types of three prompts each.
        rng: Source of randomness.
        others: Directions of other traits, shape (n_others, n_layers, d_model).
        n_permutations: Permutations of the poles' labels.
        n_random: Random directions.

    Raises:
        InvalidSettings: If there are too few types or prompts, shapes do not fit, or scores do not differ within types.
        NumericsError: If a value is not finite.
    """
    y, of = np.asarray(scores, np.float64), np.asarray(types)
    names = list(dict.fromkeys(types))
    few = [t for t in names if (of == t).sum() < LEAST]
    if len(names) < 2 or few or len(of) != len(y):
        raise InvalidSettings(
            f"{len(names)} types of prompts, '{few[0]}' with fewer than {LEAST}." if few else "one type of prompts.",
            hint="Give at least two types of three prompts.",
        )
    tested = [
        null_battery(
            poles,
            Judged(values, y, condition),
            "correlation",
            rng=rng,
            others=others,
            n_permutations=n_permutations,
            n_random=n_random,
        )
        for condition in (None, list(types))
    ]
    x = np.asarray(poles.values, np.float64)[:, tested[1].layer]
    direction = x[poles.positive].mean(axis=0) - x[~poles.positive].mean(axis=0)
    along = np.asarray(values, np.float64)[:, tested[1].layer] @ direction
    centred = y - np.array([y[of == t].mean() for t in of])
    total = float(((y - y.mean()) ** 2).sum())
    return ConditionTest(
        tested[0],
        tested[1],
        {t: _correlation(along[of == t], y[of == t]) for t in names},
        1 - float((centred**2).sum()) / total if total > 0 else 0.0,
    )


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 1e-12 else 0.0
