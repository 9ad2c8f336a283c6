"""Soft prompts of a transformers model: a few vectors behind its first token, learned to imitate distributions.

    first token | P_1 ... P_k | the other tokens        hidden states of P are dropped: callers see their own places

The first token stays first, since models rest their attention on it. With rotary positions what follows moves up by k;
learned positions stay, since they may be used up, and the vectors share the first one's. peft's prompt tuning puts its
vectors before everything and fixes positions, so it fits neither. No gradient of a weight is formed. Not here: what is
imitated (`protocols.audit_soft`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from personae.errors import NumericsError
from personae.models.hf import HFModel
from personae.models.hf_distributions import HiddenDistributions
from personae.models.hf_kernel import PackedLinear
from personae.models.hf_memory import memory_errors
from personae.models.protocol import (
    Completion,
    ModelCard,
    SamplingPlan,
    Scorable,
    TokenDistributions,
    Tokenizer,
    TokenLogprobs,
)
from personae.models.sharing import by_length
from personae.models.soft_prompt import Floats32, SoftPromptPlan, SoftPromptState

_BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
_LOGIT_ROWS = 128
_BETAS, _EPSILON = (0.9, 0.99), 1e-8
_PACKED_ROWS = 512
_HINT = "Close other programs, or leave rung R6 out with --soft-prompt 0."


class _Through(torch.autograd.Function):
    """A packed linear layer with a gradient for its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return run(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grads[0].contiguous()), None, None


