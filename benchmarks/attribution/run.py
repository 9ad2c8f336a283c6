"""Attribution: is a conversation held in a role given back to that role?

Ten roles of the core cast speak with their last paraphrase and are scored with their first two; conversations of four
turns at temperature 1. Half of the conversations of every role, with questions of their own, fit eta; the
other half tests it, and the reverse, so every conversation is tested once. Resumes: transcripts and scores are
kept under PERSONAE_HOME.

    python -m benchmarks.attribution.run [--max-tokens 64] [--reading both]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np

from benchmarks.environment import write_result
from personae.domain.persona import BACKGROUND, Cast
from personae.files.casts import load_casts
from personae.files.openers import load_openers
from personae.inference.adequacy import adequacy
from personae.instruments.describing import READINGS, scoring_of
from personae.instruments.sampling import Stage
from personae.instruments.scoring import space_of
from personae.models.catalogue import home
from personae.models.load import load_model
from personae.models.rendering import Renderer
from personae.protocols.calibrate import (
    Labelled,
    LabelPlan,
    calibrate,
    score_transcripts,
    split_paraphrases,
    write_scripts,
)
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
    parser.add_argument("--conversations", type=int, default=12, help="held for each role, half of them for each half")
    parser.add_argument("--scored", type=int, default=6, help="of them scored, the first ones")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=28)
    parser.add_argument("--paraphrases", type=int, default=2, help="that score; the third speaks")
    parser.add_argument("--reading", choices=READINGS, default="reply", help="direction in which evidence is read")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    plan = LabelPlan(args.conversations, args.turns, args.max_tokens, seed=args.seed)
    labelled = label(args.model, cast_of(args.paraphrases), plan, args.paraphrases, args.scored, args.reading)
    body = {"settings": vars(args), **judge(labelled, args)}
    print(json.dumps(body["bars"]))
    suffix = "" if args.max_tokens == 28 else f"-{args.max_tokens}-tokens"
    print(write_result(f"attribution-{args.model}-{args.paraphrases}-{args.reading}{suffix}", body))


def cast_of(n_scoring: int) -> Cast:
    """The ten roles with the paraphrases that score and the last one, which speaks."""
    core = load_casts(["core"]).select(ROLES)
    roles = [replace(r, instructions=(*r.instructions[:n_scoring], r.instructions[-1])) for r in core.roles]
    return replace(core, roles=tuple(roles))


def label(name: str, cast: Cast, plan: LabelPlan, n_scoring: int, n_scored: int, reading: str) -> Labelled:
    """Labelled conversations of the roles, with progress lines."""
    model = load_model(name)
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    space = space_of(model.card)
    scoring = scoring_of(model, renderer, EvidenceStore(home() / "evidence", space), reading)
    stage = Stage(model, renderer, home() / "transcripts", space)
    scorers, held_out = split_paraphrases(cast, n_scoring)
    written = write_scripts(scorers, held_out, renderer, load_openers(plan.turns), plan)
    transcripts = stage.hold([w.script for w in written], plan.sampling, started=lambda n: lines("turns", n))
    kept = {f"{role}#{j}" for role in ROLES for j in range(n_scored)}
    chosen = [t for t in transcripts if t.script.id in kept]
    written = [w for w in written if w.script.id in kept]
    return score_transcripts(scoring, scorers, written, chosen, started=lambda work: lines("tokens", work.n_tokens))


def judge(labelled: Labelled, args: argparse.Namespace) -> dict[str, object]:
    """The bars, with the ten roles alone and with the model as it is among the candidates; and everything else."""
    roles = [labelled.components.index(r) for r in ROLES]
    only = replace(
        labelled,
        components=(*ROLES, BACKGROUND),
        log_likelihood=labelled.log_likelihood[:, [*roles, -1]],
        label=np.searchsorted(roles, labelled.label) if roles == sorted(roles) else _places(roles, labelled.label),
    )
    found = {}
    for kind, table in (("ten roles", only), ("with the model as it is", labelled)):
        result = calibrate(
            table, model=args.model, cast="ten roles of core", turns=args.turns, n_paraphrases=args.paraphrases
        )
        found[kind] = asdict(result)
    h = found["ten roles"]["held_out"]
    bars = {
        "attributed to the right role, at least 0.8": h["accuracy"],
        "reliability slope, 0.8 to 1.2": h["slope"],
        "Cllr, below 0.5": h["cllr"],
    }
    prior = np.log(np.full(len(ROLES) + 1, 1 / (len(ROLES) + 1)))
    worth = adequacy(only.log_likelihood, prior, eta=found["ten roles"]["eta"])
    return {
        "bars": bars,
        "confusion": _confusion(only),
        "worth": {k: v for k, v in asdict(worth).items() if k != "pointwise"},
        **found,
        "examples": {t.script.id: t.replies for t in labelled.transcripts[:: max(1, len(labelled.transcripts) // 10)]},
    }


def _places(roles: list[int], label: np.ndarray) -> np.ndarray:
    place = {column: i for i, column in enumerate(roles)}
    return np.array([place[int(x)] for x in label])


def _confusion(labelled: Labelled) -> dict[str, list[int]]:
    """Rows: who spoke; columns, in the order of ROLES: to whom it was given."""
    given = labelled.log_likelihood[:, :-1].argmax(axis=1)
    return {
        role: np.bincount(given[labelled.label == k], minlength=len(ROLES)).tolist() for k, role in enumerate(ROLES)
    }


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
