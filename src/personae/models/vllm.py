"""A model that vLLM runs in this process: `vllm:NAME`.

    token ids + span  ->  generate(prompt_logprobs)  ->  log-probabilities of the span
    prompts           ->  generate(logprobs, seed)   ->  completions

vLLM keeps keys and values of prompts that it has read (its prefix cache). Many personas over one file are the very load
that this helps, and the one for which wrong numbers were reported: what lies before the end of the cached part is not
computed, and its places hold whatever was in memory (vllm-project/vllm#42019). So by default vLLM does not read the
cache where log-probabilities of a prompt are wanted. We let it, if the numbers behind the cached part were seen not to
depend on what was asked before (measured when the model is loaded), and ask again without it wherever the cached part
reaches into the span. Not here: starting the engine (`models.vllm_engine`), servers (`models.http`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from personae.errors import BackendError, InvalidSettings
from personae.models.catalogue import ModelSource
from personae.models.hf_load import folder_digest, load_hf_tokenizer, local_folder
from personae.models.laws import law_requests, noise_floor
from personae.models.protocol import (
    Completion,
    ModelCard,
    SamplingPlan,
    Scorable,
    Tokenizer,
    TokenLogprobs,
    seed_of,
)
from personae.models.vllm_engine import BLOCK, Engine, failures, first_line, start_engine

_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}
_SHARED_BLOCKS = 3  # in the requests that decide about the cache


class Logprob(Protocol):
    """vLLM's entry for one token."""

    logprob: float


Rows = Sequence[Mapping[int, Logprob] | None]


@dataclass(frozen=True, slots=True)
class CacheDecision:
    """Whether the prefix cache is read, and the measurement behind it.

    Attributes:
        reads: The decision.
        gap: Worst difference between asked first, asked again after other requests, and asked without the cache, nats a
            token; infinite where a number was missing.
        n_requests, n_hits: Requests of the measurement, and how many of them were answered from the cache.
    """

    reads: bool
    gap: float
    n_requests: int
    n_hits: int


