"""Real servers on loopback against the model in process: laws, agreement, faults of their own.

    python -m benchmarks.servers.run --vllm PYTHON --llama PYTHON [--model smollm2]

Each PYTHON is of an environment of its own that has that server (`make servers-test` builds both). A server is started
on a free port with the model's own files and ended afterwards. vLLM must agree with the model loaded here, as a server
and as `vllm:NAME`; what llama-cpp-python echoes is misplaced for some prompts and must be refused or mended.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from benchmarks.environment import write_result
from benchmarks.servers.in_process import ANSWER
from benchmarks.speed.run import make_requests
from personae.domain.episode import Turn
from personae.errors import MissingCapability
from personae.models.catalogue import EMBEDDED, resolve
from personae.models.hf_load import local_folder
from personae.models.http import connect
from personae.models.http_chat import HTTPChat
from personae.models.http_scoring import WAYS
from personae.models.laws import check_laws
from personae.models.load import load_model
from personae.models.protocol import SamplingPlan
from personae.models.rendering import Renderer

_READY_S = 3000
_KV_CACHE = {"VLLM_CPU_KVCACHE_SPACE": "2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", default="")
    parser.add_argument("--llama", default="")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--logs", default="", help="folder for what the servers print")
    args = parser.parse_args()
    folder = local_folder(resolve(args.model))
    body: dict[str, object] = {"settings": {k: v for k, v in vars(args).items() if k in ("model", "episodes")}}
    logs = Path(args.logs) if args.logs else None
    if args.vllm:
        body["vllm"] = with_vllm(args.vllm, folder, args.model, args.episodes, logs)
        print(json.dumps(body["vllm"], indent=1), flush=True)
        body["vllm_in_process"] = in_process(args.vllm, args.model, args.episodes, logs)
        print(json.dumps(body["vllm_in_process"], indent=1), flush=True)
    if args.llama:
        files = EMBEDDED[args.model].files()
        assert files is not None
        body["llama_cpp_python"] = with_llama(args.llama, files[0], args.model, logs)
        print(json.dumps(body["llama_cpp_python"], indent=1), flush=True)
    print(write_result(f"servers-{args.model}", body))


def with_vllm(python: str, folder: Path, name: str, n_episodes: int, logs: Path | None) -> dict[str, object]:
    """Laws and agreement of vLLM's prompt log-probabilities, float32."""
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", "float32"]
    command += ["--max-model-len", "1024", "--served-model-name", name, "--enforce-eager", "--seed", "0"]
    command += ["--distributed-executor-backend", "uni"]  # no process for the only worker
    with served(command, _KV_CACHE, "vllm", logs) as url:
        began = time.perf_counter()
        model = connect(f"{url}#{name}")
        connected = time.perf_counter() - began
        verdicts = {v.law: [v.gap, v.holds] for v in check_laws(model)}
        local = load_model(name)
        requests = make_requests(Renderer(local.tokenizer, context_length=model.card.context_length), 2, n_episodes)
        began = time.perf_counter()
        theirs = model.score(requests)
        seconds = time.perf_counter() - began
        ours = local.score(requests)
        gaps = [np.abs(a.log_probs - b.log_probs).max() for a, b in zip(ours, theirs, strict=True)]
        sums = [abs(a.log_likelihood - b.log_likelihood) for a, b in zip(ours, theirs, strict=True)]
        said = HTTPChat(f"{url}#{name}").reply([(Turn("user", "Say hello."),)], SamplingPlan(8, 0.0, 0))
        return {
            "way": model.card.kernel,
            "connect_s": round(connected, 1),
            "laws": verdicts,
            "n_requests": len(requests),
            "tokens_per_second": round(sum(len(r.token_ids) for r in requests) / seconds),
            "worst_gap_nats_per_token": float(max(gaps)),
            "worst_gap_nats_per_completion": float(max(sums)),
            "greedy_reply": said[0].text,
            "holds": bool(max(gaps) < 1e-3) and all(holds for _, holds in verdicts.values()),
        }


