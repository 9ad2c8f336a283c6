"""Readers together: they err in different ways, so their sum errs less.

    ensemble    gradient + centroid + wording, each over its typical size              nothing is trained
    joint       ensemble + 3 x miniature over its typical size                         a tenth of the training

A typical size is the root mean square over the 36 files and 28 traits of the forecast benchmark on the default model;
for another model the mix differs and past runs give the scale. Not here: the readers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from personae.instruments.forecast_geometry import read_centroid, read_gradient
from personae.instruments.forecast_readers import read_lexical, read_miniature
from personae.instruments.forecasting import ForecastJob
from personae.tables.trait_forecast import Cost, ForecastReading

Floats = NDArray[np.float64]

# The gradient's is for a learning rate of 1, to which it is proportional. The miniature's is a third of its typical
# size: it counts three times, in the sum and where files are compared.
TYPICAL = {"gradient": 76.0, "centroid": 0.43, "lexical": 0.0027, "miniature": 0.28}
_READERS = {"miniature": read_miniature, "gradient": read_gradient, "centroid": read_centroid, "lexical": read_lexical}
PARTS = ("gradient", "centroid", "lexical")
JOINT_PARTS = ("miniature", *PARTS)  # the one that may be missing first


def combine(scores: Mapping[str, Floats], learning_rate: float, parts: tuple[str, ...] = PARTS) -> Floats:
    """The sum of readings in units of their typical sizes.

    Args:
        scores: By reader, at least `parts`; each of shape (n_traits,).
        learning_rate: Of the plan they were read for.
        parts: Which readers.
    """
    return sum((sized(name, scores[name], learning_rate) for name in parts), np.zeros(()))


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
    return _together("ensemble", job, PARTS)


def read_joint(job: ForecastJob) -> ForecastReading:
    """The same with the training in miniature.

    Raises:
        InputError: If a trait lacks diagnostic statements.
        MissingCapability: If the model has no weights here, or there is no miniature.
    """
    return _together("joint", job, JOINT_PARTS)


def _together(name: str, job: ForecastJob, parts: tuple[str, ...]) -> ForecastReading:
    rate, readings = job.plan.learning_rate, [_READERS[part](job) for part in parts]
    scores = {r.forecaster: r.score for r in readings}
    se = np.sqrt(sum((sized(r.forecaster, r.se, rate) ** 2 for r in readings), np.zeros(len(job.traits))))
    costs = [r.cost for r in readings]
    cost: Cost = job.cost(
        sum(c.seconds for c in costs),
        sum(c.tokens for c in costs),
        shared_tokens=sum(c.shared_tokens for c in costs),
    )
    unit = f"sum of {len(parts)} readings, each over its typical size"
    return ForecastReading(name, job.traits, combine(scores, rate, parts), unit, se, cost, parts=scores)
