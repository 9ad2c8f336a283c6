"""Sparse autoencoders from files: latents by hand, the same as sae-lens's where that is installed, and refusals."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from drawn_sae import write_sae
from personae.errors import IncomparableEvidence, InputError, MissingCapability
from personae.models.hf_sae import read_sae
from personae.models.sae import block_of, open_sae

STATES = np.random.default_rng(1).normal(size=(7, 32)).astype(np.float32)


def test_latents_are_those_of_the_definition(tmp_path: Path) -> None:
    made = {kind: read_sae(write_sae(tmp_path / kind, kind=kind), by_hand=True) for kind in ("standard", "jumprelu")}
    w = load_file(tmp_path / "standard" / "sae_weights.safetensors")
    before = (STATES - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    np.testing.assert_allclose(made["standard"].encode(STATES), np.maximum(before, 0), atol=1e-5)
    np.testing.assert_allclose(made["jumprelu"].encode(STATES), np.where(before > 0.5, before, 0), atol=1e-5)
    np.testing.assert_array_equal(made["standard"].decoder, w["W_dec"])
    top = read_sae(write_sae(tmp_path / "topk", kind="topk"), by_hand=True)
    lengths = np.linalg.norm(w["W_dec"], axis=1)
    scaled = before * lengths
    kept = scaled >= np.sort(scaled, axis=1)[:, [-4]]
    np.testing.assert_allclose(top.encode(STATES), np.where(kept, np.maximum(scaled, 0), 0), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(top.decoder, axis=1), 1, atol=1e-5)
    assert top.encode(STATES[:0]).shape == (0, 48)


@pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="sae-lens is not installed")
@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu"])
def test_both_readers_agree(tmp_path: Path, kind: str) -> None:
    folder = write_sae(tmp_path, kind=kind)
    ours, theirs = read_sae(folder, by_hand=True), open_sae(folder)
    assert theirs.card.reader.startswith("sae-lens ")
    np.testing.assert_allclose(ours.encode(STATES), theirs.encode(STATES), atol=1e-5)
    np.testing.assert_allclose(ours.decoder, theirs.decoder, atol=1e-6)


def test_hook_names_are_blocks() -> None:
    names = {"blocks.3.hook_resid_post": 3, "blocks.3.hook_resid_pre": 2, "model.layers.0": 0, "transformer.h.11": 11}
    assert {n: block_of(n, "x") for n in names} == names
    for other in ("blocks.0.hook_resid_pre", "blocks.3.hook_mlp_out", "blocks.3.attn.hook_z", "embed"):
        with pytest.raises(InputError, match="not the output of a block"):
            block_of(other, "x")


def test_wrong_folders_and_models_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no cfg\.json"):
        open_sae(tmp_path)
    folder = write_sae(tmp_path / "a")
    card = open_sae(folder).card
    card.require_fit(2, 32, "tiny")
    for layers, width in ((2, 64), (1, 32)):
        with pytest.raises(IncomparableEvidence, match="blocks of width"):
            card.require_fit(layers, width, "tiny")
    config = json.loads((folder / "cfg.json").read_text())
    for change, error, message in (
        ({"architecture": "gated"}, MissingCapability, "only sae-lens reads"),
        ({"normalize_activations": "layer_norm"}, MissingCapability, "only sae-lens reads"),
        ({"d_sae": 47}, InputError, "shape"),
        ({"d_in": "wide"}, InputError, "no description"),
    ):
        (folder / "cfg.json").write_text(json.dumps(config | change))
        with pytest.raises(error, match=message):
            read_sae(folder, by_hand=True)
    (folder / "cfg.json").write_text("[1]")
    with pytest.raises(InputError, match="no description"):
        open_sae(folder)
    (folder / "cfg.json").write_text(json.dumps(config))
    (folder / "sae_weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError):
        open_sae(folder)
