"""Scoring on a GPU: tokens a second, and the work done as a share of the card's own matrix rate.

    python -m benchmarks.gpu.run --model FOLDER [--dtype bfloat16]

The card's rate is measured here, on the same card and in the same dtype, as the best of large square products;
the work is that of the speed benchmark: matrix products that the requests need, frames once. The largest batch is found
by trying: tokens in one padded batch are doubled until the card is full or the rate stops rising.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from benchmarks.environment import write_result
from benchmarks.speed.run import make_requests
from personae.errors import OutOfMemory
from personae.models.hf import HFModel
from personae.models.hf_load import DTYPES
from personae.models.load import load_model
from personae.models.protocol import Scorable
from personae.models.rendering import Renderer

_SIZES = (4096, 8192)
_LEAST_GAIN = 1.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(DTYPES))
    parser.add_argument("--personas", type=int, default=24)
    parser.add_argument("--episodes", type=int, default=160)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here: not run")
    model = load_model(args.model, device="cuda", dtype=args.dtype)
    assert isinstance(model, HFModel)
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    requests = make_requests(renderer, args.personas, args.episodes)
    rate = matrix_rate(DTYPES[args.dtype])
    tried = find_batch(model, requests)
    best = min(tried, key=lambda row: row["seconds"])
    work = work_of(model, requests)
    body: dict[str, object] = {
        "settings": vars(args),
        "card": torch.cuda.get_device_name(),
        "tflops_of_the_card": round(rate / 1e12, 1),
        "tokens_whole_sequences": sum(len(r.token_ids) for r in requests),
        "tokens_per_second": round(sum(len(r.token_ids) for r in requests) / best["seconds"]),
        "tflops_reached": round(work / best["seconds"] / 1e12, 2),
        "share_of_the_card": round(work / best["seconds"] / rate, 4),
        "batches_tried": tried,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }
    print(json.dumps(body, indent=1), write_result(f"gpu-{args.dtype}", body))


def find_batch(model: HFModel, requests: list[Scorable]) -> list[dict[str, float]]:
    """Seconds for all requests with ever larger batches."""
    tried: list[dict[str, float]] = []
    tokens = 8192
    while True:
        model._batch_tokens = tokens
        try:
            model.score(requests)
            torch.cuda.synchronize()
            began = time.perf_counter()
            model.score(requests)
            torch.cuda.synchronize()
        except OutOfMemory:
            return tried
        tried.append({"batch_tokens": tokens, "seconds": time.perf_counter() - began})
        if len(tried) > 2 and tried[-1]["seconds"] * _LEAST_GAIN > tried[-3]["seconds"]:
            return tried
        tokens *= 2


def matrix_rate(dtype: torch.dtype) -> float:
    """Best rate of one large product, FLOP/s."""
    best = 0.0
    for n in _SIZES:
        a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
        for _ in range(5):
            a @ b
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(20):
            a @ b
        torch.cuda.synchronize()
        best = max(best, 20 * 2 * n**3 / (time.perf_counter() - began))
    return best


def work_of(model: HFModel, requests: list[Scorable]) -> float:
    """Floating-point operations of the matrix products that the requests need."""
    head = model.module.get_output_embeddings().weight.numel()
    body = sum(
        p.numel()
        for n, p in model.module.named_parameters()
        if p.dim() == 2 and "embed" not in n and "lm_head" not in n
    )
    frames = {r.token_ids[: r.shared] for r in requests}
    run = sum(len(r.token_ids) - r.shared for r in requests) + sum(map(len, frames))
    return 2.0 * (body * run + head * sum(r.n_scored for r in requests))


if __name__ == "__main__":
    main()
