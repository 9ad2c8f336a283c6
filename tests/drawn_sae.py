"""A small sparse autoencoder in the files that sae-lens writes, for tests that must not need it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_sae(
    folder: Path, *, d_in: int = 32, d_sae: int = 48, hook: str = "blocks.1.hook_resid_post", kind: str = "standard"
) -> Path:
    """Drawn weights; "topk" keeps four latents, "jumprelu" has a threshold of a half."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    decoder = rng.normal(size=(d_sae, d_in)).astype(np.float32)
    weights = {
        "W_enc": np.ascontiguousarray(decoder.T) / 8,
        "b_enc": rng.normal(size=d_sae).astype(np.float32) / 8,
        "W_dec": decoder,
        "b_dec": rng.normal(size=d_in).astype(np.float32) / 8,
    }
    config: dict[str, object] = {
        "architecture": kind, "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"hook_name": hook, "model_name": "tiny", "sae_lens_version": "6.54.12"},
    }  # fmt: skip
    if kind == "topk":
        config |= {"k": 4, "rescale_acts_by_decoder_norm": True}
    if kind == "jumprelu":
        weights["threshold"] = np.full(d_sae, 0.5, np.float32)
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder
