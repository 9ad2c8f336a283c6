"""Which forecaster comes true? Families left out; raw and net of the common mode; against opposites; against nulls.

    python -m benchmarks.forecast.analyse [--model smollm2] [--dose 96] [--names gradient llr ...]

Reads `benchmarks/results/forecast/` and writes `benchmarks/results/forecast-MODEL-DOSE.json`. A cell is a run and a
trait. Everything said of a family's cells was learnt from other families. Intervals resample families.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import write_result
from benchmarks.forecast.families import datasets
from benchmarks.forecast.measuring import by_trait, stored_runs
from benchmarks.forecast.reading import READINGS
from benchmarks.forecast.registry import SUMS, past_runs
from benchmarks.forecast.work import BATCH, DOSES, DTYPE, RATE
from personae.errors import InvalidSettings
from personae.inference.forecast_skill import (
    Held,
    Value,
    compare,
    leave_one_family_out,
    random_direction_null,
    skill,
    trained_cells,
)
from personae.protocols.forecast import DEFAULT_FORECASTER, FORECASTERS, cells_for, method_named
from personae.tables.run_registry import PastRun

Floats = NDArray[np.float64]
FIGURES = ("spearman", "spearman_other", "rmse")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dose", type=int, default=DOSES[-1], help="rows seen; 0 for all doses together")
    parser.add_argument("--names", nargs="+", default=list(FORECASTERS))
    parser.add_argument("--default", default=DEFAULT_FORECASTER, help="the forecaster that the others are compared to")
    parser.add_argument("--traits", nargs="+", help="only cells of these traits, for readers of some traits only")
    parser.add_argument("--needs", help="only runs whose file was read by this forecaster")
    parser.add_argument("--workers", type=int, default=2, help="processes, one forecaster each at a time")
    parser.add_argument("--folder", type=Path, help="the benchmark's folder, for the null of random directions")
    parser.add_argument("--null-only", action="store_true", help="only the null of random directions")
    args = parser.parse_args()
    runs = past_runs(model=args.model, dose=args.dose or None)
    runs = [r for r in runs if args.needs is None or args.needs in r.readings]
    if args.traits:
        runs = [_on(r, args.traits) for r in runs]
    if args.null_only:
        found = directions_null(args.folder, runs)
        print(json.dumps(found), write_result(f"forecast-{args.model}-{args.dose or 'all'}-directions", found))
        return
    names = [
        n
        for n in args.names
        if not method_named(n).uses_score or all(set(r.shift) <= set(r.readings.get(n, ())) for r in runs)
    ]
    changes = item_changes(runs)
    held: dict[str, Held] = {}
    with ProcessPoolExecutor(args.workers) as pool:
        for name, found, seconds in pool.map(timed, names, [runs] * len(names)):
            held[name] = found
            print(f"{name:15} {_line(skill(found))}  {seconds:.0f} s", flush=True)
    body = {
        "model": args.model,
        "dose": args.dose,
        "settings": {"rows": DOSES, "batch": BATCH, "learning_rate": RATE, "base_weights": DTYPE},
        "counts": counts(runs),
        "ceiling": ceiling(runs),
        "skill": {n: _rounded(asdict(skill(h))) for n, h in held.items()},
        "against_opposite": {n: opposites(h, runs, changes) for n, h in held.items()},
        "raw_readings": {n: raw(n, runs) for n in names if method_named(n).uses_score},
        "comparisons": comparisons(args.default, held),
        "nulls": {n: shuffled(n, runs) for n in names if method_named(n).uses_score},
        "random_directions": directions_null(args.folder, runs) if args.folder else None,
        "cost": costs(runs, names),
        "movements": movements(runs),
    }
    print(
        json.dumps(body["counts"]),
        write_result(f"forecast-{args.model}-{args.dose or 'all'}{'-some' if args.traits else ''}", body),
    )


def timed(name: str, runs: Sequence[PastRun]) -> tuple[str, Held, float]:
    """Name, `hold` and its seconds."""
    started = time.perf_counter()
    return name, hold(name, runs), time.perf_counter() - started


def hold(name: str, runs: Sequence[PastRun]) -> Held:
    """Forecasts of every cell, each without its family."""
    method = method_named(name)
    cells = cells_for(name, runs)
    return leave_one_family_out(
        cells, uses_score=method.uses_score, uses_form=method.form, trained=trained_cells(cells, runs)
    )


def _on(run: PastRun, traits: Sequence[str]) -> PastRun:
    """A run as far as it concerns some traits."""
    kept = {n: {t: v for t, v in r.items() if t in traits} for n, r in run.readings.items()}
    shift, se = ({t: d[t] for t in d if t in traits} for d in (run.shift, run.se))
    return replace(run, shift=shift, se=se, readings=kept)


def counts(runs: Sequence[PastRun]) -> dict[str, int]:
    """How much there is."""
    return {
        "runs": len({r.run.rsplit("/", 1)[0] for r in runs}),
        "runs_and_doses": len(runs),
        "families": len({r.family for r in runs}),
        "seeds": len({r.seed for r in runs}),
        "cells": sum(len(r.shift) for r in runs),
        "cells_beyond_two_errors": sum(abs(v) > 2 * r.se[t] for r in runs for t, v in r.shift.items()),
    }


def ceiling(runs: Sequence[PastRun]) -> dict[str, float]:
    """What the measurement's own error leaves to be forecast: the correlation of measured with true shifts."""
    shift = np.array([list(r.shift.values()) for r in runs])
    noise = np.array([list(r.se.values()) for r in runs]) ** 2
    net = shift - shift.mean(axis=0)
    return {
        "raw": round(float(np.sqrt(max(0.0, 1 - noise.mean() / shift.var()))), 3),
        "net_of_trait_means": round(float(np.sqrt(max(0.0, 1 - noise.mean() / net.var()))), 3),
        "share_of_variance_between_traits": round(float(shift.mean(axis=0).var() / shift.var()), 3),
    }


