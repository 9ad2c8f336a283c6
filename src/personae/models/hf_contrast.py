"""The loss of a sharpening: the frame of the pole that a text belongs to must make it likelier than the other's.

    r_s  = log p(s | frame of pos) - log p(s | frame of neg)         summed over the text's tokens, nats
    loss = mean over texts of  -log sigmoid(+-r_s)  -  LIKELY * log p(s | frame of its own pole) / n_s

+ for texts of the positive pole. The first term is the log score of a classifier whose evidence is the very ratio that
`screen` sums, at temperature 1, so training calibrates it as it separates; the second keeps the texts likely. Without a
reference model it is DPO's loss (Rafailov et al. 2023, arXiv 2305.18290, equation 7) between two frames of one reply
instead of two replies to one prompt.

A frame is run once for all texts behind it, with its gradient. Not here: the loop (`models.hf_training`), which texts
and frames (`instruments.sharpening`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from personae.models.examples import Contrast, shared_length
from personae.models.hf import padded
from personae.models.hf_loss import length_passes, log_probs_of
from personae.models.protocol import Scorable

# Weight of staying likely, a nat a token: small, so that telling apart decides.
LIKELY = 0.05
MEMORY_HINT = "Lower --texts or --rank, shorten the texts, or sharpen a smaller model."


def log_likelihoods(model: PreTrainedModel, items: Sequence[Scorable]) -> Tensor:
    """Summed log-probabilities of what each item scores, nats, shape (n_items,); their common beginning is run once.

    Args:
        model: A causal language model; adapters inside it take part, and gradients reach them.
        items: Sequences; the more they share, the less there is to run.
    """
    shared = shared_length(items)
    sums: dict[int, Tensor] = {}
    prefix = _cache_of(model, items[0].token_ids[:shared]) if shared else None
    for places in length_passes([len(i.token_ids) - shared for i in items], model.device.type):
        for place, value in zip(places, _sums(model, prefix, [items[k] for k in places], shared), strict=True):
            sums[place] = value
    return torch.stack([sums[k] for k in range(len(items))])


def _cache_of(model: PreTrainedModel, prefix: tuple[int, ...]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([prefix], device=model.device)
    model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def _sums(
    model: PreTrainedModel, prefix: DynamicCache | None, items: Sequence[Scorable], shared: int
) -> tuple[Tensor, ...]:
    """Of some items behind one prefix, run together, padded on the right."""
    device, n = model.device, len(items)
    ids = padded(items, shared)
    positions = torch.arange(shared, shared + ids.shape[1], device=device)[None]
    cache = None if prefix is None else _repeated(prefix, n)
    output = model.base_model(
        input_ids=ids.to(device), position_ids=positions, past_key_values=cache, use_cache=cache is not None
    )
    rows = torch.cat([torch.full((i.n_scored,), row) for row, i in enumerate(items)]).to(device)
    columns = torch.cat([torch.arange(i.start, len(i.token_ids)) for i in items]).to(device) - shared - 1
    targets = torch.tensor([t for i in items for t in i.token_ids[i.start :]], device=device)
    log_probs = log_probs_of(model, output.last_hidden_state[rows, columns], targets)
    return tuple(part.sum() for part in log_probs.split([i.n_scored for i in items]))


def _repeated(prefix: DynamicCache, n: int) -> DynamicCache:
    """A cache of its own with the prefix n times; gradients flow back into the one pass over it."""
    made = copy.copy(prefix)
    # The layers keep their counts (sliding windows have one), and get new tensors for old ones.
    made.layers = [copy.copy(layer) for layer in prefix.layers]
    made.batch_repeat_interleave(n)
    return made


def contrast_passes(model: PreTrainedModel, items: Sequence[Contrast]) -> Iterator[Tensor]:
    """Losses that add up to that of a batch; each may be sent backwards before the next is computed."""
    n = sum(len(item.is_pos) for item in items)
    for item in items:
        of_pos, of_neg, belongs = _both(model, item)
        ratio = torch.where(belongs, of_pos - of_neg, of_neg - of_pos)
        lengths = torch.tensor([i.n_scored for i in item.pos], device=ratio.device)
        likely = torch.where(belongs, of_pos, of_neg) / lengths
        yield (functional.softplus(-ratio) - LIKELY * likely).sum() / n


def contrast_ratios(model: PreTrainedModel, items: Sequence[Contrast]) -> list[Tensor]:
    """Log p(text | frame of pos) - log p(text | frame of neg) of every item's texts, nats; no gradients."""
    with torch.no_grad():
        return [(of_pos - of_neg).cpu() for of_pos, of_neg, _ in (_both(model, item) for item in items)]


def _both(model: PreTrainedModel, item: Contrast) -> tuple[Tensor, Tensor, Tensor]:
    belongs = torch.tensor(item.is_pos, device=model.device)
    return log_likelihoods(model, item.pos), log_likelihoods(model, item.neg), belongs
