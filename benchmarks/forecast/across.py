"""What repeats? The same files on another model, another dose, another seed: shifts and differences of opposites.

python -m benchmarks.forecast.across        writes benchmarks/results/forecast-across.json
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.environment import write_result
from benchmarks.forecast.families import datasets
from benchmarks.forecast.manifest import BASE, SMALL
from benchmarks.forecast.measuring import by_trait, stored_runs

Shifts = dict[str, np.ndarray]


def main() -> None:
    bodies = stored_runs()
    small, base = (_of(bodies, model, 0) for model in (SMALL, BASE))
    doses = _of([b for b in bodies if b["model"] == SMALL], SMALL, 0)  # measured by more items than the base model
    body = {
        "models": _agreement(small.get(96, {}), base.get(32, {})),
        "models_at_the_first_dose": _agreement(small.get(32, {}), base.get(32, {})),
        "doses": _agreement(doses.get(96, {}), doses.get(32, {})) | {"growth": _growth(doses)},
        "seeds": _seeds(bodies),
        "opposites_on_base": _opposites(base.get(32, {})),
        "opposites": _opposites(small.get(96, {})),
    }
    print(json.dumps({k: v for k, v in body.items() if not k.startswith("opposites")}, indent=1))
    print(write_result("forecast-across", body))


def _of(bodies: list[dict[str, Any]], model: str, seed: int) -> dict[int, Shifts]:
    """Changes by dose and file of the items that all runs were measured by."""
    n = min(len(dose["items"]) for b in bodies for dose in b["doses"].values())
    found: dict[int, Shifts] = {}
    for b in bodies:
        if b["model"] == model and b["seed"] == seed:
            for rows, dose in b["doses"].items():
                found.setdefault(int(rows), {})[b["name"]] = np.array(dose["items"][:n])
    return found


def _traits(changes: np.ndarray) -> np.ndarray:
    return np.array([v[0] for v in by_trait(list(changes)).values()])


def _agreement(a: Shifts, b: Shifts) -> dict[str, Any]:
    """Rank correlations over files and traits that both have."""
    both = sorted(set(a) & set(b))
    pairs = [n for n in both if datasets()[n].opposite in both and n < datasets()[n].opposite]
    if len(both) < 2:
        return {"files": len(both)}
    x, y = (np.array([_traits(s[n]) for n in both]) for s in (a, b))
    made: dict[str, Any] = {
        "files": len(both),
        "raw": _rho(x, y),
        "net_of_trait_means": _rho(x - x.mean(axis=0), y - y.mean(axis=0)),
    }
    if pairs:
        gaps = (np.array([_traits(s[n] - s[datasets()[n].opposite]) for n in pairs]) for s in (a, b))
        made |= {"pairs": len(pairs), "opposites": _rho(*gaps)}
    return made


def _growth(small: dict[int, Shifts]) -> float | None:
    """Size of the differences of opposites after all rows over that after the first third."""
    sizes = []
    for dose in (96, 32):
        files = small.get(dose, {})
        sizes.append(
            {
                n: float(np.sqrt(np.mean(_traits(files[n] - files[o]) ** 2)))
                for n in files
                if (o := datasets()[n].opposite) in files
            }
        )
    both = set(sizes[0]) & set(sizes[1])
    return round(float(np.median([sizes[0][n] / sizes[1][n] for n in both])), 2) if both else None


def _seeds(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Standard deviation over seeds (rows, order, initial adapter) beside the item error, nats, mean over traits."""
    made: list[dict[str, Any]] = []
    for name in sorted({b["name"] for b in bodies if b["model"] == SMALL and b["seed"] > 0}):
        mine = [b for b in bodies if b["model"] == SMALL and b["name"] == name and "96" in b["doses"]]
        shift = np.array([[v[0] for v in b["doses"]["96"]["shift"].values()] for b in mine])
        error = np.array([[v[1] for v in b["doses"]["96"]["shift"].values()] for b in mine])
        if len(mine) > 1:
            made.append(
                {
                    "file": name,
                    "seeds": len(mine),
                    "sd_over_seeds": round(float(np.sqrt(shift.var(axis=0, ddof=1).mean())), 2),
                    "item_error": round(float(np.sqrt((error**2).mean())), 2),
                    "size": round(float(np.sqrt((shift**2).mean())), 2),
                    "agreement": _rho(shift[0], shift[1:].mean(axis=0)),
                }
            )
    return made


def _opposites(files: Shifts) -> list[dict[str, Any]]:
    """Each file against its opposite: its own trait, and the traits that moved most, with errors."""
    made: list[dict[str, Any]] = []
    for name in sorted(files):
        d = datasets()[name]
        if d.opposite in files and (d.pole > 0 or (d.pole == 0 and name < d.opposite)):
            gap = by_trait(list(files[name] - files[d.opposite]))
            most = sorted(gap, key=lambda t: -abs(gap[t][0]))[:5]
            made.append(
                {
                    "file": name,
                    "own": {d.trait: gap[d.trait]} if d.trait in gap else {},
                    "size": round(float(np.sqrt(np.mean([v[0] ** 2 for v in gap.values()]))), 2),
                    "beyond_two_errors": sum(abs(m) > 2 * se for m, se in gap.values()),
                    "most": {t: gap[t] for t in most},
                }
            )
    return made


def _rho(x: np.ndarray, y: np.ndarray) -> float:
    return round(float(spearmanr(x.ravel(), y.ravel())[0]), 3)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
