"""Ray and processes with two one-thread workers against one, and what the store and the executor cost.

    python -m benchmarks.executors.run [--model smollm2] [--rounds 3] [--measure cost processes ray]

Needs a machine on which nothing else runs: with a load average above 1 it says so and stores nothing. Workers are
loaded before the clock starts. Cost: the seconds of `Scoring.evidence` less those of the model's own calls in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import write_result
from benchmarks.speed.run import EXAMPLE
from personae.files.casts import load_casts
from personae.files.episodes import read_episodes
from personae.instruments.scoring import Scoring, space_of
from personae.instruments.workers import Loader, PooledModel
from personae.models.load import load_model
from personae.models.protocol import LanguageModel, SamplingPlan, Scorable
from personae.models.rendering import Renderer
from personae.running.executor import make_executor
from personae.running.store import EvidenceStore
from personae.tables.evidence import Evidence

TRAITS = "servile,contemptuous,sycophantic,caring"
PARTS = ("cost", "processes", "ray")
LEAST_GAIN, MOST_COST, BUSY = 1.7, 0.05, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    busy = os.getloadavg()[0]
    body: dict[str, object] = {"settings": vars(args), "load_average": busy}
    if "cost" in args.measure:
        body["cost"] = cost_of_store(args.model, args.episodes, args.rounds)
    kinds = [kind for kind in args.measure if kind != "cost"]
    if busy < BUSY:
        body["gain"] = {kind: gain(kind, args.model, args.episodes, args.rounds) for kind in kinds}
    print(json.dumps(body, indent=1))
    if busy >= BUSY:
        print(f"the load average is {busy:.1f}: times of workers would say who else was here; not measured, not stored")
        return
    suffix = "" if len(args.measure) == len(PARTS) else "-" + "-".join(args.measure)
    print(write_result(f"executors-{args.model}{suffix}", body))


def evidence(model: LanguageModel, n: int) -> tuple[Evidence, float]:
    """Evidence of some traits over the shipped example into an empty store, and the seconds."""
    cast = load_casts(["core"]).select(TRAITS.split(",")).limit_paraphrases(1)
    episodes = read_episodes(EXAMPLE, limit=n).require_clean().episodes
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    with tempfile.TemporaryDirectory() as folder:
        scoring = Scoring(model, renderer, EvidenceStore(Path(folder), space_of(model.card)))
        began = time.perf_counter()
        found = scoring.evidence(cast, episodes, started=lambda _: lambda amount: None)
        return found, time.perf_counter() - began


def gain(kind: str, name: str, n: int, rounds: int) -> dict[str, object]:
    """One worker against two, in turns; the median of the rounds' ratios."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    bits: dict[int, bytes] = {}
    for workers in (1, 2) * rounds:
        executor = make_executor(kind, workers=workers)
        model = PooledModel(Loader(name), executor)
        model.score([Scorable(tuple(range(1, 9)), 1)])  # the first worker is loaded; now the others
        list(model.score_batches([[Scorable(tuple(range(1, 9)), 1)]] * 8 * workers))
        made, took = evidence(model, n)
        executor.close()
        seconds[workers].append(took)
        bits[workers] = made.frame_log_likelihood.tobytes()
    ratio = statistics.median(a / b for a, b in zip(seconds[1], seconds[2], strict=True))
    return {"seconds": seconds, "ratio": round(ratio, 3), "same_bits": bits[1] == bits[2], "holds": ratio >= LEAST_GAIN}


class Timed:
    """A model that counts the seconds of its own calls."""

    def __init__(self, inner: LanguageModel) -> None:
        self.inner, self.card, self.tokenizer, self.seconds = inner, inner.card, inner.tokenizer, 0.0

    def score(self, batch: Sequence[Scorable]):
        """The inner model's answer, timed."""
        began = time.process_time()
        made = self.inner.score(batch)
        self.seconds += time.process_time() - began
        return made

    def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan):
        """The inner model's answer."""
        return self.inner.sample(batch, plan)


def cost_of_store(name: str, n: int, rounds: int) -> dict[str, object]:
    """Processor seconds of scoring that are not the model's: rendering, planning, storing, the table."""
    model = Timed(load_model(name))
    evidence(model, 4)  # what is paid once
    shares = []
    for _ in range(rounds):
        model.seconds = 0.0
        began = time.process_time()
        evidence(model, n)
        whole = time.process_time() - began
        shares.append((whole - model.seconds) / whole)
    share = statistics.median(shares)
    return {"share": round(share, 4), "shares": [round(s, 4) for s in shares], "holds": share <= MOST_COST}


if __name__ == "__main__":
    main()
