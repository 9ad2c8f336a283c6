"""The settings of a request to vLLM that are used; any other is a TypeError. `tests/models/test_vllm.py` holds them
against vLLM's own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Params:
    """The settings of a request that are used, as `vllm.SamplingParams` calls them."""

    max_tokens: int = 16
    temperature: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    flat_logprobs: bool = False
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    detokenize: bool = True
    skip_reading_prefix_cache: bool | None = None
