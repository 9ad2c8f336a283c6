"""Calibration in the exact world, in full: ranks, coverage, eta, background, and length-normalising as the control.

python -m benchmarks.calibration.run
"""

from __future__ import annotations

import argparse
import json
import time

from benchmarks.calibration.experiments import TURNS, coverage, recovered_eta, simulation_based_calibration
from benchmarks.environment import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200)
    args = parser.parse_args()
    n, began = args.draws, time.process_time()
    body: dict[str, object] = {"settings": vars(args)}
    body["simulation_based_calibration"] = simulation_based_calibration(n)
    body["eta_times_power"] = {str(p): [recovered_eta(p, seed=s).eta * p for s in range(5)] for p in (1.0, 2.0, 0.5)}
    fitted = {p: recovered_eta(p).eta for p in (1.0, 2.0, 0.5)}
    body["coverage"] = {
        "exact, eta 1": coverage(n, lambda t: t, 1.0),
        "squared, eta 1": coverage(n, lambda t: 2 * t, 1.0),
        "squared, eta fitted": coverage(n, lambda t: 2 * t, fitted[2.0]),
        "root, eta fitted": coverage(n, lambda t: t / 2, fitted[0.5]),
        "divided by length": coverage(n, lambda t: t / TURNS, 1.0),
        "divided by length, 600 conversations": coverage(n, lambda t: t / TURNS, 1.0, n=600),
        "exact, 600 conversations": coverage(n, lambda t: t, 1.0, n=600),
    }
    kinds = ("base", "smooth", "half", "uniform")
    body["a fifth from no persona"] = {
        "no background": coverage(n, lambda t: t, 1.0, strange=0.2),
        **{k: coverage(n, lambda t: t, 1.0, strange=0.2, background=k) for k in kinds},
        "smooth, squared, eta fitted": coverage(n, lambda t: 2 * t, fitted[2.0], strange=0.2, background="smooth"),
    }
    body["none from no persona"] = {k: coverage(n, lambda t: t, 1.0, background=k) for k in kinds}
    body["cpu_seconds"] = round(time.process_time() - began)
    print(json.dumps(body, indent=1), write_result("calibration", body))


if __name__ == "__main__":
    main()
