"""Repeatability and the space of roles where the answer was planted, and where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from personae.errors import InvalidSettings
from personae.inference.persona_space import compare_spaces, persona_space
from personae.inference.repeatability import repeatability
from personae.tables.activations import Activations, Origin

D, LAYERS, QUESTIONS, ROLES = 30, 2, 16, 12
ORIGIN = Origin("planted", "digest", "tokenizer", LAYERS, D)


def two_poles(rng: np.random.Generator, effect: float) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Questions differ much more than poles do; the poles differ along one coordinate of layer 1."""
    question = 3 * rng.normal(size=(QUESTIONS, 1, LAYERS, D))
    x = question + rng.normal(size=(QUESTIONS, 6, LAYERS, D))
    x[:, :3, 1, 4] += effect
    positive = np.tile(np.arange(6) < 3, QUESTIONS)
    return x.reshape(-1, LAYERS, D), positive, np.repeat(np.arange(QUESTIONS), 6).tolist()


def test_a_repeatable_direction_is_found_at_its_layer() -> None:
    rng = np.random.default_rng(0)
    found = repeatability(*two_poles(rng, 6.0), rng=rng)
    assert found.best_layer == 1
    assert found.cosine > 0.9
    assert found.p < 0.01
    assert found.null_high < 0.6
    assert found.low <= found.cosine <= found.high


def test_cosines_from_gram_matrices_are_those_of_the_directions() -> None:
    """Against the plain computation, one split after another."""
    rng = np.random.default_rng(1)
    x, positive, questions = two_poles(rng, 2.0)
    found = repeatability(x, positive, questions, rng=np.random.default_rng(7), n_splits=3, n_permutations=0)
    again = np.random.default_rng(7)
    plain = []
    for _ in range(3):
        half = (again.permutation(QUESTIONS) < QUESTIONS // 2)[questions]
        a, b = (x[h & positive].mean(axis=0) - x[h & ~positive].mean(axis=0) for h in (half, ~half))
        plain.append([a[layer] @ b[layer] / np.linalg.norm(a[layer]) / np.linalg.norm(b[layer]) for layer in (0, 1)])
    np.testing.assert_allclose(found.by_layer, np.median(plain, axis=0), atol=1e-10)


def test_poles_that_do_not_differ_give_a_uniform_p() -> None:
    rng = np.random.default_rng(2)
    p = [
        repeatability(*two_poles(rng, 0.0), rng=rng, n_splits=5, n_permutations=49).p - rng.uniform(0, 0.02)
        for _ in range(60)
    ]
    assert kstest(p, "uniform").pvalue > 0.001


def test_a_question_with_one_pole_is_refused() -> None:
    rng = np.random.default_rng(3)
    x, positive, questions = two_poles(rng, 1.0)
    positive[:6] = True
    with pytest.raises(InvalidSettings, match="one pole only"):
        repeatability(x, positive, questions, rng=rng)


def roles(rng: np.random.Generator, along: float, noise: float = 0.5, turn: np.ndarray | None = None) -> Activations:
    """Roles vary most along coordinate 0; the default stands `along` standard deviations out on it."""
    centres = rng.normal(size=(ROLES, D)) * np.r_[8.0, 3.0, np.ones(D - 2)]
    centres = np.concatenate([centres, centres.mean(axis=0, keepdims=True)])
    centres[-1, 0] += 8.0 * along
    question = rng.normal(size=(QUESTIONS, D))
    x = centres[:, None] + question + noise * rng.normal(size=(ROLES + 1, QUESTIONS, D))
    x = x if turn is None else x @ turn
    names = [*(f"role{k}" for k in range(ROLES)), "plain"]
    values = np.repeat(x.reshape(-1, 1, D), LAYERS, axis=1).astype(np.float32)
    labels = tuple(n for n in names for _ in range(QUESTIONS))
    groups = tuple(str(q) for _ in names for q in range(QUESTIONS))
    items = tuple(f"{label}|{q}" for label, q in zip(labels, groups, strict=True))
    return Activations(items, labels, groups, (0, 1), values, "prompt_last", ORIGIN)


def test_an_axis_along_the_main_component_is_found_and_beats_roles() -> None:
    rng = np.random.default_rng(4)
    space = persona_space(roles(rng, 3.0), "plain", {}, 1, rng=rng)
    assert space.split_half[0] > 0.95
    assert space.split_half[0] > space.split_half_null
    assert space.first_cosine > 0.9
    assert space.default_position > 2, "the positive end is the default, whatever sign the components came with"
    assert space.default_map[0] > 2
    assert all(c.direction @ space.axis >= 0 for c in space.components)
    assert space.components[0].share == pytest.approx(64 / (64 + 9 + 28), abs=0.15)
    assert space.n_for_70 <= 3
    assert sum(space.positions) == pytest.approx(0, abs=1e-6)


def test_an_axis_of_its_own_does_not_beat_roles() -> None:
    """A default that differs from roles in a way in which roles do not differ is no end of their main component."""
    rng = np.random.default_rng(5)
    found = roles(rng, 0.0)
    values = found.values.copy()
    values[np.array(found.labels) == "plain", :, 20] += 30
    aside = Activations(found.items, found.labels, found.groups, found.layers, values, found.reduce, ORIGIN)
    space = persona_space(aside, "plain", {}, 1, rng=rng)
    assert space.split_half[0] > 0.95
    assert space.first_cosine < space.first_null_roles
    assert space.first_p > 0.2


def test_noise_gives_no_repeatable_axis() -> None:
    rng = np.random.default_rng(6)
    found = roles(rng, 0.0)
    noise = rng.normal(size=found.values.shape).astype(np.float32)
    nothing = Activations(found.items, found.labels, found.groups, found.layers, noise, found.reduce, ORIGIN)
    space = persona_space(nothing, "plain", {}, 0, rng=rng)
    assert abs(space.split_half[0]) < 0.6
    assert space.split_half[0] <= space.split_half_null + 0.2


def test_a_turned_space_is_the_same_and_another_is_not() -> None:
    """Coordinates of two models differ by more than a rotation, but a rotation must change nothing."""
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(D, D)))[0]
    one = persona_space(roles(np.random.default_rng(7), 2.0), "plain", {}, 1, rng=np.random.default_rng(0))
    same = persona_space(roles(np.random.default_rng(7), 2.0, turn=turn), "plain", {}, 1, rng=np.random.default_rng(0))
    other = persona_space(roles(np.random.default_rng(8), 2.0), "plain", {}, 1, rng=np.random.default_rng(0))
    turned = compare_spaces(one, same, rng=np.random.default_rng(0))
    assert turned.geometry == pytest.approx(1, abs=1e-4)
    assert turned.geometry_p < 0.01
    assert turned.positions == pytest.approx(1, abs=1e-3)
    assert same.split_half == pytest.approx(one.split_half, abs=1e-4)
    unrelated = compare_spaces(one, other, rng=np.random.default_rng(0))
    assert unrelated.geometry_p > 0.01
    assert unrelated.geometry < 0.5


def test_too_small_a_cast_spans_no_space() -> None:
    rng = np.random.default_rng(10)
    few = roles(rng, 1.0).of("role0", "role1", "plain")
    with pytest.raises(InvalidSettings, match="span no space"):
        persona_space(few, "plain", {}, 0, rng=rng)
