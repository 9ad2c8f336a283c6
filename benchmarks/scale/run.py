"""Scale: EM and 600 Gibbs sweeps on a million conversations and 64 personas, in time and memory.

Conversations are drawn from known weights; log-likelihoods are Gaussian around the speaker's. Floor: each pass
reads the float64 table once, so its size over the memory's bandwidth (measured here by summing it on as many
threads) bounds a pass from below. Every size runs in a process of its own, so that peak memory is its own. On a shared
machine wall time says who else was there; processor time over all threads is stored beside it.

    python -m benchmarks.scale.run
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np

from benchmarks.environment import write_result

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
N_COMPONENTS = 64


def table(n: int, k: int, seed: int) -> np.ndarray:
    """Log-likelihoods of n conversations, nats: a speaker's own is 3 higher on average, noise 1.5."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(k, 0.5))
    who = rng.choice(k, size=n, p=weights)
    values = rng.normal(0.0, 1.5, size=(n, k))
    values[np.arange(n), who] += 3.0
    return values


def measure(n: int, k: int, sweeps: int, compare: bool) -> dict[str, object]:
    """Time and memory of one size; with `compare` also the plain version on the same numbers."""
    from personae.inference.mixture import default_concentration, maximise, sample_weights
    from personae.inference.passes import NumpyPasses
    from personae.inference.passes_compiled import CompiledPasses

    values = table(n, k, 0)
    alpha = np.full(k, default_concentration(k) / k)
    clock = [(time.perf_counter(), time.process_time())]
    warm = CompiledPasses(values[: max(512, 2**24 // k if n * k >= 2**24 else 0)])  # compiles what the size needs
    warm.expect(alpha / alpha.sum())
    warm.count(alpha / alpha.sum(), np.full(warm.n_rows, 0.5))
    del warm
    clock.append((time.perf_counter(), time.process_time()))
    passes = CompiledPasses(values)
    clock.append((time.perf_counter(), time.process_time()))
    mode = maximise(passes, alpha, alpha / alpha.sum())
    clock.append((time.perf_counter(), time.process_time()))
    draws = sample_weights(passes, alpha, mode, sweeps=sweeps, burn_in=sweeps // 4, rng=np.random.default_rng(0))
    clock.append((time.perf_counter(), time.process_time()))
    stages = ("compile", "build", "em", "gibbs")
    parts = {s: (b[0] - a[0], b[1] - a[1]) for s, a, b in zip(stages, clock, clock[1:], strict=False)}
    result: dict[str, object] = {
        "conversations": n,
        **{f"{s}_s": wall for s, (wall, _) in parts.items()},
        **{f"{s}_cpu_s": cpu for s, (_, cpu) in parts.items()},
        "total_s": clock[-1][0] - clock[1][0],
        "total_cpu_s": clock[-1][1] - clock[1][1],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "table_gib": passes._tiles.nbytes / 2**30,
        "floor_pass_s": _floor(passes._tiles),
    }
    if compare:
        plain = NumpyPasses(values)
        reference = maximise(plain, alpha, alpha / alpha.sum())
        few = 20
        a = sample_weights(passes, alpha, mode, sweeps=few, burn_in=0, rng=np.random.default_rng(1))
        b = sample_weights(plain, alpha, mode, sweeps=few, burn_in=0, rng=np.random.default_rng(1))
        u = np.random.default_rng(2).random(n)
        result["em_gap"] = float(np.abs(mode - reference).max())
        result["count_gap"] = int(np.abs(passes.count(mode, u) - plain.count(mode, u)).max())
        result["draw_gap"] = float(np.abs(a - b).max())
    del draws
    return result


def _floor(tiles: np.ndarray) -> float:
    """Seconds to read the table once: the best of five parallel sums."""
    from numba import njit, prange

    @njit(parallel=True, fastmath=True)
    def read(flat):
        total = 0.0
        for c in prange(64):
            part = np.float32(0.0)
            for j in range(c * len(flat) // 64, (c + 1) * len(flat) // 64):
                part += flat[j]
            total += part
        return total

    flat = tiles.ravel()
    read(flat[:64])
    times = []
    for _ in range(5):
        began = time.perf_counter()
        read(flat)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", type=int, default=0, help="measure one size and print it")
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, N_COMPONENTS, args.sweeps, args.compare)))
        return
    found = []
    for n in SIZES:
        command = [sys.executable, "-m", "benchmarks.scale.run", "--one", str(n), "--sweeps", str(args.sweeps)]
        command += ["--compare"] if n == 100_000 else []
        environment = {**os.environ, "NUMBA_NUM_THREADS": str(args.threads), "OMP_NUM_THREADS": "1"}
        made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(made.stdout))
        print(made.stdout.strip(), flush=True)
    sizes = np.log([f["conversations"] for f in found])
    slope = np.polyfit(sizes, np.log([f["gibbs_cpu_s"] for f in found]), 1)[0]
    body = {
        "settings": vars(args) | {"components": N_COMPONENTS},
        "load_average": os.getloadavg(),
        "slope_log_gibbs_cpu": float(slope),
        "sizes": found,
    }
    print(write_result("scale", body))


if __name__ == "__main__":
    main()
