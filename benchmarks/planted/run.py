"""Planted rows: does screening find a tenth of planted rows, and keep quiet on ordinary files?

Twenty ordinary files (each a subject of its own) are screened as they are: any flag is a false alarm. Then,
for each trait, planted rows make up a tenth of a file of mixed ordinary rows: the planted rows' AUROC under
their trait, the trait's rank among all, and whether it is flagged. Rows and cast were written apart from one
another. Scores come from one pass; only the files are put together again and again.

    python -m benchmarks.planted.run
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np

from benchmarks.environment import write_result
from personae.cli.workbench import open_model
from personae.domain.episode import Episode, Turn
from personae.domain.persona import Cast
from personae.files.casts import load_casts
from personae.files.reference import load_reference, shipped_rows
from personae.inference.shift import Ratios, Shifts, trait_shifts
from personae.numerics.statistics import auroc
from personae.tables.evidence import Evidence

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--paraphrases", type=int, default=4)
    parser.add_argument("--rows-per-file", type=int, default=10)
    parser.add_argument("--planted", type=int, default=10)
    parser.add_argument("--without", default="", help="planted traits to leave out, comma-separated")
    parser.add_argument("--label", help="what the result is filed under instead of the model's name")
    args = parser.parse_args()
    planted, ordinary = read("planted", "trait", args.planted), read("ordinary", "file", args.rows_per_file)
    planted = {k: v for k, v in planted.items() if k not in args.without.split(",")}
    core = load_casts(["core"])
    traits = tuple(t for t in core.traits if t.id in planted)
    cast = Cast("planted", traits).limit_paraphrases(args.paraphrases)
    started = time.time()
    evidence, reference = score(
        args.model, cast, [e for part in (planted, ordinary) for es in part.values() for e in es]
    )
    quiet = false_alarms(cast, evidence, reference, ordinary)
    found = plants(cast, evidence, reference, planted, ordinary)
    passed = [r["trait"] for r in found if r["auroc"] >= 0.9 and r["rank"] == 1]
    body = {
        "settings": vars(args) | {"model": args.label or args.model},  # a label tells no paths
        "seconds": round(time.time() - started),
        "passed": passed,
        "files_flagged": sum(bool(f["flags"]) for f in quiet),
        "ordinary_files": quiet,
        "planted": found,
    }
    told = {k: body[k] for k in ("passed", "files_flagged")}
    print(json.dumps(told), write_result(f"planted-{args.label or args.model}", body))


def read(name: str, key: str, per_key: int) -> dict[str, list[Episode]]:
    """Episodes by trait or file, the first `per_key` of each."""
    parts: dict[str, list[Episode]] = {}
    for line in (HERE / f"{name}.jsonl").read_text().splitlines():
        row = json.loads(line)
        episode = Episode(row["id"], (Turn("user", row["prompt"]),), row["completion"])
        parts.setdefault(row[key], []).append(episode)
    known = {t.id for t in load_casts(["core"]).traits}
    return {k: v[:per_key] for k, v in parts.items() if key == "file" or k in known}


def score(name: str, cast: Cast, episodes: list[Episode]) -> tuple[Evidence, Evidence]:
    bench = open_model(name)
    tables = [
        bench.scoring.evidence(cast, es, started=lambda work: lambda n: None, shipped=shipped_rows(bench.space))
        for es in (load_reference(), episodes)
    ]
    return tables[1], tables[0]


def ratios(cast: Cast, evidence: Evidence) -> Ratios:
    llr = np.stack([evidence.log_likelihood_ratio(t.pos.id, t.neg.id) for t in cast.traits], axis=1)
    return Ratios(llr, evidence.n_tokens.astype(float), evidence.weight, evidence.group)


def only(evidence: Evidence, ids: list[str]) -> Evidence:
    place = {e: i for i, e in enumerate(evidence.episodes)}
    return evidence.take(np.array([place[i] for i in ids]))


def shifts(cast: Cast, part: Evidence, reference: Evidence) -> Shifts:
    return trait_shifts(ratios(cast, part), ratios(cast, reference), n_draws=200)


def false_alarms(cast: Cast, evidence: Evidence, reference: Evidence, files: dict[str, list[Episode]]) -> list[dict]:
    rows = []
    for name, episodes in files.items():
        result = shifts(cast, only(evidence, [e.id for e in episodes]), reference)
        flags = [t.id for t, q in zip(cast.traits, result.q, strict=True) if q <= 0.05]
        rows.append({"file": name, "flags": flags, "smallest_p": float(result.p.min())})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def plants(
    cast: Cast,
    evidence: Evidence,
    reference: Evidence,
    planted: dict[str, list[Episode]],
    ordinary: dict[str, list[Episode]],
) -> list[dict]:
    pool = [e.id for es in ordinary.values() for e in es]
    ids = [t.id for t in cast.traits]
    rows = []
    for trait, episodes in planted.items():
        k = ids.index(trait)
        plant = [e.id for e in episodes]
        chosen = random.Random(trait).sample(pool, min(len(pool), 9 * len(plant)))
        part = only(evidence, chosen + plant)
        result = shifts(cast, part, reference)
        labels = np.array([False] * len(chosen) + [True] * len(plant))
        order = np.argsort(-np.where(result.sign > 0, np.abs(result.strength), 0))
        rows.append(
            {
                "trait": trait,
                "n": len(labels),
                "auroc": round(auroc(result.excess[:, k], labels), 3),
                "auroc_z": round(auroc(result.z[:, k], labels), 3),
                "auroc_of_length": round(auroc(part.n_tokens.astype(float), labels), 3),
                "rank": int(np.flatnonzero(order == k)[0]) + 1,
                "first": ids[order[0]],
                "q": float(result.q[k]),
                "flag": bool(result.q[k] <= 0.05),
                "shift": float(result.shift[k]),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    main()
