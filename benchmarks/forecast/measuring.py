"""What a fine-tune moved: items asked of the base and of every dose, paired; one small JSON file a run.

    adapter -> items.json (scores, kept in FOLDER) -> benchmarks/results/forecast/RUN.json (shifts by trait)

The headline of `measure` is used: the log-odds of paired replies on prompts that no training file uses. Each trait has
a dev half (what a forecaster may look at) and a test half, with no topic in common. The common mode is modelled later.
"""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import RESULTS
from benchmarks.forecast.manifest import Run
from benchmarks.forecast.work import DTYPE, adapters_of, train_run
from personae.domain.diagnostic import DiagnosticSet
from personae.files.diagnostics import load_diagnostics
from personae.models.load import load_model
from personae.numerics.clustered import cluster_mean
from personae.protocols.measure import MeasureSettings, measure

STORED = RESULTS / "forecast"
HALVES = ("all", "dev", "test")
Scores = dict[str, float]


@cache
def items() -> DiagnosticSet:
    """The paired replies of the core cast."""
    return load_diagnostics("core").select(kinds=("reply",))


def measure_run(run: Run, folder: Path, evals: Path | None) -> dict[str, Any]:
    """Measure every dose unless that is done, and store the shifts; gives what was stored."""
    target = STORED / f"{run.id}.json"
    if target.is_file():
        return json.loads(target.read_text())
    trained = train_run(run, folder, evals)
    base, _ = _scores(run.model, folder / "base" / f"{run.model}.json")
    doses: dict[str, Any] = {}
    for rows, adapter in adapters_of(run, folder).items():
        after, seconds = _scores(f"{run.model}+{adapter}", adapter.parent / f"items-{rows}.json")
        doses[str(rows)] = {"seconds": seconds, "shift": shifts(base, after)}
    d = run.dataset
    body: dict[str, Any] = {
        "run": run.id,
        "model": run.model,
        "seed": run.seed,
        **{k: getattr(d, k) for k in ("name", "family", "kind", "trait", "pole", "opposite")},
        "training": trained | {"dtype": DTYPE},
        "doses": doses,
    }
    _write(target, json.dumps(body, indent=None).replace('"doses": {', '\n"doses": {\n').replace("}}, ", "}},\n") + "\n")
    return body


def shifts(before: Scores, after: Scores) -> dict[str, dict[str, list[float]]]:
    """By half and trait: mean over items of the score after less before, its standard error, nats; and the items."""
    made: dict[str, dict[str, list[float]]] = {}
    known = {i.id: i for i in items().items}
    for half in HALVES:
        made[half] = {}
        for trait in items().traits:
            mine = [i for i in known.values() if i.trait == trait and half in ("all", i.split)]
            change = np.array([after[i.id] - before[i.id] for i in mine])
            e = cluster_mean(change, [i.topic for i in mine])
            made[half][trait] = [round(e.value, 4), round(e.se, 4), len(mine)]
    return made


def _scores(model: str, kept: Path) -> tuple[Scores, float]:
    """Scores of all items under a model, and the seconds that loading and asking took."""
    if kept.is_file():
        stored = json.loads(kept.read_text())
        return stored["scores"], stored["seconds"]
    started = time.perf_counter()
    profile = measure(load_model(model, device="cpu"), items(), settings=MeasureSettings(quick=True))
    scores = {i: round(float(s), 5) for i, s in zip(profile.items.item, profile.items.score, strict=True)}
    seconds = round(time.perf_counter() - started, 2)
    _write(kept, json.dumps({"scores": scores, "seconds": seconds}))
    return scores, seconds


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".writing")
    aside.write_text(text)
    aside.replace(path)


def stored_runs() -> list[dict[str, Any]]:
    """Every run that was measured, in the order of their names."""
    return [json.loads(p.read_text()) for p in sorted(STORED.glob("*/*.json")) if p.parent.name != "readings"]


def as_array(shift: dict[str, list[float]], traits: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shifts and standard errors in the order of the traits."""
    values = np.array([shift[t][:2] for t in traits])
    return values[:, 0], values[:, 1]
