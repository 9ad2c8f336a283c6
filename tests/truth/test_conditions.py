"""Within-type correlation where the truth is known: a direction of prompt types only, and one that tells degrees."""

from __future__ import annotations

import numpy as np
import pytest

from personae.errors import InvalidSettings
from personae.inference.conditions import ConditionTest, judge_conditions
from personae.inference.nulls import Poles

D, LAYERS, TYPES, EACH = 32, 2, 5, 8


def prompts(rng: np.random.Generator, degree: float, *, between: float = 3.0) -> ConditionTest:
    """Types differ by `between` along the trait's direction in scores and states; within types both vary, and states
    follow the score with strength `degree`."""
    scale = np.geomspace(2, 0.3, D)
    direction = np.eye(D)[20]
    label = np.arange(60) % 2 == 0
    x = rng.normal(size=(60, LAYERS, D)) * scale
    x[:, 1] += np.outer(np.where(label, 1, -1), 4 * direction)
    of = np.repeat(np.arange(TYPES), EACH)
    kind, within = np.linspace(-1, 1, TYPES)[of] * between, rng.normal(size=len(of))
    y = rng.normal(size=(len(of), LAYERS, D)) * scale
    y[:, 1] += np.outer(kind + degree * within, direction)
    names = [f"type {k}" for k in of]
    poles = Poles(x, label, [i // 2 for i in range(60)])
    return judge_conditions(poles, y, kind + within, names, rng=rng, n_permutations=99, n_random=99)


def test_a_direction_of_types_only_is_unmasked() -> None:
    """Pooled it looks excellent and beats permuted labels; within types there is nothing, over forty repeats."""
    rng = np.random.default_rng(0)
    pooled, p = [], []
    for _ in range(40):
        found = prompts(rng, 0.0)
        pooled.append(found.pooled.value)
        p.append(found.within.null("permuted labels").p)
        assert found.share_of_types > 0.7
    assert min(pooled) > 0.75
    assert 0 <= np.mean(np.array(p) < 0.05) <= 0.2


def test_degrees_within_types_are_found() -> None:
    found = prompts(np.random.default_rng(1), 1.2, between=0.5)
    assert found.within.value > 0.8
    assert found.within.layer == 1
    assert found.within.beats_every_null, found.within
    assert set(found.by_type) == {f"type {k}" for k in range(TYPES)}
    assert min(found.by_type.values()) > 0.4
    assert found.within.statistic == "r within conditions"


def test_it_needs_types_with_prompts() -> None:
    poles = Poles(np.random.default_rng(2).normal(size=(8, 1, 4)), np.arange(8) % 2 == 0, [i // 2 for i in range(8)])
    y, rng = np.random.default_rng(3).normal(size=(6, 1, 4)), np.random.default_rng(4)
    with pytest.raises(InvalidSettings, match="one type"):
        judge_conditions(poles, y, np.arange(6.0), ["a"] * 6, rng=rng)
    with pytest.raises(InvalidSettings, match="'b' with fewer than 3"):
        judge_conditions(poles, y, np.arange(6.0), ["a"] * 4 + ["b"] * 2, rng=rng)
    with pytest.raises(InvalidSettings, match="nothing to correlate"):
        judge_conditions(poles, y, [0.0, 0, 0, 1, 1, 1], ["a"] * 3 + ["b"] * 3, rng=rng)
