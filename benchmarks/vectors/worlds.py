"""Directions of a trained world against its exact beliefs.

    PERSONAE_HOME=HOME python -m benchmarks.vectors.worlds [--world NAME] [--store]

HOME holds the trained world. Prints, and with --store keeps, what the bars ask: planted direction, shuffled labels
over a hundred repeats, belief probe with selectivity, causal slope and floors at every layer.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

import numpy as np
import torch
from scipy.stats import kstest

from benchmarks.environment import write_result
from personae.models.activations import require_activations
from personae.models.load import load_model
from personae.protocols.world_vectors import (
    belief_direction,
    belief_probe,
    causal_slope,
    check_cap,
    planted_direction,
    world_states,
)
from personae.worlds.exact import ExactWorld
from personae.worlds.reading import read_world


def main() -> None:
    """Measure one trained world."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", default="personaworld")
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--store", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = require_activations(load_model(f"world:{args.world}/base", device="cpu"))
    exact = ExactWorld(read_world(args.world).base)
    states = world_states(model, exact, args.documents, np.random.default_rng(5))
    planted = planted_direction(states, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    shuffled = [
        planted_direction(states, rng, shuffled=True, n_permutations=99, n_random=1).null("permuted labels").p
        for _ in range(100)
    ]
    spread = kstest(np.array(shuffled) - rng.uniform(0, 0.01, len(shuffled)), "uniform").pvalue
    layers = []
    for layer in range(model.n_layers):
        probe = belief_probe(states, exact, layer)
        slope = causal_slope(model, exact, states, probe, layer, np.random.default_rng(2))
        floor = check_cap(model, states.ids[:60], belief_direction(states, layer), layer)
        found = {"r2": probe.r2, "selectivity": probe.selectivity, "slope": asdict(slope), "cap": asdict(floor)}
        layers.append({"layer": layer} | found)
        print(json.dumps(layers[-1]), flush=True)
    body = {
        "settings": vars(args),
        "planted": {"r": planted.signed, "layer": planted.layer, "nulls": [asdict(n) for n in planted.nulls]},
        "shuffled": {
            "n": len(shuffled),
            "below_0.05": float(np.mean(np.array(shuffled) < 0.05)),
            "ks_p": float(spread),
        },
        "layers": layers,
    }
    print(json.dumps(body))
    if args.store:
        print(write_result(f"vectors-{args.world}", body))


if __name__ == "__main__":
    main()
