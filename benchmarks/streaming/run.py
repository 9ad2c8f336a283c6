"""10^4, 10^5 and 10^6 episodes through `personae score` on a world's closed form, then `personae infer`.

    python -m benchmarks.streaming.run [--sizes 10000 100000 1000000]

Episodes are conversations of the world `tiny` (five questions and answers, of which the last answer is scored),
written as JSON lines. Each command is a process of its own, so that peak memory is its own; the store starts empty.
Checked: every pair is there once and in order (infer refuses otherwise), and a sample of rows equals the closed form
asked directly.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.environment import write_result
from personae.files.casts import load_casts
from personae.files.episodes import stream_episodes
from personae.models.load import load_model
from personae.models.rendering import Renderer
from personae.worlds.exact import ExactWorld
from personae.worlds.language import Kind
from personae.worlds.material import cast_yaml
from personae.worlds.reading import read_world

LIMIT_GIB = 2.0
TURNS = 5  # so that nearly every conversation is another one: 32 to the fifth
MODEL = "world:tiny/exact"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    args = parser.parse_args()
    found = []
    for n in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder), n))
        print(json.dumps(found[-1]), flush=True)
    body: dict[str, object] = {"sizes": found, "limit_gib": LIMIT_GIB, "load_average": os.getloadavg()}
    if len(found) > 1:
        logs = np.log([[f["episodes"], f["score_cpu_s"]] for f in found])
        body["slope_log_cpu"] = round(float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0]), 3)
    body["holds"] = all(max(f["score_peak_gib"], f["infer_peak_gib"]) < LIMIT_GIB for f in found)
    print(write_result("streaming", body))


def measure(place: Path, n: int) -> dict[str, float]:
    """Time and memory of one size."""
    write_file(place / "data.jsonl", n)
    (place / "cast.yaml").write_text(cast_yaml(read_world("tiny")), encoding="utf-8")
    score = ["score", str(place / "data.jsonl"), "--model", MODEL, "--cast", str(place / "cast.yaml"), "--quiet"]
    result: dict[str, float] = {"episodes": n, "file_mb": round((place / "data.jsonl").stat().st_size / 1e6, 1)}
    for name, command in (("score", [*score, "--out", str(place / "run")]), ("infer", ["infer", str(place / "run")])):
        wall, cpu, peak = run([*command, "--quiet"] if name == "infer" else command, place / "home")
        result |= {f"{name}_s": round(wall, 1), f"{name}_cpu_s": round(cpu, 1), f"{name}_peak_gib": round(peak, 3)}
    result["pairs"] = pq.read_metadata(place / "run" / "evidence.parquet").num_rows
    result["store_mb"] = round(sum(p.stat().st_size for p in (place / "home").rglob("seg-*")) / 1e6, 1)
    result["worst_gap"] = check(place)
    return result


def write_file(path: Path, n: int) -> None:
    """Conversations of five questions and answers, the last answer scored."""
    exact = ExactWorld(read_world("tiny"))
    language = exact.language
    rng = np.random.default_rng(0)
    n_questions = int((language.kind == Kind.QUESTION).sum())
    words = language.words
    with path.open("w", encoding="utf-8") as out:
        for k in range(n):
            messages = []
            for _ in range(TURNS):
                q = int(rng.integers(n_questions))
                answer = int(rng.choice(language.answers(q)))
                messages.append({"role": "user", "content": words[language.first_question + q]})
                messages.append({"role": "assistant", "content": words[answer]})
            out.write(json.dumps({"id": f"e{k}", "messages": messages, "group": f"g{k // 2}"}) + "\n")


def run(arguments: list[str], home: Path) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak GiB of a command."""
    began = time.perf_counter()
    environment = {**os.environ, "PERSONAE_HOME": str(home), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-m", "personae", *arguments], env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, status
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def check(place: Path) -> float:
    """Worst difference of a few stored values from the closed form asked directly, nats."""
    model = load_model(MODEL)
    cast = load_casts([str(place / "cast.yaml")])
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    few = next(stream_episodes(place / "data.jsonl", part=50))
    table = pq.ParquetFile(place / "run" / "evidence.parquet")
    k = len(cast.component_ids)
    stored = next(table.iter_batches(50 * k)).column("log_likelihood").to_numpy().reshape(-1, k)
    gaps = []
    for i, episode in enumerate(few):
        for j, persona in enumerate(cast.personas):
            frames = renderer.frames(persona)
            values = [model.score([renderer.render(f, episode)])[0].log_likelihood for f in frames]
            gaps.append(abs(np.logaddexp.reduce(values) - np.log(len(values)) - stored[i, j]))
    return float(max(gaps))


if __name__ == "__main__":
    print(f"peak of this driver so far: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    main()
