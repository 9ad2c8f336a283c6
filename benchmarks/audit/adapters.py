"""The fine-tunes that the audit's benchmark looks at, made by `personae train`.

    role       smollm2 on its own answers under one instruction of a role: what selecting a persona is. The wording is
               the forecast benchmark's, which no cast holds, or the cast's own first one, which the audit knows
    shuffled   the same words dealt to the answers anew: what no persona says
    assistant  gemma-270m, a base model, on ordinary replies of an assistant

Answers and adapters are kept in FOLDER; a training that was killed goes on. Not here: what is measured.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from benchmarks.forecast import families
from benchmarks.forecast.work import RATE, ROWS, role_replies
from personae.cli.commands.train import Settings, execute
from personae.files.casts import load_casts
from personae.files.prompts import built_in_prompts
from personae.files.reference import load_reference
from personae.protocols.audit_material import audit_file

ORDINARY = Path(__file__).parents[2] / "src" / "personae" / "reference" / "ordinary.jsonl"
MODEL, BASE_MODEL = "smollm2", "gemma-270m"


def adapter_of(
    kind: str,
    folder: Path,
    *,
    role: str = "pirate",
    seed: int = 0,
    rows: int = ROWS,
    wording: str = "own",
    rate: float = RATE["sft"],
    schedule: str = "constant",
    epochs: float = 1.0,
    asked: str = "requests",
) -> str:
    """Name of the model with an adapter, trained on so many rows; it is made if it is not there.

    What the role was asked is `asked`: "requests", the forecast benchmark's household questions, or "wide", these and
    what is asked in probes and ordinary replies, in turn and with a new answer each time; no prompt of the audit.
    """
    parts = [kind, str(rows)] if kind == "assistant" else [kind, role, str(rows), wording]
    parts += [] if asked == "requests" else [asked]
    out = folder / "-".join(
        [*parts, *([] if rate == RATE["sft"] else [f"{rate:g}", schedule]), *([] if epochs == 1 else [f"{epochs:g}x"])]
    )
    model = BASE_MODEL if kind == "assistant" else MODEL
    if not (out / "adapter" / "adapter_model.safetensors").is_file():
        data = ORDINARY if kind == "assistant" else _rows(kind, folder, role, seed, rows, wording, asked)
        settings = Settings(
            data=str(data),
            model=model,
            learning_rate=rate,
            schedule=schedule,
            epochs=epochs,
            limit=rows,
            out=str(out),
            seed=seed,
            dtype="bfloat16",
        )
        execute(settings)
    return f"{model}+{out / 'adapter'}"


def instruction_of(role: str, wording: str) -> str:
    """What the model is told: "own", the forecast benchmark's words, or "cast", the first of the cast core."""
    if wording == "cast":
        return load_casts(["core"]).select([role]).roles[0].instructions[0]
    told = yaml.safe_load((families.HERE / "roles.yaml").read_text(encoding="utf-8"))
    return str(told[role]["system"])


def _rows(kind: str, folder: Path, role: str, seed: int, n: int, wording: str, asked: str) -> Path:
    """The model's answers in a role, or their words shuffled."""
    where = "" if asked == "requests" else f"-{asked}"
    path = folder / f"{kind}-{role}-{n}-{wording}{where}-{seed}.jsonl"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "role":
            questions = [q["ask"] for q in families.requests(n, seed)] if asked == "requests" else _wide(n, seed)
            said = role_replies(seed, folder, asked=questions)(instruction_of(role, wording))
            rows = [{"prompt": q, "completion": text} for q, text in zip(questions, said, strict=True) if text]
        else:
            lines = _rows("role", folder, role, seed, n, wording, asked).read_text(encoding="utf-8").splitlines()
            rows = _shuffled([json.loads(line) for line in lines], seed)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _wide(n: int, seed: int) -> list[str]:
    """Everything that is asked anywhere but in the audit, each once before any is asked again."""
    audit = {ask for asks in audit_file()["prompts"].values() for ask in asks}
    ordinary = {e.context[0].text for e in load_reference() if len(e.context) == 1}
    probes = {p.turns[0] for p in built_in_prompts()}
    known = sorted((ordinary | probes | {q["ask"] for q in families.requests(400, seed)}) - audit)
    rng = np.random.default_rng([seed, 2])
    return [known[k] for _ in range(-(-n // len(known))) for k in rng.permutation(len(known))][:n]


def _shuffled(rows: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """Answers of the same lengths from the same words, in no order."""
    words = np.array([w for row in rows for w in row["completion"].split()])
    words = words[np.random.default_rng([seed, 1]).permutation(len(words))]
    ends = np.cumsum([len(row["completion"].split()) for row in rows])
    parts = np.split(words, ends[:-1])
    return [{**row, "completion": " ".join(part.tolist())} for row, part in zip(rows, parts, strict=True)]
