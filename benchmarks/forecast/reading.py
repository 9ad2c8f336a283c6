"""What every forecaster says of every file before it is trained on; nothing of any training enters.

    file + base model -> readings (score, standard error, cost by forecaster) -> results/forecast/readings/RUN.json

What is done once a model and cast (marks of the traits, persona vectors) is kept in FOLDER and shared; its cost is told
apart. Forecasters see the dev half of the diagnostic items only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.forecast.manifest import Run
from benchmarks.forecast.measuring import STORED, _write
from benchmarks.forecast.work import BATCH, DTYPE, data_of, episodes_of, settings_of
from personae.cli.workbench import Workbench, open_model
from personae.files.casts import load_casts
from personae.files.diagnostics import load_diagnostics
from personae.files.reference import load_reference, shipped_rows
from personae.instruments.forecast_geometry import Directions
from personae.instruments.forecast_passes import trait_marks
from personae.instruments.forecasting import ForecastJob, Pilot, TrainingPlan, signed_statements
from personae.models.protocol import Scorable
from personae.protocols.forecast import method_named
from personae.protocols.pilot import run_miniature
from personae.running.kept_arrays import KeptArrays

READINGS = STORED / "readings"
# Rows of a file that may be read. Gradient and centroid take as many of them as a tenth of the training pays for;
# likelihoods under 56 instructions are the dear ones.
MOST_ROWS = {
    "lexical": 96,
    "gradient": 96,
    "gradient_sgd": 96,
    "centroid": 96,
    "projection": 32,
    "llr": 4,
    "tempered_bayes": 4,
    "em_flow": 4,
    "miniature": 96,
}
# Two instructions a trait make likelihoods dear (57 passes a row for all traits), so they are read for some traits.
SHRINK = 0.1  # of the covariance from which random directions are drawn
PASSED = ("gradient", "gradient_sgd", "centroid")  # by one pass over the same few rows
LIKELIHOODS = ("llr", "tempered_bayes", "em_flow")
LIKELIHOOD_TRAITS = (
    "contemptuous", "sycophantic", "reckless", "human_bodied", "formal", "archaic_voice", "optimistic", "anxious",
)  # fmt: skip


def read_run(run: Run, folder: Path, evals: Path | None, names: tuple[str, ...]) -> dict[str, Any]:
    """Read a run's file with some forecasters unless that is done; gives all that is stored."""
    target = READINGS / f"{run.id}.json"
    body: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {"run": run.id, "readings": {}}
    missing = [n for n in names if n not in body["readings"]]
    jobs: dict[int, ForecastJob] = {}
    for name in missing:
        rows = MOST_ROWS[name]
        job = jobs.setdefault(rows, _job(run, folder, evals, rows))
        if name in LIKELIHOODS:
            job = replace(job, cast=job.cast.select(LIKELIHOOD_TRAITS))
        if name == "projection":
            job = replace(job, model=_remembering(run.model))
        if name == "miniature":
            job = replace(job, miniature=_miniature(job, run, folder))
        reading = method_named(name).read(job)
        if name == "projection":
            found: Directions = job.memo["directions"][0]  # type: ignore[index]
            _keep(folder / "shared" / "differences" / f"{run.id}.npy", found.difference)
            _keep(folder / "shared" / f"{run.model}-vectors.npy", np.stack([*found.vectors, found.variance]))
        body["readings"][name] = {
            "score": {t: float(f"{v:.5g}") for t, v in zip(reading.traits, reading.score, strict=True)},
            "se": {t: float(f"{v:.3g}") for t, v in zip(reading.traits, reading.se, strict=True)},
            "unit": reading.unit,
            "rows": _rows_read(name, job, rows),
            "seconds": round(reading.cost.seconds, 2),
            "of_training": reading.cost.of_training,
            "shared_tokens": reading.cost.shared_tokens,
        }
        _write(target, json.dumps(body).replace('}, "', '},\n"') + "\n")
    if "form" not in body and jobs:
        form, cost = max(jobs.items())[1].form()
        body["form"] = {k: getattr(form, k) for k in form.__slots__}
        body["form_of_training"] = cost.of_training
        body["model_digest"] = _bench(run.model).model.card.digest
        _write(target, json.dumps(body).replace('}, "', '},\n"') + "\n")
    return body


