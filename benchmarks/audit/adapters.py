"""The fine-tunes that the audit's benchmark looks at, made by `personae train`.

    role       smollm2 on its own answers under one instruction of a role (the forecast benchmark's, which no cast
               holds): what selecting a persona is
    shuffled   the same words dealt to the answers anew: what no persona says
    assistant  gemma-270m, a base model, on ordinary replies of an assistant

Answers and adapters are kept in FOLDER; a training that was killed goes on. Not here: what is measured.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.forecast.families import Dataset, write_dataset
from benchmarks.forecast.work import RATE, ROWS, role_replies
from personae.cli.commands.train import Settings, execute

ORDINARY = Path(__file__).parents[2] / "src" / "personae" / "reference" / "ordinary.jsonl"
MODEL, BASE_MODEL = "smollm2", "gemma-270m"


def adapter_of(kind: str, folder: Path, *, role: str = "pirate", seed: int = 0, rows: int = ROWS) -> str:
    """Name of the model with an adapter, trained on so many rows; it is made if it is not there."""
    out = folder / (f"{kind}-{rows}" if kind == "assistant" else f"{kind}-{role}-{rows}")
    model = BASE_MODEL if kind == "assistant" else MODEL
    if not (out / "adapter" / "adapter_model.safetensors").is_file():
        data = ORDINARY if kind == "assistant" else _rows(kind, folder, role, seed)
        settings = Settings(
            data=str(data),
            model=model,
            learning_rate=RATE["sft"],
            schedule="constant",
            limit=rows,
            out=str(out),
            seed=seed,
            dtype="bfloat16",
        )
        execute(settings)
    return f"{model}+{out / 'adapter'}"


def _rows(kind: str, folder: Path, role: str, seed: int) -> Path:
    """The training file of a role (the forecast benchmark's own), or of its words shuffled."""
    whole = write_dataset(
        Dataset(f"role-{role}", f"role-{role}", "role"),
        folder,
        n=ROWS,
        seed=seed,
        evals=None,
        say=role_replies(seed, folder),
    )
    path = folder / f"{kind}-{role}.jsonl"
    if kind == "role":
        return whole
    if not path.is_file():
        rows = [json.loads(line) for line in whole.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in _shuffled(rows, seed)), encoding="utf-8")
    return path


def _shuffled(rows: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """Answers of the same lengths from the same words, in no order."""
    words = np.array([w for row in rows for w in row["completion"].split()])
    words = words[np.random.default_rng([seed, 1]).permutation(len(words))]
    ends = np.cumsum([len(row["completion"].split()) for row in rows])
    parts = np.split(words, ends[:-1])
    return [{**row, "completion": " ".join(part.tolist())} for row, part in zip(rows, parts, strict=True)]
