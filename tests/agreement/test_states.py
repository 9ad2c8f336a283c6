"""Layers read by hook against what transformers itself reports, and a steered pass against one done by hand."""

from __future__ import annotations

import numpy as np
import torch

from personae.models.activations import Steering
from personae.models.hf import HFModel
from personae.models.hf_hooks import decoder_blocks
from personae.models.protocol import Scorable

IDS = tuple(int(t) for t in np.random.default_rng(3).integers(5, 300, 24))


def test_layers_are_outputs_of_blocks_before_the_final_norm(tiny_model: HFModel) -> None:
    """Entry l + 1 of `hidden_states` is layer l, except the last, which the final norm turns into the last entry."""
    with torch.no_grad():
        whole = tiny_model.module(torch.tensor([IDS]), output_hidden_states=True, use_cache=False)
    entries = [h[0].numpy() for h in whole.hidden_states]
    states = tiny_model.read([Scorable(IDS, 1)], reduce="tokens")[0]
    top = tiny_model.n_layers - 1
    assert states.shape == (tiny_model.n_layers, len(IDS) - 1, tiny_model.d_model)
    np.testing.assert_allclose(states[:top], np.stack(entries[1:-1])[:, 1:], rtol=1e-4, atol=1e-4)
    base = tiny_model.module.base_model
    norm = next(getattr(base, name) for name in ("norm", "ln_f") if hasattr(base, name))
    with torch.no_grad():
        normed = norm(torch.from_numpy(states[top])).numpy()
    np.testing.assert_allclose(normed, entries[-1][1:], rtol=1e-3, atol=1e-3)
    assert not np.allclose(states[top], entries[-1][1:], atol=1e-2), "the final norm does nothing: this shows nothing"


def test_steering_is_an_added_bias(tiny_model: HFModel) -> None:
    """Adding to the input of the next block (or of the final norm) by hand gives the same logits."""
    v = np.random.default_rng(0).normal(size=tiny_model.d_model).astype(np.float32)
    item = Scorable(IDS, 4)
    for layer in range(tiny_model.n_layers):
        with tiny_model.steered([Steering(layer, v, 1.5)]) as view:
            ours = view.score([item])[0].log_probs
        base = tiny_model.module.base_model
        after = (
            decoder_blocks(tiny_model.module)[layer + 1]
            if layer + 1 < tiny_model.n_layers
            else next(getattr(base, name) for name in ("norm", "ln_f") if hasattr(base, name))
        )

        def moved(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (inputs[0] + 1.5 * torch.from_numpy(v), *inputs[1:])

        handle = after.register_forward_pre_hook(moved)
        with torch.no_grad():
            logits = tiny_model.module(torch.tensor([IDS]), use_cache=False).logits[0].double()
        handle.remove()
        log_p = torch.log_softmax(logits, -1)
        byhand = [float(log_p[t - 1, IDS[t]]) for t in range(4, len(IDS))]
        np.testing.assert_allclose(ours, byhand, rtol=0, atol=1e-3)