class VLLMModel:
    """A model in an engine. Made by `load_vllm`.

    Args:
        engine: `vllm.LLM`.
        params: `vllm.SamplingParams`.
        tokenizer: Its tokenizer.
        card: Who it is.
        reads_cache: Whether the prefix cache may be read.
    """

    def __init__(
        self,
        engine: Engine,
        params: Callable[..., Any],
        tokenizer: Tokenizer,
        card: ModelCard,
        *,
        reads_cache: bool = False,
    ) -> None:
        self._engine, self._params, self._tokenizer, self._card = engine, params, tokenizer, card
        self._reads_cache = reads_cache

    @property
    def card(self) -> ModelCard:
        """Who the model is; `note` says what was decided about the prefix cache."""
        return self._card

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self._tokenizer

    def score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
        """Log-probabilities of every span, in the order given.

        The cache is emptied first, so that an answer depends on its batch alone; within a batch it is shared.
        """
        if self._reads_cache:
            self._engine.reset_prefix_cache()
        return [TokenLogprobs(logs) for logs, _ in self.ask(batch, read=self._reads_cache)]

    def ask(self, batch: Sequence[Scorable], *, read: bool) -> list[tuple[NDArray[np.float32], int]]:
        """Log-probabilities of every span, with the number of tokens before it that came from the cache.

        Args:
            batch: What is asked.
            read: Whether the cache is read, for requests that say what they share with others.

        Raises:
            BackendError: If the engine fails or leaves numbers out.
        """
        outputs = self._scored(batch, [read and item.shared > 0 for item in batch])
        # A hit that reaches into the span leaves its numbers uncomputed.
        cached = [_cached(o) if read and item.shared > 0 else 0 for item, o in zip(batch, outputs, strict=True)]
        again = [k for k, item in enumerate(batch) if cached[k] >= item.start]
        for k, output in zip(again, self._scored([batch[k] for k in again], [False] * len(again)), strict=True):
            outputs[k], cached[k] = output, 0
        return [(self._span(o, item), n) for item, o, n in zip(batch, outputs, cached, strict=True)]

    def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan) -> list[Completion]:
        """One completion for each prompt, each with a seed of its own made of the plan's and its place.

        Log-probabilities are those of temperature 1, whatever the plan's.
        """
        if self._reads_cache:
            self._engine.reset_prefix_cache()
        params = [
            self._params(
                max_tokens=plan.max_tokens,
                temperature=plan.temperature,
                seed=seed_of(plan, place),
                logprobs=0,
                stop_token_ids=sorted(self._tokenizer.stop_ids),
                ignore_eos=True,  # the tokenizer's stop tokens end a reply, as in every backend
                detokenize=False,
                skip_reading_prefix_cache=not self._reads_cache,
            )
            for place in range(len(batch))
        ]
        return [self._completion(o) for o in self._generate(batch, params)]

    def next_token_log_probs(self, prompt: tuple[int, ...]) -> NDArray[np.float32]:
        """Log-probabilities of every next token, nats, shape (vocab_size,)."""
        params = self._params(
            max_tokens=1, temperature=0.0, logprobs=-1, detokenize=False, skip_reading_prefix_cache=True
        )
        (output,) = self._generate([prompt], [params])
        row: Mapping[int, Logprob] = output.outputs[0].logprobs[0]
        log_p = np.full(self._card.vocab_size, np.nan, np.float32)
        log_p[list(row)] = [entry.logprob for entry in row.values()]
        if np.isnan(log_p).any():
            raise self._incomplete(f"{int(np.isnan(log_p).sum())} of {len(log_p)} next tokens")
        return log_p

    def _scored(self, batch: Sequence[Scorable], read: Sequence[bool]) -> list[Any]:
        if not batch:
            return []
        params = [
            self._params(
                max_tokens=1,
                temperature=0.0,
                prompt_logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                skip_reading_prefix_cache=not r,
            )
            for r in read
        ]
        return self._generate([item.token_ids for item in batch], params)

    def _generate(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        asked = [{"prompt_token_ids": list(p)} for p in prompts]
        try:
            outputs = list(self._engine.generate(asked, list(params), use_tqdm=False))
        except failures() as error:
            raise BackendError(f"vLLM failed on '{self._card.name}': {first_line(error)}") from error
        if [tuple(o.prompt_token_ids) for o in outputs] != [tuple(p) for p in prompts]:
            raise BackendError(f"vLLM answered other prompts than '{self._card.name}' was asked.")
        return outputs

    def _span(self, output: Any, item: Scorable) -> NDArray[np.float32]:
        rows: Rows | None = output.prompt_logprobs
        n = len(item.token_ids)
        if rows is None or len(rows) != n:
            raise self._incomplete(f"{n} tokens of a prompt")
        values = [_value(rows[t], item.token_ids[t]) for t in range(item.start, n)]
        if None in values:
            raise self._incomplete(f"{values.count(None)} of {len(values)} scored tokens")
        return np.array(values, np.float32)

    def _completion(self, output: Any) -> Completion:
        said = output.outputs[0]
        ids = tuple(int(i) for i in said.token_ids)
        values = [_value(row, i) for row, i in zip(said.logprobs or (), ids, strict=False)]
        if len(values) != len(ids) or None in values:
            raise self._incomplete("sampled tokens")
        return Completion(ids, np.array(values, np.float32))

    def _incomplete(self, what: str) -> BackendError:
        return BackendError(
            f"vLLM gave no log-probabilities of {what} for '{self._card.name}'.",
            hint="`personae check-model` tests a model; another version of vLLM may do.",
        )


def load_vllm(source: ModelSource, *, device: str = "auto", dtype: str = "float32") -> VLLMModel:
    """Start vLLM with a model's weights, measure its prefix cache and give it as a scorer.

    Args:
        source: From `catalogue.resolve`, of the kind "vllm".
        device: "auto", or the kind of device that this build of vLLM is for ("cpu", "cuda").
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        MissingCapability: If vLLM is not installed.
        InvalidSettings: If device or dtype cannot be had.
        BackendError: If it cannot run the model.
        CorruptModel, ModelNotFound: As `hf_load.load_hf`.
    """
    if dtype not in _TOLERANCE:
        raise InvalidSettings(f"--dtype is '{dtype}'; it can be {', '.join(_TOLERANCE)}.")
    assert source.weights is not None
    folder = local_folder(source.weights)
    tokenizer, tokenizer_digest, _ = load_hf_tokenizer(source.weights)
    engine, params, version, where = start_engine(source.name, folder, device, dtype)
    config = engine.llm_engine.model_config
    card = ModelCard(
        name=source.name,
        # Kept apart from the scores of transformers, which differ in the last bits.
        digest=hashlib.blake2b(f"vllm|{folder_digest(folder)}".encode(), digest_size=16).hexdigest(),
        tokenizer_digest=tokenizer_digest,
        is_chat=tokenizer.has_template,
        n_parameters=_n_parameters(folder),
        context_length=int(config.max_model_len) - 1,  # it wants room for a token after the prompt
        vocab_size=int(config.get_vocab_size()),
        dtype=dtype,
        device=where,
        kernel=f"vllm-{version}",
        tolerance=_TOLERANCE[dtype],
        licence=source.weights.embedded.licence if source.weights.embedded else "see the model's own card",
    )
    return settled(VLLMModel(engine, params, tokenizer, card), engine, params)


def settled(model: VLLMModel, engine: Engine, params: Callable[..., Any]) -> VLLMModel:
    """The model with the prefix cache read or not, as the law of history says; the card tells."""
    found = decide(model, engine)
    made = VLLMModel(engine, params, model.tokenizer, model.card, reads_cache=found.reads)
    floor = noise_floor(made, _long_requests(model))
    read = "read" if found.reads else "not read"
    note = (
        f"prefix cache {read}: {found.n_hits} of {found.n_requests} requests came from it when tried, worst gap "
        f"{found.gap:.2g} nats a token"
    )
    card = replace(model.card, kernel=model.card.kernel + ("+prefix-cache" if found.reads else ""))
    card = replace(card, noise_floor=floor, note=note)
    return VLLMModel(engine, params, model.tokenizer, card, reads_cache=found.reads)


def decide(model: VLLMModel, engine: Engine) -> CacheDecision:
    """Whether the cache may be read: requests with a long shared start, asked alone without it, then in both orders.

    Each order is asked twice without emptying the cache between, which is harder than what `VLLMModel.score` does.
    """
    items = _long_requests(model)
    rounds: list[list[tuple[NDArray[np.float32], int]]] = []
    try:
        alone = [model.ask([item], read=False)[0][0] for item in items]
        for step in (1, -1):
            engine.reset_prefix_cache()
            rounds += [model.ask(items[::step], read=True)[::step] for _ in range(2)]
    except BackendError:  # numbers are missing when it is read
        return CacheDecision(False, float("inf"), len(items), 0)
    finally:
        engine.reset_prefix_cache()
    with np.errstate(invalid="ignore"):
        gaps = [
            np.abs(logs - right).max() for answers in rounds for (logs, _), right in zip(answers, alone, strict=True)
        ]
    gap = float(np.nan_to_num(np.max(gaps), nan=np.inf))
    hits = sum(max(r[k][1] for r in rounds) > 0 for k in range(len(items)))
    return CacheDecision(hits > 0 and gap <= model.card.tolerance, gap, len(items), hits)


def _long_requests(model: VLLMModel) -> list[Scorable]:
    """The requests of the laws, behind a start that they share and that fills several blocks of the cache."""
    items = law_requests(model)
    wanted = min(_SHARED_BLOCKS * BLOCK, model.card.context_length // 2)
    start = (items[0].token_ids * (wanted // len(items[0].token_ids) + 1))[:wanted]
    longer = [Scorable(start + i.token_ids, wanted + i.start, wanted) for i in items]
    return [i for i in longer if len(i.token_ids) <= model.card.context_length] or items


def _cached(output: Any) -> int:
    """Tokens that were not computed; all of them where the engine does not say."""
    found = getattr(output, "num_cached_tokens", None)
    return len(output.prompt_token_ids) if found is None else int(found)


def _value(row: Mapping[int, Logprob] | None, token: int) -> float | None:
    """The number of a token; None where it is missing, is none, or stands at another token."""
    entry = None if row is None else row.get(token)
    return None if entry is None or entry.logprob != entry.logprob else float(entry.logprob)


def _n_parameters(folder: Path) -> int:
    """Numbers in the files of weights."""
    total = 0
    try:
        for path in folder.glob("*.safetensors"):
            with safe_open(str(path), "np") as weights:
                total += sum(int(np.prod(weights.get_slice(k).get_shape())) for k in weights.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return 0  # vLLM will say what is wrong with them
    return total
