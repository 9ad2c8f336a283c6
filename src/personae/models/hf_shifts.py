"""Gradients with respect to a shift of the residual stream: what a small push after a block does to log-probabilities.

    g_l = d/dv sum_t log p(y_t)      where v is added after block l at every position of the request

All blocks come from one pass forwards and one back, each request apart. Under edits the gradient is that of
the model as edited. Not here: what is made of them (`inference.push`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from torch import Tensor, nn

from personae.models.gradients import Floats32
from personae.models.hf import HFModel
from personae.models.hf_gradients import LoraGradients
from personae.models.hf_hooks import BlockOutput, decoder_blocks
from personae.models.protocol import Scorable


def gradients_of_shifts(model: HFModel, batch: Sequence[Scorable], advance: Callable[[int], None]) -> Floats32:
    """See `models.gradients.shift_gradients`."""
    passes = LoraGradients(model, rank=1)
    blocks = decoder_blocks(model.module)
    out = np.zeros((len(batch), len(blocks), model.d_model), np.float32)
    for members in passes.batches(batch):
        with _collecting(blocks) as found:
            passes.run([batch[i] for i in members], _ignore)
        for layer, gradient in found.items():
            out[members, layer] = passes.finite(gradient).cpu().numpy()
        advance(len(members))
    return out


@contextmanager
def _collecting(blocks: Sequence[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """On the way back, the gradient at every block's output, summed over positions: shape (n, d_model) by block."""
    found: dict[int, Tensor] = {}

    def watch(layer: int) -> Callable[[nn.Module, object, BlockOutput], None]:
        def keep(gradient: Tensor) -> None:
            found[layer] = gradient.float().sum(dim=1)

        def hook(_module: nn.Module, _inputs: object, output: BlockOutput) -> None:
            (output if isinstance(output, Tensor) else output[0]).register_hook(keep)

        return hook

    handles = [block.register_forward_hook(watch(layer)) for layer, block in enumerate(blocks)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _ignore(_layer: int, _seen: Tensor, _gradient: Tensor) -> None:
    """Gradients of weights are not wanted."""
