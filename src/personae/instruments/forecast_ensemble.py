"""Three cheap readers together: gradient, centroid and wording err in different ways, so their sum errs less.

    score = sum over readers of  reading / its typical size

A typical size is the root mean square over the 36 files and 28 traits of the forecast benchmark on the default model;
for another model the mix differs and past runs give the scale. Not here: the readers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from personae.instruments.forecast_geometry import read_centroid, read_gradient
from personae.instruments.forecast_readers import read_lexical
from personae.instruments.forecasting import ForecastJob
from personae.tables.trait_forecast import Cost, ForecastReading

Floats = NDArray[np.float64]

# The gradient's is for a learning rate of 1, to which it is proportional.
TYPICAL = {"gradient": 76.0, "centroid": 0.43, "lexical": 0.0027}
PARTS = tuple(TYPICAL)


def combine(scores: Mapping[str, Floats], learning_rate: float) -> Floats:
    """The sum of readings in units of their typical sizes.

    Args:
        scores: By reader, at least `PARTS`; each of shape (n_traits,).
        learning_rate: Of the plan they were read for.
    """
    return sum((sized(name, scores[name], learning_rate) for name in PARTS), np.zeros(()))


def sized(name: str, score: Floats, learning_rate: float) -> Floats:
    """A reading in units of its typical size, whatever the learning rate; other readers' in their own unit."""
    by_rate = learning_rate if name.startswith("gradient") else 1.0
    return np.asarray(score, np.float64) / (TYPICAL.get(name, 1.0) * by_rate)


def read_ensemble(job: ForecastJob) -> ForecastReading:
    """Gradient, centroid and wording together.

    Raises:
        InputError: If a trait lacks diagnostic statements.
        MissingCapability: If the model has no weights here.
    """
    parts = {"gradient": read_gradient(job), "centroid": read_centroid(job), "lexical": read_lexical(job)}
    rate = job.plan.learning_rate
    spread = {name: r.se for name, r in parts.items()}
    se = np.sqrt(sum((combine(_only(spread, name), rate) ** 2 for name in PARTS), np.zeros(len(job.traits))))
    tokens = sum(r.cost.tokens for r in parts.values())
    shared = sum(r.cost.shared_tokens for r in parts.values())
    cost: Cost = job.cost(sum(r.cost.seconds for r in parts.values()), tokens, shared_tokens=shared)
    scores = {name: r.score for name, r in parts.items()}
    unit = "sum of three readings, each over its typical size"
    return ForecastReading("ensemble", job.traits, combine(scores, rate), unit, se, cost, parts=scores)


def _only(values: Mapping[str, Floats], name: str) -> dict[str, Floats]:
    """The values of one reader, zeros for the others."""
    return {n: v if n == name else np.zeros_like(v) for n, v in values.items()}
