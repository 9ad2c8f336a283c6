"""Log-probabilities of trained tokens, with gradients, and no logits anywhere else.

    SFT and text   loss = - sum_t w_t log p(t) / n          w_t: the episode's weight over the mean weight
    DPO            loss = - sum_i w_i log sigmoid(beta * ((c_i - c_ref_i) - (r_i - r_ref_i))) / n

with n the trained tokens (SFT) or the pairs (DPO) of the step, and c, r the summed log-probabilities of the chosen
and the rejected reply. DPO: Rafailov et al. 2023, arXiv 2305.18290, equation 7.

trl's own trainers multiply the vocabulary matrix with every position of a batch on a CPU; here only positions that
predict a trained token are. Not here: the loop (`models.hf_training`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from personae.models.examples import Example, Pair

# Padded tokens in one pass. On CPUs larger passes spill the caches and hold more activations.
_PASS_TOKENS = {"cpu": 1024, "cuda": 16384}
# Bytes of logits kept for the backward pass; beyond them they are computed anew, a piece at a time.
_KEPT_LOGITS = {"cpu": 256 * 2**20, "cuda": 2**32}
_PIECE_LOGITS = {"cpu": 64 * 2**20, "cuda": 2**30}


def length_passes(lengths: Sequence[int], device: str) -> Iterator[list[int]]:
    """Places in order of length, cut so that padded tokens of a pass stay within the budget."""
    budget = _PASS_TOKENS.get(device, 4096)
    chunk: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda k: (lengths[k], k)):
        if chunk and lengths[place] * (len(chunk) + 1) > budget:
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


def token_log_probs(model: PreTrainedModel, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the trained tokens of some sequences, run together.

    Args:
        model: A causal language model; adapters inside it take part.
        examples: Padded on the right, which a causal mask needs no mask for; positions are explicit.

    Returns:
        Log-probabilities in nats, their weights, and the place of the example of each; all of shape (n_trained,).
    """
    device = model.device
    longest = max(len(e.token_ids) for e in examples)
    ids = torch.zeros((len(examples), longest), dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    weights: list[float] = []
    for row, example in enumerate(examples):
        ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
        for span in example.spans:
            columns += range(span.start, span.stop)
            weights += [span.weight] * (span.stop - span.start)
        rows += [row] * example.n_trained
    at, of = torch.tensor(columns), torch.tensor(rows)
    targets = ids[of, at].to(device)
    positions = torch.arange(longest, device=device)[None]
    output = model.base_model(input_ids=ids.to(device), position_ids=positions, use_cache=False)
    hidden = output.last_hidden_state[of.to(device), at.to(device) - 1]
    return log_probs_of(model, hidden, targets), torch.tensor(weights, device=device), of.to(device)


def log_probs_of(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target after each hidden state, shape (n,)."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    cap = getattr(model.config, "final_logit_softcapping", None)

    def chosen(states: Tensor, wanted: Tensor) -> Tensor:
        logits = head(states).float()
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return -functional.cross_entropy(logits, wanted, reduction="none")

    row, device = 4 * model.config.vocab_size, hidden.device.type
    keep = torch.is_grad_enabled()
    if keep and len(targets) * row <= _KEPT_LOGITS.get(device, 2**28):
        return chosen(hidden, targets)
    step = max(16, _PIECE_LOGITS.get(device, 2**26) // row)
    pieces: list[Tensor] = []
    for at in range(0, len(targets), step):
        part = (hidden[at : at + step], targets[at : at + step])
        pieces.append(cast(Tensor, checkpoint(chosen, *part, use_reentrant=False)) if keep else chosen(*part))
    return torch.cat(pieces)


def sft_passes(model: PreTrainedModel, examples: Sequence[Example]) -> Iterator[Tensor]:
    """Losses that add up to that of a batch; each may be sent backwards before the next is computed."""
    n = sum(e.n_trained for e in examples)
    for places in length_passes([len(e.token_ids) for e in examples], model.device.type):
        log_probs, weights, _ = token_log_probs(model, [examples[k] for k in places])
        yield -(weights * log_probs).sum() / n


def pair_log_likelihoods(model: PreTrainedModel, pairs: Sequence[Pair]) -> Tensor:
    """Summed log-probabilities of the chosen and rejected replies, nats, shape (2, n_pairs)."""
    examples = [*(p.chosen for p in pairs), *(p.rejected for p in pairs)]
    log_probs, _, of = token_log_probs(model, examples)
    sums = torch.zeros(len(examples), device=log_probs.device).index_add(0, of, log_probs)
    return sums.view(2, len(pairs))


def dpo_passes(model: PreTrainedModel, pairs: Sequence[Pair], reference: Tensor, beta: float) -> Iterator[Tensor]:
    """Losses that add up to that of a batch of pairs.

    Args:
        model: The policy.
        pairs: The batch.
        reference: What `pair_log_likelihoods` gives for the untrained model, shape (2, n_pairs).
        beta: Strength of the tie to the untrained model.
    """
    for places in length_passes([2 * len(p.token_ids) for p in pairs], model.device.type):
        chosen = [pairs[k] for k in places]
        ratios = pair_log_likelihoods(model, chosen) - reference[:, places]
        weights = torch.tensor([p.weight for p in chosen], device=ratios.device)
        yield -(weights * functional.logsigmoid(beta * (ratios[0] - ratios[1]))).sum() / len(pairs)


def reference_log_likelihoods(model: PreTrainedModel, pairs: Sequence[Pair]) -> Tensor:
    """Summed log-probabilities of all pairs under the model as it is, nats, shape (2, n_pairs)."""
    sums = torch.zeros((2, len(pairs)), device=model.device)
    with torch.no_grad():
        for places in length_passes([2 * len(p.token_ids) for p in pairs], model.device.type):
            sums[:, places] = pair_log_likelihoods(model, [pairs[k] for k in places])
    return sums


def mean_loss(model: PreTrainedModel, examples: Sequence[Example]) -> float:
    """Mean loss a trained token, weighted, nats; no gradients."""
    with torch.no_grad():
        return sum(float(part) for part in sft_passes(model, examples))
