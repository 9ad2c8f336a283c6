"""Gradients in the B matrices of a LoRA branch at its start, by hand-written backward passes of linear layers.

    forward   y = W x                          the packed kernel is used as it is; B = 0, so the branch adds nothing
    backward  dx = W' g,  and the pair (A x, g) is handed to whoever collects

No gradient of a weight is ever formed: a pass costs a forward and one product a layer. Rows of a batch stay apart, so
gradients of single rows and of weighted sums come from one pass. Not here: what gradients are for
(`models.gradients`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from personae.errors import MissingCapability, NumericsError
from personae.models.gradients import Floats32, Passed
from personae.models.hf import HFModel
from personae.models.hf_hooks import decoder_blocks, edited, watched_block
from personae.models.hf_kernel import PackedLinear
from personae.models.hf_memory import memory_errors
from personae.models.protocol import Scorable
from personae.models.sharing import by_length

# Of a layer, its inputs seen through A, shape (n, length, rank), and the gradient at its output, (n, length, width).
Collect = Callable[[int, Tensor, Tensor], None]

_BATCH_TOKENS = {"cpu": 512, "cuda": 8192}
_LOGIT_ROWS = 256


class _Watched(torch.autograd.Function):
    """A linear layer that hands (A x, g) to a collector on the way back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor], back: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.back = back
        return run(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.back(x, grads[0]), None, None


class LoraGradients:
    """Gradients of a transformers model; see `models.gradients.GivesGradients`.

    Args:
        model: A loaded model; it is never changed, and its own passes stay possible in between.
        rank: Rows of A.
        seed: Of A, which is drawn as peft draws it (Kaiming uniform).
    """

    def __init__(self, model: HFModel, *, rank: int = 8, seed: int = 0) -> None:
        self._model = model
        self._module = model.module
        self._device = next(self._module.parameters()).device
        self._layers = _linear_layers(self._module)
        if not self._layers:
            raise MissingCapability(f"'{model.card.name}' has no linear layers that could be trained.")
        self._widths = [_sizes(layer)[1] for layer in self._layers]
        self._rank = rank
        self._a = _random_inputs([_sizes(layer)[0] for layer in self._layers], rank, seed, self._device)
        self._at = np.cumsum([0, *(w * rank for w in self._widths)])

    @property
    def n_parameters(self) -> int:
        """Entries of all B matrices."""
        return int(self._at[-1])

    def gradients(self, batch: Sequence[Scorable], weights: NDArray[np.float64]) -> Floats32:
        """See `GivesGradients.gradients`."""
        return self._passed(batch, weights, None).gradients

    def passed(self, batch: Sequence[Scorable], weights: NDArray[np.float64], *, layer: int) -> Passed:
        """See `GivesGradients.passed`."""
        return self._passed(batch, weights, decoder_blocks(self._module)[layer])

    def _passed(self, batch: Sequence[Scorable], weights: NDArray[np.float64], block: nn.Module | None) -> Passed:
        w = torch.tensor(np.asarray(weights), dtype=torch.float32, device=self._device)
        total = [torch.zeros((len(w), width, self._rank), device=self._device) for width in self._widths]
        log_likelihood = np.zeros(len(batch))
        states = np.zeros((len(batch), 0 if block is None else self._model.d_model), np.float32)
        for members in self.batches(batch):
            share, items = w[:, members], [batch[i] for i in members]

            def collect(index: int, seen: Tensor, g: Tensor, share: Tensor = share) -> None:
                by_row = torch.einsum("btw,btr->bwr", g, seen)
                total[index] += torch.einsum("kb,bwr->kwr", share, by_row)

            with watched_block(block, items, self._device) as read:
                log_likelihood[members] = self.run(items, collect)
            if read:
                states[members] = self.finite(read[0]).cpu().numpy()
        flat = torch.cat([t.reshape(len(w), -1) for t in total], dim=1)
        return Passed(self.finite(flat).cpu().numpy(), log_likelihood, states)

    def products(self, batch: Sequence[Scorable], directions: Floats32) -> NDArray[np.float64]:
        """See `GivesGradients.products`."""
        given = torch.tensor(np.asarray(directions), device=self._device)
        parts = [
            given[:, int(a) : int(b)].reshape(len(given), width, self._rank)
            for a, b, width in zip(self._at, self._at[1:], self._widths, strict=False)
        ]
        out = np.zeros((len(batch), len(given)))
        for members in self.batches(batch):
            found = torch.zeros((len(members), len(given)), device=self._device)

            def collect(layer: int, seen: Tensor, g: Tensor, found: Tensor = found) -> None:
                by_row = torch.einsum("btw,btr->bwr", g, seen)
                found.add_(torch.einsum("bwr,kwr->bk", by_row, parts[layer]))

            self.run([batch[i] for i in members], collect)
            out[members] = self.finite(found).double().cpu().numpy()
        return out

    def finite(self, values: Tensor) -> Tensor:
        """The same values, all of them numbers; NumericsError otherwise."""
        if not bool(torch.isfinite(values).all()):
            raise NumericsError(
                f"{self._model.card.name} gave a gradient that is not a finite number.",
                hint="The dtype may be too narrow: try --dtype float32.",
            )
        return values

    def batches(self, batch: Sequence[Scorable]) -> Iterator[list[int]]:
        """Requests of similar length together, within a budget of tokens."""
        return by_length(batch, _BATCH_TOKENS.get(self._device.type, 512))

    def run(self, items: Sequence[Scorable], collect: Collect) -> NDArray[np.float64]:
        """Forward and backward of the sum of the spans' log-likelihoods, which are given, shape (n_items,)."""
        longest = max(len(item.token_ids) for item in items)
        ids = torch.zeros((len(items), longest), dtype=torch.long)
        for row, item in enumerate(items):
            ids[row, : len(item.token_ids)] = torch.tensor(item.token_ids)
        ids = ids.to(self._device)
        embed = self._module.get_input_embeddings()
        assert isinstance(embed, nn.Module)
        with (
            memory_errors("a gradient", hint="Cut long rows with --truncate."),
            torch.enable_grad(),
            edited(self._module, self._model.edits),
            self._watched(collect),
        ):
            states = embed(ids).detach().requires_grad_()
            positions = torch.arange(longest, device=self._device)[None]
            hidden = self._module.base_model(inputs_embeds=states, position_ids=positions, use_cache=False)
            return self._backward(hidden.last_hidden_state, ids, items)

    def _backward(self, hidden: Tensor, ids: Tensor, items: Sequence[Scorable]) -> NDArray[np.float64]:
        """Back from the sum of log-probabilities, whose logits are held in pieces only; gives them by item."""
        rows = torch.cat([torch.full((item.n_scored,), r) for r, item in enumerate(items)])
        columns = torch.cat([torch.arange(item.start, len(item.token_ids)) for item in items])
        head: Any = self._module.get_output_embeddings()
        cap = getattr(self._module.config, "final_logit_softcapping", None)
        bottom = hidden.detach().requires_grad_()
        found = np.zeros(len(items))
        for at in range(0, len(rows), _LOGIT_ROWS):
            piece = slice(at, at + _LOGIT_ROWS)
            logits = nn.functional.linear(
                bottom[rows[piece], columns[piece] - 1], head.weight.detach(), head.bias
            ).float()
            if cap is not None:
                logits = torch.tanh(logits / cap) * cap
            chosen = logits.gather(-1, ids[rows[piece], columns[piece], None])[:, 0]
            log_p = chosen - torch.logsumexp(logits, -1)
            np.add.at(found, rows[piece].numpy(), log_p.detach().double().cpu().numpy())
            log_p.sum().backward()
        hidden.backward(bottom.grad)
        return found

    @contextmanager
    def _watched(self, collect: Collect) -> Iterator[None]:
        """Let every linear layer run through `_Watched`, and no weight ask for a gradient; undone on the way out."""
        asked = [p for p in self._module.parameters() if p.requires_grad]
        try:
            for p in asked:
                p.requires_grad_(False)
            for index, layer in enumerate(self._layers):
                layer.forward = self._forward_of(index, layer, collect)  # type: ignore[method-assign]
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)
            for p in asked:
                p.requires_grad_()

    def _forward_of(self, index: int, layer: nn.Module, collect: Collect) -> Callable[[Tensor], Tensor]:
        a, own = self._a[index], type(layer).forward
        weight: Any = layer.weight
        inward = weight.detach().T if isinstance(layer, Conv1D) else weight.detach()

        def back(x: Tensor, g: Tensor) -> Tensor:
            collect(index, x.float() @ a.T, g.float())
            return g @ inward

        return lambda x: _Watched.apply(x, lambda value: own(layer, value), back)  # type: ignore[return-value]


def _linear_layers(module: nn.Module) -> list[nn.Module]:
    """Every linear layer but the vocabulary matrix, in the module's own order."""
    head = module.get_output_embeddings()  # type: ignore[operator]
    found = [m for m in module.modules() if isinstance(m, nn.Linear | PackedLinear | Conv1D)]
    return [m for m in found if m is not head]


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Width of a layer's input and output."""
    shape = tuple(layer.weight.shape)  # type: ignore[union-attr]
    return (shape[0], shape[1]) if isinstance(layer, Conv1D) else (shape[1], shape[0])


def _random_inputs(widths: Sequence[int], rank: int, seed: int, device: torch.device) -> list[Tensor]:
    """One A a layer: uniform within 1 / sqrt(width), on a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    made = [(2 * torch.rand((rank, width), generator=generator) - 1) / math.sqrt(width) for width in widths]
    return [a.to(device) for a in made]
