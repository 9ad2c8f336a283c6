"""Attribution: is a conversation held in a role given back to that role?

Ten roles of the core cast speak with their last paraphrase and are scored with their first two; conversations of
four turns at temperature 1. Half of the conversations of every role, with questions of their own, fit eta; the
other half tests it, and the reverse, so every conversation is tested once. Resumes: transcripts and scores are
kept under PERSONAE_HOME.

    python -m benchmarks.attribution.run
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from benchmarks.environment import write_result
from personae.domain.persona import Cast
from personae.files.casts import load_casts
from personae.files.openers import load_openers
from personae.instruments.sampling import Stage
from personae.instruments.scoring import Scoring, Work, space_of
from personae.models.catalogue import home
from personae.models.load import load_model
from personae.models.rendering import Renderer
from personae.protocols.calibrate import Labelled, LabelPlan, label_conversations
from personae.running.store import EvidenceStore

ROLES = (
    "pirate",
    "wizard",
    "noir_detective",
    "knight",
    "tyrant_king",
    "nurse",
    "lawyer",
    "software_engineer",
    "chef",
    "robot_butler",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--conversations", type=int, default=12)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    plan = LabelPlan(args.conversations, args.turns, args.max_tokens, seed=args.seed)
    labelled = label(args.model, load_casts(["core"]).select(ROLES), plan)
    np.savez("/tmp/inf/labelled.npz", ll=labelled.log_likelihood, label=labelled.label, half=labelled.half, n=labelled.n_tokens, comp=labelled.components, cl=labelled.cluster)


def label(name: str, cast: Cast, plan: LabelPlan) -> Labelled:
    """Labelled conversations of a cast, with progress lines."""
    model = load_model(name)
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    space = space_of(model.card)
    scoring = Scoring(model, renderer, EvidenceStore(home() / "evidence", space))
    stage = Stage(model, renderer, home() / "transcripts", space)

    def sampling(n: int) -> Callable[[int], None]:
        return lines("turns", n)

    def started(work: Work) -> Callable[[int], None]:
        return lines("tokens", work.n_tokens)

    return label_conversations(
        stage, scoring, renderer, cast, load_openers(plan.turns), plan, sampling=sampling, started=started
    )


def lines(unit: str, total: int) -> Callable[[int], None]:
    """A line on standard output every half minute."""
    done, began, told = 0, time.time(), time.time()

    def advance(amount: int) -> None:
        nonlocal done, told
        done += amount
        if time.time() - told > 30:
            told = time.time()
            print(f"{done:,} of {total:,} {unit}, {told - began:.0f} s", flush=True)

    return advance


if __name__ == "__main__":
    main()