def in_process(python: str, name: str, n_episodes: int, logs: Path | None) -> dict[str, object]:
    """Laws, agreement and rate of `vllm:NAME`, with its prefix cache and without."""
    local = load_model(name)
    requests = make_requests(Renderer(local.tokenizer, context_length=local.card.context_length), 2, n_episodes)
    rows = [{"token_ids": list(r.token_ids), "start": r.start, "shared": r.shared} for r in requests]
    source = Path(__file__).parents[2] / "src"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.json"
        path.write_text(json.dumps(rows))
        variables = {**os.environ, **_KV_CACHE, "PYTHONPATH": f"{source}:{os.environ.get('PYTHONPATH', '')}"}
        command = [python, str(Path(__file__).with_name("in_process.py")), name, str(path)]
        log = (logs / "vllm-in-process.log").open("w") if logs else subprocess.DEVNULL
        done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, stderr=log, text=True, check=True)
    found = json.loads(next(x for x in done.stdout.splitlines() if x.startswith(ANSWER)).removeprefix(ANSWER))
    ours = [r.log_probs for r in local.score(requests)]
    read, plain = (found.pop(k) for k in ("log_probs", "log_probs_cache_not_read"))
    gaps = [float(np.abs(a - np.array(b)).max()) for a, b in zip(ours, read, strict=True)]
    cached = [float(np.abs(np.array(a) - np.array(b)).max()) for a, b in zip(read, plain, strict=True)]
    return found | {
        "n_requests": len(requests),
        "worst_gap_nats_per_token": max(gaps),
        "worst_gap_of_the_cache_nats_per_token": max(cached),
        "holds": max(gaps) < 1e-3 and all(holds for _, holds in found["laws"].values()),
    }


def with_llama(python: str, gguf: Path, name: str, logs: Path | None) -> dict[str, object]:
    """What llama-cpp-python echoes, how far off it is, and that it is refused or mended."""
    command = [python, "-m", "llama_cpp.server", "--model", str(gguf), "--model_alias", name, "--n_ctx", "1024"]
    command += ["--logits_all", "true", "--n_threads", "1", "--verbose", "false"]
    with served(command, {}, "llama", logs) as url:
        local = load_model(name)
        echoed = raw_echo(url, name, "The capital of")
        try:
            model = connect(f"{url}#{name}", tokenizer=name)
            outcome: dict[str, object] = {"way": model.card.kernel}
            outcome["laws"] = {v.law: [v.gap, v.holds] for v in check_laws(model)}
            outcome["holds"] = all(v.holds for v in check_laws(model))
        except MissingCapability as refusal:
            outcome = {"refused": str(refusal), "holds": True}
        ids = local.tokenizer.encode("The capital of")
        right = local.score([_whole(ids)])[0].log_probs
        said = HTTPChat(f"{url}#{name}").reply([(Turn("user", "Say hello."),)], SamplingPlan(8, 0.0, 0))
        return outcome | {
            "echoed_the_capital_of": echoed,
            "in_process": [float(v) for v in right],
            "greedy_reply": said[0].text,
            "ways_tried": [w.name for w in WAYS],
        }


def _whole(ids: list[int]):
    from personae.models.protocol import Scorable

    return Scorable(tuple(ids), 1)


def raw_echo(url: str, name: str, text: str) -> dict[str, object]:
    body = {"model": name, "prompt": text, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    answer = httpx.post(f"{url}/completions", json=body, timeout=120).json()
    logprobs = answer["choices"][0]["logprobs"]
    return {"tokens": logprobs["tokens"], "token_logprobs": logprobs["token_logprobs"]}


@contextmanager
def served(command: list[str], variables: dict[str, str], name: str, logs: Path | None) -> Iterator[str]:
    """A server on a free port, until the end of the block; its own process group is ended with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (logs / f"{name}.log").open("w") if logs else subprocess.DEVNULL
    child = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **variables},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(_READY_S):
            assert child.poll() is None, f"the server {name} ended with {child.returncode}"
            try:
                if httpx.get(f"{url}/models", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(1)
        else:
            raise SystemExit(f"the server {name} was not ready within {_READY_S} s")
        yield url
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
