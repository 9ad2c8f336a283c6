"""The statistics core against simulations with a known answer, in full; each bar with its measured figure.

python -m benchmarks.statistics.run
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator

from benchmarks.environment import write_result
from benchmarks.statistics import checks
from personae.numerics.power import Plan

Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1000, help="of each A/A test; others follow")
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    started = time.time()
    rows = []
    for row in itertools.chain(
        same_model_twice(args.repeats),
        intervals(2 * args.repeats),
        design(args.repeats // 5),
        power(4 * args.repeats),
        equivalence(4 * args.repeats),
        seeds(args.repeats),
    ):
        rows.append(row)
        print(json.dumps(row), flush=True)
    missed = [row for row in rows if not row["holds"]]
    body = {"repeats": args.repeats, "seconds": round(time.time() - started), "missed": len(missed), "rows": rows}
    if not args.no_write:
        print(write_result("statistics", body))
    print(f"{len(rows) - len(missed)} of {len(rows)} bars hold")


def row(check: str, settings: Row, bar: str, holds: bool, measured: dict[str, float]) -> Row:
    figures = {k: round(float(v), 4) for k, v in measured.items()}
    return {"check": check, "settings": settings, "bar": bar, "holds": bool(holds), **figures}


def same_model_twice(repeats: int) -> Iterator[Row]:
    bar = "rejected in 3-7%"
    worlds = [
        {"n_clusters": 200, "size": 1, "icc": 0.0},
        {"n_clusters": 30, "size": 20, "icc": 0.1},
        {"n_clusters": 8, "size": 20, "icc": 0.1},
        {"n_clusters": 8, "size": 20, "icc": 0.1, "unequal": True},
        {"n_clusters": 30, "size": 20, "icc": 0.1, "is_binary": True},
        {"n_clusters": 30, "size": 20, "icc": 0.1, "is_binary": True, "unequal": True},
    ]
    for paired, world in itertools.product((True, False), worlds):
        few = world["n_clusters"] == 8
        measured = checks.same_model_twice(repeats, paired=paired, permute=few, **world)
        fine = all(0.03 <= v <= 0.07 for k, v in measured.items() if k != "rejected_naively")
        naive_fails = world["icc"] == 0 or measured["rejected_naively"] > 0.1
        bar_here = bar + ("" if world["icc"] == 0 else "; naively in more than 10%")
        yield row("A/A", {"paired": paired, **world}, bar_here, fine and naive_fails, measured)
    measured = checks.same_model_twice_on_tables(repeats)
    yield row("A/A on item tables", {}, bar, 0.03 <= measured["rejected"] <= 0.07, measured)


def intervals(repeats: int) -> Iterator[Row]:
    for n_clusters, unequal, is_binary in itertools.product((6, 15, 50), (False, True), (False, True)):
        world = {"n_clusters": n_clusters, "size": 15, "icc": 0.1, "unequal": unequal, "is_binary": is_binary}
        measured = checks.coverage(repeats, **world)
        yield row("90% interval of a mean", world, "covers 87-93%", 0.87 <= measured["covered"] <= 0.93, measured)
    for n in (20, 100):
        measured = checks.rate_coverage(n)
        fine = abs(measured["wilson_mean"] - 0.95) < 0.01 and measured["exact_least"] >= 0.95
        yield row("95% interval of a rate", {"n": n}, "Wilson 94-96% on average, exact at least 95%", fine, measured)


def design(repeats: int) -> Iterator[Row]:
    measured = checks.design_effect_recovered(repeats)
    fine = abs(measured["estimated"] / measured["true"] - 1) < 0.15
    yield row("design effect at ICC 0.1", {"n_clusters": 100, "size": 20}, "within 15%", fine, measured)


def power(repeats: int) -> Iterator[Row]:
    plans = [
        (Plan(100, 1, 1.0, 0.0), 0.28),
        (Plan(20, 10, 1.0, 0.1), 0.25),
        (Plan(8, 20, 1.0, 0.1), 0.4),
        (Plan(5, 20, 0.5, 0.2), 0.3),
        (Plan(25, 8, 1.0, 0.1, is_paired=False), 0.3),
        (Plan(6, 20, 1.0, 0.1, is_paired=False), 0.6),
    ]
    for plan, difference in plans:
        measured = checks.power_promised(repeats, plan, difference)
        fine = abs(measured["promised"] - measured["simulated"]) < 0.03
        yield row("power", {"plan": str(plan), "difference": difference}, "within 3 points", fine, measured)


def equivalence(repeats: int) -> Iterator[Row]:
    for plan, margin in ((Plan(30, 10, 1.0, 0.1), 0.3), (Plan(8, 20, 1.0, 0.1), 0.5)):
        for sign in (-1, 1):
            measured = checks.equivalence_claimed(repeats, plan, margin, sign * margin)
            settings = {"plan": str(plan), "margin": margin, "difference": sign * margin}
            fine = measured["claimed"] <= 0.05 + 0.01
            yield row("equivalence at the margin", settings, "claimed in at most 5% (error 1)", fine, measured)
        measured = checks.equivalence_claimed(repeats, plan, margin, 0.0)
        fine = abs(measured["claimed"] - measured["promised"]) < 0.03
        yield row(
            "equivalence of equals",
            {"plan": str(plan), "margin": margin},
            "power as promised within 3 points",
            fine,
            measured,
        )


def seeds(repeats: int) -> Iterator[Row]:
    bar = "by level 87-95%, by item below 80%"
    worlds = [
        {"n_seeds": 8, "n_clusters": 20, "size": 5, "seed_sd": 0.4, "cluster_sd": 0.5, "is_nested": False},
        {"n_seeds": 3, "n_clusters": 20, "size": 5, "seed_sd": 0.5, "cluster_sd": 0.5, "is_nested": False},
        {"n_seeds": 1, "n_clusters": 15, "size": 10, "seed_sd": 0.0, "cluster_sd": 0.7, "is_nested": False},
        {"n_seeds": 6, "n_clusters": 10, "size": 5, "seed_sd": 0.4, "cluster_sd": 0.5, "is_nested": True},
    ]
    for world in worlds:
        measured = checks.bootstrap_coverage(repeats // 2, **world)
        fine = 0.87 <= measured["by_level"] <= 0.95 and measured["by_item"] < 0.8
        yield row("hierarchical bootstrap", world, bar, fine, measured)
    equal = {"n_seeds": 5, "n_clusters": 20, "size": 5, "seed_sd": 0.0, "cluster_sd": 0.0, "is_nested": False}
    measured = checks.bootstrap_coverage(repeats // 2, **equal)
    yield row("hierarchical bootstrap, levels alike", equal, "at least 87%", measured["by_level"] >= 0.87, measured)
    for n_seeds, seed_sd in ((3, 0.3), (5, 0.3), (5, 0.0)):
        settings = {"n_seeds": n_seeds, "seed_sd": seed_sd}
        measured = checks.compare_coverage(repeats, **settings)
        yield row("90% interval over seeds", settings, "covers 87-96%", 0.87 <= measured["covered"] <= 0.96, measured)


if __name__ == "__main__":
    main()
