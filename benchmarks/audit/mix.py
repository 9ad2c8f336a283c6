"""A 70/30 mix of two roles, as a real scorer hears it: what is recovered, and why the rest is not.

    python -m benchmarks.audit.mix [--prompts 40] [--max-tokens 16] [--roles A,B,C]

The model speaks under the last instruction of each of six roles and is scored under their first two. Conversations with
odd prompts are labelled: they fit power and offsets and give the confusion matrix. Those with even prompts make
mixtures, 70/30 of every ordered pair, of which the weights are known. Four estimates: the mixture as `profile` fits it
(eta 0.25), with the fitted power, with power and offsets, the confusion turned round. Then the halves change places.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import write_result
from benchmarks.profile.roles import CAST, SHARE
from personae.cli.workbench import open_model
from personae.domain.probe_prompt import spread
from personae.files.casts import load_casts
from personae.files.prompts import built_in_prompts
from personae.inference.judge_bias import JudgeBias, confusion, deconvolved, fit_judge_bias, without_bias
from personae.inference.mixture import DEFAULT_ETA
from personae.inference.persona_mix import persona_mix
from personae.instruments.judging import CastJudge
from personae.instruments.scoring import Work
from personae.instruments.speaking import Interview, SpeakingModel
from personae.models.catalogue import home
from personae.models.protocol import SamplingPlan
from personae.protocols.calibrate import split_paraphrases
from personae.protocols.profile import listen

BAR = 0.1
Floats = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--roles", default=CAST)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--scoring", type=int, default=2, help="instructions of each role that score")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.time()
    roles = args.roles.split(",")
    table, label, tokens, half, prior = heard(args, roles)
    estimates: dict[str, list[dict[str, object]]] = {}
    known = []
    for side in (0, 1):
        train, test = half == side, half != side
        known.append(judge_of(table[train], label[train], tokens[train], roles))
        for first, second in permutations(range(len(roles)), 2):
            rows = planted(label, test, first, second, args.seed)
            truth = np.zeros(len(roles))
            truth[[first, second]] = SHARE, 1 - SHARE
            for name, weights in estimated(table, tokens, rows, known[-1][0], known[-1][1], prior, args.seed).items():
                error = float(np.abs(weights[: len(roles)] - truth).max())
                pair = f"{roles[first]} 70, {roles[second]} 30"
                shown = {r: round(float(w), 3) for r, w in zip([*roles, "others"], weights, strict=False)}
                estimates.setdefault(name, []).append({"pair": pair, "half": side, "error": error, "weights": shown})
    body = {
        "settings": vars(args),
        "seconds": round(time.time() - began, 1),
        "conversations_a_role": int((label == 0).sum()),
        "accuracy": float((table[:, : len(roles)].argmax(axis=1) == label).mean()),
        "judge": [k[2] for k in known],
        "summary": {name: summary(rows) for name, rows in estimates.items()},
        "pirate_and_knight": {
            n: [r for r in rows if set(r["pair"].split()) >= {"pirate", "knight"}] for n, rows in estimates.items()
        },
        "estimates": estimates,
    }
    print(json.dumps({k: v for k, v in body.items() if k != "estimates"}, indent=1))
    print(write_result(f"audit-mix-{args.model}", body))


def heard(
    args: argparse.Namespace, roles: list[str]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Floats]:
    """Log-likelihoods of every role's conversations under every component, who spoke, tokens, halves, and the prior."""
    scorers, held_out = split_paraphrases(load_casts(["core"]).select(roles), args.scoring)
    bench = open_model(args.model, device="cpu", dtype="float32")
    judge = CastJudge(bench.scoring, bench.model, bench.renderer, scorers)
    order = [next(i for i, c in enumerate(judge.components) if c.id == r) for r in roles]
    order += [i for i in range(len(judge.components)) if i not in order]
    prompts = spread(built_in_prompts(), args.prompts)
    side = {p.id: k % 2 for k, p in enumerate(prompts)}
    tables, labels, tokens, halves = [], [], [], []
    for k, role in enumerate(roles):
        speaker = SpeakingModel(bench.model, bench.renderer, bench.space, system=held_out[role][-1])
        said = Interview(speaker, home() / "transcripts").hold(
            prompts, SamplingPlan(args.max_tokens, 1.0, args.seed + k), n_samples=1, started=lambda n: lambda done: None
        )
        listened = listen(said, judge, started=_quietly)
        tables.append(listened.heard.log_likelihood[:, order])
        tokens.append(listened.heard.n_tokens)
        labels += [k] * len(listened.prompt)
        halves += [side[p] for p in listened.prompt]
    return np.concatenate(tables), np.array(labels), np.concatenate(tokens), np.array(halves), judge.log_prior[order]


def _quietly(work: Work):  # type: ignore[no-untyped-def]
    return lambda done: None


def judge_of(
    table: Floats, label: NDArray[np.int64], tokens: NDArray[np.int64], roles: list[str]
) -> tuple[dict[str, JudgeBias], Floats, dict[str, object]]:
    """What labelled conversations say: power alone, power and offsets, the confusion, and all of it in words."""
    k = len(roles)
    power = fit_judge_bias(table[:, :k], label, tokens, offsets=False)
    both = fit_judge_bias(table[:, :k], label, tokens)
    seen = confusion(table[:, :k], label, both, tokens)
    told = {
        "eta_alone": power.eta,
        "eta": both.eta,
        "offset_nats_a_token": dict(zip(roles, both.offset.round(4).tolist(), strict=True)),
        "log_loss": [power.log_loss, both.log_loss, float(np.log(k))],
        "confusion": dict(zip(roles, seen.round(3).tolist(), strict=True)),
    }
    return {"power": power, "offsets": both}, seen, told


def planted(label: NDArray[np.int64], test: NDArray[np.bool_], first: int, second: int, seed: int) -> NDArray[np.int64]:
    """Rows of a mix: of the test half all of the first role's conversations that 70 to 30 allows."""
    rng = np.random.default_rng([seed, first, second])
    pools = [rng.permutation(np.flatnonzero(test & (label == k))) for k in (first, second)]
    n = int(min(len(pools[0]) / SHARE, len(pools[1]) / (1 - SHARE)))
    n_first = round(SHARE * n)
    return np.concatenate([pools[0][:n_first], pools[1][: n - n_first]])


def estimated(
    table: Floats,
    tokens: NDArray[np.int64],
    rows: NDArray[np.int64],
    judge: dict[str, JudgeBias],
    seen: Floats,
    prior: Floats,
    seed: int,
) -> dict[str, Floats]:
    """Weights by every way."""
    mine, n = table[rows], tokens[rows]
    names = [str(i) for i in range(len(rows))]
    ways = {
        "as profile fits it": (mine, DEFAULT_ETA),
        "fitted power": (mine, judge["power"].eta),
        "power and offsets": (without_bias(mine, n, judge["offsets"]), judge["offsets"].eta),
    }
    made = {
        name: persona_mix(values, prior, prompt=names, eta=eta, seed=seed).weight
        for name, (values, eta) in ways.items()
    }
    made["confusion turned round"] = deconvolved(mine[:, : len(seen)], n, judge["offsets"], seen)
    return made


def summary(rows: list[dict[str, object]]) -> dict[str, float]:
    """Largest errors of a way over all pairs."""
    errors = np.array([r["error"] for r in rows], np.float64)
    return {
        "mean_largest_error": float(errors.mean()),
        "median": float(np.median(errors)),
        f"within_{BAR}": float((errors <= BAR).mean()),
        "n": len(rows),
    }


if __name__ == "__main__":
    main()
