"""CPU seconds to extract vectors of all layers from 40 contrast pairs, one tool a process.

    python -m benchmarks.vectors.extraction TOOL FOLDER     TOOL: personae, repeng, steering-vectors
    python -m benchmarks.vectors.extraction all FOLDER [--store]

prints one JSON object; `all` runs the three after one another, each in a process of its own, twice over, and gives the
least of each. FOLDER is the model as a Hugging Face folder. The prompts are the same token for token: two
instructions of one trait, forty questions, the model's chat template, an open reply. Loading is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata

import numpy as np
import torch

from benchmarks.environment import write_result
from personae.domain.persona import Persona
from personae.files.casts import load_casts
from personae.files.openers import load_openers
from personae.instruments.reading import prompts
from personae.models.catalogue import resolve
from personae.models.hf_load import load_hf
from personae.models.rendering import Renderer

TOOLS = ("personae", "repeng", "steering-vectors")
PAIRS = 40
TRAIT = "contemptuous"


def contrast() -> tuple[list[str], list[str]]:
    """The two instructions, and the questions."""
    trait = load_casts(("core",)).select([TRAIT]).traits[0]
    questions = list(dict.fromkeys(q for script in load_openers(2) for q in script))[:PAIRS]
    return [trait.pos.instructions[1], trait.neg.instructions[1]], questions


def of_personae(folder: str) -> Callable[[], np.ndarray]:
    model = load_hf(resolve(folder), device="cpu")
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    instructions, questions = contrast()

    def run() -> np.ndarray:
        items = [
            renderer.render(r.frame, r.episode)
            for text in instructions
            for r in prompts(renderer, Persona("p", (text,)), questions)
        ]
        states = np.stack(model.read(items, reduce="prompt_last"))
        model._prefixes.clear()  # nothing is left for the next round
        return states[:PAIRS].mean(axis=0) - states[PAIRS:].mean(axis=0)

    return run


def of_transformers(folder: str, tool: str) -> Callable[[], np.ndarray]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    instructions, questions = contrast()
    texts = [
        [
            tokenizer.apply_chat_template(
                [{"role": "system", "content": text}, {"role": "user", "content": q}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for q in questions
        ]
        for text in instructions
    ]
    if tool == "repeng":
        # repeng 0.4.0 was written for NumPy 1 and asks for this name when it is imported.
        vars(np)["float_"] = np.float64
        from repeng import ControlModel, ControlVector, DatasetEntry

        wrapped = ControlModel(model, list(range(model.config.num_hidden_layers)))
        data = [DatasetEntry(positive=p, negative=n) for p, n in zip(*texts, strict=True)]

        def run() -> np.ndarray:
            made = ControlVector.train(wrapped, tokenizer, data, method="pca_center")
            return np.stack([made.directions[k] for k in sorted(made.directions)])

        return run
    from steering_vectors import train_steering_vector

    pairs = list(zip(*texts, strict=True))

    def run_steering() -> np.ndarray:
        made = train_steering_vector(model, tokenizer, pairs, batch_size=8, read_token_index=-1)
        return np.stack([made.layer_activations[k].numpy() for k in sorted(made.layer_activations)])

    return run_steering


def main() -> None:
    """Time one tool and print what came out."""
    tool, folder = sys.argv[1:3]
    if tool == "all":
        _all(folder, store="--store" in sys.argv)
        return
    torch.set_num_threads(1)
    run = of_personae(folder) if tool == "personae" else of_transformers(folder, tool)
    seconds = []
    for _ in range(2):
        start = time.process_time()
        vectors = run()
        seconds.append(time.process_time() - start)
    print(json.dumps({"tool": tool, "cpu_seconds": min(seconds), "rounds": seconds, "shape": list(vectors.shape)}))


def _all(folder: str, *, store: bool) -> None:
    """Every tool in its own process, in turn."""
    found: dict[str, float] = {}
    for _ in range(2):
        for tool in TOOLS:
            command = [sys.executable, "-m", "benchmarks.vectors.extraction", tool, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds = json.loads(done.stdout.strip().splitlines()[-1])["cpu_seconds"]
            found[tool] = min(seconds, found.get(tool, seconds))
    fastest = min(seconds for tool, seconds in found.items() if tool != "personae")
    body = {
        "pairs": PAIRS,
        "threads": 1,
        "versions": {tool: metadata.version(tool) for tool in TOOLS},
        "cpu_seconds": found,
        "share_of_fastest": found["personae"] / fastest,
        "bar": 0.5,
    }
    print(json.dumps(body))
    if store:
        print(write_result("extraction-smollm2", body))


if __name__ == "__main__":
    main()