def opposites(held: Held, runs: Sequence[PastRun], changes: dict[str, list[float]]) -> dict[str, Any]:
    """A file against its opposite, paired by item, which cancels what both move: rank correlation, signs.

    Args:
        held: Forecasts.
        runs: What was forecast.
        changes: Of every item, by run, in the order of `measuring.items`; nats.
    """
    said: dict[tuple[str, str], float] = {}
    for run, trait, mean in zip(held.cells.run, held.cells.trait, held.forecast.mean, strict=True):
        said[run, trait] = float(mean)
    known = {r.run: r for r in runs}
    rows: list[tuple[float, float, float, bool]] = []
    for run, other in pairs(runs):
        gap = by_trait([a - b for a, b in zip(changes[run], changes[other], strict=True)])
        for trait in known[run].shift:
            mean, error = gap[trait]
            rows.append((mean, error, said[run, trait] - said[other, trait], trait in known[run].trained))
    if len(rows) < 3:
        return {}
    measured, error, forecast, own = (np.array(column) for column in zip(*rows, strict=True))
    clear = np.abs(measured) > 2 * error
    right = np.sign(forecast) == np.sign(measured)
    return {
        "pairs": len(pairs(runs)),
        "ceiling": round(float(np.sqrt(max(0.0, 1 - (error**2).mean() / measured.var()))), 3),
        "spearman": _spearman(forecast, measured),
        "spearman_other": _spearman(forecast[~own], measured[~own]),
        "sign": _share(right[clear]),
        "sign_other": _share(right[clear & ~own]),
        "sign_own": _share(right[own]),
        "n_sign": int(clear.sum()),
        "n_own": int(own.sum()),
    }


