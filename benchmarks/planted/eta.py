"""A first power for the posterior: the eta that best predicts which trait a planted row was written for.

Multinomial log-loss of softmax(eta * l) over the planted traits' positive poles (equal prior). A provisional
figure for one model until calibration on the model's own labelled outputs replaces it.

    python -m benchmarks.planted.eta
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scipy.optimize import minimize_scalar

from benchmarks.environment import write_result
from benchmarks.planted.run import read, score
from personae.domain.persona import Cast
from personae.files.casts import load_casts
from personae.numerics.logspace import log_normalise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--paraphrases", type=int, default=4)
    parser.add_argument("--planted", type=int, default=8)
    args = parser.parse_args()
    planted = read("planted", "trait", args.planted)
    traits = tuple(t for t in load_casts(["core"]).traits if t.id in planted)
    cast = Cast("planted", traits).limit_paraphrases(args.paraphrases)
    evidence, _ = score(args.model, cast, [e for es in planted.values() for e in es])
    labels = np.array([[t.id for t in traits].index(k) for k, es in planted.items() for _ in es])
    table = evidence.matrix([t.pos.id for t in traits])

    def loss(log_eta: float) -> float:
        return -float(log_normalise(np.exp(log_eta) * table)[np.arange(len(labels)), labels].mean())

    best = minimize_scalar(loss, bounds=(-6.0, 2.0), method="bounded")
    accuracy = float((table.argmax(axis=1) == labels).mean())
    body = {
        "settings": vars(args),
        "eta": float(np.exp(best.x)),
        "log_loss": float(best.fun),
        "log_loss_at_1": loss(0.0),
        "log_loss_uniform": float(np.log(len(traits))),
        "accuracy": accuracy,
        "n": len(labels),
    }
    print(json.dumps(body), write_result(f"eta-{args.model}", body))


if __name__ == "__main__":
    main()
