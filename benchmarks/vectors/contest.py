"""Steering against other tools: effect on a trait at equal loss of fluency; everything chosen on other data.

    python -m benchmarks.vectors.contest --work FOLDER --python /env/bin/python [--traits a,b] [--store]

/env is what `benchmarks.vectors.environment` makes. Every tool gets the same two contrasts of a trait:
forty pairs of prompts (two instructions of either pole, twenty questions), and the pairs of replies of the diagnostic
items' dev half; saklas also gets states of ordinary texts. Ours: `gradient` of the log-odds of those pairs, and of the
likelihood of ordinary replies, in a shift after every block (`inference.push`), or the mean `difference` of replies.

    dev     method, contrast and layers of each tool: what local gradients on the dev items promise most at `COST`, ours
            with halves of the items judging each other, since it is made of them; the others have no such handicap
            strength: where ordinary replies of dev lose `COST` nats a token, from one measurement (costs are quadratic)
    test    items of the other half, which share no topic, and other ordinary replies: effect at the strength from dev
            with the cost that it has here; and at exactly `COST`, scaled by the root of the costs once a strength is
            found whose cost is within three tenths of it

Effect: gain of the log-odds of an item's two replies, nats a token. Layers are chosen among the same sets for all:
hidden-directions itself steers at one, and its mean difference is also among the candidates of steering-vectors. What
is known is kept in FOLDER; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import write_result
from benchmarks.vectors import rivals
from personae.cli.workbench import Workbench, open_model
from personae.domain.diagnostic import Diagnostic
from personae.domain.episode import Episode
from personae.domain.persona import PLAIN, Persona
from personae.files.casts import load_casts
from personae.files.diagnostics import load_diagnostics
from personae.files.openers import load_openers
from personae.files.reference import load_reference
from personae.inference.push import best_push, predicted
from personae.instruments.reading import Reading, question, read_all
from personae.models.activations import EditableModel, Steering, require_activations
from personae.models.gradients import shift_gradients
from personae.protocols.steering import DoseMeter, TraitItem, same_length
from personae.protocols.vector_material import choose_questions, contrasts

TRAITS = (
    "contemptuous", "formal", "optimistic", "servile", "archaic_voice", "reckless", "emotionally_expressive", "anxious",
    "malicious", "sycophantic", "power_seeking", "sarcastic",
)  # fmt: skip
COST = 0.1
INSTRUCTIONS, QUESTIONS = 2, 20
TRIES, NEAR = 4, 0.3  # measurements on the test until its cost is within so much of COST
CANDIDATES = tuple(
    tuple(range(first, first + width))
    for width, step in ((1, 1), (4, 2), (8, 2), (16, 2))
    for first in range(2, 29 - width, step)
)
METHODS = {
    "repeng": ("pca_diff", "pca_center"),
    "steering-vectors": ("mean", "pca", "logistic"),
    "saklas": ("pole", "profile", "monopolar"),
    "hidden-directions": ("mean",),
}
TOOLS = ("personae", *METHODS)
CONTRASTS = ("prompts", "texts")

Shifts = Mapping[tuple[str, tuple[int, ...]], np.ndarray]  # by method and layers, what a strength of 1 adds


@dataclass(frozen=True, slots=True, eq=False)
class Ordinary:
    """Ordinary replies with the gradients of their log-likelihoods."""

    episodes: tuple[Episode, ...]
    gradients: np.ndarray
    n_tokens: tuple[int, ...]


def main() -> None:
    """Run what is not known yet, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--traits", default=",".join(TRAITS))
    parser.add_argument("--python", default="python", help="Interpreter of the environment with the other tools.")
    parser.add_argument("--prepare", action="store_true", help="Only states, gradients and the other tools' vectors.")
    parser.add_argument("--store", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    traits = args.traits.split(",")
    if any(not _kept(args.work, t, tool).is_file() for t in traits for tool in TOOLS):
        _run(args.model, traits, args.work, args.python, only_prepare=args.prepare)
    if args.prepare:
        return
    body = summary(args.work, traits, args.model)
    print(json.dumps(body["summary"], indent=1))
    if args.store:
        print(write_result(f"steering-contest-{args.model}", body))


def _run(name: str, traits: list[str], work: Path, python: str, *, only_prepare: bool) -> None:
    bench = open_model(name, device="cpu")
    reference = load_reference()
    train, dev = (_ordinary(bench, reference[k :: 7 * (k + 1)], work / f"ordinary-{k}.npz") for k in (0, 1))
    for trait in traits:
        _prepare(bench, trait, work)
    _prepare_neutral(bench, [e for k, e in enumerate(reference) if k % 7 != 2], work / "neutral.npz")
    _theirs(traits, work, python)
    model = require_activations(bench.model)
    for trait in () if only_prepare else traits:
        missing = [tool for tool in TOOLS if not _kept(work, trait, tool).is_file()]
        if not missing:
            continue
        known = np.load(work / f"{trait}.npz")
        test = [_pair(i) for i in _items(trait, "test")]
        meter = DoseMeter(model, bench.renderer, test, reference[2::7])  # a cost from few replies is mostly noise
        costs = DoseMeter(model, bench.renderer, test[:1], dev.episodes)
        for tool in missing:
            promised, shifts = _promised(tool, trait, known, train, dev, work)
            found = _contest(promised, shifts, costs, meter)
            _kept(work, trait, tool).write_text(json.dumps(found))
            print(json.dumps({"trait": trait, "tool": tool} | found), flush=True)


def _promised(
    tool: str, trait: str, known: Mapping[str, np.ndarray], train: Ordinary, dev: Ordinary, work: Path
) -> tuple[dict[tuple[str, tuple[int, ...]], tuple[float, float]], Shifts]:
    """What local gradients promise of every method and set of layers of a tool, and the strength for it."""
    g = known["gradients"]
    if tool == "personae":
        # Ours shares residual norms among layers, as `--steer` does.
        def made_of(part: slice) -> Shifts:
            """Shifts by method and layers from some of the items."""
            push = best_push(g[part], train.gradients, train.n_tokens).values
            apart = _difference(known["texts"][part])
            of_gradients = {("gradient", c): _shared(push, known["norms"], c) for c in CANDIDATES}
            return of_gradients | {("difference", c): _chosen(apart, c) for c in CANDIDATES}

        def promised(shift: np.ndarray, part: slice) -> tuple[float, float]:
            return predicted(shift, g[part], dev.gradients, dev.n_tokens, cost=COST)

        # Both methods are made of the items that judge them, so each half is judged by the other.
        whole, halves = made_of(slice(None)), [made_of(slice(k, None, 2)) for k in (0, 1)]
        return {
            key: (
                float(np.mean([promised(half[key], slice(1 - k, None, 2))[0] for k, half in enumerate(halves)])),
                promised(shift, slice(None))[1],
            )
            for key, shift in whole.items()
        }, whole
    made = np.load(work / f"{tool}.npz")
    shifts = {
        (f"{m} of {c}", layers): _chosen(made[f"{trait}|{c}/{m}"], layers)
        for m in METHODS[tool]
        for c in CONTRASTS
        for layers in CANDIDATES
    }
    shifts = {k: s for k, s in shifts.items() if s.any()}
    return {k: predicted(s, g, dev.gradients, dev.n_tokens, cost=COST) for k, s in shifts.items()}, shifts


def _contest(promised: Mapping[Any, tuple[float, float]], shifts: Shifts, costs: DoseMeter, test: DoseMeter):
    """Take what is promised most, set its strength by the cost on dev, and look at the test."""
    best = max(promised, key=lambda k: promised[k][0])
    shift, strength = shifts[best], promised[best][1]
    cost = costs.cost(_edits(shift, strength))
    tries = [_measured(test, shift, strength * _towards(cost))]
    while len(tries) < TRIES and not _is_matched(tries[-1][0]["cost"]):
        tries.append(_measured(test, shift, tries[-1][0]["strength"] * _towards(tries[-1][0]["cost"])))
    last, effects = min(tries, key=lambda t: abs(t[0]["cost"] - COST))
    at = effects * _towards(last["cost"])
    return {
        "method": best[0],
        "layers": best[1],
        "promised": promised[best][0],
        "dev": {"strength": strength, "cost": cost},
        "as_chosen": tries[0][0],
        "at_cost": last,
        "matched": _is_matched(last["cost"]),
        "effect": float(at.mean()),
        "se": float(at.std(ddof=1) / math.sqrt(len(at))),
        "n": len(at),
    }


def _is_matched(cost: float) -> bool:
    """Whether a cost is near enough for its effect to be scaled; further away, only what was measured is told."""
    return abs(cost / COST - 1) <= NEAR


def _towards(cost: float) -> float:
    """By how much to change a strength: a push is charged by its square; where it was free, a larger one is tried."""
    return float(np.clip(math.sqrt(COST / cost), 0.4, 2.5)) if cost > 0 else 2.5


def _measured(meter: DoseMeter, shift: np.ndarray, strength: float) -> tuple[dict[str, float], np.ndarray]:
    effects, cost = meter.under(_edits(shift, strength))
    return {"strength": strength, "effect": float(effects.mean()), "cost": cost}, effects


def _edits(shift: np.ndarray, strength: float) -> list[Steering]:
    return [Steering(int(k), shift[k].astype(np.float32), strength) for k in np.flatnonzero(shift.any(axis=1))]


def _difference(states: np.ndarray) -> np.ndarray:
    return (states[:, 0] - states[:, 1]).mean(axis=0)


def _shared(values: np.ndarray, norms: np.ndarray, layers: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(values.shape)
    for k in layers:
        out[k] = values[k] / max(float(np.linalg.norm(values[k])), 1e-30) * norms[k] / len(layers)
    return out


def _chosen(values: np.ndarray, layers: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(values.shape)
    out[list(layers)] = values[list(layers)]
    return out


def _prepare(bench: Workbench, trait: str, work: Path) -> None:
    """States at the ends of both contrasts' texts, median residual norms, and gradients of the dev items' log-odds."""
    kept = work / f"{trait}.npz"
    if kept.is_file():
        return
    model, renderer = require_activations(bench.model), bench.renderer
    (contrast,) = contrasts(load_casts(("core",)).select([trait]))
    texts = [q for script in load_openers(2) for q in script]
    asked = choose_questions(texts, bench.model.tokenizer, n_training=QUESTIONS, n_test=4, seed=0).training
    frames = [renderer.frames(p)[:INSTRUCTIONS] for p in (contrast.positive, contrast.negative)]
    readings = [
        Reading(f"{side}|{k}|{q}", str(side), q, frames[side][k], question(q))
        for k in range(INSTRUCTIONS)
        for q in asked
        for side in (0, 1)
    ]
    ends = read_all(model, renderer, readings, reduce="prompt_last")
    pairs = [_pair(i) for i in _items(trait, "dev")]
    np.savez(
        kept,
        prompts=ends.values.reshape(-1, 2, *ends.values.shape[1:]),
        norms=ends.norms,
        texts=_last_tokens(model, bench, pairs),
        gradients=_gradients(bench, pairs),
    )


def _prepare_neutral(bench: Workbench, episodes: list[Episode], kept: Path) -> None:
    """States without instruction at the ends of ordinary prompts and replies, none of which is in the test."""
    if kept.is_file():
        return
    model, frame = require_activations(bench.model), bench.renderer.frames(Persona(PLAIN, ()))[0]
    items = [bench.renderer.render(frame, e) for e in episodes]
    ended = [replace(i, token_ids=(*i.token_ids, i.token_ids[-1]), start=len(i.token_ids)) for i in items]
    read = {
        c: np.stack(model.read(part, reduce="prompt_last")) for c, part in zip(CONTRASTS, (items, ended), strict=True)
    }
    np.savez(kept, **read)


def _last_tokens(model: EditableModel, bench: Workbench, pairs: list[TraitItem]) -> np.ndarray:
    """States at the last token of either reply, without instruction: shape (n_pairs, 2, n_layers, d_model)."""
    frame = bench.renderer.frames(Persona(PLAIN, ()))[0]
    items = [bench.renderer.render(frame, e) for p in pairs for e in (p.positive, p.negative)]
    # What is read is the token before the span: the span is moved behind the reply.
    ended = [replace(i, token_ids=(*i.token_ids, i.token_ids[-1]), start=len(i.token_ids)) for i in items]
    states = np.stack(model.read(ended, reduce="prompt_last"))
    return states.reshape(-1, 2, *states.shape[1:])


def _gradients(bench: Workbench, pairs: list[TraitItem]) -> np.ndarray:
    """Of the log-odds of each pair of replies, nats a token, in shifts after every block."""
    frame = bench.renderer.frames(Persona(PLAIN, ()))[0]
    both = [
        same_length(bench.renderer.render(frame, i.positive), bench.renderer.render(frame, i.negative)) for i in pairs
    ]
    found = shift_gradients(bench.model, [part for pair in both for part in pair])
    return (found[::2] - found[1::2]) / np.array([pair[0].n_scored for pair in both])[:, None, None]


def _items(trait: str, split: str) -> list[Diagnostic]:
    return [i for i in load_diagnostics("core").items if (i.trait, i.kind, i.split) == (trait, "reply", split)]


def _pair(item: Diagnostic) -> TraitItem:
    asked = question(item.prompt)
    return TraitItem(
        item.prompt,
        Episode(f"{item.id}/pos", asked.context, item.pos),
        Episode(f"{item.id}/neg", asked.context, item.neg),
    )


def _theirs(traits: list[str], work: Path, python: str) -> None:
    """Vectors of the other tools, from the same states."""
    for tool in METHODS:
        out = work / f"{tool}.npz"
        if out.is_file() and all(f"{t}|prompts/{METHODS[tool][0]}" in np.load(out).files for t in traits):
            continue
        states = work / "states.npz"
        known = {f"{t}|{c}": np.load(work / f"{t}.npz")[c] for t in traits for c in CONTRASTS}
        np.savez(states, **known, **{f"{rivals.NEUTRAL}|{c}": np.load(work / "neutral.npz")[c] for c in CONTRASTS})
        command = [python, rivals.__file__, tool, str(states), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (work / f"{tool}.about.json").write_text(done.stdout.strip().splitlines()[-1])


def _ordinary(bench: Workbench, episodes: tuple[Episode, ...], kept: Path) -> Ordinary:
    frame = bench.renderer.frames(Persona(PLAIN, ()))[0]
    items = [bench.renderer.render(frame, e) for e in episodes]
    if not kept.is_file():
        np.savez(kept, gradients=shift_gradients(bench.model, items))
    return Ordinary(episodes, np.load(kept)["gradients"], tuple(i.n_scored for i in items))


def _kept(work: Path, trait: str, tool: str) -> Path:
    return work / f"{trait}-{tool}.json"


def summary(work: Path, traits: list[str], model: str) -> dict[str, Any]:
    """By trait: ours against the tool with the largest effect, which is picked on the test itself."""
    of = {t: {tool: json.loads(_kept(work, t, tool).read_text()) for tool in TOOLS} for t in traits}
    best = {t: max(TOOLS[1:], key=lambda tool: of[t][tool]["effect"]) for t in traits}
    own = {t: of[t]["personae"]["effect"] for t in traits}
    theirs = {t: of[t][best[t]]["effect"] for t in traits}
    sure = [t for t in traits if all(_is_matched(of[t][tool]["at_cost"]["cost"]) for tool in ("personae", best[t]))]
    rows = {
        "both_matched_on": sure,
        "ours": {t: round(v, 4) for t, v in own.items()},
        "best_rival": {t: [best[t], round(v, 4)] for t, v in theirs.items()},
        # Only where both sides were tried near the cost at which they are compared: elsewhere effects are scaled.
        "at_least_as_large_on": sum(own[t] >= theirs[t] for t in sure),
        "of": len(sure),
        "mean_of_ratios_to_best_rival": round(float(np.mean([own[t] / theirs[t] for t in sure])), 3) if sure else None,
        "ratio_of_means_to_each": {
            tool: round(sum(own[t] for t in sure) / sum(of[t][tool]["effect"] for t in sure), 3) for tool in TOOLS[1:]
        },
        "ratio_of_means_to_best_rival": (
            round(sum(own[t] for t in sure) / sum(theirs[t] for t in sure), 3) if sure else None
        ),
    }
    versions = {tool: json.loads((work / f"{tool}.about.json").read_text())["versions"] for tool in METHODS}
    settings = {"model": model, "cost": COST, "unit": "nats a token", "pairs": INSTRUCTIONS * QUESTIONS}
    loose = [t for t in traits if t not in sure]
    note = f"effects of {', '.join(loose)} are scaled from costs far from {COST}: see at_cost" if loose else ""
    return {"settings": settings, "rivals": versions, "note": note, "summary": rows, "traits": of}


if __name__ == "__main__":
    main()
