"""Directions of other tools from states already read; runs in an environment of its own, without personae.

    python rivals.py TOOL STATES.npz OUT.npz      TOOL: repeng, steering-vectors, saklas, hidden-directions

STATES holds an array a trait and contrast, TRAIT|CONTRAST, shape (n_pairs, 2, n_layers, d_model): what a model had at
the last token of the two texts of each pair; and neutral|CONTRAST, (n_texts, n_layers, d_model), of ordinary texts. The
tools' own code makes a direction of them; that code alone is run, since all of them read the same numbers
(`extraction.py` runs their reading too, and times it). OUT holds TRAIT|CONTRAST/METHOD, shape (n_layers, d_model), as
long as the tool makes it. Prints one JSON object with versions.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

States = np.ndarray
NEUTRAL = "neutral"
Methods = Mapping[str, Callable[[States, States], np.ndarray]]


def of_repeng() -> Methods:
    """Both methods that need no other package (`repeng.extract.read_representations`)."""
    # repeng 0.4.0 was written for NumPy 1 and asks for this name when it is imported.
    vars(np)["float_"] = np.float64
    import repeng.extract as extract

    def by(method: str) -> Callable[[States, States], np.ndarray]:
        def run(states: States, neutral: States) -> np.ndarray:
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

    def by(aggregator: Any) -> Callable[[States, States], np.ndarray]:
        def run(states: States, neutral: States) -> np.ndarray:
            given = torch.tensor(states)
            return np.stack([aggregator(given[:, 0, k], given[:, 1, k]).numpy() for k in range(states.shape[2])])

        return run

    return {"mean": by(mean_aggregator()), "pca": by(pca_aggregator()), "logistic": by(logistic_aggregator())}


def of_saklas() -> Methods:
    """What it adds at each layer after its fit (`ManifoldExtractionPipeline.fit`), three ways.

    pole: two nodes, steered by a pole's label (`0.5 formal`): as far as that pole's centroid along the axis
    profile: two nodes, steered by what `extract_from_corpora` returns: as long as each layer's whitened share
    monopolar: the positive node alone, as `extract` makes of one concept; not whitened, long as its whitened share

    A fit without whitening is refused by the tool. `monopolar` by its label is the mean difference, as other tools
    have it.
    """
    from saklas.core.capture import fold_directions_to_subspace, folded_directions
    from saklas.core.hooks import SteeringManager
    from saklas.core.manifold import synthesize_subspace
    from saklas.core.session import _affine_manifold_push
    from saklas.core.triggers import Trigger

    def by(labels: tuple[str, ...], *, folded: bool) -> Callable[[States, States], np.ndarray]:
        def run(states: States, neutral: States) -> np.ndarray:
            means, whitener = _saklas_neutral(neutral)
            fitted, label = _saklas_fit(states, labels, means, whitener), labels[0]
            if folded:
                profile, label = folded_directions(fitted), "+"
                fitted = fold_directions_to_subspace("t", profile, means, whitener=whitener, label=label)
            push = (*_affine_manifold_push(fitted, label), 1.0)
            manager = SteeringManager()
            manager.add_subspace("t", synthesize_subspace([push], [], means, whitener=whitener), trigger=Trigger.BOTH)
            added: Any = manager.compute_static_offsets()
            # It steers at no layer where both poles lie on one side of neutral.
            nothing = np.zeros(states.shape[3], np.float32)
            return np.stack([added[k].numpy() if k in added else nothing for k in range(states.shape[2])])

        return run

    both = ("positive", "negative")
    return {"pole": by(both, folded=False), "profile": by(both, folded=True), "monopolar": by(both[:1], folded=True)}


def _saklas_neutral(neutral: States) -> tuple[dict[int, torch.Tensor], Any]:
    """Neutral means and the whitener, which the tool has from replies to its own prompts without any persona."""
    from saklas.core.mahalanobis import LayerWhitener

    given = torch.tensor(neutral)
    at = {k: given[:, k] for k in range(given.shape[1])}
    means = {k: v.mean(dim=0) for k, v in at.items()}
    return means, LayerWhitener.from_neutral_activations(at, means)


def _saklas_fit(states: States, labels: tuple[str, ...], means: Mapping[int, torch.Tensor], whitener: Any) -> Any:
    """Its whole fit of one or two nodes in a home of its own; only the reading of centroids is replaced."""
    import saklas.core.manifold as reading
    from saklas.core.events import EventBus
    from saklas.core.extraction import ManifoldExtractionPipeline
    from saklas.io.manifold_authoring import create_discover_manifold_folder

    centroids = torch.tensor(states).mean(dim=0)[: len(labels)]
    replaced: Any = reading
    replaced.compute_manifold_node_stats = lambda *_a, **_k: ({k: centroids[:, k].clone() for k in means}, None)
    handle: Any = SimpleNamespace(
        model_id="model", model=torch.nn.Module(), tokenizer=None, device=torch.device("cpu"), dtype=torch.float32,
        layers=list(means), whitener=whitener, layer_means=means,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        os.environ["SAKLAS_HOME"] = home
        folder = create_discover_manifold_folder(
            "local",
            "t",
            "",
            fit_mode="pca",
            node_corpora={label: ["read already"] for label in labels},
            hyperparams={"max_dim": 1, "var_threshold": 0.7},  # what its `extract` asks for
        )
        return ManifoldExtractionPipeline(handle, EventBus()).fit(folder, emit_event=False)


def of_hidden_directions() -> Methods:
    """Its contrast of two system prompts (`extract.pref.extract_pref`), all layers; it steers at one of them."""
    import hidden_directions.extract.pref as pref
    from hidden_directions import screen

    without_weights = SimpleNamespace(from_pretrained=lambda *_a, **_k: torch.nn.Module())
    replaced: Any = pref
    judge: Any = screen
    replaced.AutoTokenizer = replaced.AutoModelForCausalLM = without_weights
    # Its screen only prints whether samples agree on a direction, and takes a second a trait.
    verdict = {"verdict": "", "best_layer": 0, "best_agreement": 0.0}
    judge.screen_from_sides = lambda *_a, **_k: verdict

    def run(states: States, neutral: States) -> np.ndarray:
        sides = iter(torch.tensor(states).unbind(dim=1))  # it reads the wanted side first
        replaced._collect_side = lambda *_a: next(sides)
        with contextlib.redirect_stdout(io.StringIO()):
            return pref.extract_pref("model", pref.FLAT_EARTH_RECIPE, dtype=torch.float32).numpy()

    return {"mean": run}


TOOLS = {
    "repeng": of_repeng,
    "steering-vectors": of_steering_vectors,
    "saklas": of_saklas,
    "hidden-directions": of_hidden_directions,
}


def main() -> None:
    """Make the directions of every trait."""
    tool, states, out = sys.argv[1:4]
    torch.set_num_threads(1)
    given, methods = np.load(states), TOOLS[tool]()
    wanted = [t for t in given.files if not t.startswith(NEUTRAL)]
    made = {
        f"{t}/{m}": run(given[t], given[f"{NEUTRAL}|{t.rsplit('|')[-1]}"]).astype(np.float32)
        for t in wanted
        for m, run in methods.items()
    }
    np.savez(out, **made)
    print(json.dumps({"tool": tool, "versions": {p: metadata.version(p) for p in (tool, "torch", "numpy")}}))


if __name__ == "__main__":
    main()
