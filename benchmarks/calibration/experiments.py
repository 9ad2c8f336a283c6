"""Experiments on the exact generator of methods.md, Appendix A: everything about it is known.

Eight personas (malice, expertise, style, each + or -) answer sixteen questions with four options. A conversation
is four questions; its likelihood under every persona is exact. Each experiment takes a number of draws, so that
the tests run the same code on fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import softmax

from personae.inference.calibration import TemperatureFit, fit_temperature
from personae.inference.mixture import MixtureFit, fit_mixture

K, QUESTIONS, ANSWERS, TURNS = 8, 16, 4, 4
TRAITS = np.array([[+1 if k >> b & 1 else -1 for b in range(3)] for k in range(K)])
MALICE = (TRAITS[:, 0] > 0).astype(float)
LOADINGS = np.array([[1, 0.3, 0.3], [1, 0.5, 0.2], [0.2, 0.3, 1], [0.7, 0.2, 0.5]])
ALPHA = 0.5


@dataclass(frozen=True)
class World:
    """theta[k, q, a]: how persona k answers question q."""

    theta: np.ndarray

    @classmethod
    def make(cls, seed: int = 0) -> World:
        """A world by its seed."""
        rng = np.random.default_rng(seed)
        base = rng.normal(size=(QUESTIONS, ANSWERS))
        u = rng.normal(size=(QUESTIONS, 3, ANSWERS))
        e = rng.normal(size=(K, QUESTIONS, ANSWERS))
        pull = LOADINGS[np.arange(QUESTIONS) // 4][None] * TRAITS[:, None, :]
        return cls(softmax(base + 1.2 * np.einsum("kqr,qra->kqa", pull, u) + 0.3 * e, axis=-1))

    def conversations(
        self, rng: np.random.Generator, weights: np.ndarray, n: int, *, strangers: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Questions and answers, shape (n, TURNS), and who spoke; speaker K answers by the table `strangers`."""
        tables = self.theta if strangers is None else np.concatenate([self.theta, strangers[None]])
        who = rng.choice(len(weights), size=n, p=weights)
        q = rng.integers(QUESTIONS, size=(n, TURNS))
        cumulative = tables[who[:, None], q].cumsum(-1)
        a = (cumulative < rng.random((n, TURNS, 1))).sum(-1).clip(max=ANSWERS - 1)
        return q, a, who

    def log_likelihood(self, q: np.ndarray, a: np.ndarray) -> np.ndarray:
        """Exact, nats, shape (n, K)."""
        return np.log(self.theta)[:, q, a].sum(-1).T

    def background(self, q: np.ndarray, a: np.ndarray, kind: str) -> np.ndarray:
        """Log-likelihood of "none of these", shape (n, 1).

        base: the equal mixture of personas (a model without a frame). smooth: its answers at temperature 2, each
        turn by itself. half: half of each. uniform: every answer alike.
        """
        average = self.theta.mean(0)
        warm = average**0.5 / (average**0.5).sum(-1, keepdims=True)
        parts = {
            "base": np.logaddexp.reduce(self.log_likelihood(q, a), axis=1) - np.log(K),
            "smooth": np.log(warm)[q, a].sum(-1),
            "uniform": np.full(len(q), -TURNS * np.log(ANSWERS)),
        }
        parts["half"] = np.logaddexp(parts["base"], parts["smooth"]) - np.log(2)
        return parts[kind][:, None]


def prior(k: int) -> np.ndarray:
    return np.log(np.full(k, 1 / k))


def fit(table: np.ndarray, *, eta: float = 1.0, seed: int = 0) -> MixtureFit:
    return fit_mixture(table, prior(table.shape[1]), eta=eta, seed=seed, restarts=0)


def simulation_based_calibration(n_draws: int, *, n: int = 150, seed: int = 0) -> dict[str, object]:
    """Ranks of true weights among draws are uniform when sampler and model are right (Talts et al. 2018)."""
    world, rng, kept = World.make(seed), np.random.default_rng([seed, 1]), 99
    values = np.vstack([np.eye(K), MALICE])
    ranks, covered = [], []
    for i in range(n_draws):
        w = rng.dirichlet(np.full(K, ALPHA))
        q, a, _ = world.conversations(rng, w, n)
        draws = fit(world.log_likelihood(q, a), seed=i).draws @ values.T
        few = draws[:: len(draws) // kept][:kept]  # nearly independent of one another, as ranks want them
        ranks.append(((few < values @ w).sum(0) + rng.random(len(values))) / (kept + 1))
        low, high = np.quantile(draws, [0.05, 0.95], axis=0)
        covered.append((low <= values @ w) & (values @ w <= high))
    p = [float(stats.kstest(r, "uniform").pvalue) for r in np.array(ranks).T]
    return {"draws": n_draws, "ks_p": p, "coverage": np.mean(covered, axis=0).tolist()}


def coverage(
    n_draws: int,
    distort: Callable[[np.ndarray], np.ndarray],
    eta: float,
    *,
    n: int = 150,
    strange: float = 0.0,
    background: str | None = None,
    seed: int = 0,
) -> dict[str, object]:
    """Coverage of 90% intervals of the malicious share (of all conversations) and of the background's.

    With `strange` a share of conversations answers by a table of its own, drawn anew for every file.
    """
    world, rng = World.make(seed), np.random.default_rng([seed, 2])
    trait, ground, bias, mass, every = [], [], [], [], []
    for i in range(n_draws):
        w = rng.dirichlet(np.full(K, ALPHA)) * (1 - strange)
        strangers = rng.dirichlet(np.ones(ANSWERS), size=QUESTIONS)
        q, a, _ = world.conversations(rng, np.append(w, strange), n, strangers=strangers)
        table = distort(world.log_likelihood(q, a))
        values, truth = MALICE, np.append(w, strange)
        if background:
            table = np.hstack([table, distort(world.background(q, a, background))])
            values = np.append(MALICE, 0.0)
        found = fit(table, eta=eta, seed=i)
        mean, low, high = found.functional(values)
        trait.append(low <= w @ MALICE <= high)
        bias.append(mean - w @ MALICE)
        every.append(((found.low[:K] <= w) & (w <= found.high[:K])).mean())
        if background:
            ground.append(found.low[K] <= truth[K] <= found.high[K])
            mass.append(found.weight[K])
    result = {"coverage": float(np.mean(trait)), "bias": float(np.mean(bias)), "weights": float(np.mean(every))}
    if background:
        result |= {"background_coverage": float(np.mean(ground)), "background_mass": float(np.mean(mass))}
    return {"draws": n_draws, **result}


def recovered_eta(power: float, *, per_persona: int = 40, seed: int = 0) -> TemperatureFit:
    """The power fitted to labelled conversations whose likelihood was raised to `power`; the truth is 1 / power."""
    world, rng = World.make(seed), np.random.default_rng([seed, 3])
    parts = [world.conversations(rng, np.eye(K)[k], per_persona) for k in range(K)]
    table = np.concatenate([world.log_likelihood(q, a) for q, a, _ in parts])
    label = np.concatenate([who for _, _, who in parts])
    return fit_temperature(power * table, label, [str(i) for i in range(len(label))], seed=seed)
