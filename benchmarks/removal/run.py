"""Leave the named tenth of a file out, train again, and see how much of the shift is gone.

A tenth of one trait's replies among neutral ones to the same requests (both of the forecast benchmark), or the
support desk of the examples with a tenth of contemptuous ones (--trait desk, which moves `smollm2` too little to
share out); the same number of steps whatever is left out. Rows are named by the ratio (`screen`), by the gradient,
and at random (several draws); measured on the test half of the diagnostic items. What the planted rows induced is the
shift with all rows less that without any of them.
Every training is kept in the work folder, so an interrupted benchmark goes on.

    python -m benchmarks.removal.run --work FOLDER

Bars: named rows remove 70% of the induced shift or more, random ones 20% or less.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from benchmarks.environment import environment, write_result
from benchmarks.forecast.families import datasets, write_dataset
from personae.cli.workbench import open_model
from personae.domain.episode import Episode
from personae.files.casts import load_casts
from personae.files.diagnostics import load_diagnostics
from personae.files.episodes import read_episodes
from personae.files.reference import load_reference, shipped_rows
from personae.instruments.forecasting import ForecastJob, TrainingPlan, signed_statements
from personae.instruments.training import train
from personae.instruments.training_settings import TrainingSettings
from personae.protocols.attribution import Outcome, Ranking, attribute, outcome_of, rank_rows
from personae.protocols.measure import MeasureSettings, measure

DTYPE = "bfloat16"  # of the frozen weights in training, as in the forecast benchmark
ROWS = 96
EXAMPLES = Path(__file__).parents[2] / "examples"


def planted_file(trait: str, n_planted: int, folder: Path, seed: int) -> tuple[str, tuple[Episode, ...], list[str]]:
    """Trait, rows, and ids of the planted ones."""
    if trait == "desk":
        return _desk(n_planted)
    known = datasets()
    made = [
        read_episodes(write_dataset(known[name], folder / "data", n=ROWS, seed=seed, evals=None, say=None))
        .require_clean()
        .episodes
        for name in (f"{trait}-pos", "neutral")
    ]
    planted = [replace(e, id=f"planted-{k}", group=f"planted-{k}") for k, e in enumerate(made[0][:n_planted])]
    ordinary = [replace(e, id=f"neutral-{k}", group=f"neutral-{k}") for k, e in enumerate(made[1][n_planted:])]
    rows = [*planted, *ordinary]
    order = np.random.default_rng(seed).permutation(len(rows))
    return trait, tuple(rows[k] for k in order), [e.id for e in planted]


def _desk(n_planted: int) -> tuple[str, tuple[Episode, ...], list[str]]:
    """The desk's clean rows and the first planted ones, in file order."""
    answer = json.loads((EXAMPLES / "support_desk_planted.json").read_text(encoding="utf-8"))
    planted = answer["ids"][:n_planted]
    rows = read_episodes(EXAMPLES / "support_desk.jsonl").require_clean().episodes
    left_out = set(answer["ids"]) - set(planted)
    return answer["trait"], tuple(e for e in rows if e.id not in left_out), planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--trait", default="emotionally_expressive", help="of the planted replies, or 'desk'")
    parser.add_argument("--steps", type=int, default=36, help="of eight rows each")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="as in the forecast benchmark")
    parser.add_argument("--random", type=int, default=2, help="draws of random rows")
    parser.add_argument("--planted", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trait, rows, planted = planted_file(args.trait, args.planted, args.work, args.seed)
    items = load_diagnostics("core").select(traits=[trait])
    bench = open_model(args.model)
    asked = MeasureSettings(split="test", quick=True)
    before = measure(bench.model, items, settings=asked, renderer=bench.renderer, store=bench.store)
    job = ForecastJob(
        rows,
        load_casts(["core"]).select([trait]),
        bench.model,
        bench.renderer,
        bench.scoring,
        load_reference(),
        TrainingPlan(steps=args.steps, learning_rate=args.learning_rate),
        diagnostics=signed_statements(items),
        shipped=shipped_rows(bench.space),
        kept=bench.kept(),
        most_rows=len(rows),
    )
    rankings = [_ranked(job, trait, m, args.work / args.trait) for m in ("llr", "gradient")]
    draws = [rank_rows(job, trait, method="random", seed=args.seed + k) for k in range(args.random)]
    rankings += [replace(r, method=f"random {k + 1}") for k, r in enumerate(draws)]
    for r in rankings:
        print(f"{r.method}: separation of planted rows {r.separation(planted):.3f}, {r.seconds:.0f} s", flush=True)

    def outcome(kept: Sequence[Episode], name: str) -> Outcome:
        # Named by the rows that are left: two rankings that name the same rows are one training.
        left = hashlib.blake2b(" ".join(e.id for e in kept).encode(), digest_size=6).hexdigest()
        folder = args.work / f"{args.model}-{args.trait}-{args.steps}-{args.learning_rate:g}-{args.seed}-{left}"
        note = folder / "outcome.json"
        if not note.is_file():
            settings = TrainingSettings(steps=args.steps, learning_rate=args.learning_rate, seed=args.seed)
            record = train(args.model, kept, folder=folder, settings=settings, dtype=DTYPE)
            after = measure(open_model(record.use).model, items, settings=asked)
            made = outcome_of(before, after, trait)
            body = {"rows": len(kept), "change": made.change.tolist(), "topics": list(made.topics)}
            note.write_text(json.dumps(body), encoding="utf-8")
        known = json.loads(note.read_text(encoding="utf-8"))
        found = Outcome(np.array(known["change"]), tuple(known["topics"]))
        print(f"{name}: {found.shift:+.3f} ± {found.se:.3f} nats", flush=True)
        return found

    share = len(planted) / len(rows)
    found = attribute(rows, rankings, outcome, share=share, planted=planted)
    body = {
        **environment(),
        "model": args.model,
        "file": args.trait,
        "steps": args.steps,
        "learning_rate": args.learning_rate,
        "base_weights": DTYPE,
        "seed": args.seed,
        "n_planted": len(planted),
        "seconds": {r.method: round(r.seconds, 1) for r in rankings},
        "planted_among_first": {r.method: len(set(r.first(len(planted))) & set(planted)) for r in rankings},
        **asdict(found),
    }
    print(write_result(f"removal-{args.model}-{args.trait}", body))


def _ranked(job: ForecastJob, trait: str, method: str, work: Path) -> Ranking:
    """A ranking, from the work folder where it was made before."""
    note = work / f"ranking-{job.model.card.digest[:8]}-{trait}-{method}-{len(job.episodes)}.json"
    if not note.is_file():
        made = rank_rows(job, trait, method=method)
        work.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps([made.score.tolist(), made.seconds]), encoding="utf-8")
    score, seconds = json.loads(note.read_text(encoding="utf-8"))
    return Ranking(method, trait, 1.0, tuple(e.id for e in job.sample()), np.array(score), seconds)


if __name__ == "__main__":
    main()
