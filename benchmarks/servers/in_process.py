"""vLLM in this process, as `vllm:NAME` uses it; a child of `benchmarks.servers.run --vllm PYTHON`.

    python in_process.py NAME REQUESTS.json

Prints one line: the laws, the log-probabilities of every request, and how long they took with the prefix cache and
without. It runs in vLLM's own environment, in which personae is found through PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

ANSWER = "in process: "


def main() -> None:
    from personae.models.laws import check_laws
    from personae.models.load import load_model
    from personae.models.protocol import Scorable
    from personae.models.vllm import VLLMModel

    name, requests = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    items = [Scorable(tuple(r["token_ids"]), r["start"], r["shared"]) for r in requests]
    began = time.perf_counter()
    model = load_model(f"vllm:{name}")
    assert isinstance(model, VLLMModel)
    loaded = time.perf_counter() - began
    laws = {v.law: [v.gap, v.holds] for v in check_laws(model)}
    n_tokens = sum(len(i.token_ids) for i in items)
    model.score(items[:8])
    began = time.perf_counter()
    scored = model.score(items)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    plain = model.ask(items, read=False)
    plain_seconds = time.perf_counter() - began
    answer = {
        "load_s": round(loaded, 1),
        "card": model.card.to_dict(),
        "laws": laws,
        "tokens_per_second": round(n_tokens / seconds),
        "tokens_per_second_cache_not_read": round(n_tokens / plain_seconds),
        "log_probs": [[float(v) for v in s.log_probs] for s in scored],
        "log_probs_cache_not_read": [[float(v) for v in logs] for logs, _ in plain],
    }
    print(ANSWER + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
