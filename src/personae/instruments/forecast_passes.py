"""What readers of gradients and of activations share: one pass over a few rows, and one over each trait's statements.

    a few rows   --forward, back-->  gradients of optimiser steps, likelihoods, residual streams     each file
    statements   --forward, back-->  gradient of each trait's measure, centres of its two poles      once a model, kept

A trait's marks depend on the model, the statements and the random A alone, so they are kept on disk and made again
only when one of these changes. Not here: what is read off them (`instruments.forecast_geometry`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.domain.episode import Episode
from personae.instruments.forecasting import ForecastJob, require_statements
from personae.instruments.scoring import Work
from personae.models.activations import require_activations
from personae.models.gradients import GivesGradients, open_gradients
from personae.models.protocol import Scorable

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Kept = NDArray[np.generic]

LORA_RANK = 8
_SEED_OF_A = 0  # one A for all files and seeds, so that traits' marks and past runs' readings go together
_STEP_ROWS = 8
_MARKS = 1  # version of what is kept
_PASSES = 2  # forward and back


@dataclass(frozen=True, slots=True, eq=False)
class RowsRead:
    """A file's few rows, passed forward and back once.

    Attributes:
        steps: Ascent directions of optimiser steps, shape (n_steps, n_parameters), nats a token per unit of B.
        states: Residual stream of the middle block, mean over each response, shape (n_rows, d_model).
    """

    steps: Floats32
    states: Floats32


@dataclass(frozen=True, slots=True, eq=False)
class TraitMarks:
    """What a model makes of each trait's statements.

    Attributes:
        gradients: Of each trait's measure, shape (n_traits, n_parameters), nats a token per unit of B.
        centres: Mean residual stream of the middle block over the statements of the positive and of the negative pole,
            shape (n_traits, 2, d_model).
        n_tokens: Of all statements, forward and back, whether they were read now or before.
    """

    gradients: Floats32
    centres: Floats32
    n_tokens: int


def rows_read(job: ForecastJob) -> tuple[RowsRead, float, int]:
    """The few rows' pass, the seconds it took and its tokens, forward and back; made once a job.

    Raises:
        MissingCapability: If the model has no weights here.
    """
    items = job.rendered_few()

    def make() -> RowsRead:
        gradients = gradients_of(job)
        found = gradients.passed(items, _step_weights(job, items), layer=_middle(job))
        job.tell_likelihoods(found.log_likelihood)
        return RowsRead(found.gradients, found.states)

    read, seconds = job.once("rows read", make)
    return read, seconds, _PASSES * n_tokens(items)


def trait_marks(job: ForecastJob, traits: Sequence[str] | None = None) -> TraitMarks:
    """The marks of some of a job's traits (all, by default): from disk where they are kept, else made and kept.

    Raises:
        InputError: If a trait lacks statements of both poles.
        MissingCapability: If the model has no weights here.
        StorageError: If they cannot be kept.
    """
    chosen = tuple(traits or job.traits)
    require_statements(job.diagnostics, chosen)
    return job.once(f"marks {' '.join(chosen)}", lambda: _marks(job, chosen))[0]


def _marks(job: ForecastJob, traits: Sequence[str]) -> TraitMarks:
    rendered = {t: [job.plain(e) for e in job.diagnostics[t]] for t in traits}
    weights = {t: _measure_weights(job.diagnostics[t], rendered[t]) for t in traits}
    keys = {t: _key(job, rendered[t], weights[t]) for t in traits}
    kept = {t: job.kept.load(k) if job.kept is not None else None for t, k in keys.items()}
    missing = [t for t in traits if kept[t] is None]
    if missing:
        gradients = gradients_of(job)
        todo = {t: _PASSES * n_tokens(rendered[t]) for t in missing}
        advance = job.started(Work(sum(len(rendered[t]) for t in missing), sum(todo.values())))
        for trait in missing:
            made = _one(gradients, rendered[trait], weights[trait], _middle(job))
            if job.kept is not None:
                job.kept.put(keys[trait], made)
            kept[trait] = made
            advance(todo[trait])
    found = [v for v in kept.values() if v is not None]
    return TraitMarks(
        np.stack([v["gradient"].astype(np.float32) * np.float32(v["unit"]) for v in found]),
        np.stack([v["centres"].astype(np.float32) for v in found]),
        _PASSES * sum(n_tokens(items) for items in rendered.values()),
    )


def _one(gradients: GivesGradients, items: Sequence[Scorable], weights: Floats, layer: int) -> dict[str, Kept]:
    """One trait's marks as they are kept.

    The gradient is in half precision over its largest entry, which changes inner products by a ten-thousandth and
    halves the disk.
    """
    found = gradients.passed(items, weights[None], layer=layer)
    unit = np.float32(np.abs(found.gradients[0]).max() or 1.0)
    poles = [found.states[weights * side > 0].mean(axis=0) for side in (1, -1)]
    return {
        "gradient": (found.gradients[0] / unit).astype(np.float16),
        "unit": np.asarray(unit),
        "centres": np.stack(poles).astype(np.float32),
    }


def _measure_weights(statements: Sequence[Episode], items: Sequence[Scorable]) -> Floats:
    """The trait's measure: mean over positive statements of log p a token less the mean over negative ones."""
    sides = np.array([np.sign(e.weight) for e in statements])
    each = np.array([i.n_scored for i in items], np.float64)
    return sides / np.array([(sides == s).sum() for s in sides]) / each


def _key(job: ForecastJob, items: Sequence[Scorable], weights: Floats) -> str:
    """Everything a trait's marks depend on but the model, which is the store's space."""
    about = [[list(i.token_ids), i.start, float(w)] for i, w in zip(items, weights, strict=True)]
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()
    return f"{_MARKS}|{LORA_RANK}|{_SEED_OF_A}|{_middle(job)}|{digest}"


def _step_weights(job: ForecastJob, items: Sequence[Scorable]) -> Floats:
    """Weights of rows in optimiser steps, shape (n_steps, n_rows).

    A step's gain is the mean log-probability over its tokens; of preference pairs, the mean log-ratio.
    """
    weight = np.array([e.weight for e in job.few()])
    size = 2 * _STEP_ROWS if job.method == "dpo" else _STEP_ROWS
    size = min(size, max(2, len(items) // 4 * 2))
    starts = range(0, len(items), size)
    weights = np.zeros((len(starts), len(items)))
    for step, at in enumerate(starts):
        part = slice(at, at + size)
        count = size / 2 if job.method == "dpo" else sum(i.n_scored for i in items[part])
        weights[step, part] = weight[part] / count
    return weights


def gradients_of(job: ForecastJob) -> GivesGradients:
    """Gradients of the job's model.

    Raises:
        MissingCapability: If it has no weights here.
    """
    return open_gradients(job.model, rank=LORA_RANK, seed=_SEED_OF_A)


def _middle(job: ForecastJob) -> int:
    return require_activations(job.model).n_layers // 2


def n_tokens(items: Sequence[Scorable]) -> int:
    """Tokens of some requests, contexts included."""
    return sum(len(i.token_ids) for i in items)
