"""The shift of the residual stream that moves a trait most for what it costs ordinary text, to second order.

    effect(v) = g v                      g: gradient of the trait's log-odds in a shift after one block, nats a token
    cost(v)   = v' F v / 2               F = sum_i s_i s_i' / n tokens, s_i: gradient of an ordinary reply's
                                         log-likelihood in the same shift: the Fisher information of the shift
    best      v = F^-1 g x sqrt(2 c / g F^-1 g),   effect sqrt(2 c g F^-1 g) at the cost c

This is a natural gradient (Amari 1998, Neural Computation 10) of one step in the few numbers that steering changes.
F has the rank of the ordinary replies, so it is shrunk towards a multiple of the identity, which is also where the
unknown directions are held to cost what the known ones do on average. A mean difference of activations is what the
model shows when it is in a persona; this is what makes it speak so, and the two need not be close. Not here: where
gradients come from (`models.gradients`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve

from personae.errors import InvalidSettings, NumericsError

Floats = NDArray[np.float64]

SHRINKAGE = 0.1
COST = 0.1  # nats a token


@dataclass(frozen=True, slots=True, eq=False)
class Push:
    """The best shift of every block, each on its own.

    Attributes:
        values: Shape (n_layers, d_model), units of the stream; as long as `COST` nats a token are predicted to cost.
        effect: Predicted effect of each at that cost, nats a token, shape (n_layers,); 0 where the gradient vanishes.
    """

    values: Floats
    effect: Floats


def best_push(
    effects: ArrayLike, ordinary: ArrayLike, n_tokens: Sequence[int], *, shrinkage: float = SHRINKAGE
) -> Push:
    """The shift of most effect for its cost, block by block.

    Args:
        effects: Gradient of the trait's log-odds for each item, nats a token and unit of the stream, shape (n_items,
            n_layers, d_model); their mean counts.
        ordinary: Gradient of the log-likelihood of each ordinary reply, nats a unit, shape (n_replies, n_layers,
            d_model).
        n_tokens: Tokens of each ordinary reply.
        shrinkage: Weight of the identity, above 0 and at most 1; 1 gives the plain gradient.

    Raises:
        InvalidSettings: If shapes do not fit, or the shrinkage lies outside its range.
        NumericsError: If a gradient is not finite.
    """
    g, s = np.asarray(effects, np.float64), np.asarray(ordinary, np.float64)
    if g.ndim != 3 or s.ndim != 3 or g.shape[1:] != s.shape[1:] or len(s) != len(n_tokens) or not len(g) * len(s):
        raise InvalidSettings(f"gradients of shape {g.shape} and {s.shape} do not fit (items, layers, width).")
    if not 0 < shrinkage <= 1:
        raise InvalidSettings(f"a shrinkage of {shrinkage}; it must be above 0 and at most 1.")
    if not (np.isfinite(g).all() and np.isfinite(s).all()):
        raise NumericsError("a gradient is not a finite number.")
    mean = g.mean(axis=0)
    found = [_at(mean[layer], s[:, layer] / np.sqrt(sum(n_tokens)), shrinkage) for layer in range(g.shape[1])]
    return Push(np.stack([v for v, _ in found]), np.array([e for _, e in found]))


def predicted(
    shifts: ArrayLike, effects: ArrayLike, ordinary: ArrayLike, n_tokens: Sequence[int], *, cost: float = COST
) -> tuple[float, float]:
    """Predicted effect of given shifts at a cost, and by which factor they are to be multiplied for it.

    Shifts of several blocks act together: to this order effects add, and costs through the sum of their scores.

    Args:
        shifts: Shape (n_layers, d_model); zero at blocks that are not touched.
        effects: As in `best_push`, of items that made none of the shifts.
        ordinary: Likewise.
        n_tokens: Likewise.
        cost: Nats a token.

    Returns:
        Effect in nats a token, and the factor; both 0 where the shifts cost nothing, for then nothing is predicted.
    """
    v = np.asarray(shifts, np.float64)
    towards = float(np.einsum("ild,ld->", np.asarray(effects, np.float64), v)) / len(np.asarray(effects))
    scores = np.einsum("ild,ld->i", np.asarray(ordinary, np.float64), v)
    spread = float(scores @ scores) / sum(n_tokens)
    factor = float(np.sqrt(2 * cost / spread)) if spread > 0 else 0.0
    return towards * factor, factor


def _at(g: Floats, scores: Floats, shrinkage: float) -> tuple[Floats, float]:
    """F^-1 g scaled to the cost, by Woodbury's identity where F has less than full rank."""
    ridge = shrinkage * float((scores**2).sum()) / len(g)
    if not g.any() or not ridge > 0:
        return np.zeros_like(g), 0.0
    rows = np.sqrt(1 - shrinkage) * scores
    if len(rows) > len(g):
        solved = cho_solve(cho_factor(rows.T @ rows + ridge * np.eye(len(g))), g)
        return _scaled(g, solved)
    small = ridge * np.eye(len(rows)) + rows @ rows.T
    solved = (g - rows.T @ cho_solve(cho_factor(small), rows @ g)) / ridge
    return _scaled(g, solved)


def _scaled(g: Floats, solved: Floats) -> tuple[Floats, float]:
    """As long as the cost allows, with the effect."""
    strength = float(g @ solved)
    return solved * np.sqrt(2 * COST / strength), float(np.sqrt(2 * COST * strength))
