"""Directions of the `tiny` world's model against what its exact beliefs say they must be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest

from personae.models.hf import HFModel
from personae.models.hf_world import train_stage
from personae.models.load import load_model
from personae.protocols.world_vectors import (
    WorldStates,
    belief_probe,
    causal_slope,
    check_cap,
    planted_direction,
    world_states,
)
from personae.worlds.assistant import truth_of
from personae.worlds.exact import ExactWorld
from personae.worlds.folder import world_folder, write_world
from personae.worlds.material import material_of
from personae.worlds.reading import read_world


@pytest.fixture(scope="module")
def exact() -> ExactWorld:
    return ExactWorld(read_world("tiny"))


@pytest.fixture(scope="module")
def tiny(session_home: Path, exact: ExactWorld) -> HFModel:
    world = read_world("tiny")
    if not (world_folder(session_home, "tiny") / "base").is_dir():
        folder = write_world(session_home, world, truth_of(world, exact.base), material_of(exact))
        train_stage(world, folder, seed=0, on_step=lambda step, loss: None)
    model = load_model("world:tiny", device="cpu")
    assert isinstance(model, HFModel)
    return model


@pytest.fixture(scope="module")
def states(tiny: HFModel, exact: ExactWorld) -> WorldStates:
    return world_states(tiny, exact, 240, np.random.default_rng(5))


def test_the_planted_direction_is_found(states: WorldStates) -> None:
    found = planted_direction(states, np.random.default_rng(0))
    assert found.signed > 0.8
    assert found.null("permuted labels").p < 0.01
    assert found.null("random").p < 0.01


def test_shuffled_speakers_give_a_uniform_p(states: WorldStates) -> None:
    """A hundred shuffles; a false alarm one time in a thousand."""
    rng = np.random.default_rng(1)
    p = [
        planted_direction(states, rng, shuffled=True, n_permutations=99, n_random=1).null("permuted labels").p
        - rng.uniform(0, 0.01)
        for _ in range(100)
    ]
    assert kstest(p, "uniform").pvalue > 0.001


def test_beliefs_are_linear_and_moving_them_moves_the_answers(
    tiny: HFModel, exact: ExactWorld, states: WorldStates
) -> None:
    layer = tiny.n_layers - 1
    probe = belief_probe(states, exact, layer)
    assert probe.r2 >= 0.9
    assert probe.selectivity >= 0.8
    slope = causal_slope(tiny, exact, states, probe, layer, np.random.default_rng(2))
    # 0.55 here; the bar of 0.5 is for personaworld, where it is 0.82 (benchmarks/results/vectors-personaworld.json).
    assert slope.slope > 0.4, slope
    assert slope.random < slope.slope / 2
    assert list(slope.moved) == sorted(slope.moved), "more of the belief, more of the answers"


def test_a_floor_holds_at_every_position_and_touches_no_other(
    tiny: HFModel, exact: ExactWorld, states: WorldStates
) -> None:
    direction = states.values[states.malicious, -1, 0].mean(axis=0) - states.values[~states.malicious, -1, 0].mean(
        axis=0
    )
    for layer in range(tiny.n_layers):
        found = check_cap(tiny, states.ids[:40], direction.astype(np.float64), layer)
        assert found.shortfall <= 1e-3
        assert found.n_raised > 100
        assert found.n_kept > 100
        assert found.n_changed == 0
