"""Precision: what bfloat16 and the packed kernel change in a ratio, against plain float32.

    python -m benchmarks.precision.run

RMS difference, over completions, of the summed log-likelihood and of the log-likelihood ratio of two poles.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from benchmarks.environment import write_result
from benchmarks.speed.run import EXAMPLE
from personae.files.casts import load_casts
from personae.files.episodes import read_episodes
from personae.models.catalogue import home, resolve
from personae.models.hf_load import load_hf
from personae.models.protocol import LanguageModel, Scorable
from personae.models.rendering import Renderer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--episodes", type=int, default=24)
    args = parser.parse_args()
    chosen = load_hf(resolve(args.model))
    renderer = Renderer(chosen.tokenizer, context_length=chosen.card.context_length)
    trait = load_casts(["core"]).select(["contemptuous"]).limit_paraphrases(1).traits[0]
    episodes = read_episodes(EXAMPLE, limit=args.episodes).require_clean().episodes
    requests = [[renderer.render(renderer.frames(p)[0], e) for e in episodes] for p in (trait.pos, trait.neg)]
    alone = table(chosen, requests, batched=False)
    paths = {f"float32, {chosen.card.kernel} kernel, batched": table(chosen, requests, batched=True)}
    paths["bfloat16"] = table(load_hf(resolve(args.model), dtype="bfloat16"), requests, batched=True)
    rows = {name: errors(values, alone) for name, values in paths.items()}
    tokens = float(np.mean([r.n_scored for r in requests[0]]))
    body = {
        "settings": vars(args),
        "tokens_per_completion": tokens,
        "reference": "float32, one at a time, no shared prefix",
        "kernels": str(sorted(p.read_text() for p in (home() / "kernels").glob("*"))),
        "errors": rows,
    }
    print(json.dumps(body, indent=1), write_result(f"precision-{args.model}", body))


def table(model: LanguageModel, requests: list[list[Scorable]], *, batched: bool) -> np.ndarray:
    """Summed log-likelihoods, shape (2, n_episodes), nats."""
    if batched:
        return np.array([[r.log_likelihood for r in model.score(part)] for part in requests])
    return np.array(
        [[model.score([Scorable(r.token_ids, r.start)])[0].log_likelihood for r in part] for part in requests]
    )


def errors(values: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    gap, ratio = values - exact, (values[0] - values[1]) - (exact[0] - exact[1])
    return {
        "rms_log_likelihood": float(np.sqrt((gap**2).mean())),
        "rms_ratio": float(np.sqrt((ratio**2).mean())),
        "worst_ratio": float(np.abs(ratio).max()),
    }


if __name__ == "__main__":
    main()
