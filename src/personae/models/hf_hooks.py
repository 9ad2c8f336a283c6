"""Hooks on the decoder blocks of a transformers model: reading and editing the residual stream.

    with edited(module, edits):             every pass inside runs with the edits
    read_states(module, ids, layers, ...)   one pass for all layers, stopped after the last one needed

Only outputs of whole blocks are touched, so "layer l" is the same thing in every family; the vocabulary matrix is
never applied when reading. Hooks are removed on the way out, also by an exception. Not here: which requests go
together and shared prefixes (`models.hf`), and checks of edits (`models.activations`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from personae.errors import MissingCapability
from personae.models.activations import Capping, Edit, Reduce, Steering
from personae.models.protocol import Scorable

Gather = Callable[[Tensor], Tensor]
BlockOutput = Tensor | tuple[Tensor, ...]


def decoder_blocks(module: nn.Module) -> list[nn.Module]:
    """The decoder blocks in order: the one list of modules that is as long as the configuration says.

    Raises:
        MissingCapability: If there is no such list or several, for then a layer would be a guess.
    """
    config = getattr(module, "config", None)
    n_layers = None if config is None else getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    found = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if len(found) != 1:
        raise MissingCapability(
            f"{type(module).__name__} has {len(found)} lists of {n_layers} blocks, so its layers cannot be told.",
            hint="Activations of this family cannot be read yet.",
        )
    return list(found[0])


@contextmanager
def edited(module: nn.Module, edits: Sequence[Edit]) -> Iterator[None]:
    """Run passes of a module under edits of its residual stream, in the order given within a layer.

    An edit whose coefficient is 0 places no hook at all. Gradients flow through edits, so this also serves training.

    Args:
        module: A transformers model, or one wrapped by adapters.
        edits: Checked ones (`activations.check_edits`).
    """
    blocks = decoder_blocks(module) if edits else []
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        # In front of hooks that are there already, so that whoever watches a block sees it as edited; each goes before
        # the last one placed, hence the last edit first.
        for edit in reversed(edits):
            if isinstance(edit, Capping) or edit.coefficient:
                hook = _edit_hook(edit, blocks[edit.layer])
                handles.append(blocks[edit.layer].register_forward_hook(hook, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_states(
    module: PreTrainedModel,
    ids: Tensor,
    positions: Tensor,
    cache: DynamicCache | None,
    layers: Sequence[int],
    gather: Gather,
) -> dict[int, Tensor]:
    """Run token ids through the blocks once and gather what is wanted of each layer's output.

    Args:
        module: The model; edits that are in force are seen.
        ids: Shape (n, length).
        positions: Shape (1, length).
        cache: Keys and values of what came before, or None.
        layers: 0-based blocks; blocks above the last of them are not run.
        gather: From a block's output, shape (n, length, d_model), to what is kept of it.

    Returns:
        What was gathered, by layer.
    """
    blocks, last = decoder_blocks(module), max(layers)
    kept: dict[int, Tensor] = {}

    def keeper(layer: int) -> Callable[[nn.Module, object, BlockOutput], None]:
        def keep(_module: nn.Module, _inputs: object, output: BlockOutput) -> None:
            kept[layer] = gather(_hidden_of(output))
            if layer == last and layer < len(blocks) - 1:
                raise _Enough

        return keep

    handles = [blocks[layer].register_forward_hook(keeper(layer)) for layer in sorted(set(layers))]
    try:
        with suppress(_Enough):
            module.base_model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=cache is not None)
    finally:
        for handle in handles:
            handle.remove()
    return kept


@contextmanager
def watched_block(block: nn.Module | None, items: Sequence[Scorable], device: torch.device) -> Iterator[list[Tensor]]:
    """Note a block's mean output over the spans of a padded batch, shape (n, d_model), in a pass that goes on."""
    seen: list[Tensor] = []
    if block is None:
        yield seen
        return

    def keep(_module: nn.Module, _inputs: object, output: BlockOutput) -> None:
        hidden = _hidden_of(output).detach()
        seen.append(gatherer(items, 0, hidden.shape[1], "response_mean", device)(hidden))

    handle = block.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def read_part(item: Scorable, reduce: Reduce) -> Scorable:
    """The request as far as it must be run to be read: nothing behind the first token of the span for "prompt_last"."""
    return Scorable(item.token_ids[: item.start + 1], item.start, item.shared) if reduce == "prompt_last" else item


def gatherer(items: Sequence[Scorable], skip: int, length: int, reduce: Reduce, device: torch.device) -> Gather:
    """What to keep of a block's output for requests in a padded batch of `length` after `skip` shared tokens."""
    if reduce == "prompt_last":
        last = torch.tensor([item.start - 1 - skip for item in items], device=device)
        each = torch.arange(len(items), device=device)
        return lambda hidden: hidden[each, last]
    if reduce == "tokens":
        rows = torch.cat([torch.full((item.n_scored,), row) for row, item in enumerate(items)]).to(device)
        columns = torch.cat([torch.arange(item.start, len(item.token_ids)) for item in items]).to(device) - skip
        return lambda hidden: hidden[rows, columns]
    weights = torch.zeros((len(items), 1, length), device=device)
    for row, item in enumerate(items):
        weights[row, 0, item.start - skip : len(item.token_ids) - skip] = 1 / item.n_scored
    return lambda hidden: torch.bmm(weights, hidden.float())[:, 0]


class _Enough(Exception):
    """Ends a pass whose last needed layer has been read; never leaves this module."""


def _hidden_of(output: BlockOutput) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _edit_hook(edit: Edit, block: nn.Module) -> Callable[[nn.Module, object, BlockOutput], BlockOutput]:
    device = next(block.parameters()).device
    vector = torch.tensor(edit.vector, dtype=torch.float64, device=device)
    change = _steer(edit, vector) if isinstance(edit, Steering) else _cap(edit, vector / vector.norm())

    def hook(_module: nn.Module, _inputs: object, output: BlockOutput) -> BlockOutput:
        return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])

    return hook


def _steer(edit: Steering, vector: Tensor) -> Callable[[Tensor], Tensor]:
    added = (vector * edit.coefficient).float()
    return lambda hidden: hidden + added.to(hidden.dtype)


def _cap(edit: Capping, unit: Tensor) -> Callable[[Tensor], Tensor]:
    def change(hidden: Tensor) -> Tensor:
        # In double, since a few coordinates of the stream are thousands of times larger than the others.
        missing = edit.floor - hidden.double() @ unit
        raised = (hidden.double() + missing[..., None] * unit).to(hidden.dtype)
        return torch.where((missing > 0)[..., None], raised, hidden)

    return change
