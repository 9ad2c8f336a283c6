"""White-box read-out: which mixture of personas predicts what the model predicts on diagnostic probes?

    F(w) = mean_q KL(p_q || m_q),    m_q = sum_k w_k theta_kq

p_q is the model's next-token distribution over the answers of probe q, theta_kq that of component k. F is convex in
w, and EM lowers it at every step (Csiszar & Tusnady 1984):

    w_k <- w_k g_k,    g_k = mean_q sum_a p_q(a) theta_kq(a) / m_q(a)

At any w, F(w) - min F <= max_k g_k - 1 (Lindsay 1983, theorem 4.1): that gap says when to stop, so a result is
certified and not merely settled. Steps are doubled by SQUAREM (Varadhan & Roland 2008, scheme S3). No sampling is
needed. With theta from a prompted model the weights are pseudo-weights: shares in a description by these prompts. Not
here: where the distributions come from.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr

from personae.errors import InputError, InvalidSettings, NumericsError
from personae.numerics.clustered import cluster_index

Floats = NDArray[np.float64]

MOST_LEAKED = 0.1
WORST_CONDITION = 1e8
START_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class ReadOut:
    """Weights of a persona mixture read from predictions.

    Attributes:
        weight: Minimiser of F, shape (n_components,).
        low, high: Interval of `level` from resampling groups of probes, same shape. It says how much the answer
            depends on which probes were asked; with exact distributions of an exact mixture it has no width.
        residual: F at the weights: misfit, nats a probe. 0 for an exact mixture of the components.
        residual_by_probe: Its terms, shape (n_probes,).
        cross_fitted_residual: Misfit on probes that were held out when the weights were fitted, nats a probe; the
            number to report, since fitting alone lowers `residual`.
        leaked: Probability the model gives to tokens outside the answers, by probe, shape (n_probes,).
        component_leaked: The same of the components, the mean over them, shape (n_probes,).
        rank: Of the differences between components on these probes; n_components - 1 identifies the weights.
        condition: Condition number of the Fisher information of the weights on the simplex.
        is_identified: Whether rank and condition suffice. If not, sums over like components may still be.
        gap: Bound on how far `residual` is above the smallest possible, nats.
        start_gap: Largest difference of the objective between random starts, nats.
        level: Mass of the interval.
        notes: Sentences a reader of the numbers must know.
    """

    weight: Floats
    low: Floats
    high: Floats
    residual: float
    residual_by_probe: Floats
    cross_fitted_residual: float
    leaked: Floats
    component_leaked: Floats
    rank: int
    condition: float
    is_identified: bool
    gap: float
    start_gap: float
    level: float
    notes: tuple[str, ...]


def read_out(
    p: ArrayLike,
    theta: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    most_leaked: float = MOST_LEAKED,
    n_draws: int = 200,
    n_starts: int = 5,
    n_folds: int = 5,
    level: float = 0.9,
    seed: int = 0,
) -> ReadOut:
    """Fit the weights of given components to a model's predictions.

    Args:
        p: Probabilities of the answers under the model, shape (n_probes, n_answers). Each row sums to at most 1;
            what is missing leaked to other tokens, and the row is renormalised. Shorter answer sets are filled with 0
            in `p` and `theta`.
        theta: The same under each component, shape (n_components, n_probes, n_answers); renormalised alike.
        groups: What probes belong to (question, domain), the unit of resampling and of folds; each its own if left out.
        most_leaked: Mean leaked mass above which the probes are refused: the answers are then not what is said.
        n_draws: Bootstrap resamples.
        n_starts: Starts, equal weights and random ones.
        n_folds: Folds of the cross-fitted residual, at most the number of groups.
        level: Mass of the interval.
        seed: Of starts, folds and resamples.

    Returns:
        The read-out. Where `is_identified` is False the weights are one of many equally good answers.

    Raises:
        InputError: If more than `most_leaked` of the mass leaked, or an answer the model gives is impossible under
            every component (the misfit is then infinite).
        InvalidSettings: If shapes do not fit or there are fewer than two groups of probes.
        NumericsError: If the values are not probabilities.
    """
    model, parts, leaks = _distributions(p, theta)
    _check_leak(leaks, most_leaked)
    if n_starts < 1 or n_draws < 1 or n_folds < 2 or not 0 < level < 1:
        raise InvalidSettings(
            f"{n_starts} starts, {n_draws} draws, {n_folds} folds, level {level}: at least 1, 1, 2 and one in (0, 1)."
        )
    index, n_groups = cluster_index(range(len(model)) if groups is None else groups)
    if len(index) != len(model) or n_groups < 2:
        raise InvalidSettings(
            f"{len(model)} probes in {n_groups} groups with {len(index)} labels: every probe needs one, and two groups "
            "are needed."
        )
    if ((model > 0) & (parts.max(axis=0) <= 0)).any():
        probe = int(np.flatnonzero(((model > 0) & (parts.max(axis=0) <= 0)).any(axis=1))[0])
        raise InputError(
            f"probe {probe} (from 0): the model gives an answer that is impossible under every component.",
            hint="Add a background component that can say anything.",
        )
    rng = np.random.default_rng(seed)
    k = len(parts)
    starts = np.concatenate([np.full((1, k), 1 / k), rng.dirichlet(np.ones(k), size=n_starts - 1)])
    even = np.ones((n_starts, len(model)))
    fits = minimise(model, parts, even, starts, tolerance=1e-9)
    values = np.array([_divergence(model, parts, w).mean() for w in fits])
    best = _polished(model, parts, fits[values.argmin()])
    by_probe = _divergence(model, parts, best)
    rank, condition = _identification(parts, best)
    low, high = _interval(model, parts, index, best, n_draws=n_draws, level=level, rng=rng)
    identified = rank == k - 1 and condition < WORST_CONDITION
    start_gap = float(values.max() - values.min())
    return ReadOut(
        weight=best,
        low=low,
        high=high,
        residual=float(by_probe.mean()),
        residual_by_probe=by_probe,
        cross_fitted_residual=_cross_fit(model, parts, index, n_folds=min(n_folds, n_groups), rng=rng),
        leaked=leaks[0],
        component_leaked=leaks[1:].mean(axis=0),
        rank=rank,
        condition=condition,
        is_identified=identified,
        gap=_gap(model, parts, best),
        start_gap=start_gap,
        level=level,
        notes=tuple(_notes(rank, k, identified, leaks, start_gap)),
    )


def minimise(
    p: Floats, theta: Floats, probe_weight: Floats, start: Floats, *, tolerance: float = 1e-13, most: int = 3000
) -> Floats:
    """Minimise sum_q u_q KL(p_q || sum_k w_k theta_kq) over w, for several weightings u of the probes at once.

    Args:
        p: Shape (n_probes, n_answers), rows sum to 1.
        theta: Shape (n_components, n_probes, n_answers), rows sum to 1.
        probe_weight: u, shape (n_problems, n_probes), not negative, normalised here.
        start: Starting weights, shape (n_problems, n_components); a weight of 0 stays 0.
        tolerance: Bound on the distance of the objective from its minimum, nats, at which to stop.
        most: Steps at most.

    Returns:
        Weights, shape (n_problems, n_components).
    """
    flat = theta.reshape(len(theta), -1)
    u = probe_weight / probe_weight.sum(axis=1, keepdims=True)
    target = (u[:, :, None] * p).reshape(len(u), -1)
    w = start / start.sum(axis=1, keepdims=True)
    active = np.arange(len(w))
    for _ in range(most):
        gains = _gains(target[active], flat, w[active])
        unfinished = np.where(w[active] > 0, gains, 0.0).max(axis=1) > 1 + tolerance
        active, gains = active[unfinished], gains[unfinished]
        if len(active) == 0:
            break
        w[active] = _leap(target[active], flat, w[active], gains)
    return w


def _polished(p: Floats, theta: Floats, w: Floats) -> Floats:
    """The weights brought to full precision, traces set to 0 wherever that does not raise the objective.

    Where the truth lies on a face of the simplex EM approaches it only like 1 / steps.
    """
    even = np.ones((1, len(p)))
    w = minimise(p, theta, even, w[None])[0]
    for cut in (1e-6, 1e-4, 1e-2):
        kept = np.where(w < cut, 0.0, w)
        if 0 < np.count_nonzero(kept) < np.count_nonzero(w):
            other = minimise(p, theta, even, kept[None])[0]
            w = other if _divergence(p, theta, other).mean() <= _divergence(p, theta, w).mean() else w
    return w


def _leap(target: Floats, flat: Floats, w: Floats, gains: Floats) -> Floats:
    """Two steps of EM extrapolated (SQUAREM); the plain second step where that does not lower the objective."""
    once = w * gains
    twice = once * _gains(target, flat, once)
    r, v = once - w, twice - 2 * once + w
    bend = np.linalg.norm(v, axis=1)
    stride = np.maximum(np.linalg.norm(r, axis=1) / np.where(bend > 0, bend, 1.0), 1.0)[:, None]
    far = w + 2 * stride * r + stride**2 * v
    # A leap that leaves the simplex stops short of the face, from which EM could not return.
    far = np.maximum(far, twice * 1e-3)
    far /= far.sum(axis=1, keepdims=True)
    far = far * _gains(target, flat, far)
    better = _objective(target, flat, far) <= _objective(target, flat, twice)
    return np.where(better[:, None], far, twice)


def _gains(target: Floats, flat: Floats, w: Floats) -> Floats:
    m = w @ flat
    return np.divide(target, m, out=np.zeros_like(target), where=m > 0) @ flat.T


def _objective(target: Floats, flat: Floats, w: Floats) -> Floats:
    """F up to a constant."""
    m = w @ flat
    with np.errstate(divide="ignore"):
        return -np.sum(target * np.log(np.where(target > 0, m, 1.0)), axis=1)


def _gap(p: Floats, theta: Floats, w: Floats) -> float:
    gains = _gains((p / len(p)).reshape(1, -1), theta.reshape(len(theta), -1), w[None])
    return max(float(gains.max()) - 1, 0.0)


def _divergence(p: Floats, theta: Floats, w: Floats) -> Floats:
    """KL(p_q || m_q), nats, shape (n_probes,)."""
    return np.maximum(rel_entr(p, np.einsum("k,kqa->qa", w, theta)).sum(axis=1), 0.0)


def _identification(theta: Floats, w: Floats) -> tuple[int, float]:
    """Rank of the components' differences, and condition of the Fisher information on the simplex.

    The information of w for one answer to each probe is sum_qa theta_k theta_j / m; its square root's singular values
    on directions that sum to 0 are those of the scaled differences below.
    """
    m = np.einsum("k,kqa->qa", w, theta)
    scaled = (theta / np.sqrt(np.where(m > 0, m, 1.0))).reshape(len(theta), -1)
    tangent = np.linalg.svd(np.ones((1, len(theta))))[2][1:]
    if len(tangent) == 0:
        return 0, 1.0
    values = np.linalg.svd(tangent @ scaled, compute_uv=False)
    if len(values) < len(tangent):
        return int((values > values[0] * 1e-9).sum()), np.inf
    rank = int((values > max(values[0], 1e-300) * 1e-9).sum())
    return rank, float((values[0] / values[-1]) ** 2) if values[-1] > 0 else np.inf


def _interval(
    p: Floats,
    theta: Floats,
    index: NDArray[np.int64],
    w: Floats,
    *,
    n_draws: int,
    level: float,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    n_groups = int(index.max()) + 1
    counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws).astype(np.float64)
    start = np.tile(0.9 * w + 0.1 / len(w), (n_draws, 1))
    draws = minimise(p, theta, counts[:, index], start, tolerance=1e-6, most=500)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _cross_fit(p: Floats, theta: Floats, index: NDArray[np.int64], *, n_folds: int, rng: np.random.Generator) -> float:
    """Mean over probes of the misfit under weights fitted to other folds."""
    n_groups = int(index.max()) + 1
    fold = (rng.permutation(n_groups) % n_folds)[index]
    train = np.stack([fold != f for f in range(n_folds)]).astype(np.float64)
    start = np.full((n_folds, len(theta)), 1 / len(theta))
    fits = minimise(p, theta, train, start, tolerance=1e-8)
    return float(
        np.concatenate([_divergence(p[fold == f], theta[:, fold == f], fits[f]) for f in range(n_folds)]).mean()
    )


def _distributions(p: ArrayLike, theta: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Renormalised distributions, and the leaked mass of the model (first row) and of each component."""
    model, parts = (np.asarray(v, dtype=np.float64) for v in (p, theta))
    if model.ndim != 2 or parts.ndim != 3 or parts.shape[1:] != model.shape or len(parts) == 0:
        raise InvalidSettings(
            f"p has the shape {model.shape} and theta {parts.shape}; (probes, answers) and (components, probes, "
            "answers) are wanted."
        )
    both = np.concatenate([model[None], parts])
    if not np.isfinite(both).all() or (both < 0).any() or (both.sum(axis=2) > 1 + 1e-4).any():
        raise NumericsError(
            "p or theta holds values that are not probabilities: they must be 0 or more and sum to at most 1.",
            hint="Give probabilities, not logits or their logarithms.",
        )
    total = both.sum(axis=2)
    if (total <= 0).any():
        probe = int(np.flatnonzero((total <= 0).any(axis=0))[0])
        raise InputError(f"probe {probe} (from 0): no answer has any probability under the model or a component.")
    both = both / total[:, :, None]
    return both[0], both[1:], np.maximum(1 - total, 0.0)


