"""kill -9 at random moments, ten times; the finished table must equal an uninterrupted one, bit for bit.

Every kill falls in mid-work: each start is left alone until it has written a piece of its own, and is killed up to
six seconds later, so that kills fall between pieces and inside them.

python -m benchmarks.resume.run
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.environment import write_result
from personae.models.catalogue import home

EXAMPLE = Path(__file__).parents[2] / "examples" / "support_desk.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("killed", "whole"):
            (place / name).mkdir()
            for part in ("models", "kernels"):
                (place / name / part).symlink_to((home() / part).resolve())
        progress = []
        for _ in range(args.kills):
            before = rows_kept(place / "killed")
            child = start(place, "killed", args.episodes)
            while child.poll() is None and rows_kept(place / "killed") == before:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 6))
            assert child.poll() is None, "finished before it could be killed: give --episodes more"
            child.send_signal(signal.SIGKILL)
            child.wait()
            progress.append(rows_kept(place / "killed"))
        for name in ("killed", "whole"):
            assert start(place, name, args.episodes).wait() == 0
        tables = [pq.read_table(place / f"out-{name}" / "evidence.parquet") for name in ("killed", "whole")]
    equal = tables[0].equals(tables[1])
    body = {"settings": vars(args), "rows_kept_after_each_kill": progress, "rows": len(tables[1]), "bit_equal": equal}
    print(json.dumps(body), write_result("resume-smollm2", body))
    assert equal


def start(place: Path, name: str, episodes: int) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "personae",
        "score",
        str(EXAMPLE),
        "--limit",
        str(episodes),
        "--only",
        "contemptuous,sycophantic",
        "--paraphrases",
        "2",
        "--quiet",
        "--out",
        str(place / f"out-{name}"),
    ]
    return subprocess.Popen(command, env={**os.environ, "PERSONAE_HOME": str(place / name)})


def rows_kept(folder: Path) -> int:
    return sum(pq.read_metadata(p).num_rows for p in folder.glob("evidence/*/seg-*.parquet"))


if __name__ == "__main__":
    main()
