"""kill -9 a worker, the driver and the server, twenty random times each; every row must be there once and right.

    python -m benchmarks.faults.run [--kills 20] [--victims driver worker server]

The model is the closed form of the world `tiny`, so that every value is known without a second model. The driver is
`personae score` in a process of its own; workers are those of `--executor processes`; the server is the test suite's,
in a process of its own, started again on the same port. Each victim is killed at random moments of one scoring that
goes on with the same command; at the end the table is compared, row by row, with an uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq

from benchmarks.environment import write_result
from benchmarks.streaming.run import MODEL, write_file
from personae.worlds.material import cast_yaml
from personae.worlds.reading import read_world

# Small batches and pieces, so that a run has many moments at which it can be killed.
DRIVER = (
    "import sys; import personae.instruments.scoring as s; s._SECONDS_BETWEEN_PIECES = 0.1; s._BATCH_EPISODES = 8\n"
    "import personae.cli.commands.score as c; c.PART = 512\n"
    "from personae.cli.main import run\n"
    "if __name__ == '__main__': sys.exit(run(sys.argv[1:]))"
)
SERVER = (
    "import sys, time; from unruly_server import Manners, Unruly; from personae.models.load import load_model\n"
    "with Unruly(load_model(sys.argv[1]), Manners('vllm'), port=int(sys.argv[2])): time.sleep(1e6)"
)

GIVEN_UP = 3
VICTIMS = ("driver", "worker", "server")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    args = parser.parse_args()
    rng = random.Random(args.seed)
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_file(place / "data.jsonl", args.episodes)
        (place / "cast.yaml").write_text(cast_yaml(read_world("tiny")), encoding="utf-8")
        (place / "driver.py").write_text(DRIVER, encoding="utf-8")
        assert start(place, "whole", MODEL).wait() == 0
        for victim in args.victims:
            found[victim] = {"driver": kill_driver, "worker": kill_workers, "server": kill_server}[victim](
                place, args.kills, rng
            )
            print(victim, json.dumps(found[victim]), flush=True)
    suffix = "" if len(args.victims) == len(VICTIMS) else "-" + "-".join(args.victims)
    print(write_result(f"faults{suffix}", {"settings": vars(args), **found}))


def start(place: Path, name: str, model: str, *more: str) -> subprocess.Popen[bytes]:
    """One scoring into `name`, with a home of its own."""
    arguments = ["score", str(place / "data.jsonl"), "--model", model, "--cast", str(place / "cast.yaml"), "--quiet"]
    return subprocess.Popen(
        [sys.executable, str(place / "driver.py"), *arguments, *more, "--out", str(place / name)],
        env={**os.environ, "PERSONAE_HOME": str(place / f"home-{name}"), "OMP_NUM_THREADS": "1"},
    )


def pieces(place: Path, name: str) -> list[Path]:
    return list((place / f"home-{name}").glob("evidence/*/seg-*"))


def forget(place: Path, name: str) -> None:
    for piece in pieces(place, name):
        piece.unlink()


def kill_driver(place: Path, kills: int, rng: random.Random) -> dict[str, object]:
    """The driver, started again after each death until it ends by itself."""
    done = 0
    while done < kills:
        child = start(place, "driver", MODEL)
        before = len(pieces(place, "driver"))
        while child.poll() is None and len(pieces(place, "driver")) == before:
            time.sleep(0.02)  # until it is in the middle of its work
        time.sleep(rng.uniform(0.0, 0.6))
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            done += 1
        child.wait()
        if child.returncode == 0:  # it was done: begin again with an empty store
            forget(place, "driver")
    assert start(place, "driver", MODEL).wait() == 0
    return compare(place, "driver", 0.0) | {"kills": done}


def kill_workers(place: Path, kills: int, rng: random.Random) -> dict[str, object]:
    """Random workers of one driver; when it ends before enough have died, another round begins with an empty store.

    A driver three of whose workers died at the same work stops with status 3 and keeps what it has: it is then started
    again, as its message says.
    """
    done, rounds, given_up = 0, 0, 0
    goes_on = False
    while done < kills or goes_on:
        if not goes_on:
            forget(place, "worker")
            rounds += 1
        child = start(place, "worker", MODEL, "--executor", "processes", "--workers", "2")
        while child.poll() is None:
            time.sleep(rng.uniform(1.0, 6.0))
            try:
                workers = [p for p in psutil.Process(child.pid).children() if "spawn_main" in " ".join(p.cmdline())]
                if workers and done < kills:
                    rng.choice(workers).kill()
                    done += 1
            except psutil.Error:
                continue
        assert child.returncode in (0, GIVEN_UP), child.returncode
        goes_on = child.returncode == GIVEN_UP
        given_up += goes_on
        if not goes_on:
            report = compare(place, "worker", 0.0)
    return report | {"kills": done, "rounds": rounds, "given_up": given_up}


def kill_server(place: Path, kills: int, rng: random.Random) -> dict[str, object]:
    """The server, started again on its port; the driver waits for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[2] / "tests")])}

    def serve() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SERVER, MODEL, str(port)], env=environment)

    def answers() -> bool:
        with socket.socket() as line:
            return line.connect_ex(("127.0.0.1", port)) == 0

    done, rounds, given_up = 0, 0, 0
    goes_on = False
    server = serve()
    try:
        while done < kills or goes_on:
            if not goes_on:
                forget(place, "server")
                rounds += 1
            child = start(place, "server", f"http://127.0.0.1:{port}/v1#tiny", "--tokenizer", MODEL)
            while child.poll() is None:
                if not answers():  # killed while it starts, it would never have been there
                    time.sleep(0.1)
                    continue
                time.sleep(rng.uniform(0.2, 4.0))
                if child.poll() is None and done < kills:
                    server.kill()
                    server.wait()
                    done += 1
                    time.sleep(rng.uniform(0.0, 1.0))
                    server = serve()
            assert child.returncode in (0, GIVEN_UP), child.returncode
            goes_on = child.returncode == GIVEN_UP
            given_up += goes_on
            if not goes_on:
                report = compare(place, "server", 1e-5)
    finally:
        server.kill()
        server.wait()
    return report | {"kills": done, "rounds": rounds, "given_up": given_up}


def compare(place: Path, name: str, tolerance: float) -> dict[str, object]:
    """Rows lost, doubled or wrong against the uninterrupted table; all must be 0."""
    whole, made = (pq.read_table(place / n / "evidence.parquet") for n in ("whole", name))
    pairs = list(zip(made["episode"].to_pylist(), made["persona"].to_pylist(), strict=True))
    wanted = dict(
        zip(
            zip(whole["episode"].to_pylist(), whole["persona"].to_pylist(), strict=True),
            whole["log_likelihood"].to_pylist(),
            strict=True,
        )
    )
    values = np.array([wanted.get(p, np.nan) for p in pairs])
    gaps = np.abs(values - made["log_likelihood"].to_numpy())
    report: dict[str, object] = {
        "rows": len(pairs),
        "lost": len(set(wanted) - set(pairs)),
        "doubled": len(pairs) - len(set(pairs)),
        "wrong": int((~(gaps <= tolerance)).sum()),
        "worst_gap_nats": float(np.nanmax(gaps)),
    }
    assert report["lost"] == report["doubled"] == report["wrong"] == 0, report
    return report


if __name__ == "__main__":
    main()
