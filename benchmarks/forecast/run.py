"""Run the forecast benchmark: train, measure, read the forecasters; each result is stored when it is there.

    python -m benchmarks.forecast.run train measure --folder FOLDER [--evals FOLDER] [--only smollm2] [--until 14:20]

FOLDER keeps files, adapters and item scores (large); `benchmarks/results/forecast/` gets one small file a run. What is
done is not done again, so a killed benchmark goes on with the same command. `--until` (UTC) ends it between two runs;
the order of `manifest` makes what is done by then a balanced set.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.forecast.manifest import Run, manifest
from benchmarks.forecast.measuring import is_measured, items_of, measure_run
from benchmarks.forecast.reading import read_run, read_states
from benchmarks.forecast.work import DOSES_OF, adapters_of, train_first_dose, train_run

Stage = Callable[[Run, argparse.Namespace], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("stages", nargs="+", choices=list(STAGES))
    parser.add_argument("--folder", type=Path, default=Path("runs/forecast-benchmark"))
    parser.add_argument("--evals", type=Path, help="folder of statements of Perez et al. 2022, one .jsonl a behaviour")
    parser.add_argument("--model", help="only runs of this model")
    parser.add_argument("--only", help="only runs whose id contains one of these, separated by commas")
    parser.add_argument("--seeds", type=int, nargs="+", help="only runs of these seeds")
    parser.add_argument("--until", type=_clock, help="hour and minute, UTC")
    args = parser.parse_args()
    for run in manifest():
        if not _is_wanted(run, args):
            continue
        if run.dataset.kind == "opinion" and args.evals is None:
            print(f"{run.id}: left out, it needs --evals", flush=True)
            continue
        for stage in args.stages:
            if args.until and datetime.datetime.now(datetime.UTC).time() > args.until:
                print("time is up", flush=True)
                return
            print(f"{_now()} {run.id}: {stage}: {STAGES[stage](run, args)}", flush=True)


def _is_wanted(run: Run, args: argparse.Namespace) -> bool:
    named = args.only is None or any(part in run.id for part in args.only.split(","))
    return named and args.model in (None, run.model) and (args.seeds is None or run.seed in args.seeds)


def _train(run: Run, args: argparse.Namespace) -> str:
    known = train_run(run, args.folder, args.evals)
    return f"loss {known['first_loss']} to {known['last_loss']} in {known['seconds']} s"


def _train_early(run: Run, args: argparse.Namespace) -> str:
    train_first_dose(run, args.folder, args.evals)
    return "done"


def _measure(run: Run, args: argparse.Namespace) -> str:
    return _told(run, measure_run(run, args.folder, args.evals), DOSES_OF[run.model][-1])


def _measure_early(run: Run, args: argparse.Namespace) -> str:
    return _told(run, measure_run(run, args.folder, args.evals, doses=DOSES_OF[run.model][:1]), DOSES_OF[run.model][0])


def _collect(run: Run, args: argparse.Namespace) -> str:
    """Store again what FOLDER holds of the run; trains and measures nothing."""
    found = tuple(rows for rows, a in adapters_of(run, args.folder).items() if is_measured(items_of(a, rows)))
    if not found:
        return "not measured yet"
    body = measure_run(run, args.folder, args.evals, doses=found)
    return f"{len(body['doses'])} doses"


def _told(run: Run, body: dict[str, Any], rows: int) -> str:
    dose = body["doses"][str(rows)]
    size = sum(v[0] ** 2 for v in dose["shift"].values()) ** 0.5
    own = dose["shift"].get(run.dataset.trait, [float("nan")])[0]
    return f"all shifts {size:.1f} nats, its own trait {own:.1f}; {dose['seconds']} s"


def _read(names: tuple[str, ...]) -> Stage:
    def read(run: Run, args: argparse.Namespace) -> str:
        readings = read_run(run, args.folder, args.evals, names)["readings"]
        return ", ".join(f"{n} {readings[n]['seconds']} s ({readings[n]['of_training']:.0%})" for n in names)

    return read


def _read_states(run: Run, args: argparse.Namespace) -> str:
    read_states(run, args.folder, args.evals)
    return "kept"


STAGES: dict[str, Stage] = {
    "train": _train,
    "train-early": _train_early,
    "measure": _measure,
    "measure-early": _measure_early,
    "collect": _collect,
    "read": _read(("lexical", "gradient", "gradient_sgd", "centroid")),
    "read-likelihoods": _read(("llr", "tempered_bayes", "em_flow")),
    "read-miniatures": _read(("miniature",)),
    "read-states": _read_states,
    "read-projections": _read(("projection",)),
}


def _clock(text: str) -> datetime.time:
    return datetime.time.fromisoformat(text)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%H:%M:%S")


if __name__ == "__main__":
    main()
