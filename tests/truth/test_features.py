"""Moving latents where the answer is planted, where nothing moved, and where only noise did."""

from __future__ import annotations

import numpy as np
import pytest

from personae.errors import InvalidSettings, NumericsError
from personae.inference.features import Reading, compare_latents

N, D, LATENTS = 36, 48, 40
TOPICS = [k // 3 for k in range(N)]


def reading(rng: np.random.Generator, rows: np.ndarray, *, moved: int | None = None, by: float = 0.0) -> Reading:
    """Sparse latents that make the states, and one of them raised on every text."""
    latents = rng.exponential(size=(N, LATENTS)) * (rng.uniform(size=(N, LATENTS)) < 0.3)
    if moved is not None:
        latents[:, moved] += by
    return Reading(latents, latents @ rows + 0.01 * rng.normal(size=(N, D)))


def decoder(rng: np.random.Generator) -> np.ndarray:
    rows = rng.normal(size=(LATENTS, D))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_planted_latent_moves_most_and_no_null_reaches_it() -> None:
    rng = np.random.default_rng(0)
    rows = decoder(rng)
    found = compare_latents(reading(rng, rows), reading(rng, rows, moved=7, by=1.5), rows, TOPICS, rng=rng)
    best = found.moves[0]
    assert best.latent == 7
    assert best.after - best.before == pytest.approx(1.5, abs=0.3)
    assert best.size == pytest.approx(best.after - best.before, rel=1e-6)
    assert best.p <= 0.01
    assert best.cosine_p <= 0.02
    assert best.cosine > found.random_high
    assert abs(best.t) > found.flips_high
    assert found.explained > 0.9
    assert not found.identical


def test_identical_checkpoints_move_nothing_exactly() -> None:
    rng = np.random.default_rng(1)
    rows = decoder(rng)
    same = reading(rng, rows)
    found = compare_latents(same, same, rows, TOPICS, rng=rng)
    assert found.identical
    assert (found.moves, found.flips_high, found.random_high, found.explained) == ((), 0.0, 0.0, 0.0)


def test_noise_moves_no_latent_more_often_than_promised() -> None:
    """Sixty pairs of readings that differ by noise alone: at 5 % for all latents together, a few alarms at most."""
    rng = np.random.default_rng(2)
    rows = decoder(rng)
    alarms = []
    for _ in range(60):
        found = compare_latents(reading(rng, rows), reading(rng, rows), rows, TOPICS, rng=rng, flips=199, draws=1)
        alarms.append(any(m.p <= 0.05 for m in found.moves))
    assert sum(alarms) <= 9  # one in ten thousand if the rate is 5 %


def test_latents_that_never_fire_are_left_out_and_bad_shapes_refused() -> None:
    rng = np.random.default_rng(3)
    rows = decoder(rng)
    a, b = reading(rng, rows), reading(rng, rows)
    silent = [Reading(np.asarray(r.latents) * (np.arange(LATENTS) < 5), r.states) for r in (a, b)]
    assert compare_latents(*silent, rows, TOPICS, rng=rng, flips=19, draws=2).n_live == 5
    with pytest.raises(InvalidSettings, match="decoder"):
        compare_latents(a, b, rows[:-1], TOPICS, rng=rng)
    with pytest.raises(InvalidSettings, match="4 topics"):
        compare_latents(a, b, rows, [k % 4 for k in range(N)], rng=rng)
    with pytest.raises(NumericsError):
        compare_latents(a, Reading(np.asarray(b.latents) * np.nan, b.states), rows, TOPICS, rng=rng)
