"""The best push where the answer is known: a model whose effect is linear and whose cost is a given quadratic."""

from __future__ import annotations

import numpy as np
import pytest

from personae.errors import InvalidSettings, NumericsError
from personae.inference.push import COST, best_push, judge_push, predicted

RNG = np.random.default_rng


def drawn(n: int, n_layers: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Factors A (costs A A') and n ordinary gradients with covariance A A' a token."""
    rng = RNG(seed)
    a = rng.normal(size=(n_layers, d, d)) * np.geomspace(0.2, 3, d)
    return a, np.einsum("lde,nle->nld", a, rng.normal(size=(n, n_layers, d)))


def test_it_is_the_exact_optimum_of_the_quadratic() -> None:
    a, s = drawn(20_000, 2, 6)
    g = RNG(1).normal(size=(5, 2, 6))
    push = best_push(g, s, [1] * len(s), shrinkage=1e-6)
    for layer in range(2):
        fisher = a[layer] @ a[layer].T
        exact = np.linalg.solve(fisher, g.mean(axis=0)[layer])
        strength = float(g.mean(axis=0)[layer] @ exact)
        np.testing.assert_allclose(push.values[layer], exact * np.sqrt(2 * COST / strength), rtol=0.06, atol=0.02)
        assert push.effect[layer] == pytest.approx(np.sqrt(2 * COST * strength), rel=0.03)
        assert push.values[layer] @ fisher @ push.values[layer] / 2 == pytest.approx(COST, rel=0.06)


def test_no_other_direction_does_better_at_that_cost() -> None:
    _, s = drawn(4_000, 1, 8)
    g = RNG(2).normal(size=(1, 1, 8))
    best = best_push(g, s, [1] * len(s), shrinkage=1e-9)
    own, factor = predicted(best.values, g, s, [1] * len(s))
    assert own == pytest.approx(best.effect[0], rel=1e-3)
    assert factor == pytest.approx(1, rel=1e-3)
    others = [predicted(RNG(k).normal(size=(1, 8)), g, s, [1] * len(s))[0] for k in range(200)]
    assert max(map(abs, others)) < own
    assert predicted(g[0], g, s, [1] * len(s))[0] < own, "nor does the plain gradient"


def test_where_nothing_moves_the_trait_nothing_is_predicted_on_other_items() -> None:
    """Null: gradients of items that are noise point nowhere, whatever their own prediction says."""
    _, s = drawn(400, 1, 16)
    gains = []
    for seed in range(100):
        g = RNG(seed).normal(size=(20, 1, 16))
        push = best_push(g[:10], s, [1] * len(s))
        gains.append(predicted(push.values, g[10:], s, [1] * len(s))[0])
    assert abs(np.mean(gains)) < 3 * np.std(gains) / np.sqrt(len(gains))


def test_a_shared_gradient_is_found_in_noise() -> None:
    """Positive control: the same with a common part."""
    _, s = drawn(400, 1, 16)
    common = RNG(9).normal(size=(1, 1, 16))
    gains = []
    for seed in range(20):
        g = common + RNG(seed).normal(size=(20, 1, 16))
        push = best_push(g[:10], s, [1] * len(s))
        gains.append(predicted(push.values, g[10:], s, [1] * len(s))[0])
    assert min(gains) > 0


def test_tokens_and_shrinkage() -> None:
    _, s = drawn(50, 1, 6)
    g = RNG(3).normal(size=(1, 1, 6))
    once, longer = best_push(g, s, [1] * 50), best_push(g, s, [4] * 50)
    np.testing.assert_allclose(longer.values, 2 * once.values, rtol=1e-9)
    plain = best_push(g, s, [1] * 50, shrinkage=1.0).values[0]
    assert plain @ g[0, 0] / np.linalg.norm(plain) / np.linalg.norm(g) == pytest.approx(1)
    flat = best_push(np.zeros((1, 1, 6)), s, [1] * 50)
    assert not flat.values.any()
    assert predicted(flat.values, g, s, [1] * 50) == (0.0, 0.0)


def items(n: int, common: np.ndarray, seed: int) -> np.ndarray:
    """Gradients of items: a common part at the second of two blocks, and noise."""
    made = RNG(seed).normal(size=(n, 2, 16))
    made[:, 1] += common
    return made


def test_a_judged_push_beats_its_null_where_there_is_something_and_not_where_there_is_nothing() -> None:
    _, s = drawn(120, 2, 16)
    ordinary, other = (s[::2], [1] * 60), (s[1::2], [1] * 60)
    common = RNG(5).normal(size=16) * 2
    found = judge_push(items(8, common, 1), items(8, common, 2), ordinary, other, rng=RNG(0))
    assert found.layer == 1
    assert found.p <= 0.02
    assert found.effects.mean() > found.high > 0
    p = [
        judge_push(items(8, common * 0, k), items(8, common * 0, 90 + k), ordinary, other, rng=RNG(k), n=99).p
        for k in range(40)
    ]
    assert 0 <= np.mean(np.array(p) <= 0.05) <= 0.2
    with pytest.raises(InvalidSettings, match="too few"):
        judge_push(items(3, common, 1), items(8, common, 2), ordinary, other, rng=RNG(0))


def test_refusals() -> None:
    _, s = drawn(5, 1, 6)
    g = np.ones((1, 1, 6))
    for bad in (lambda: best_push(g, s, [1] * 4), lambda: best_push(g[:, :, :5], s, [1] * 5)):
        with pytest.raises(InvalidSettings, match="do not fit"):
            bad()
    with pytest.raises(InvalidSettings, match="shrinkage"):
        best_push(g, s, [1] * 5, shrinkage=0)
    with pytest.raises(NumericsError):
        best_push(g * np.nan, s, [1] * 5)
