"""Does the background take what no persona said? Conversations of the attribution benchmark, a fifth replaced.

Outsiders answer the same questions with the words of a role's replies shuffled, or with text from elsewhere (a
licence, code, verse, a table). Backgrounds compared, each as the last component beside the ten roles and the
model as it is:

    bare      the turns one after another, no frame          what `screen` uses
    smooth    the bare frame's predictions at temperature 2
    half      half bare, half smooth
    shifted   the bare frame plus as many nats a token as the least framed twentieth of labelled conversations
              gains by its best role; the gain is taken from the other half of the questions

smooth and half need every next-token probability and are left out without --smooth.

    python -m benchmarks.attribution.run && python -m benchmarks.attribution.background
"""

from __future__ import annotations

import argparse
import json
import random

import numpy as np
import torch

from benchmarks.attribution.run import ROLES, cast_of, label, lines
from benchmarks.environment import RESULTS, write_result
from personae.domain.episode import Episode
from personae.domain.persona import BACKGROUND, Persona
from personae.inference.mixture import fit_mixture, sum_by_group
from personae.instruments.scoring import Scoring, space_of
from personae.models.catalogue import home
from personae.models.hf import HFModel
from personae.models.load import load_model
from personae.models.rendering import Renderer
from personae.numerics.statistics import auroc
from personae.protocols.calibrate import Labelled, LabelPlan
from personae.running.store import EvidenceStore

ELSEWHERE = (
    "Subject to the terms and conditions of this License, each Contributor hereby grants to You a perpetual, worldwide "
    "copyright license.",
    "for i in range(10):\n    total += values[i] * weights[i]\nreturn total / sum(weights)",
    "The woods are white, the lake is gray, / a heron lifts and wheels away, / and all the reeds lean down to pray.",
    "Year | Rainfall | Yield\n1998 | 612 | 4.1\n1999 | 587 | 3.8\n2000 | 640 | 4.4\n2001 | 598 | 4.0",
    "WARNING 12:04:31 worker-3 queue depth 812 exceeds limit 500, retry in 30 s; last error: connection reset",
    "Le train de nuit part à vingt-deux heures du quai numéro sept et arrive à Marseille au petit matin.",
    "The committee met on Tuesday. The minutes of the last meeting were approved. The treasurer reported a surplus.",
    "Mitochondria convert nutrients into adenosine triphosphate by oxidative phosphorylation in the inner membrane.",
)
N_INSIDE, N_OUTSIDE = 64, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--scored", type=int, default=6)
    parser.add_argument("--paraphrases", type=int, default=1)
    parser.add_argument("--smooth", action="store_true")
    args = parser.parse_args()
    result = json.loads((RESULTS / f"attribution-{args.model}-{args.paraphrases}.json").read_text())
    s = result["settings"]
    plan = LabelPlan(s["conversations"], s["turns"], s["max_tokens"], seed=s["seed"])
    labelled = label(args.model, cast_of(s["paraphrases"]), plan, s["paraphrases"], args.scored)
    model = load_model(args.model)
    assert isinstance(model, HFModel)
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    outside, kinds = outsiders(labelled)
    scoring = Scoring(model, renderer, EvidenceStore(home() / "evidence", space_of(model.card)))
    cast = cast_of(s["paraphrases"]).limit_paraphrases(s["paraphrases"])
    evidence = scoring.evidence(cast, outside, started=lambda work: lines("tokens", work.n_tokens))
    strange = sum_by_group(evidence.matrix(labelled.components), evidence.group, evidence.weight)
    table = np.concatenate([labelled.log_likelihood, strange])
    counts = sum_by_group(evidence.n_tokens[:, None].astype(np.float64), evidence.group, evidence.weight)
    n_tokens = np.concatenate([labelled.n_tokens, counts[:, 0]])
    eta = result["ten roles"]["eta"]
    columns = {"bare": table[:, -1], "shifted": table[:, -1] + shift(table, n_tokens, labelled) * n_tokens}
    if args.smooth:
        warm = smoothed(model, renderer, [*(e for t in labelled.transcripts for e in t.episodes), *outside])
        columns |= {"smooth": warm, "half": np.logaddexp(table[:, -1], warm) - np.log(2)}
    n = len(labelled.label)
    body: dict[str, object] = {"settings": vars(args), "eta": eta, "gain": gains(table, n_tokens, n, kinds)}
    for name, column in columns.items():
        body[name] = judge(np.column_stack([table[:, :-1], column]), n, kinds, eta)
    kind = f"background-{args.model}" + ("-smooth" if args.smooth else "")
    print(json.dumps(body, indent=1), write_result(kind, body))