def _check_leak(leaks: Floats, most_leaked: float) -> None:
    mean = leaks.mean(axis=1)
    if mean.max() > most_leaked:
        who = int(mean.argmax())
        name = "the model" if who == 0 else f"component {who - 1} (from 0)"
        worst = int(leaks[who].argmax())
        raise InputError(
            f"{name} gives {mean[who]:.0%} of its mass to tokens outside the answers (probe {worst}, from 0: "
            f"{leaks[who, worst]:.0%}); at most {most_leaked:.0%} may leak.",
            hint="Add the missing spellings to the answers, or change the probes; most_leaked raises the limit.",
        )


def _notes(rank: int, n_components: int, identified: bool, leaks: Floats, start_gap: float) -> list[str]:
    notes = []
    if not identified:
        notes.append(
            f"the weights are not identified: the probes tell {rank + 1} of {n_components} components apart; ask more "
            "probes or add up like components."
        )
    many = int((leaks.max(axis=0) > MOST_LEAKED).sum())
    if many:
        notes.append(f"{many} probes leak more than {MOST_LEAKED:.0%} of the mass to tokens outside the answers.")
    if start_gap > START_TOLERANCE:
        notes.append(f"starts disagree by {start_gap:.2g} nats: the fit has not settled.")
    return notes
