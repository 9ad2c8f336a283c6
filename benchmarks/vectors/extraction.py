"""CPU seconds to extract vectors of all layers from 40 contrast pairs, one tool a process.

    python -m benchmarks.vectors.extraction TOOL FOLDER     TOOL: personae, repeng, steering-vectors

prints one JSON object. FOLDER is the model as a Hugging Face folder. The prompts are the same token for token: two
instructions of one trait, forty questions, the model's chat template, an open reply. Loading is not counted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from personae.domain.persona import Persona
from personae.files.casts import load_casts
from personae.files.openers import load_openers
from personae.instruments.reading import prompts
from personae.models.catalogue import resolve
from personae.models.hf_load import load_hf
from personae.models.rendering import Renderer

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
    torch.set_num_threads(1)
    run = of_personae(folder) if tool == "personae" else of_transformers(folder, tool)
    seconds = []
    for _ in range(2):
        start = time.process_time()
        vectors = run()
        seconds.append(time.process_time() - start)
    np.save(Path(sys.argv[3]), vectors) if len(sys.argv) > 3 else None
    print(json.dumps({"tool": tool, "cpu_seconds": min(seconds), "rounds": seconds, "shape": list(vectors.shape)}))


if __name__ == "__main__":
    main()