def shift(table: np.ndarray, n_tokens: np.ndarray, labelled: Labelled) -> np.ndarray:
    """Nats a token by which a labelled conversation gains on the bare frame at least, by the other half's questions."""
    gain = (table[:, : len(ROLES)].max(axis=1) - table[:, -1]) / n_tokens
    inside = gain[: len(labelled.half)]
    by_half = [np.quantile(inside[labelled.half != h], 0.05) for h in (0, 1)]
    outside = np.full(len(gain) - len(inside), np.quantile(inside, 0.05))
    return np.concatenate([np.where(labelled.half == 0, *by_half), outside])


def gains(table: np.ndarray, n_tokens: np.ndarray, n_inside: int, kinds: list[str]) -> dict[str, object]:
    """Gain of the best role over the bare frame, nats a token: quartiles, and AUC of insiders against each kind."""
    gain = (table[:, : len(ROLES)].max(axis=1) - table[:, -1]) / n_tokens
    inside, outside = gain[:n_inside], gain[n_inside:]
    found: dict[str, object] = {"insiders": np.quantile(inside, [0.25, 0.5, 0.75]).tolist()}
    for kind in ("shuffled", "elsewhere"):
        mine = outside[[x == kind for x in kinds]]
        found[kind] = np.quantile(mine, [0.25, 0.5, 0.75]).tolist()
        both = np.concatenate([inside, mine])
        found[f"auc {kind}"] = auroc(both, np.arange(len(both)) < n_inside)
    return found


def outsiders(labelled: Labelled) -> tuple[list[Episode], list[str]]:
    """Two turns each, to the questions of the first conversations; and of which kind each conversation is."""
    rng = random.Random(0)
    episodes: list[Episode] = []
    kinds: list[str] = []
    for i, t in enumerate(labelled.transcripts[:: max(1, len(labelled.transcripts) // N_OUTSIDE)][:N_OUTSIDE]):
        kind = "shuffled" if i % 2 else "elsewhere"
        kinds.append(kind)
        texts: list[str] = []
        for turn in range(min(2, len(t.replies))):
            words = t.replies[turn].split()
            rng.shuffle(words)
            texts.append(" ".join(words) if kind == "shuffled" else ELSEWHERE[(i // 2 + turn) % len(ELSEWHERE)])
        held = type(t)(t.script, tuple(texts))
        episodes += [
            Episode(f"out-{i}/{k}", e.context, e.completion, group=f"out-{i}") for k, e in enumerate(held.episodes)
        ]
    return episodes, kinds


def smoothed(model: HFModel, renderer: Renderer, episodes: list[Episode], temperature: float = 2.0) -> np.ndarray:
    """Log-likelihood of every conversation under the bare frame at a higher temperature, nats."""
    frame = renderer.frames(Persona(BACKGROUND, ()))[0]
    sums: dict[str, float] = {}
    with torch.inference_mode():
        for e in episodes:
            item = renderer.render(frame, e)
            logits = model.module(input_ids=torch.tensor([item.token_ids])).logits[0, item.start - 1 : -1].float()
            log_p = torch.log_softmax(logits / temperature, -1)
            targets = torch.tensor(item.token_ids[item.start :])
            sums[e.group] = sums.get(e.group, 0.0) + float(log_p.gather(-1, targets[:, None]).sum())
    return np.array(list(sums.values()))


def judge(table: np.ndarray, n_inside: int, kinds: list[str], eta: float) -> dict[str, object]:
    """Background mass of files of which none, a fifth, or all come from outside."""
    k = table.shape[1]
    prior = np.log(np.full(k, 1 / k))
    rng = np.random.default_rng(0)
    chosen = rng.permutation(n_inside)[:N_INSIDE]
    files = {
        "none outside": chosen,
        "a fifth outside": np.concatenate([chosen, n_inside + np.arange(len(kinds))]),
        "all outside": n_inside + np.arange(len(kinds)),
    }
    found: dict[str, object] = {}
    for name, rows in files.items():
        fit = fit_mixture(table[rows], prior, eta=eta)
        found[name] = {
            "truth": float((rows >= n_inside).mean()),
            "background": float(fit.weight[-1]),
            "ci": [float(fit.low[-1]), float(fit.high[-1])],
            "as it is": float(fit.weight[len(ROLES)]),
        }
    best = table.argmax(axis=1) == k - 1
    out = best[n_inside:]
    found["wins among insiders"] = float(best[:n_inside].mean())
    for kind in ("shuffled", "elsewhere"):
        found[f"wins among {kind}"] = float(out[[x == kind for x in kinds]].mean())
    return found


if __name__ == "__main__":
    main()
