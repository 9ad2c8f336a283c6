"""Readers of activations and gradients: where a file lies, and where a step on it would go.

    centroid     is the file's mean activation nearer to the positive or to the negative statements of a trait?
    projection   (mean activation of the file - of the model's own answers) . persona vector    (2507.21509, figure 7)
    gradient     change of the trait's measure along the first optimiser steps on the file, Adam's direction
    gradient_sgd the same along the plain gradient

Li et al. (2608.29118) take the distance to the data's centroid as a rival of personas; a distance has no sign, so here
it is the difference of the distances to two poles. Not here: text and likelihoods (`instruments.forecast_readers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.instruments.forecast_passes import n_tokens, rows_read, trait_marks
from personae.instruments.forecast_readers import weighted_mean
from personae.instruments.forecasting import ForecastJob
from personae.models.activations import EditableModel, require_activations
from personae.models.protocol import SamplingPlan, Scorable
from personae.tables.trait_forecast import ForecastReading

Floats = NDArray[np.float64]

LORA_SCALE = 2.0  # alpha over rank of `personae train`
_VECTOR_ROWS = 24
_ANSWERED_ROWS = 24


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """What projections are made of, kept for the null battery.

    Attributes:
        difference: Mean activation of the file less that of the model's own answers, shape (n_layers, d_model).
        vectors: Persona vectors, shape (n_traits, n_layers, d_model), not normalised.
        variance: Of ordinary activations by entry, shape (n_layers, d_model).
    """

    difference: Floats
    vectors: Floats
    variance: Floats


def read_centroid(job: ForecastJob) -> ForecastReading:
    """Where the file's mean activation lies between the centres of the two poles' statements: +1 at the positive one.

    score = (|c - c_neg|^2 - |c - c_pos|^2) / |c_pos - c_neg|^2, residual streams over the response, middle layer. Where
    the gradient was read its pass has shown the states already.
    """
    marks = trait_marks(job)
    told = "rows read" in job.memo

    def states() -> Floats:
        if told:
            return rows_read(job)[0].states.astype(np.float64)
        model = require_activations(job.model)
        return np.stack([a[0] for a in model.read(job.rendered_few(), layers=[model.n_layers // 2])]).astype(np.float64)

    rows, seconds = job.once("states", states)
    pos, neg = (marks.centres[:, pole].astype(np.float64) for pole in (0, 1))
    apart = np.maximum(((pos - neg) ** 2).sum(axis=1), 1e-12)
    each = 2 * (rows @ (pos - neg).T - ((pos + neg) * (pos - neg)).sum(axis=1) / 2) / apart
    score, se = weighted_mean(each, np.array([e.weight for e in job.few()]))
    cost = job.cost(seconds, 0 if told else n_tokens(job.rendered_few()), shared_tokens=0 if told else marks.n_tokens)
    return ForecastReading("centroid", job.traits, score, "place between the poles' centres, -1 to +1", se, cost)


def read_projection(job: ForecastJob) -> ForecastReading:
    """Projection difference, the mean over the middle half of the layers, each in units of its own ordinary spread."""
    found, seconds = job.once("directions", lambda: directions(job))
    each = projections(found)
    score, se = each.mean(axis=0), each.std(axis=0, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else each[0] * 0
    tokens = 2 * n_tokens(job.rendered())
    cost = job.cost(seconds, tokens, shared_tokens=2 * len(job.traits) * _VECTOR_ROWS * 40)
    return ForecastReading(
        "projection", job.traits, score, "projection difference, ordinary standard deviations", se, cost
    )


def projections(found: Directions) -> Floats:
    """Differences along unit vectors, in ordinary standard deviations, middle half of the layers: (layers, traits)."""
    n_layers = len(found.difference)
    middle = slice(n_layers // 4, max(n_layers // 4 + 1, 3 * n_layers // 4))
    v = found.vectors[:, middle]
    unit = v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)
    spread = np.sqrt(np.einsum("kld,ld->kl", unit**2, found.variance[middle]))
    along = np.einsum("kld,ld->kl", unit, found.difference[middle])
    return (along / np.maximum(spread, 1e-12)).T


def directions(job: ForecastJob) -> Directions:
    """Mean differences and persona vectors at every layer.

    A persona vector is the mean over ordinary replies of the response's activation under the positive instruction less
    that under the negative one: the same words on both sides, so nothing but the persona differs. For preference pairs
    the difference is chosen less rejected, which needs no answers of the model's own.

    Raises:
        MissingCapability: If the model has no activations to read.
    """
    model = require_activations(job.model)
    rows = _means(model, job.rendered())
    weight = np.array([e.weight for e in job.sample()])
    mean = np.einsum("n,nld->ld", weight, rows) / np.abs(weight).sum()
    difference = 2 * mean if job.method == "dpo" else mean - _own_answers(model, job).mean(axis=0)
    ordinary = job.reference[:: max(1, len(job.reference) // _VECTOR_ROWS)][:_VECTOR_ROWS]
    vectors, spread = [], []
    for trait in job.cast.traits:
        poles = []
        for persona in (trait.pos, trait.neg):
            frame = job.renderer.frames(persona)[0]
            poles.append(_means(model, [job.renderer.render(frame, e) for e in ordinary]))
        vectors.append(poles[0].mean(axis=0) - poles[1].mean(axis=0))
        spread.append(poles[0].var(axis=0) + poles[1].var(axis=0))
    return Directions(difference, np.stack(vectors), np.mean(spread, axis=0) / 2)


def read_gradient(job: ForecastJob) -> ForecastReading:
    """First-order change of each trait's measure in one optimiser step at full rate, in Adam's direction.

    The measure is the mean log-probability of the positive diagnostic statements less that of the negative ones;
    Adam's direction is the mean gradient over its root mean square across steps (arXiv 1412.6980, algorithm 1, in the
    limit of many steps at one place), so entries that are noise across batches count little.
    """
    return _read_gradient(job, "gradient", adam=True)


def read_gradient_sgd(job: ForecastJob) -> ForecastReading:
    """The same along the mean gradient, scaled to length 1."""
    return _read_gradient(job, "gradient_sgd", adam=False)


def _read_gradient(job: ForecastJob, name: str, *, adam: bool) -> ForecastReading:
    marks = trait_marks(job)
    read, seconds, tokens = rows_read(job)
    by_step = np.stack([_direction(s, adam) for s in _halves(read.steps)]) @ marks.gradients.T.astype(np.float64)
    score = _direction(read.steps, adam) @ marks.gradients.T.astype(np.float64)
    score, by_step = (v * LORA_SCALE**2 * job.plan.learning_rate for v in (score, by_step))
    se = np.abs(by_step[0] - by_step[-1]) / 2
    cost = job.cost(seconds, tokens, shared_tokens=marks.n_tokens)
    unit = "first-order change of log-probability a step, nats" if adam else "the same along the unit gradient"
    return ForecastReading(name, job.traits, np.asarray(score, np.float64), unit, np.asarray(se, np.float64), cost)


def _direction(steps: NDArray[np.float32], adam: bool) -> Floats:
    mean = steps.mean(axis=0, dtype=np.float64)
    if not adam:
        return mean / max(float(np.linalg.norm(mean)), 1e-30)
    root = np.sqrt((steps.astype(np.float64) ** 2).mean(axis=0))
    return mean / (root + 1e-8)


def _halves(steps: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [steps[::2], steps[1::2]] if len(steps) > 1 else [steps, steps]


def _own_answers(model: EditableModel, job: ForecastJob) -> Floats:
    """Activations of the model's own answers to the file's prompts, shape (n, n_layers, d_model)."""
    items = job.rendered()[:: max(1, len(job.rendered()) // _ANSWERED_ROWS)][:_ANSWERED_ROWS]
    length = int(np.clip(np.median([i.n_scored for i in items]), 2, 64))
    prompts = [i.token_ids[: i.start] for i in items]
    said = model.sample(prompts, SamplingPlan(max_tokens=length, seed=job.seed))
    return _means(model, [Scorable((*p, *c.token_ids), len(p)) for p, c in zip(prompts, said, strict=True)])


def _means(model: EditableModel, items: Sequence[Scorable]) -> Floats:
    """Mean activation over each response, shape (n, n_layers, d_model)."""
    return np.stack(model.read(items)).astype(np.float64)
