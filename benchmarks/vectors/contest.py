"""Steering against other tools: effect on a trait at equal loss of fluency, layers and strength chosen on other data.

    python -m benchmarks.vectors.contest --work FOLDER --python /env/bin/python [--traits a,b] [--store]

/env has repeng and steering-vectors. Every tool gets the same contrast: forty pairs of prompts a trait (two
instructions of either pole, twenty questions). Ours may also use what the model replied to them, and ordinary text.

    dev     layers: of all sets in `CANDIDATES`, the one that local gradients promise most, for every tool alike
            strength: where ordinary text of dev loses `COST` nats a token, from one measurement (costs are quadratic)
    test    other questions, replies under an instruction that no tool saw, other ordinary text: effect at the strength
            from dev with the cost that it has here; and effect at exactly `COST`, scaled by the root of the costs where
            they differ by less than a quarter, else by a second measurement

Effect: gain of the log-odds of the poles' replies, nats a token. What is known of a trait and method is kept in FOLDER
as it becomes known; the same command goes on. hidden-directions takes the mean difference at one layer, which is
"steering-vectors/mean" held to single layers, and is run as that.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import write_result
from benchmarks.vectors import rivals
from personae.cli.workbench import Workbench, open_model
from personae.domain.episode import Episode
from personae.domain.persona import PLAIN, Persona
from personae.files.casts import load_casts
from personae.files.openers import load_openers
from personae.files.reference import load_reference
from personae.inference.push import best_push, predicted
from personae.instruments.reading import Reading, read_all
from personae.instruments.sampling import Script, Stage
from personae.models.activations import Steering, require_activations
from personae.models.catalogue import home
from personae.models.gradients import shift_gradients
from personae.models.protocol import SamplingPlan
from personae.protocols.steering import DoseMeter, TraitItem, same_length
from personae.protocols.vector_material import Contrast, choose_questions, contrasts

TRAITS = (
    "contemptuous", "formal", "optimistic", "servile", "archaic_voice", "reckless", "emotionally_expressive", "anxious",
)  # fmt: skip
COST = 0.1
INSTRUCTIONS, QUESTIONS, TESTED, TOKENS = 2, 20, 16, 24
DEV_ITEMS = 6
CANDIDATES = tuple(
    tuple(range(first, first + width))
    for width, step in ((1, 1), (4, 2), (8, 2), (16, 2))
    for first in range(2, 29 - width, step)
)
RIVALS = {"repeng": ("pca_diff", "pca_center"), "steering-vectors": ("mean", "logistic")}
ONE_LAYER = "hidden-directions/mean"
OURS = ("personae/gradient",)
THEIRS = (*(f"{tool}/{m}" for tool, methods in RIVALS.items() for m in methods), ONE_LAYER)


@dataclass(frozen=True, slots=True, eq=False)
class Ordinary:
    """Ordinary replies with the gradients of their log-likelihoods."""

    episodes: tuple[Episode, ...]
    gradients: np.ndarray
    n_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One trait: pairs that make vectors, and meters that judge them."""

    contrast: Contrast
    said: list[TraitItem]
    dev: DoseMeter
    test: DoseMeter
    dev_gradients: np.ndarray