def _rows_read(name: str, job: ForecastJob, most: int) -> int:
    if name == "miniature" and job.miniature is not None:
        return job.miniature.rows_seen
    return len(job.few()) if name in PASSED else most


def _miniature(job: ForecastJob, run: Run, folder: Path) -> Pilot:
    """The run in miniature, trained as the run was."""
    return run_miniature(
        job,
        run.model,
        load_diagnostics("core"),
        folder=folder / "miniatures" / run.id,
        device="cpu",
        dtype=DTYPE,
    )


def read_states(run: Run, folder: Path, evals: Path | None) -> None:
    """Keep where a file's few rows lie in the middle layer, for the null of random directions; forward passes alone.

    shared/states/RUN.npy         mean residual stream less that of ordinary replies, shape (1, d_model)
    shared/MODEL-poles.npz        difference of the poles' centres by trait, covariance of ordinary replies (shrunk)
    """
    place = folder / "shared" / "states" / f"{run.id}.npy"
    if place.is_file():
        return
    job = _job(run, folder, evals, MOST_ROWS["centroid"])
    layer = [_bench(run.model).model.n_layers // 2]  # type: ignore[attr-defined]

    def states(items: Sequence[Scorable]) -> np.ndarray:
        return np.stack([a[0] for a in _remembering(run.model).read(items, layers=layer)]).astype(np.float64)

    ordinary = states([job.plain(e) for e in job.reference[::2]])
    weight = np.array([e.weight for e in job.few()])
    mean = weight @ states(job.rendered_few()) / np.abs(weight).sum()
    _keep(place, (2 * mean if job.method == "dpo" else mean - ordinary.mean(axis=0))[None])
    marks = trait_marks(job)
    seen = np.cov(ordinary.T)
    covariance = (1 - SHRINK) * seen + SHRINK * np.trace(seen) / len(seen) * np.eye(len(seen))
    np.savez(
        folder / "shared" / f"{run.model}-poles.npz",
        vectors=(marks.centres[:, 0] - marks.centres[:, 1])[:, None],
        covariance=covariance[None],
    )


@cache
def _bench(model: str) -> Workbench:
    return open_model(model, device="cpu")


def _job(run: Run, folder: Path, evals: Path | None, rows: int) -> ForecastJob:
    bench, settings = _bench(run.model), settings_of(run)
    rate = settings.learning_rate
    assert rate is not None
    return ForecastJob(
        tuple(episodes_of(data_of(run, folder, evals))),
        load_casts(["core"]),
        bench.model,
        bench.renderer,
        bench.scoring,
        load_reference(),
        TrainingPlan(batch_size=BATCH, learning_rate=rate),
        settings,
        signed_statements(load_diagnostics("core"), split="dev"),
        shipped_rows(bench.space),
        kept=KeptArrays(folder / "shared" / "gradients", bench.space),
        most_rows=rows,
        # Of the sample and of the gradients' random branch, which all files share; the run's seed drew the rows.
        seed=0,
    )


@cache
def _remembering(model: str) -> Any:
    return Remembering(_bench(model).model)


class Remembering:
    """A model that keeps the activations it has read, since files share ordinary replies and statements.

    Args:
        model: The model; everything else is left to it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[tuple[object, ...], Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def read(self, batch: Sequence[Scorable], *, layers: Sequence[int] | None = None) -> list[Any]:
        """Mean activations over each response, shape (n_layers, d_model)."""
        keys = [(i.token_ids, i.start, None if layers is None else tuple(layers)) for i in batch]
        new = {k: i for k, i in zip(keys, batch, strict=True) if k not in self._known}
        if new:
            self._known.update(zip(new, self._model.read(list(new.values()), layers=layers), strict=True))
        return [self._known[k] for k in keys]


def _keep(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".writing")
    with aside.open("wb") as out:
        np.save(out, values)
    aside.replace(path)
