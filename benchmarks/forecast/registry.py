"""The benchmark's runs as past runs: what forecasts are calibrated by, for the analysis and for users.

results/forecast/MODEL/RUN.json + results/forecast/readings/MODEL/RUN.json -> PastRun, one a dose
python -m benchmarks.forecast.registry        writes src/personae/reference/past_runs.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.forecast.families import datasets
from benchmarks.forecast.measuring import by_trait, digest, stored_runs
from benchmarks.forecast.reading import READINGS
from benchmarks.forecast.work import BATCH, DOSES
from personae.instruments.forecast_ensemble import JOINT_PARTS, combine
from personae.protocols.forecast import FORECASTERS
from personae.tables.run_registry import PastRun, RunForm

SHIPPED = Path(__file__).parents[2] / "src" / "personae" / "reference" / "past_runs.jsonl"
SOURCE = "forecast benchmark, 2026-11-22"
SUMS = {name: method.parts for name, method in FORECASTERS.items() if method.parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--doses", type=int, nargs="+", default=[DOSES[-1]])
    args = parser.parse_args()
    runs = [_rounded(r) for r in past_runs() if r.form.rows_seen in args.doses]
    SHIPPED.write_text("".join(json.dumps(r.to_dict()) + "\n" for r in runs))
    print(f"{len(runs)} runs of {len({r.family for r in runs})} families, {SHIPPED.stat().st_size / 1e3:.0f} kB")


def past_runs(
    *, model: str | None = None, dose: int | None = None, seeds: Sequence[int] | None = None
) -> list[PastRun]:
    """Every run that was measured and read, one record a dose.

    Args:
        model: Only of this model.
        dose: Only of this many rows seen.
        seeds: Only of these seeds.
    """
    found: list[tuple[dict[str, Any], dict[str, Any], int, list[float]]] = []
    for body in stored_runs():
        path = READINGS / f"{body['run']}.json"
        if not path.is_file() or (model and body["model"] != model) or (seeds and body["seed"] not in seeds):
            continue
        read = json.loads(path.read_text())
        for rows, measured in body["doses"].items():
            if "form" in read and (dose is None or int(rows) == dose):
                found.append((body, read, int(rows), measured["items"]))
    # Runs that were measured by fewer items set what all are compared on.
    n = min((len(changes) for *_, changes in found), default=0)
    return [_record(body, read, rows, changes[:n]) for body, read, rows, changes in found]


def _record(body: dict[str, Any], read: dict[str, Any], rows: int, changes: list[float]) -> PastRun:
    shift = by_trait(changes)
    form = RunForm(**{**read["form"], "rows_seen": rows, "steps": rows // BATCH})
    return PastRun(
        run=f"{body['run']}/{rows}",
        family=body["family"],
        model=body["model"],
        model_digest=read["model_digest"],
        form=form,
        shift={t: v[0] for t, v in shift.items()},
        se={t: v[1] for t, v in shift.items()},
        readings=_readings(read),
        trained=(datasets()[body["name"]].trait,) if datasets()[body["name"]].trait else (),
        items=digest(len(changes)),
        seed=body["seed"],
        source=SOURCE,
    )


def _readings(read: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Scores by forecaster and trait, with the sums that need no reading of their own."""
    found: dict[str, dict[str, float]] = {name: r["score"] for name, r in read["readings"].items()}
    for name, parts in SUMS.items():
        if set(parts) <= set(found):
            traits = list(found[parts[0]])
            scores = {part: np.array([found[part][t] for t in traits]) for part in parts}
            total = combine(scores, read["form"]["learning_rate"], parts)
            found[name] = dict(zip(traits, map(float, total), strict=True))
    return found


def _rounded(run: PastRun) -> PastRun:
    """Three digits are more than the errors allow to tell."""
    return replace(
        run,
        shift={t: round(v, 3) for t, v in run.shift.items()},
        se={t: round(v, 3) for t, v in run.se.items()},
        readings={
            n: {t: float(f"{v:.3g}") for t, v in r.items()}
            for n, r in run.readings.items()
            if n in (*SUMS, *JOINT_PARTS) and set(run.shift) <= set(r)
        },
    )


if __name__ == "__main__":
    main()
