"""Every row of a world's check that needs no fine-tuning, on several seeds of world and model, with the spread.

    python -m benchmarks.worlds.run [--world personaworld] [--seeds 0 1 2] [--folder runs/worlds]

A seed is that of the answer tables, of the initial weights and of the documents. What was trained in the folder
before is used again; a killed run goes on. Times are those of the trainings themselves: CPU seconds of one thread,
and wall seconds, which depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.environment import write_result
from personae.models.catalogue import ModelSource, training_record
from personae.models.hf_load import load_hf
from personae.models.hf_world import last_block_states, train_stage
from personae.protocols.world_check import check_world
from personae.running.progress import training_progress
from personae.tables.world_check import NOT_RUN
from personae.worlds.exact import ExactWorld
from personae.worlds.reading import read_world

KL_BAR = {"tiny": 0.02}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", default="personaworld")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/worlds"))
    args = parser.parse_args()
    runs = [run(args.world, seed, args.folder / f"seed-{seed}" / "worlds" / args.world) for seed in args.seeds]
    body = {"world": args.world, "seeds": args.seeds, "rows": spread(runs), "runs": runs}
    print(json.dumps(body["rows"], indent=1))
    print(write_result(f"worlds-{args.world}", body))


def run(name: str, seed: int, folder: Path) -> dict:
    """Train one seed if need be, and check it."""
    world = replace(read_world(name).base, seed=seed)
    if training_record(folder / "base").get("digest") != world.digest:
        with training_progress(f"seed {seed}", world.training.steps, quiet=False) as on_step:
            train_stage(world, folder, seed=seed, on_step=on_step)
    model = load_hf(ModelSource(f"world:{name}", "world", folder / "base", world=world), device="cpu")
    result = check_world(
        model,
        ExactWorld(world),
        seed=seed,
        kl_bar=KL_BAR.get(name, 0.010),
        states=partial(last_block_states, model),
    )
    record = training_record(folder / "base")
    return {
        "seed": seed,
        "n_parameters": model.card.n_parameters,
        **{k: record[k] for k in ("steps", "cpu_seconds", "seconds")},
        "rows": [{"id": r.id, "verdict": r.verdict, "value": r.value, "numbers": dict(r.numbers)} for r in result.rows],
    }


def spread(runs: list[dict]) -> list[dict]:
    """Mean, standard deviation and range over seeds of every figure of every row; verdicts beside."""
    rows = []
    for k, row in enumerate(runs[0]["rows"]):
        same = [r["rows"][k] for r in runs]
        if row["verdict"] == NOT_RUN:
            rows.append({"id": row["id"], "verdicts": [NOT_RUN] * len(runs)})
            continue
        figures = {}
        for name in row["numbers"]:
            values = [float(s["numbers"][name]) for s in same]
            figures[name] = {
                "mean": round(float(np.mean(values)), 5),
                "sd": round(float(np.std(values, ddof=1)), 5) if len(values) > 1 else None,
                "range": [round(min(values), 5), round(max(values), 5)],
            }
        rows.append({"id": row["id"], "verdicts": [s["verdict"] for s in same], "figures": figures})
    return rows


if __name__ == "__main__":
    main()
