"""Steering effect at matched fluency cost: our recipes and repeng's, layers chosen on other questions than the test's.

    python -m benchmarks.vectors.steering --traits contemptuous,malicious --store

For each trait and recipe: vectors from sixteen questions; three bands of layers tried on half of the other questions
and of the ordinary texts; the band with the largest effect at a cost of 0.1 nats a token is measured on the other
halves. Effect is the gain of the trait's log-odds, nats a token. repeng is read where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from dataclasses import replace

import numpy as np
import torch

from benchmarks.environment import write_result
from personae.cli.workbench import Workbench, open_model
from personae.files.casts import load_casts
from personae.files.openers import load_openers
from personae.files.reference import load_reference
from personae.instruments.sampling import Stage
from personae.models.activations import require_activations
from personae.models.catalogue import home
from personae.models.protocol import SamplingPlan
from personae.protocols.steering import DoseMeter, dose_curve, trait_items
from personae.protocols.vector_material import Contrast, choose_questions, contrasts
from personae.protocols.vectors import Extractor, ExtractSettings, Material, mean_difference_vector
from personae.tables.space import PersonaVector

BANDS = ((8, 15), (12, 19), (16, 23))
DOSES = (0.1, 0.2, 0.4, 0.8)
COST = 0.1


def main() -> None:
    """Run the traits asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--traits", default="contemptuous,malicious")
    parser.add_argument("--store", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = open_model(args.model)
    cast = load_casts(("core",)).select(args.traits.split(","))
    found = {}
    for contrast in contrasts(cast):
        found[contrast.id] = of_trait(bench, contrast)
        print(json.dumps({contrast.id: found[contrast.id]}), flush=True)
    body = {"model": args.model, "cost": COST, "unit": "nats a token", "effect_at_cost": found}
    if args.store:
        print(write_result("vectors-steering", body))


def of_trait(bench: Workbench, contrast: Contrast) -> dict[str, dict[str, object]]:
    """Effect at the cost, by recipe."""
    model = require_activations(bench.model)
    texts = [q for script in load_openers(2) for q in script]
    questions = choose_questions(texts, bench.model.tokenizer, n_training=16, n_test=16, seed=0)
    stage = Stage(bench.model, bench.renderer, home() / "transcripts", bench.space)
    items = trait_items(stage, bench.model, bench.renderer, contrast, questions.test, SamplingPlan(20), n_samples=1)
    ordinary = load_reference()[::14]
    halves = [DoseMeter(model, bench.renderer, items[k::2], ordinary[k::2]) for k in (0, 1)]
    made: dict[str, dict[str, object]] = {}
    for name, vector in vectors_of(bench, contrast, questions).items():
        curves = {
            band: dose_curve(halves[0], model, vector, DOSES, range(band[0], band[1] + 1), n_random=0) for band in BANDS
        }
        best = max(curves, key=lambda band: curves[band].effect_at_cost(COST))
        test = dose_curve(halves[1], model, vector, DOSES, range(best[0], best[1] + 1), n_random=0)
        made[name] = {"band": best, "effect": test.effect_at_cost(COST), "chosen_on": curves[best].effect_at_cost(COST)}
    return made


def vectors_of(bench: Workbench, contrast: Contrast, questions) -> dict[str, PersonaVector]:
    """Our vectors, and repeng's from the same prompts where it is installed."""
    model = require_activations(bench.model)
    part = Extractor(model, bench.renderer, None, ExtractSettings()).read(contrast, questions)
    ours = mean_difference_vector(part, "last prompt token", -1)
    made = {"personae, last prompt token": ours}
    if importlib.util.find_spec("repeng") is not None:
        made |= {f"repeng, {m}": replace(ours, id=m, values=like_repeng(part, m)) for m in ("pca_diff", "pca_center")}
    return made


def like_repeng(part: Material, method: str) -> np.ndarray:
    """Directions by the extraction of repeng itself (`repeng.extract.read_representations`) on the same states."""
    vars(np)["float_"] = np.float64  # repeng 0.4.0 asks NumPy 1's name when it is imported
    from repeng.extract import DatasetEntry, read_representations

    positive = np.array([label == "pos" for label in part.training.labels])
    a, b = part.training.values[positive], part.training.values[~positive]
    states = np.stack([a, b], axis=1).reshape(-1, *a.shape[1:])  # pairs stand one after the other

    def hiddens(*_args: object, **_more: object) -> dict[int, np.ndarray]:
        return {layer: states[:, layer].astype(np.float32) for layer in range(states.shape[1])}

    import repeng.extract

    repeng.extract.batched_get_hiddens = hiddens
    repeng.extract.model_layer_list = lambda _model: range(states.shape[1])
    data = [DatasetEntry(positive="p", negative="n") for _ in a]
    layers = list(range(states.shape[1]))
    found = read_representations(_Shape(len(layers)), None, data, hidden_layers=layers, method=method)
    return np.stack([found[layer] for layer in layers]).astype(np.float32)


class _Shape:
    """What repeng asks of a model when the states are already there."""

    def __init__(self, n_layers: int) -> None:
        self.config = type("Config", (), {"num_hidden_layers": n_layers})()


if __name__ == "__main__":
    main()