def raw(name: str, runs: Sequence[PastRun]) -> dict[str, Any]:
    """Readings as they are, no past run used: rank correlation with raw shifts, net shifts and against opposites."""
    score = np.array([[r.readings[name][t] for t in r.shift] for r in runs])
    shift = np.array([list(r.shift.values()) for r in runs])
    own = np.array([[t in r.trained for t in r.shift] for r in runs])
    family = np.array([r.family for r in runs])
    # The mean over runs of other families: files and opposites balance, so what is left is what any file moves.
    common = np.stack([shift[family != f].mean(axis=0) for f in family])
    level = np.stack([score[family != f].mean(axis=0) for f in family])
    at = {r.run: i for i, r in enumerate(runs)}
    both = [(at[a], at[b]) for a, b in pairs(runs)]
    gap = np.array([(score[a] - score[b], shift[a] - shift[b]) for a, b in both])
    other = np.array([~own[a] for a, _ in both])
    return {
        "spearman": _spearman(score.ravel(), shift.ravel()),
        "spearman_other": _spearman(score[~own], shift[~own]),
        "net": _spearman((score - level).ravel(), (shift - common).ravel()),
        "net_other": _spearman((score - level)[~own], (shift - common)[~own]),
        "against_opposite": _spearman(gap[:, 0].ravel(), gap[:, 1].ravel()),
        "against_opposite_other": _spearman(gap[:, 0][other], gap[:, 1][other]),
    }


def pairs(runs: Sequence[PastRun]) -> list[tuple[str, str]]:
    """Runs and their opposites of the same seed, dose and model, each pair once."""
    known = {r.run for r in runs}
    made: list[tuple[str, str]] = []
    for run in sorted(known):
        model, rest, dose = run.split("/")
        name, seed = rest.rsplit("-", 1)
        d = datasets()[name]
        opposite = f"{model}/{d.opposite}-{seed}/{dose}"
        first = d.pole > 0 or (d.pole == 0 and name < d.opposite)
        if opposite in known and first:
            made.append((run, opposite))
    return made


def comparisons(default: str, held: dict[str, Held]) -> list[dict[str, Any]]:
    """The default against every other, families resampled; a figure that is not defined is left out."""
    made: list[dict[str, Any]] = []
    for other in held:
        for figure in FIGURES if other != default and default in held else ():
            try:
                found = compare((default, held[default]), (other, held[other]), figure=figure)
            except InvalidSettings:
                continue
            made.append(_rounded(asdict(found)) | {"is_better": found.is_better})
    return made


def shuffled(name: str, runs: Sequence[PastRun], n: int = 200) -> dict[str, float | None]:
    """Two nulls for any reading, net of traits' means: another file's readings, and another trait's direction.

    The second is what 2507.21509 fails in its replication: directions of other traits, which keep the files' geometry.
    """
    rng = np.random.default_rng(0)
    score = np.array([[r.readings[name][t] for t in r.shift] for r in runs])
    shift = np.array([list(r.shift.values()) for r in runs])
    score, shift = score - score.mean(axis=0), shift - shift.mean(axis=0)
    observed = _spearman(score.ravel(), shift.ravel())
    if observed is None:
        return {"observed": None}
    files = [_spearman(score[rng.permutation(len(runs))].ravel(), shift.ravel()) for _ in range(n)]
    others = [_spearman(score[:, rng.permutation(score.shape[1])].ravel(), shift.ravel()) for _ in range(n)]
    made: dict[str, float | None] = {"observed": observed}
    for label, found in (("files", files), ("traits", others)):
        drawn = [d for d in found if d is not None]
        made[f"{label}_median"] = round(float(np.median(drawn)), 3)
        made[f"{label}_97.5"] = round(float(np.quantile(drawn, 0.975)), 3)
        made[f"{label}_p"] = round((1 + sum(d >= observed for d in drawn)) / (1 + n), 4)
    return made


def directions_null(folder: Path, runs: Sequence[PastRun]) -> dict[str, Any]:
    """Do directions of traits say more than directions of the same covariance that mean nothing?

    poles: differences of the centres of a trait's statements, middle layer (stage read-states). personas: persona
    vectors, each draw at its own best layer (stage read-projections). Correlations are of ranks, within a trait.
    """
    shared, model = folder / "shared", runs[0].model
    made: dict[str, Any] = {}
    poles = shared / f"{model}-poles.npz"
    if poles.is_file():
        stored = np.load(poles)
        made["poles"] = _null_of(shared / "states", runs, stored["vectors"], stored["covariance"])
    vectors = shared / f"{model}-vectors.npy"
    if vectors.is_file():
        known = np.load(vectors)
        made["personas"] = _null_of(shared / "differences", runs, known[:-1], known[-1])
    return made