def main() -> None:
    """Run what is not known yet, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--traits", default=",".join(TRAITS))
    parser.add_argument("--python", default="python", help="Interpreter of the environment with the other tools.")
    parser.add_argument("--store", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    traits = args.traits.split(",")
    if any(not _kept(args.work, t, m).is_file() for t in traits for m in (*OURS, *THEIRS)):
        _run(args.model, traits, args.work, args.python)
    body = summary(args.work, traits, args.model)
    print(json.dumps(body["summary"], indent=1))
    if args.store:
        print(write_result(f"steering-contest-{args.model}", body))


def _run(name: str, traits: list[str], work: Path, python: str) -> None:
    bench = open_model(name, device="cpu")
    reference = load_reference()
    train, dev = (_ordinary(bench, reference[k :: 5 * (k + 1)], work / f"ordinary-{k}.npz") for k in (0, 1))
    for contrast in contrasts(load_casts(("core",)).select(traits)):
        missing = [m for m in (*OURS, *THEIRS) if not _kept(work, contrast.id, m).is_file()]
        if not missing:
            continue
        task = _task(bench, contrast, dev, reference[2::20])
        norms, vectors = _vectors(bench, task, train, work, python)
        for method in missing:
            # Ours shares residual norms among layers, as `--steer` does; the other tools add what they have made.
            found = _contest(task, dev, vectors[method], norms if method in OURS else None, one=method == ONE_LAYER)
            _kept(work, contrast.id, method).write_text(json.dumps(found))
            print(json.dumps({"trait": contrast.id, "method": method} | found), flush=True)


def _contest(task: Task, dev: Ordinary, values: np.ndarray, norms: np.ndarray | None, *, one: bool) -> dict[str, Any]:
    """Choose layers and strength on dev, then look at the test."""

    def shifts(layers: tuple[int, ...]) -> np.ndarray:
        out = np.zeros(values.shape)
        for k in layers:
            unit = values[k] / max(float(np.linalg.norm(values[k])), 1e-30)
            out[k] = values[k] if norms is None else unit * norms[k] / len(layers)
        return out

    promised = {
        c: predicted(shifts(c), task.dev_gradients, dev.gradients, dev.n_tokens, cost=COST)
        for c in CANDIDATES
        if len(c) == 1 or not one
    }
    layers = max(promised, key=lambda c: promised[c][0])
    shift, strength = shifts(layers), promised[layers][1]
    cost = task.dev.cost(_edits(shift, strength))
    tries = [_measured(task.test, shift, strength * _towards(cost))]
    if abs(tries[0][0]["cost"] / COST - 1) > 0.25:
        tries.append(_measured(task.test, shift, tries[0][0]["strength"] * _towards(tries[0][0]["cost"])))
    last, effects = min(tries, key=lambda t: abs(t[0]["cost"] - COST))
    at = effects * _towards(last["cost"])
    return {
        "layers": layers,
        "promised": promised[layers][0],
        "dev": {"strength": strength, "cost": cost},
        "as_chosen": tries[0][0],
        "at_cost": last,
        "effect": float(at.mean()),
        "se": float(at.std(ddof=1) / math.sqrt(len(at))),
        "n": len(at),
    }


def _towards(cost: float) -> float:
    """By how much to change a strength: a push is charged by its square; where it was free, a larger one is tried."""
    return float(np.clip(math.sqrt(COST / cost), 0.4, 2.5)) if cost > 0 else 2.5


def _measured(meter: DoseMeter, shift: np.ndarray, strength: float) -> tuple[dict[str, float], np.ndarray]:
    effects, cost = meter.under(_edits(shift, strength))
    return {"strength": strength, "effect": float(effects.mean()), "cost": cost}, effects


def _edits(shift: np.ndarray, strength: float) -> list[Steering]:
    return [Steering(int(k), shift[k].astype(np.float32), strength) for k in np.flatnonzero(shift.any(axis=1))]


def _task(bench: Workbench, contrast: Contrast, dev: Ordinary, last: tuple[Episode, ...]) -> Task:
    """Replies to training questions under two instructions; items of dev and test under the one that no tool saw."""
    model = require_activations(bench.model)
    texts = [q for script in load_openers(2) for q in script]
    questions = choose_questions(texts, bench.model.tokenizer, n_training=QUESTIONS, n_test=TESTED, seed=0)
    stage = Stage(bench.model, bench.renderer, home() / "transcripts", bench.space)
    plan = SamplingPlan(TOKENS)
    said = _spoken(stage, bench, contrast, questions.training, slice(INSTRUCTIONS), plan)
    items = _spoken(stage, bench, contrast, questions.test, slice(-1, None), plan)
    return Task(
        contrast,
        said,
        DoseMeter(model, bench.renderer, items[:3], dev.episodes[::2]),
        DoseMeter(model, bench.renderer, items[DEV_ITEMS:], last),
        _gradients(bench, items[:DEV_ITEMS]),
    )


def _spoken(
    stage: Stage, bench: Workbench, contrast: Contrast, asked: tuple[str, ...], which: slice, plan: SamplingPlan
) -> list[TraitItem]:
    """A reply of either pole to each question, under the instructions named in turn."""
    scripts = [
        Script(f"contest|{contrast.id}|{side}|{q}", side, frames[k % len(frames)], (q,))
        for side, persona in (("pos", contrast.positive), ("neg", contrast.negative))
        for frames in (bench.renderer.frames(persona)[which],)
        for k, q in enumerate(asked)
    ]
    held = stage.hold(scripts, plan, started=lambda _n: lambda _done: None)
    by = {(t.script.persona, t.script.asks[0]): t.episodes[0] for t in held}
    both = [q for q in asked if ("pos", q) in by and ("neg", q) in by]
    return [TraitItem(q, by["pos", q], by["neg", q]) for q in both]


def _vectors(
    bench: Workbench, task: Task, train: Ordinary, work: Path, python: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Median residual norms, and every method's vectors."""
    model = require_activations(bench.model)
    made: dict[str, np.ndarray] = {}
    sides = (("pos", task.contrast.positive), ("neg", task.contrast.negative))
    asked = [
        Reading(f"{side}|{f.instruction}|{i.question}", side, i.question, f, i.positive)
        for f, g in zip(*(bench.renderer.frames(p)[:INSTRUCTIONS] for _, p in sides), strict=True)
        for i in task.said
        for side, f in (("pos", f), ("neg", g))
    ]
    ends = read_all(model, bench.renderer, asked, reduce="prompt_last")
    pairs = ends.values.reshape(-1, 2, *ends.values.shape[1:])
    made["personae/gradient"] = best_push(_gradients(bench, task.said), train.gradients, train.n_tokens).values
    states = work / f"{task.contrast.id}-states.npz"
    np.savez(states, **{task.contrast.id: pairs})
    for tool, methods in RIVALS.items():
        out = work / f"{task.contrast.id}-{tool}.npz"
        command = [python, rivals.__file__, tool, str(states), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (work / f"{tool}.about.json").write_text(done.stdout.strip().splitlines()[-1])
        found = np.load(out)
        made |= {f"{tool}/{m}": found[f"{task.contrast.id}/{m}"] for m in methods}
    made[ONE_LAYER] = made["steering-vectors/mean"]
    return ends.norms, made


def _gradients(bench: Workbench, items: list[TraitItem]) -> np.ndarray:
    """Of the log-odds of each item's replies, nats a token, in shifts after every block."""
    frame = bench.renderer.frames(Persona(PLAIN, ()))[0]
    pairs = [
        same_length(bench.renderer.render(frame, i.positive), bench.renderer.render(frame, i.negative)) for i in items
    ]
    found = shift_gradients(bench.model, [part for pair in pairs for part in pair])
    return (found[::2] - found[1::2]) / np.array([pair[0].n_scored for pair in pairs])[:, None, None]


def _ordinary(bench: Workbench, episodes: tuple[Episode, ...], kept: Path) -> Ordinary:
    frame = bench.renderer.frames(Persona(PLAIN, ()))[0]
    items = [bench.renderer.render(frame, e) for e in episodes]
    if not kept.is_file():
        np.savez(kept, gradients=shift_gradients(bench.model, items))
    return Ordinary(episodes, np.load(kept)["gradients"], tuple(i.n_scored for i in items))


def _kept(work: Path, trait: str, method: str) -> Path:
    return work / f"{trait}-{method.replace('/', '-')}.json"


def summary(work: Path, traits: list[str], model: str) -> dict[str, Any]:
    """By trait: each of our recipes against the best method of all rivals, which is picked on the test itself."""
    of = {t: {m: json.loads(_kept(work, t, m).read_text()) for m in (*OURS, *THEIRS)} for t in traits}
    best = {t: max(THEIRS, key=lambda m: of[t][m]["effect"]) for t in traits}
    rows = {}
    for recipe in OURS:
        own = {t: of[t][recipe]["effect"] for t in traits}
        ratio = {t: own[t] / of[t][best[t]]["effect"] for t in traits}
        rows[recipe] = {
            "effect": {t: round(v, 4) for t, v in own.items()},
            "ratio_to_best_rival": {t: round(v, 3) for t, v in ratio.items()},
            "at_least_as_large_on": sum(v >= 1 for v in ratio.values()),
            "mean_ratio": round(float(np.mean(list(ratio.values()))), 3),
            "ratio_of_means": round(sum(own.values()) / sum(of[t][best[t]]["effect"] for t in traits), 3),
        }
    rows["best_rival"] = {t: {"method": m, "effect": round(of[t][m]["effect"], 4)} for t, m in best.items()}
    means = {m: round(float(np.mean([of[t][m]["effect"] for t in traits])), 4) for m in (*OURS, *THEIRS)}
    versions = {t: json.loads((work / f"{t}.about.json").read_text())["versions"] for t in RIVALS}
    settings = {"model": model, "cost": COST, "unit": "nats a token", "pairs": INSTRUCTIONS * QUESTIONS}
    return {"settings": settings, "rivals": versions, "summary": rows | {"mean_effect": means}, "traits": of}


if __name__ == "__main__":
    main()
