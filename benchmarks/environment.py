"""Where a benchmark ran, for the head of its result file."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
_WIDTH = 160


def environment() -> dict[str, object]:
    """Date, processor, cores and versions."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    versions = {p: metadata.version(p) for p in ("personae", "torch", "transformers", "numpy")}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def write_result(name: str, body: dict[str, object]) -> Path:
    """Store a result under benchmarks/results and give its path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(laid_out({"environment": environment(), **body}) + "\n")
    return path


def laid_out(value: object, indent: int = 0) -> str:
    """JSON in which what fits on a line stands on one: small files whose differences can be read."""
    line = json.dumps(value)
    if len(line) + indent <= _WIDTH or not isinstance(value, dict | list | tuple) or not value:
        return line
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        parts = [f"{json.dumps(str(k))}: {laid_out(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(pad + p for p in parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + laid_out(v, indent + 1) for v in value) + "\n" + " " * indent + "]"
