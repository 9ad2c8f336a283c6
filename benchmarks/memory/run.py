"""Peak memory of `personae screen` at 5,000 episodes x the whole core cast.

Scoring that many pairs takes hours on two cores, and its memory does not depend on how many batches are left:
a batch is scored, added to one table, and forgotten. So the store is filled beforehand with made-up rows for
all pairs but a few hundred; the real command then loads the model, scores what is left, and does everything
else (tables, bootstrap, posterior, rows, page) at full size. The figure is the process' own high-water mark.

    python -m benchmarks.memory.run
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.environment import write_result
from personae.files.casts import load_casts
from personae.files.episodes import read_episodes
from personae.files.reference import load_reference
from personae.instruments.scoring import cast_frames, space_of
from personae.models.catalogue import home
from personae.models.load import load_model
from personae.models.rendering import Renderer
from personae.running.store import EvidenceStore

LIMIT_MIB = 3 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=5000)
    parser.add_argument("--left", type=int, default=128, help="episodes left to score under the first frame")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = place / "data.jsonl"
        write_episodes(data, args.episodes)
        (place / "home").mkdir()
        for name in ("models", "kernels"):
            (place / "home" / name).symlink_to((home() / name).resolve())
        n_pairs = fill(place / "home", data, args.left)
        peak, seconds = run(place, data)
    body = {
        "settings": vars(args),
        "n_pairs": n_pairs,
        "peak_mib": round(peak),
        "limit_mib": LIMIT_MIB,
        "seconds": round(seconds),
        "holds": peak < LIMIT_MIB,
    }
    print(json.dumps(body), write_result("memory-smollm2", body))


def write_episodes(path: Path, n: int) -> None:
    """Distinct rows of ordinary length, made of the reference population's words."""
    rng = np.random.default_rng(0)
    words = " ".join(e.completion for e in load_reference()).split()
    with path.open("w") as out:
        for k in range(n):
            reply = " ".join(rng.choice(words, size=int(rng.integers(15, 60))))
            out.write(json.dumps({"prompt": f"Question {k}?", "completion": reply}) + "\n")


def fill(place: Path, data: Path, left: int) -> int:
    """Made-up rows for every pair but the last `left` episodes of the first frame, and for the reference."""
    model = load_model("smollm2")
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    store = EvidenceStore(place / "evidence", space_of(model.card))
    episodes = [*read_episodes(data).episodes, *load_reference()]
    frames = [f.digest for f in cast_frames(load_casts(["core"]), renderer)]
    counts = [len(renderer.completion_ids(e)) for e in episodes]
    keys = [e.content_digest for e in episodes]
    rng = np.random.default_rng(1)
    for k, frame in enumerate(frames):
        values = -3.0 * np.array(counts) + rng.normal(size=len(keys))
        used = [i for i in range(len(keys)) if k or i >= left]
        store.put([(frame, keys[i], counts[i], float(values[i])) for i in used])
    return len(frames) * len(keys)


def run(place: Path, data: Path) -> tuple[float, float]:
    """Peak resident memory of the real command, MiB, and its seconds."""
    command = [
        sys.executable,
        "-m",
        "personae",
        "screen",
        str(data),
        "--paraphrases",
        "4",
        "--quiet",
        "--out",
        str(place / "out"),
    ]
    started = time.time()
    child = subprocess.Popen(command, env={**os.environ, "PERSONAE_HOME": str(place / "home")})
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, status
    return usage.ru_maxrss / 1024, time.time() - started


if __name__ == "__main__":
    main()
