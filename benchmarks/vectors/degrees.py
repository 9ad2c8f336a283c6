"""Do vectors tell degrees of a trait within one type of prompt? `personae vectors conditions`, summed up.

    python -m benchmarks.vectors.degrees --work FOLDER [--traits a,b …] [--store]

Traits go in groups: one run of the command each, in which all traits are judged under the prompts about all of them.
A group that is done is read from FOLDER. With --store all of them are summed up under benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import write_result
from personae.cli.vectors_conditions import Settings, execute

GROUPS = ("contemptuous,formal,optimistic,archaic_voice,anxious,servile",)


def main() -> None:
    """Run what is not done and sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--traits", nargs="+", default=list(GROUPS))
    parser.add_argument("--n-prompts", type=int, default=6)
    parser.add_argument("--n-items", type=int, default=6)
    parser.add_argument("--store", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for group in args.traits:
        out = args.work / f"{group.replace(',', '+')}-all"
        if not (out / "run.json").is_file():
            how = Settings(
                args.model, only=group, n_questions=10, n_prompts=args.n_prompts, n_items=args.n_items, out=str(out)
            )
            execute(how)
        rows += json.loads((out / "run.json").read_text())["result"]["traits"]
    body = {
        "model": args.model,
        "design": "every trait under the prompts about all of its group",
        "n_prompts": args.n_prompts,
        "items": args.n_items,
        **{kind: summary([r for r in rows if r["vector"] == kind]) for kind in ("difference", "gradient")},
        "traits": rows,
    }
    print(json.dumps({k: v for k, v in body.items() if k != "traits"}))
    if args.store:
        print(write_result(f"degrees-{args.model}", body))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one kind of vector: mean correlation, and how many traits beat each null."""
    made: dict[str, Any] = {}
    for part in ("pooled", "within"):
        nulls = [n for r in rows for n in r[part]["nulls"]]
        names = list(dict.fromkeys(n["name"] for n in nulls))
        made[part] = {
            "mean_r": round(float(np.mean([r[part]["r"] for r in rows])), 3),
            "beats": {name: sum(n["beaten"] for n in nulls if n["name"] == name) for name in names},
            "beats_every_null": sum(r[part]["beats_every_null"] for r in rows),
            "of": len(rows),
        }
    return made


if __name__ == "__main__":
    main()
