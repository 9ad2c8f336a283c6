"""Preventative steering against inoculation and nothing: how much of a trait a fine-tune leaves, and of the others.

    python -m benchmarks.vectors.preventative --work FOLDER [--seeds 0 1] [--arms nothing steered …] [--store]

The same rows (replies of one trait's positive pole, from `benchmarks.forecast`) train an adapter under each arm:

    nothing        as they are
    inoculated     under a system prompt that asks for the trait (`train --system`)
    steered        with the trait's direction added while training (`train --steer`), 1 residual norm at its layer
    faint, gentle  the same, a quarter and half a residual norm
    stronger       the same, 2 residual norms
    random         a random direction of the same length: a push that is about nothing

Each result is measured without prompt and without steering, on the trait and seven others, paired by item with the
base. Also told: what ordinary replies lost. What is done is kept in FOLDER; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import write_result
from benchmarks.forecast.families import datasets, write_dataset
from personae.cli.workbench import Workbench, open_model
from personae.domain.persona import PLAIN, Persona
from personae.files.casts import load_casts
from personae.files.diagnostics import load_diagnostics
from personae.files.episodes import read_episodes
from personae.files.openers import load_openers
from personae.files.reference import load_reference
from personae.instruments.steering import random_like, steering
from personae.instruments.training import TrainingSettings, train
from personae.models.activations import EditableModel, Steering, require_activations
from personae.models.hf_vectors import load_vectors, save_vectors
from personae.models.load import load_model
from personae.models.rendering import Renderer
from personae.numerics.clustered import cluster_mean
from personae.protocols.measure import MeasureSettings, measure
from personae.protocols.vector_material import choose_questions, contrasts
from personae.protocols.vectors import Extractor, ExtractSettings, make_vectors

MODEL, TRAIT = "smollm2", "archaic_voice"
ARMS = {
    "nothing": 0.0, "inoculated": 0.0, "faint": 0.25, "gentle": 0.5, "steered": 1.0, "stronger": 2.0, "random": 1.0,
}  # fmt: skip
OTHERS = ("contemptuous", "formal", "optimistic", "servile", "reckless", "anxious", "playful")
SETTINGS = {"steps": 6, "learning_rate": 1e-3, "schedule": "constant", "batch_size": 8}


def main() -> None:
    """Train and measure what is not known yet, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--store", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for arm in args.arms:
            _train(args.work, arm, seed)
    known = {(arm, seed): _measured(args.work, arm, seed) for seed in args.seeds for arm in ("base", *args.arms)}
    rows = [
        {"arm": arm, "seed": seed} | _change(known["base", seed], found)
        for (arm, seed), found in known.items()
        if arm != "base"
    ]
    for row in rows:
        print(json.dumps({k: v for k, v in row.items() if k != "others"}), flush=True)
    body = {
        "model": MODEL,
        "trait": TRAIT,
        "unit": "nats towards the positive pole, change of the mean over items",
        "settings": SETTINGS | {"rows": 48, "dtype": "bfloat16"},
        "layer": _vector(args.work).best_layer,
        "runs": rows,
    }
    if args.store:
        print(write_result(f"preventative-{MODEL}", body))


def _train(work: Path, arm: str, seed: int) -> None:
    folder = work / f"{arm}-{seed}"
    if (folder / "done.json").is_file():
        return
    path = write_dataset(datasets()[f"{TRAIT}-pos"], work / "data", n=48, seed=seed, evals=None, say=None)
    vector = _vector(work)
    if arm == "random":
        vector = random_like(vector, np.random.default_rng([seed, 9]))
    system = _trait().pos.instructions[0] if arm == "inoculated" else None

    def edits(_model: EditableModel) -> list[Steering]:
        return [e for e in steering(vector, ARMS[arm], [_vector(work).best_layer]) if isinstance(e, Steering)]

    record = train(
        MODEL,
        read_episodes(path).require_clean().episodes,
        folder=folder,
        settings=TrainingSettings(**SETTINGS, system=system, seed=seed),
        device="cpu",
        dtype="bfloat16",
        edits=edits if ARMS[arm] else None,
    )
    known = {"first_loss": record.first_loss, "last_loss": record.last_loss, "seconds": record.seconds}
    (folder / "done.json").write_text(json.dumps(known))


def _measured(work: Path, arm: str, seed: int) -> dict[str, Any]:
    """Item scores and the log-probability of ordinary replies, nats a token."""
    kept = work / (f"{arm}-{seed}.json" if arm != "base" else "base.json")
    if not kept.is_file():
        model = load_model(MODEL if arm == "base" else f"{MODEL}+{work / f'{arm}-{seed}'}", device="cpu")
        items = load_diagnostics("core").select(split="test", kinds=("reply",), traits=[TRAIT, *OTHERS])
        profile = measure(model, items, settings=MeasureSettings(quick=True))
        renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
        frame = renderer.frames(Persona(PLAIN, ()))[0]
        scored = model.score([renderer.render(frame, e) for e in load_reference()[::15]])
        fluency = sum(s.log_likelihood for s in scored) / sum(len(s.log_probs) for s in scored)
        table = zip(profile.items.item, profile.item_traits, profile.items.cluster, profile.items.score, strict=True)
        training = json.loads((work / f"{arm}-{seed}" / "done.json").read_text()) if arm != "base" else {}
        found = {"items": [[i, t, c, float(s)] for i, t, c, s in table], "ordinary": fluency, "training": training}
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def _change(base: dict[str, Any], tuned: dict[str, Any]) -> dict[str, Any]:
    """By trait: mean change with its 95 % interval, items of a topic together."""
    before = {i: s for i, _, _, s in base["items"]}
    by: dict[str, list[tuple[float, str]]] = {}
    for item, trait, topic, score in tuned["items"]:
        by.setdefault(trait, []).append((score - before[item], topic))
    shifts = {}
    for trait, rows in by.items():
        e = cluster_mean([d for d, _ in rows], [c for _, c in rows], level=0.95)
        shifts[trait] = [round(e.value, 3), round(e.low, 3), round(e.high, 3)]
    others = [v[0] for t, v in shifts.items() if t != TRAIT]
    return {
        "shift": shifts[TRAIT],
        "others_rms": round(float(np.sqrt(np.mean(np.square(others)))), 3),
        "ordinary": round(tuned["ordinary"] - base["ordinary"], 4),
        "training": tuned["training"],
        "others": {t: v for t, v in shifts.items() if t != TRAIT},
    }


def _trait() -> Any:
    return load_casts(("core",)).select([TRAIT]).traits[0]


def _vector(work: Path) -> Any:
    """The trait's direction, extracted once as `personae vectors extract` does."""
    path = work / "vectors.safetensors"
    if not path.is_file():
        bench: Workbench = open_model(MODEL, device="cpu")
        texts = [q for script in load_openers(2) for q in script]
        questions = choose_questions(texts, bench.model.tokenizer, n_training=12, n_test=4, seed=0)
        settings = ExtractSettings()
        extractor = Extractor(require_activations(bench.model), bench.renderer, None, settings)
        (contrast,) = contrasts(load_casts(("core",)).select([TRAIT]))
        (made,) = make_vectors([extractor.read(contrast, questions)], None, settings)
        save_vectors(path, {TRAIT: made.vector})
    return load_vectors(path)[TRAIT]


if __name__ == "__main__":
    main()