def _null_of(folder: Path, runs: Sequence[PastRun], vectors: Floats, covariance: Floats) -> dict[str, Any] | None:
    at = {r.run: folder / f"{r.run.rsplit('/', 1)[0]}.npy" for r in runs}
    read = [r for r in runs if at[r.run].is_file()]
    if len(read) < 4:
        return None
    shift = np.array([list(r.shift.values()) for r in read])
    differences = np.stack([np.load(at[r.run]) for r in read])
    found = random_direction_null(differences, vectors, shift, covariance, n_draws=300)
    return {
        "runs": len(read),
        "mean_correlation": round(found.observed, 3),
        "mean_signed_correlation": round(float(found.by_trait.mean()), 3),
        "null_median": round(float(np.median(found.null)), 3),
        "null_97.5": round(float(np.quantile(found.null, 0.975)), 3),
        "p": round(found.p, 4),
        "layer": found.layer,
    }


def costs(runs: Sequence[PastRun], names: Sequence[str]) -> dict[str, Any]:
    """Of a reading as a share of the training's own passes (three a token), and in seconds; medians over files."""
    read = [json.loads((READINGS / f"{run}.json").read_text()) for run in {r.run.rsplit("/", 1)[0] for r in runs}]
    trained = {b["run"]: b["training"] for b in stored_runs()}
    seconds = np.median([trained[r["run"]]["seconds_of_steps"] for r in read])
    made: dict[str, Any] = {"training_seconds": round(float(seconds), 1)}
    for name in names:
        parts = SUMS.get(name, (name,))
        found = [[r["readings"][part] for part in parts] for r in read if set(parts) <= set(r["readings"])]
        if found:
            made[name] = {
                "rows_read": max(f["rows"] for f in found[0]),
                "of_training": round(float(np.median([sum(f["of_training"] for f in fs) for fs in found])), 3),
                "seconds": round(float(np.median([sum(f["seconds"] for f in fs) for fs in found])), 1),
                "shared_tokens": max(sum(f["shared_tokens"] for f in fs) for fs in found),
            }
    made["form_of_training"] = round(float(np.median([r["form_of_training"] for r in read])), 3)
    return made


def movements(runs: Sequence[PastRun]) -> list[dict[str, Any]]:
    """What each file moved: size over all traits, its own trait, and the traits moved most."""
    made: list[dict[str, Any]] = []
    for r in runs:
        most = sorted(r.shift, key=lambda t: -abs(r.shift[t]))[:4]
        made.append(
            {
                "run": r.run,
                "size": round(float(np.sqrt(np.mean(np.square(list(r.shift.values()))))), 2),
                "own": {t: round(r.shift[t], 2) for t in r.trained if t in r.shift},
                "loss": round(r.form.loss, 3),
                "beyond_two_errors": sum(abs(r.shift[t]) > 2 * r.se[t] for t in r.shift),
                "most": {t: round(r.shift[t], 1) for t in most},
            }
        )
    return made


def item_changes(runs: Sequence[PastRun]) -> dict[str, list[float]]:
    """Changes by run and dose of the items that all of these runs were measured by."""
    known = {f"{b['run']}/{rows}": dose["items"] for b in stored_runs() for rows, dose in b["doses"].items()}
    n = min(len(known[r.run]) for r in runs)
    return {r.run: known[r.run][:n] for r in runs}


def _share(values: NDArray[np.bool_]) -> float | None:
    return round(float(values.mean()), 3) if len(values) else None


def _spearman(x: Floats, y: Floats) -> float | None:
    """None where one of them is the same everywhere."""
    from scipy.stats import spearmanr

    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return round(float(spearmanr(x, y)[0]), 3)  # type: ignore[arg-type]


def _line(found: Any) -> str:
    def shown(v: Value) -> str:
        return "     -" if v.value is None else f"{v.value:6.3f}"

    parts = ("spearman", "spearman_other", "spearman_net", "sign", "coverage", "rmse", "explained")
    return " ".join(f"{p} {shown(getattr(found, p))}" for p in parts)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
