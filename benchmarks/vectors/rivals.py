"""Directions of other tools from states already read; runs in an environment of its own, without personae.

    python rivals.py TOOL STATES.npz OUT.npz      TOOL: repeng, steering-vectors

STATES holds an array a trait, shape (n_pairs, 2, n_layers, d_model): what a model had at the last token of the two
prompts of each pair. The tools' own code makes a direction of them; that code alone is run, since all of them read
the same numbers (`extraction.py` runs their reading too, and times it). OUT holds TRAIT/METHOD, shape (n_layers,
d_model), as long as the tool makes it. Prints one JSON object with versions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import numpy as np
import torch

States = np.ndarray
Methods = Mapping[str, Callable[[States], np.ndarray]]


def of_repeng() -> Methods:
    """Both methods that need no other package (`repeng.extract.read_representations`)."""
    # repeng 0.4.0 was written for NumPy 1 and asks for this name when it is imported.
    vars(np)["float_"] = np.float64
    import repeng.extract as extract

    def by(method: str) -> Callable[[States], np.ndarray]:
        def run(states: States) -> np.ndarray:
            n = states.shape[2]
            layers = list(range(n))
            flat = states.reshape(-1, *states.shape[2:])  # positive and negative in turn, as it wants them
            replaced: Any = extract
            replaced.batched_get_hiddens = lambda *_a: {k: flat[:, k].astype(np.float32) for k in layers}
            replaced.model_layer_list = lambda _model: layers
            data = [extract.DatasetEntry(positive="p", negative="n") for _ in states]
            model: Any = type("Model", (), {"config": type("Config", (), {"num_hidden_layers": n})()})()
            found = extract.read_representations(model, None, data, hidden_layers=layers, method=method)
            return np.stack([found[k] for k in layers])

        return run

    return {m: by(m) for m in ("pca_diff", "pca_center")}


def of_steering_vectors() -> Methods:
    """Its aggregators (`steering_vectors.aggregators`)."""
    from steering_vectors.aggregators import logistic_aggregator, mean_aggregator, pca_aggregator

    def by(aggregator: Any) -> Callable[[States], np.ndarray]:
        def run(states: States) -> np.ndarray:
            given = torch.tensor(states)
            return np.stack([aggregator(given[:, 0, k], given[:, 1, k]).numpy() for k in range(states.shape[2])])

        return run

    return {"mean": by(mean_aggregator()), "pca": by(pca_aggregator()), "logistic": by(logistic_aggregator())}


TOOLS = {"repeng": of_repeng, "steering-vectors": of_steering_vectors}


def main() -> None:
    """Make the directions of every trait."""
    tool, states, out = sys.argv[1:4]
    torch.set_num_threads(1)
    given, methods = np.load(states), TOOLS[tool]()
    np.savez(out, **{f"{t}/{m}": run(given[t]).astype(np.float32) for t in given.files for m, run in methods.items()})
    print(json.dumps({"tool": tool, "versions": {p: metadata.version(p) for p in (tool, "torch", "numpy")}}))


if __name__ == "__main__":
    main()
