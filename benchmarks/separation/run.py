"""Separation on statements nobody here wrote: does the ratio rank matching above not matching?

For each behaviour of a folder of model-written evaluations (Perez et al. 2022, arXiv 2212.09251), every
statement is scored as the reply to one neutral question under both poles, whose instructions were written
from the behaviour's name alone. Behaviours 0-11 of `order.txt` were used to choose how paraphrases combine,
36-41 to see that reading in both directions helps; no choice was made on 12-35. `sharpen` learns from poles
and own sentences of 39 of the first 42 (`dispositions`), so a sharpened scorer is judged on 42-71 alone.

    python -m benchmarks.separation.run --model smollm2 --data FOLDER [--first 12 --last 36] [--reading reply]
    python -m benchmarks.separation.run --model smollm2-sharp --data FOLDER --first 42 --last 72 --per-class 12
                                        --reading reply
    personae sharpen gemma-270m --steps 140 --dtype bfloat16 --out runs/sharp
    python -m benchmarks.separation.run --model gemma-270m+runs/sharp --label gemma-270m-sharpened --data FOLDER
                                        --first 42 --last 72 --per-class 12 --reading reply

`ratio` is the reading asked for, `mean_of_logs` the replies' own, `described` the descriptions'.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from benchmarks.environment import write_result
from personae.cli.workbench import open_model
from personae.domain.episode import Episode, Turn
from personae.domain.persona import Cast, Trait
from personae.files.casts import load_casts
from personae.instruments.describing import READINGS
from personae.instruments.scoring import Work
from personae.numerics.statistics import auroc

# Chosen on eight of behaviours 0-11 (NOTES.md): what is asked decides more than how the persona is worded.
QUESTION = "Say one sentence that this person would say about themselves."
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True, help="folder with one .jsonl a behaviour")
    parser.add_argument("--per-class", type=int, default=30)
    parser.add_argument("--first", type=int, default=12)
    parser.add_argument("--last", type=int, default=42)
    parser.add_argument("--paraphrases", type=int, default=7)
    parser.add_argument("--question", default=QUESTION, help="what the statement answers")
    parser.add_argument("--label", help="what the result is filed under instead of the model's name")
    parser.add_argument("--reading", choices=READINGS, default="both", help="direction in which evidence is read")
    args = parser.parse_args()
    bench, label = open_model(args.model), args.label or args.model  # a label tells no paths
    rows = []
    started = time.time()
    for trait in behaviours()[args.first : args.last]:
        episodes, labels = statements(args.data / f"{trait.id}.jsonl", args.per_class, args.question)
        one = Cast("behaviour", (trait,)).limit_paraphrases(args.paraphrases)
        rows.append({"behaviour": trait.id, **by_reading(bench, one, trait, episodes, labels, args.reading)})
        print(json.dumps(rows[-1]), flush=True)
    means = {k: round(float(np.mean([r[k] for r in rows])), 4) for k in rows[0] if k != "behaviour"}
    body = {
        "model": bench.model.card.to_dict() | {"name": label},
        "settings": vars(args) | {"data": args.data.name, "model": label},
        "means": means,
        "n_behaviours": len(rows),
        "seconds": round(time.time() - started),
        "rows": rows,
    }
    name = f"separation-{label}-{args.first}-{args.last}" + ("" if args.reading == "both" else f"-{args.reading}")
    print(json.dumps(means), write_result(name, body))


def behaviours() -> tuple[Trait, ...]:
    """Poles of all behaviours in the order of `order.txt`; 39 of the first 42 are the cast `dispositions`."""
    known = {t.id: t for t in load_casts([str(HERE / "behaviours.yaml"), "dispositions"]).traits}
    return tuple(known[name] for name in (HERE / "order.txt").read_text().split())


def by_reading(bench, one: Cast, trait, episodes: list[Episode], labels, reading: str) -> dict[str, float]:
    """AUROC of the ratio as `reading` has it, of either direction alone, and of rivals on the replies."""
    replies = bench.scoring.evidence(one, episodes, started=_quietly)
    found = scores(replies, trait, labels)
    if reading == "reply":
        return {"ratio": found["mean_of_logs"], **found}
    both = bench.scoring_of("both").evidence(one, episodes, started=_quietly)
    mean = both.log_likelihood_ratio(trait.pos.id, trait.neg.id)
    described = 2 * mean - replies.log_likelihood_ratio(trait.pos.id, trait.neg.id)
    found |= {"described": round(auroc(described, labels), 4)}
    return {"ratio": round(auroc(mean if reading == "both" else described, labels), 4), **found}


def _quietly(work: Work):  # type: ignore[no-untyped-def]
    return lambda n: None


def statements(path: Path, per_class: int, question: str) -> tuple[list[Episode], np.ndarray]:
    """A seeded, balanced sample of statements as replies, and which of them match."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    random.Random(0).shuffle(rows)
    chosen = [r for r in rows if r["matches"]][:per_class] + [r for r in rows if not r["matches"]][:per_class]
    episodes = [Episode(f"s{k}", (Turn("user", question),), r["statement"]) for k, r in enumerate(chosen)]
    return episodes, np.array([bool(r["matches"]) for r in chosen])


def scores(evidence, trait, labels) -> dict[str, float]:
    """AUROC of the ratio personae uses, and of its rivals on the same evidence."""
    pos = evidence.frame_log_likelihood[evidence.frames_of(trait.pos.id)]
    neg = evidence.frame_log_likelihood[evidence.frames_of(trait.neg.id)]
    n = evidence.n_tokens
    rivals = {
        "mean_of_logs": evidence.log_likelihood_ratio(trait.pos.id, trait.neg.id),
        "log_of_mean": logsumexp(pos, axis=0) - logsumexp(neg, axis=0),
        "first_three": (pos[:3] - neg[:3]).mean(axis=0),
        "per_token": (pos - neg).mean(axis=0) / n,
        "length_only": n.astype(float),
    }
    values = {k: round(auroc(v, labels), 4) for k, v in rivals.items()}
    return values | {"one_instruction": round(float(np.mean([auroc(d, labels) for d in pos - neg])), 4)}


if __name__ == "__main__":
    main()
