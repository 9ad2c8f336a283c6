"""A transformers model as a scorer and sampler: shared prefixes, length batches, logits only where asked.

For a batch of `Scorable`s the tokens before `shared` run once per distinct prefix and their keys and values
are repeated for the group; the rest runs in right-padded batches of similar length; the vocabulary matrix is
applied to the positions that predict a scored token and to no others. Right padding with a causal mask needs
no attention mask, and positions are always explicit, so learned positions stay right. A request whose tokens
begin another one (an earlier turn of one conversation) is read off the longer one's pass.

Sampling runs prompts of similar length together, padded on the left, with a cache of keys and values.

Under edits of the residual stream (`steered`) a view of the model runs, with prefixes of its own: keys and values
of an edited pass are never taken for the model's.

Not here: loading (`models.hf_load`), text (`models.rendering`), hooks themselves (`models.hf_hooks`), adapters.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from personae.errors import InvalidSettings, NumericsError, OutOfMemory
from personae.models.activations import Edit, Floats32, Reduce, check_edits, check_layers, edited_digest
from personae.models.hf_distributions import HiddenDistributions
from personae.models.hf_hooks import edited, gatherer, read_part, read_states
from personae.models.hf_memory import memory_errors
from personae.models.hf_tokenizer import HFTokenizer
from personae.models.protocol import (
    Completion,
    ModelCard,
    SamplingPlan,
    Scorable,
    TokenDistributions,
    TokenLogprobs,
)
from personae.models.sharing import by_prefix, nested_requests

# Tokens in a padded batch. On CPUs larger ones spill the caches; on GPUs they fill the card, and where they do not fit
# the number is halved until they do.
_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
_LEAST_BATCH_TOKENS = 128
# A batch of so many tokens is efficient: then padding its shortest row further would cost more than another batch.
_PADDED_TOKENS, _PADDING = 384, 1.3
# Bytes of logits held at once: small enough to stay near the cache, large enough for an efficient product.
_LOGIT_BYTES = {"cpu": 16 * 2**20, "cuda": 2**30}
_KEPT_PREFIXES = 4
_MEMORY_HINT = "Close other programs, use a smaller model, or cut long rows with --truncate."
_SAMPLED_TOGETHER = 16


class HFModel:
    """A causal language model of transformers behind the `LanguageModel` protocol."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: HFTokenizer, card: ModelCard, *, edits: Sequence[Edit] = ()
    ) -> None:
        self._model = model.eval()
        self._edits = tuple(edits)
        self._ended = False
        self._tokenizer = tokenizer
        self._card = card
        self._device = next(model.parameters()).device
        self._prefixes: OrderedDict[tuple[int, ...], DynamicCache] = OrderedDict()
        self._batch_tokens = _BATCH_TOKENS.get(self._device.type, 2048)
        self._stop = tokenizer.stop_ids | _turn_ends(model)
        self._logit_rows = max(16, _LOGIT_BYTES.get(self._device.type, 2**25) // (4 * card.vocab_size))

    @property
    def card(self) -> ModelCard:
        """Who the model is."""
        return self._card

    @property
    def tokenizer(self) -> HFTokenizer:
        """Its tokenizer."""
        return self._tokenizer

    @property
    def module(self) -> PreTrainedModel:
        """The transformers module itself."""
        return self._model

    def score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
        """Log-probabilities of every span, in the order given.

        Args:
            batch: Requests; those with equal leading `shared` tokens share one pass over them.

        Returns:
            One `TokenLogprobs` per request, nats.

        Raises:
            NumericsError: If the model gives a log-probability that is not a number.
            OutOfMemory: If even a small batch does not fit.
        """
        while True:
            try:
                return self._score(batch)
            except OutOfMemory:
                if self._batch_tokens <= _LEAST_BATCH_TOKENS:
                    raise
            self._batch_tokens //= 2  # and so for the batches to come
            self._prefixes.clear()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
        results: list[TokenLogprobs | None] = [None] * len(batch)
        with self._running():
            for prefix, members in by_prefix(batch).items():
                nested = nested_requests(batch, members)
                for hosts in self._length_batches(batch, list(nested), len(prefix)):
                    chunk = [i for host in hosts for i in nested[host]]
                    rows = [row for row, host in enumerate(hosts) for _ in nested[host]]
                    values = self._score_chunk(prefix, [batch[i] for i in hosts], [batch[i] for i in chunk], rows)
                    for i, value in zip(chunk, values, strict=True):
                        results[i] = TokenLogprobs(value)
        return [r for r in results if r is not None]

    def distributions(self, batch: Sequence[Scorable]) -> list[HiddenDistributions]:
        """The distribution at every scored place, in the order given.

        Kept is the last hidden state of each place; log-probabilities are made from it a few places at a time.
        """
        results: list[HiddenDistributions | None] = [None] * len(batch)
        with self._running():
            for prefix, members in by_prefix(batch).items():
                for chunk in self._length_batches(batch, members, len(prefix)):
                    ids = padded([batch[i] for i in chunk], len(prefix))
                    hidden = self._hidden(prefix, ids.to(self._device))
                    for row, i in enumerate(chunk):
                        first, last = batch[i].start - 1 - len(prefix), len(batch[i].token_ids) - 1 - len(prefix)
                        results[i] = HiddenDistributions(self._logits, hidden[row, first:last].clone())
        return [r for r in results if r is not None]

    def states_of(self, made: TokenDistributions) -> NDArray[np.float32]:
        """Last hidden states of a distribution, shape (n_places, d_model)."""
        assert isinstance(made, HiddenDistributions)
        return made.hidden.float().cpu().numpy()

    def from_states(self, states: NDArray[np.float32]) -> HiddenDistributions:
        """The distributions that `states_of` was given."""
        return HiddenDistributions(self._logits, torch.from_numpy(states).to(self._device, self._model.dtype))

    def next_token_log_probs(self, prompt: tuple[int, ...]) -> NDArray[np.float32]:
        """Log-probabilities of every next token after `prompt`, nats, shape (vocab_size,)."""
        with self._running():
            ids = torch.tensor([prompt], device=self._device)
            logits = self._model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[0, -1].float()
            return torch.log_softmax(logits, -1).cpu().numpy()

    def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan) -> list[Completion]:
        """One completion for each prompt, sampled on a generator of its own.

        Every prompt has its own stream of random numbers, named by the seed and its place, so a completion does
        not depend on its neighbours beyond rounding. Log-probabilities are those of temperature 1.
        """
        results: list[Completion | None] = [None] * len(batch)
        order = sorted(range(len(batch)), key=lambda i: len(batch[i]))
        with self._running():
            for at in range(0, len(order), _SAMPLED_TOGETHER):
                members = order[at : at + _SAMPLED_TOGETHER]
                for i, made in zip(members, self._sample_together(batch, members, plan), strict=True):
                    results[i] = made
        return [r for r in results if r is not None]

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Edits of this view; none where it is the model as it was loaded."""
        return self._edits

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return int(self._model.config.get_text_config(decoder=True).num_hidden_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self._model.config.get_text_config(decoder=True).hidden_size)

    def read(
        self, batch: Sequence[Scorable], *, layers: Sequence[int] | None = None, reduce: Reduce = "response_mean"
    ) -> list[Floats32]:
        """Residual stream of every request: see `activations.ReadsActivations.read`.

        One pass serves all layers and stops after the last one asked for; tokens behind the position that is read
        are not run.
        """
        chosen = check_layers(layers, self.n_layers)
        items = [read_part(item, reduce) for item in batch]
        results: list[Floats32 | None] = [None] * len(items)
        with self._running():
            for prefix, members in by_prefix(items).items():
                for chunk in self._length_batches(items, members, len(prefix)):
                    states = self._read_chunk(prefix, [items[i] for i in chunk], chosen, reduce)
                    for i, state in zip(chunk, states, strict=True):
                        results[i] = state
        return [r for r in results if r is not None]

    @contextmanager
    def steered(self, edits: Sequence[Edit]) -> Iterator[HFModel]:
        """A view of the model under edits, within the context: see `activations.WritesActivations.steered`.

        The model itself stays as it is, also while the view is open; views of views add up.
        """
        checked = check_edits(edits, self.n_layers, self.d_model)
        card = replace(self._card, digest=edited_digest(self._card.digest, checked))
        view = HFModel(self._model, self._tokenizer, card, edits=(*self._edits, *checked))
        try:
            yield view
        finally:
            view._ended = True
            view._prefixes.clear()

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Around every pass: no gradients, this view's edits in force, allocation failures named."""
        if self._ended:
            raise InvalidSettings(
                f"a steered view of {self._card.name} was used after its end.",
                hint="Use it inside `with model.steered(edits) as view:`.",
            )
        with torch.inference_mode(), memory_errors("the batch", hint=_MEMORY_HINT), edited(self._model, self._edits):
            yield

    def _read_chunk(
        self, prefix: tuple[int, ...], items: list[Scorable], layers: tuple[int, ...], reduce: Reduce
    ) -> list[Floats32]:
        """States of requests that share `prefix`: one padded pass."""
        ids = padded(items, len(prefix)).to(self._device)
        n, length = ids.shape
        positions = torch.arange(len(prefix), len(prefix) + length, device=self._device)[None]
        cache = self._prefix_cache(prefix, n) if prefix else None
        gather = gatherer(items, len(prefix), length, reduce, self._device)
        kept = read_states(self._model, ids, positions, cache, layers, gather)
        states = np.stack([kept[layer].float().cpu().numpy() for layer in layers])
        if not np.isfinite(states).all():
            raise NumericsError(
                f"{self._card.name} gave an activation that is not a finite number.",
                hint="Its dtype may be too narrow (try --dtype float32), or an edit too strong.",
            )
        if reduce != "tokens":
            return [states[:, row] for row in range(n)]
        return np.split(states, np.cumsum([item.n_scored for item in items])[:-1], axis=1)

    def _sample_together(
        self, batch: Sequence[tuple[int, ...]], members: Sequence[int], plan: SamplingPlan
    ) -> list[Completion]:
        """Completions of some prompts; rows that have ended leave the batch."""
        longest = max(len(batch[i]) for i in members)
        pad = torch.tensor([longest - len(batch[i]) for i in members], device=self._device)
        step = torch.zeros((len(members), longest), dtype=torch.long)
        for row, i in enumerate(members):
            step[row, longest - len(batch[i]) :] = torch.tensor(batch[i])
        step = step.to(self._device)
        generators = [np.random.default_rng([plan.seed, i]) for i in members]
        out: list[list[int]] = [[] for _ in members]
        log_probs: list[list[float]] = [[] for _ in members]
        alive = list(range(len(members)))
        cache = DynamicCache(config=self._model.config)
        for t in range(plan.max_tokens):
            seen = torch.arange(longest + t, device=self._device)[None]
            mask = (seen >= pad[:, None]).long() if bool((pad > 0).any()) else None
            positions = (seen - pad[:, None]).clamp(min=0)[:, -step.shape[1] :]
            result = self._model(
                input_ids=step,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            log_p = torch.log_softmax(result.logits[:, -1].double(), -1).cpu().numpy()
            for row, who in enumerate(alive):
                token = _draw(log_p[row], plan.temperature, generators[who])
                out[who].append(token)
                log_probs[who].append(log_p[row, token])
            stay = [row for row, who in enumerate(alive) if out[who][-1] not in self._stop]
            if not stay:
                break
            if len(stay) < len(alive):
                kept = torch.tensor(stay, device=self._device)
                cache.batch_select_indices(kept)
                pad, alive = pad[kept], [alive[row] for row in stay]
            step = torch.tensor([[out[who][-1]] for who in alive], device=self._device)
        return [Completion(tuple(o), np.asarray(p, np.float32)) for o, p in zip(out, log_probs, strict=True)]

    def _length_batches(self, batch: Sequence[Scorable], members: list[int], skip: int) -> Iterator[list[int]]:
        """Members in order of length, cut so that padded tokens stay within the budget."""
        ordered = sorted(members, key=lambda i: (len(batch[i].token_ids), i))
        chunk: list[int] = []
        for i in ordered:
            length = len(batch[i].token_ids) - skip
            tokens = length * (len(chunk) + 1)
            shortest = len(batch[chunk[0]].token_ids) - skip if chunk else length
            if chunk and (tokens > self._batch_tokens or (tokens > _PADDED_TOKENS and length > shortest * _PADDING)):
                yield chunk
                chunk = []
            chunk.append(i)
        if chunk:
            yield chunk

    def _score_chunk(
        self, prefix: tuple[int, ...], hosts: list[Scorable], items: list[Scorable], row_of: list[int]
    ) -> list[NDArray[np.float32]]:
        """Log-probabilities of `items`, item i being read off the pass over `hosts[row_of[i]]`."""
        skip = len(prefix)
        ids = padded(hosts, skip)
        hidden = self._hidden(prefix, ids.to(self._device))
        rows = torch.cat([torch.full((item.n_scored,), r) for r, item in zip(row_of, items, strict=True)])
        columns = torch.cat([torch.arange(item.start, len(item.token_ids)) for item in items]) - skip
        targets = torch.tensor([token for item in items for token in item.token_ids[item.start :]])
        log_p = self._gather(hidden, rows, columns - 1, targets.to(self._device))
        if bool(torch.isnan(log_p).any()):
            raise NumericsError(
                f"{self._card.name} gave a log-probability that is not a number.",
                hint="The weights may be damaged, or the dtype too narrow: try --dtype float32.",
            )
        return np.split(log_p.cpu().numpy(), np.cumsum([item.n_scored for item in items])[:-1])

    def _hidden(self, prefix: tuple[int, ...], ids: Tensor) -> Tensor:
        n, length = ids.shape
        positions = torch.arange(len(prefix), len(prefix) + length, device=self._device)[None]
        cache = self._prefix_cache(prefix, n) if prefix else None
        output = self._model.base_model(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=cache is not None
        )
        return output.last_hidden_state

    def _prefix_cache(self, prefix: tuple[int, ...], n: int) -> DynamicCache:
        """Keys and values of `prefix`, repeated n times. The stored one is never handed out: caches grow."""
        if prefix not in self._prefixes:
            cache = DynamicCache(config=self._model.config)
            ids = torch.tensor([prefix], device=self._device)
            self._model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            self._prefixes[prefix] = cache
            while len(self._prefixes) > _KEPT_PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(prefix)
        # The library's own repetition, which knows every kind of layer (sliding windows keep a count).
        fresh = copy.deepcopy(self._prefixes[prefix])
        fresh.batch_repeat_interleave(n)
        return fresh

    def _gather(self, hidden: Tensor, rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of each target at (row, column), in pieces that keep the logits small."""
        pieces: list[Tensor] = []
        for at in range(0, len(rows), self._logit_rows):
            piece = slice(at, at + self._logit_rows)
            logits = self._logits(hidden[rows[piece], columns[piece]])
            chosen = logits.gather(-1, targets[piece, None])[:, 0]
            pieces.append(chosen - torch.logsumexp(logits, -1))
        return torch.cat(pieces)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits of rows of last hidden states."""
        head = self._model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        logits = head(hidden).float()
        return logits if cap is None else torch.tanh(logits / cap) * cap


def padded(items: Sequence[Scorable], skip: int) -> Tensor:
    """Token ids from `skip` on, padded on the right, shape (n, length)."""
    ids = torch.zeros((len(items), max(len(item.token_ids) for item in items) - skip), dtype=torch.long)
    for row, item in enumerate(items):
        ids[row, : len(item.token_ids) - skip] = torch.tensor(item.token_ids[skip:])
    return ids


def _turn_ends(model: PreTrainedModel) -> frozenset[int]:
    """Tokens that end a turn by the model's own generation settings, which may name several."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


def _draw(log_p: NDArray[np.float64], temperature: float, generator: np.random.Generator) -> int:
    if temperature == 0:
        return int(log_p.argmax())
    scaled = log_p / temperature
    weights = np.exp(scaled - scaled.max())
    return int(generator.choice(len(weights), p=weights / weights.sum()))
