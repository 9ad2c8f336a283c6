"""A file of drawn directions for a tiny model: steering can be tried without extracting anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from personae.instruments.reading import origin_of
from personae.models.activations import require_activations
from personae.models.hf_vectors import save_vectors
from personae.models.load import load_model
from personae.tables.space import QUANTILES, PersonaVector


def write_vectors(path: Path, model_folder: Path, seed: int = 0) -> Path:
    """'sour' and 'odd' at every layer, chosen at layer 0, with a reference population from -3 to 3."""
    model = require_activations(load_model(str(model_folder), device="cpu"))
    origin, n = origin_of(model, model.card), model.n_layers
    rng = np.random.default_rng(seed)
    spread = np.tile(np.linspace(-3, 3, QUANTILES, dtype=np.float32), (n, 1))
    made: dict[str, PersonaVector] = {}
    for name in ("sour", "odd"):
        values = rng.normal(size=(n, model.d_model)).astype(np.float32)
        norms = np.ones(n, np.float32)
        made[name] = PersonaVector(name, tuple(range(n)), values, norms, name, "drawn", origin, 0, spread)
    return save_vectors(path, made)
