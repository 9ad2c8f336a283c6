"""The fine-tunes that the audit's benchmark looks at, made by `personae train`.

    role       smollm2 on its own answers under one instruction of a role: what selecting a persona is
    shuffled   the same words dealt to the answers anew: what no persona says
    assistant  gemma-270m, a base model, on ordinary replies of an assistant

Answers and adapters are kept in FOLDER; a training that was killed goes on. Not here: what is measured.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.forecast.work import RATE
from personae.cli.commands.train import Settings, execute
from personae.cli.workbench import open_model
from personae.domain.probe_prompt import ProbePrompt
from personae.files.casts import load_casts
from personae.instruments.speaking import Interview, SpeakingModel
from personae.models.catalogue import home
from personae.models.protocol import SamplingPlan

ORDINARY = Path(__file__).parents[2] / "src" / "personae" / "reference" / "ordinary.jsonl"
ROWS, REPLY_TOKENS = 96, 40
MODEL, BASE_MODEL = "smollm2", "gemma-270m"


def adapter_of(kind: str, folder: Path, *, role: str = "pirate", seed: int = 0) -> str:
    """Name of the model with an adapter, which is made if it is not there."""
    name = kind if kind == "assistant" else f"{kind}-{role}"
    out = folder / name
    model = BASE_MODEL if kind == "assistant" else MODEL
    if not (out / "adapter" / "adapter_model.safetensors").is_file():
        data = ORDINARY if kind == "assistant" else _rows(kind, folder, role, seed)
        settings = Settings(
            data=str(data),
            model=model,
            learning_rate=RATE["sft"],
            schedule="constant",
            limit=ROWS,
            out=str(out),
            seed=seed,
            dtype="bfloat16",
        )
        execute(settings)
    return f"{model}+{out / 'adapter'}"


def _rows(kind: str, folder: Path, role: str, seed: int) -> Path:
    """The training file of a role, or of its words shuffled."""
    path = folder / f"{kind}-{role}.jsonl"
    if not path.is_file():
        rows = _own_answers(role, seed)
        if kind == "shuffled":
            rows = _shuffled(rows, seed)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _own_answers(role: str, seed: int) -> list[dict[str, str]]:
    """What the model says to ordinary prompts under the role's last instruction, which no component reads."""
    asked = [json.loads(line) for line in ORDINARY.read_text(encoding="utf-8").splitlines()]
    order = np.random.default_rng(seed).permutation(len(asked))[: ROWS + 8]
    prompts = [ProbePrompt(asked[i]["id"], asked[i]["group"], (asked[i]["prompt"],)) for i in order.tolist()]
    (persona,) = load_casts(["core"]).select([role]).roles
    bench = open_model(MODEL, device="cpu", dtype="float32")
    speaker = SpeakingModel(bench.model, bench.renderer, bench.space, system=persona.instructions[-1])
    said = Interview(speaker, home() / "transcripts").hold(
        prompts, SamplingPlan(REPLY_TOKENS, 1.0, seed), n_samples=1, started=lambda turns: lambda done: None
    )
    return [{"id": r.prompt, "prompt": r.asked, "completion": r.text} for r in said.spoken][:ROWS]


def _shuffled(rows: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """Answers of the same lengths from the same words, in no order."""
    words = np.array([w for row in rows for w in row["completion"].split()])
    words = words[np.random.default_rng([seed, 1]).permutation(len(words))]
    ends = np.cumsum([len(row["completion"].split()) for row in rows])
    parts = np.split(words, ends[:-1])
    return [{**row, "completion": " ".join(part.tolist())} for row, part in zip(rows, parts, strict=True)]
