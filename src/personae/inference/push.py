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
DRAWS = 999


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


@dataclass(frozen=True, slots=True, eq=False)
class JudgedPush:
    """A push with what it promises on items that did not make it.

    Attributes:
        push: Made of all training items.
        layer: Block with the largest effect where halves of the training items judge each other, 0-based place.
        effects: Predicted effect of that block's push on each test item at `COST`, nats a token, shape (n_items,).
        p: Of their mean, one-sided, under swaps of the poles of test items (sign flips): (1 + number of flipped means
            that reach it) / (1 + n). The block was chosen without them, so there is no choice to pay for.
        high: 97.5 % quantile of the flipped means.
    """

    push: Push
    layer: int
    effects: Floats
    p: float
    high: float


def judge_push(
    training: ArrayLike,
    test: ArrayLike,
    ordinary: tuple[ArrayLike, Sequence[int]],
    ordinary_test: tuple[ArrayLike, Sequence[int]],
    *,
    rng: np.random.Generator,
    n: int = DRAWS,
) -> JudgedPush:
    """Make a push and judge it to second order, on other items and other ordinary replies.

    Args:
        training: Gradients of at least four items' log-odds, shape (n_items, n_layers, d_model).
        test: Likewise, of other items.
        ordinary: Gradients of ordinary replies, shape (n_replies, n_layers, d_model), and their tokens: what costs.
        ordinary_test: Likewise, of other replies: what the cost is judged by.
        rng: Source of randomness.
        n: Sign flips.

    Raises:
        InvalidSettings: If there are fewer than four training or two test items, or shapes do not fit.
        NumericsError: If a gradient is not finite.
    """
    g, t = np.asarray(training, np.float64), np.asarray(test, np.float64)
    if g.ndim != 3 or t.ndim != 3 or len(g) < 4 or len(t) < 2:
        raise InvalidSettings(f"{len(g)} items to make a push and {len(t)} to judge it are too few.")
    push = best_push(g, *ordinary)
    halves = [best_push(g[k::2], *ordinary).values for k in (0, 1)]
    by_layer = sum(_each(h, g[1 - k :: 2].mean(axis=0), *ordinary) for k, h in enumerate(halves))
    layer = int(np.argmax(by_layer))
    factor = predicted(_only(push.values, layer), t, *ordinary_test)[1]
    effects = np.einsum("id,d->i", t[:, layer], push.values[layer]) * factor
    flipped = rng.choice([-1.0, 1.0], size=(n, len(t))) @ effects / len(t)
    p = (1 + int((flipped >= effects.mean() - 1e-12).sum())) / (1 + n)
    return JudgedPush(push, layer, effects, p, float(np.quantile(flipped, 0.975)))


def _each(shifts: Floats, g: Floats, ordinary: ArrayLike, n_tokens: Sequence[int]) -> Floats:
    """Predicted effect at `COST` of every block's shift alone, shape (n_layers,)."""
    costs = (np.einsum("ild,ld->il", np.asarray(ordinary, np.float64), shifts) ** 2).sum(axis=0) / sum(n_tokens)
    towards = np.einsum("ld,ld->l", g, shifts)
    return np.divide(towards * np.sqrt(2 * COST), np.sqrt(costs), out=np.zeros(len(g)), where=costs > 0)


def _only(values: Floats, layer: int) -> Floats:
    out = np.zeros_like(values)
    out[layer] = values[layer]
    return out


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
