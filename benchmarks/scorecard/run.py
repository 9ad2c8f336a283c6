"""Fit the scorecard on training worlds and judge it on new ones.

python -m benchmarks.scorecard.run fit --worlds 12     writes src/personae/reference/scorecard.json
python -m benchmarks.scorecard.run judge --worlds 4    writes benchmarks/results/scorecard.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.environment import environment
from benchmarks.scorecard.specs import NEW, TRAINING, Ranges, draw_world
from personae.inference.scorecard import (
    KIND_VIEWS,
    STATISTICS,
    dump_expectations,
    fit_expectations,
    score,
    shipped_expectations,
)
from personae.models.exact import ExactModel
from personae.protocols.audit import measure
from personae.protocols.audit_conclusions import conclude
from personae.protocols.audit_material import Size, world_material
from personae.protocols.audit_parties import parties
from personae.tables.audit import VIEWS, Audit
from personae.worlds.spec import World

SIZE = Size(prompts=40, texts=16, samples=100, controls=0, max_tokens=1, shots=0)
PROTOCOLS = ("outside", "coin", "knowledge")
_ROOT = Path(__file__).parents[2]
_NEW_SEEDS = 10_000


def audit_world(world: World, *, seed: int = 0) -> Audit:
    """The audit of a world's closed form against its base."""
    taking_part = parties(ExactModel(world), ExactModel(world.base), None, world=world)
    log = measure(taking_part, world_material(world, SIZE, seed=seed), SIZE, cast=None, seed=seed, protocols=PROTOCOLS)
    return conclude(log, expectations=_ANY)


_ANY = fit_expectations([dict.fromkeys(STATISTICS, 0.0)] * 2, ["mixture"] * 2)


def values_of(audit: Audit) -> tuple[dict[str, float | None], dict[str, float]]:
    """Statistics of an audit, and their errors."""
    assert audit.scorecard is not None
    rows = audit.scorecard.statistics
    return {r.id: r.value for r in rows}, {r.id: r.se for r in rows}


def audited(n: int, first: int, ranges: Ranges) -> Iterator[tuple[str, dict[str, float | None], dict[str, float]]]:
    """Kind, statistics and errors of n worlds of each kind, one of each in turn."""
    for k in range(n):
        for kind in KIND_VIEWS:
            values, errors = values_of(audit_world(draw_world(kind, first + k, ranges), seed=k))
            shown = {s: None if v is None else round(v, 2) for s, v in values.items()}
            print(kind, k, shown, flush=True)
            yield kind, values, errors


def fit(n: int) -> None:
    """Fit on n training worlds of each kind."""
    rows = list(audited(n, 0, TRAINING))
    made = dump_expectations(fit_expectations([r[1] for r in rows], [r[0] for r in rows]))
    path = _ROOT / "src" / "personae" / "reference" / "scorecard.json"
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    raw = [{"kind": k, "values": v, "errors": e} for k, v, e in rows]
    (_ROOT / "benchmarks" / "results" / "scorecard-training.json").write_text(json.dumps(raw) + "\n", encoding="utf-8")


def judge(n: int) -> None:
    """Verdicts and Brier score on n new worlds of each kind, of new seeds and other ranges."""
    began = time.process_time()
    known = shipped_expectations()
    cases = []
    for kind, values, errors in audited(n, _NEW_SEEDS, NEW):
        card = score(values, errors, known)
        truth = KIND_VIEWS[kind]
        brier = float(sum((p - (v == truth)) ** 2 for v, p in card.probability.items())) / 2
        cases.append(
            {
                "kind": kind,
                "truth": truth,
                "verdict": card.verdict,
                "likeliest": max(card.probability, key=lambda v: card.probability[v]),
                "abstains": card.abstains,
                "brier": round(brier, 4),
                "probability": {v: round(p, 4) for v, p in card.probability.items()},
                "values": values,
            }
        )
    views = np.array([c["truth"] for c in cases])
    right = np.array([c["verdict"] == c["truth"] for c in cases])
    result = {
        "worlds": len(cases),
        "right": int(right.sum()),
        "wrong": int(sum(bool(c["verdict"]) and c["verdict"] != c["truth"] for c in cases)),
        "abstained": int(sum(not c["verdict"] for c in cases)),
        "brier": round(float(np.mean([c["brier"] for c in cases])), 4),
        "right_by_view": {v: round(float(right[views == v].mean()), 3) for v in VIEWS},
        "cpu_seconds": round(time.process_time() - began, 1),
        "cases": cases,
        "environment": environment(),
    }
    path = _ROOT / "benchmarks" / "results" / "scorecard.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "cases"}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("fit", "judge"))
    parser.add_argument("--worlds", type=int, default=12, help="of each kind")
    chosen = parser.parse_args()
    (fit if chosen.what == "fit" else judge)(chosen.worlds)
