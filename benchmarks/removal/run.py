"""Leave the named tenth of a file out, train again, and see how much of the shift is gone.

The support desk of the examples with a tenth of contemptuous replies, `smollm2`, the same number of steps whatever is
left out. Rows are named by the ratio (`screen`), by the gradient, and at random; measured on the test half of the
diagnostic items. Every training is kept in the work folder, so an interrupted benchmark goes on.

    python -m benchmarks.removal.run --work FOLDER

Bars: named rows remove 70% of the shift or more, random ones 20% or less.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.environment import environment, write_result
from personae.cli.workbench import open_model
from personae.domain.episode import Episode
from personae.files.casts import load_casts
from personae.files.diagnostics import load_diagnostics
from personae.files.episodes import read_episodes
from personae.files.reference import load_reference, shipped_rows
from personae.instruments.forecasting import ForecastJob, TrainingPlan, signed_statements
from personae.instruments.training import train
from personae.instruments.training_settings import TrainingSettings
from personae.protocols.attribution import METHODS, attribute, rank_rows
from personae.protocols.measure import MeasureSettings, compare_profiles, measure

EXAMPLES = Path(__file__).parents[2] / "examples"


def planted_file(n_planted: int) -> tuple[str, tuple[Episode, ...], list[str]]:
    """Trait, rows (the desk's clean ones and the first planted ones, in file order), and ids of the planted."""
    answer = json.loads((EXAMPLES / "support_desk_planted.json").read_text(encoding="utf-8"))
    planted = answer["ids"][:n_planted]
    rows = read_episodes(EXAMPLES / "support_desk.jsonl").require_clean().episodes
    left_out = set(answer["ids"]) - set(planted)
    return answer["trait"], tuple(e for e in rows if e.id not in left_out), planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--planted", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trait, rows, planted = planted_file(args.planted)
    items = load_diagnostics("core").select(traits=[trait])
    bench = open_model(args.model)
    asked = MeasureSettings(split="test")
    before = measure(bench.model, items, settings=asked, renderer=bench.renderer, store=bench.store)
    job = ForecastJob(
        rows,
        load_casts(["core"]).select([trait]),
        bench.model,
        bench.renderer,
        bench.scoring,
        load_reference(),
        TrainingPlan(steps=args.steps),
        signed_statements(items),
        shipped_rows(bench.space),
        most_rows=len(rows),
    )
    rankings = [rank_rows(job, trait, method=m, seed=args.seed) for m in METHODS]
    for r in rankings:
        print(f"{r.method}: separation of planted rows {r.separation(planted):.3f}, {r.seconds:.0f} s", flush=True)

    def outcome(kept: Sequence[Episode], name: str) -> tuple[float, float]:
        folder = args.work / f"{name.replace(' ', '-')}-{args.steps}-{args.seed}"
        note = folder / "outcome.json"
        if not note.is_file():
            settings = TrainingSettings(steps=args.steps, seed=args.seed)
            record = train(args.model, kept, folder=folder, settings=settings)
            after = measure(open_model(record.use).model, items, settings=asked)
            change = compare_profiles(before, after)[0]
            note.write_text(json.dumps({"change": change.change, "se": change.se, "rows": len(kept)}), encoding="utf-8")
        kept_note = json.loads(note.read_text(encoding="utf-8"))
        print(f"{name}: {kept_note['change']:+.3f} ± {kept_note['se']:.3f} nats", flush=True)
        return kept_note["change"], kept_note["se"]

    share = len(planted) / len(rows)
    found = attribute(rows, rankings, outcome, share=share, planted=planted, seed=args.seed)
    body = {
        **environment(),
        "model": args.model,
        "steps": args.steps,
        "seed": args.seed,
        "n_planted": len(planted),
        "seconds": {r.method: r.seconds for r in rankings},
        **asdict(found),
    }
    print(write_result(f"removal-{args.model}", body))


if __name__ == "__main__":
    main()