class SoftPrompts:
    """See `models.soft_prompt.LearnsSoftPrompts`.

    Args:
        model: A loaded model; it is never changed.
    """

    def __init__(self, model: HFModel) -> None:
        self._model, self._module = model, model.module
        self._device = next(self._module.parameters()).device
        embed = self._module.get_input_embeddings()
        assert isinstance(embed, nn.Module)
        self._embed = embed
        self._scale = float(self._rows(torch.arange(min(512, model.card.vocab_size))).float().square().mean().sqrt())
        self._backs: dict[PackedLinear, Tensor] = {}

    def begin(self, token_ids: Sequence[int], n_vectors: int) -> SoftPromptState:
        """See `LearnsSoftPrompts.begin`."""
        ids = torch.tensor([token_ids[k % len(token_ids)] for k in range(n_vectors)])
        vectors = self._rows(ids).float().cpu().numpy()
        return SoftPromptState(vectors, np.zeros_like(vectors), np.zeros_like(vectors))

    def learn(
        self,
        state: SoftPromptState,
        requests: Sequence[Scorable],
        targets: Sequence[TokenDistributions],
        plan: SoftPromptPlan,
        n_steps: int,
    ) -> SoftPromptState:
        """See `LearnsSoftPrompts.learn`."""
        vectors, mean, square = (torch.from_numpy(np.array(x)) for x in (state.vectors, state.mean, state.square))
        batches = _batches(requests, plan)
        last = min(state.step + n_steps, plan.steps)
        with memory_errors("a step of a soft prompt", hint=_HINT), self._differentiable():
            for step in range(state.step, last):
                members = batches[step % len(batches)]
                chosen = [(requests[i], targets[i]) for i in members]
                grad = self._gradient(vectors, chosen).cpu()
                mean.lerp_(grad, 1 - _BETAS[0])
                square.lerp_(grad.square(), 1 - _BETAS[1])
                rate = plan.rate * self._scale * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
                ahead = mean / (1 - _BETAS[0] ** (step + 1))
                vectors -= rate * ahead / ((square / (1 - _BETAS[1] ** (step + 1))).sqrt() + _EPSILON)
        return SoftPromptState(vectors.numpy(), mean.numpy(), square.numpy(), last)

    def under(self, vectors: Floats32) -> SoftPrompted:
        """See `LearnsSoftPrompts.under`."""
        return SoftPrompted(self._model, vectors)

    def _rows(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self._embed(ids.to(self._device))

    def _gradient(self, vectors: Tensor, chosen: Sequence[tuple[Scorable, TokenDistributions]]) -> Tensor:
        """Gradient of the mean cross-entropy a token, shape (n_vectors, d_model)."""
        items = [item for item, _ in chosen]
        wanted = vectors.detach().clone().to(self._device).requires_grad_()
        total = torch.zeros((), device=self._device)
        with torch.enable_grad():
            hidden = prompted_states(self._module, self._embed, wanted, items)
            bottom = hidden.detach().requires_grad_()
            n = sum(item.n_scored for item in items)
            for row, (item, target) in enumerate(chosen):
                for at in range(0, item.n_scored, _LOGIT_ROWS):
                    stop = min(at + _LOGIT_ROWS, item.n_scored)
                    p = torch.from_numpy(np.exp(target.log_probs(at, stop))).float().to(self._device)
                    log_q = torch.log_softmax(
                        self._logits(bottom[row, item.start - 1 + at : item.start - 1 + stop]), -1
                    )
                    loss = -(p * log_q).sum() / n
                    loss.backward()
                    total += loss.detach()
            hidden.backward(bottom.grad)
        if not bool(torch.isfinite(total)) or wanted.grad is None:
            raise NumericsError(
                f"{self._model.card.name} gave a soft prompt a loss that is not a finite number.",
                hint="The dtype may be too narrow: try --dtype float32.",
            )
        return wanted.grad.float()

    def _logits(self, hidden: Tensor) -> Tensor:
        head: Any = self._module.get_output_embeddings()
        logits = nn.functional.linear(hidden, head.weight.detach(), head.bias).float()
        cap = getattr(self._module.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Packed layers, which are made for inference, pass gradients on to their inputs; undone on the way out."""
        packed = [m for m in self._module.modules() if isinstance(m, PackedLinear)]
        try:
            for layer in packed:
                layer.forward = self._forward_of(layer)  # type: ignore[method-assign]
            yield
        finally:
            for layer in packed:
                layer.__dict__.pop("forward", None)

    def _forward_of(self, layer: PackedLinear) -> Callable[[Tensor], Tensor]:
        if layer not in self._backs:
            weight: Any = layer.weight
            turned = weight.detach().t().contiguous()
            self._backs[layer] = torch.ops.mkldnn._reorder_linear_weight(turned, _PACKED_ROWS)
        inward, own = self._backs[layer], type(layer).forward

        def back(g: Tensor) -> Tensor:
            return torch.ops.mkldnn._linear_pointwise(g, inward, None, "none", [], "")

        return lambda x: _Through.apply(x.contiguous(), lambda v: own(layer, v), back)  # type: ignore[return-value]


class SoftPrompted:
    """A view of a model under a soft prompt: scores, samples and gives whole distributions.

    Args:
        model: The model; it is never changed.
        vectors: Shape (n_vectors, d_model).
    """

    def __init__(self, model: HFModel, vectors: Floats32) -> None:
        self._model, self._module = model, model.module
        self._device = next(self._module.parameters()).device
        embed = self._module.get_input_embeddings()
        assert isinstance(embed, nn.Module)
        self._embed = embed
        self._vectors = torch.from_numpy(np.array(vectors, np.float32)).to(self._device, self._module.dtype)
        digest = hashlib.blake2b(model.card.digest.encode() + np.ascontiguousarray(vectors).tobytes(), digest_size=16)
        room = len(vectors) if moves_up(self._module) else 0
        self._card = replace(model.card, digest=digest.hexdigest(), context_length=model.card.context_length - room)
        self._budget = _BATCH_TOKENS.get(self._device.type, 2048)

    @property
    def card(self) -> ModelCard:
        """The model's, with a digest of its own."""
        return self._card

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._model.tokenizer

    def distributions(self, batch: Sequence[Scorable]) -> list[HiddenDistributions]:
        """The distribution at every scored place, in the order given."""
        results: dict[int, HiddenDistributions] = {}
        with torch.inference_mode(), memory_errors("the batch", hint=_HINT):
            for members in by_length(batch, self._budget):
                hidden = prompted_states(self._module, self._embed, self._vectors, [batch[i] for i in members])
                for row, i in enumerate(members):
                    kept = hidden[row, batch[i].start - 1 : len(batch[i].token_ids) - 1].clone()
                    results[i] = self.from_states(kept.float().cpu().numpy())
        return [results[i] for i in range(len(batch))]

    def states_of(self, made: TokenDistributions) -> NDArray[np.float32]:
        """See `RestoresDistributions`."""
        return self._model.states_of(made)

    def from_states(self, states: NDArray[np.float32]) -> HiddenDistributions:
        """See `RestoresDistributions`."""
        return self._model.from_states(states)

    def score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
        """Log-probabilities of every span, in the order given."""
        out: list[TokenLogprobs] = []
        for item, made in zip(batch, self.distributions(batch), strict=True):
            log_p = made.log_probs(0, item.n_scored)
            out.append(TokenLogprobs(log_p[np.arange(item.n_scored), list(item.token_ids[item.start :])]))
        return out

    def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan) -> list[Completion]:
        """One completion for each prompt, a whole pass a token: for a look, not for many."""
        out: list[Completion] = []
        for place, prompt in enumerate(batch):
            generator = np.random.default_rng([plan.seed, place])
            ids: list[int] = []
            log_probs: list[float] = []
            while len(ids) < plan.max_tokens and not (ids and ids[-1] in self.tokenizer.stop_ids):
                context = (*prompt, *ids)
                log_p = self.distributions([Scorable((*context, context[-1]), len(context))])[0].log_probs(0, 1)[0]
                warm = log_p.astype(np.float64) / max(plan.temperature, 1e-6)
                weights = np.exp(warm - warm.max())
                ids.append(int(generator.choice(len(weights), p=weights / weights.sum())))
                log_probs.append(float(log_p[ids[-1]]))
            out.append(Completion(tuple(ids), np.asarray(log_probs, np.float32)))
        return out


def moves_up(module: nn.Module) -> bool:
    """Whether tokens behind a soft prompt take later positions: rotary ones do, learned ones may be used up."""
    config: Any = module.config
    text = config.get_text_config(decoder=True)
    return getattr(text, "rope_parameters", None) is not None


def prompted_states(module: Any, embed: nn.Module, vectors: Tensor, items: Sequence[Scorable]) -> Tensor:
    """Last hidden states of requests with vectors behind the first token, shape (n, longest, d_model)."""
    k, device = len(vectors), vectors.device
    longest = max(len(item.token_ids) for item in items)
    ids = torch.zeros((len(items), longest), dtype=torch.long)
    for row, item in enumerate(items):
        ids[row, : len(item.token_ids)] = torch.tensor(item.token_ids)
    words = embed(ids.to(device))
    inside = vectors.to(words.dtype).expand(len(items), -1, -1)
    states = torch.cat([words[:, :1], inside, words[:, 1:]], dim=1)
    if moves_up(module):
        positions = torch.arange(longest + k, device=device)
    else:
        positions = torch.cat([torch.zeros(k, dtype=torch.long, device=device), torch.arange(longest, device=device)])
    # Without a mask, positions that repeat would be taken for several sequences packed into one.
    mask = torch.ones(states.shape[:2], dtype=torch.long, device=device)
    output = module.base_model(inputs_embeds=states, position_ids=positions[None], attention_mask=mask, use_cache=False)
    hidden = output.last_hidden_state
    return torch.cat([hidden[:, :1], hidden[:, 1 + k :]], dim=1)


def _batches(requests: Sequence[Scorable], plan: SoftPromptPlan) -> list[list[int]]:
    """The requests of every step: in an order drawn anew for each round, a budget of tokens a step."""
    rng = np.random.default_rng([plan.seed, 61])
    batches: list[list[int]] = []
    while len(batches) < plan.steps:
        batch: list[int] = []
        for i in rng.permutation(len(requests)).tolist():
            longest = max(len(requests[j].token_ids) for j in [*batch, i])
            if batch and longest * (len(batch) + 1) > plan.batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(i)
        batches.append(batch)
    return batches[: plan.steps]
