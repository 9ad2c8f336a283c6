"""Weights read from exact predictions of PersonaWorld: mixtures are recovered, what is no mixture shows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from persona_world import answer_tables
from personae.errors import InputError, InvalidSettings, NumericsError
from personae.inference.readout import minimise, read_out

THETA = answer_tables()


def mix(w: object, theta: np.ndarray = THETA) -> np.ndarray:
    return np.einsum("k,kqa->qa", np.asarray(w, dtype=float), theta)


@pytest.mark.parametrize(
    "w",
    [
        np.full(8, 1 / 8),
        np.random.default_rng(1).dirichlet(np.ones(8)),
        np.eye(8)[2],
        np.array([0.6, 0.4, 0, 0, 0, 0, 0, 0]),
        np.array([0.3, 0, 0.2, 0.01, 0.1, 0.19, 0.2, 0]),
    ],
)
def test_exact_mixtures_are_recovered(w: np.ndarray) -> None:
    got = read_out(mix(w), THETA, n_draws=20)
    assert np.abs(got.weight - w).max() < 1e-6
    assert got.residual < 1e-12
    assert got.gap < 1e-8
    assert got.start_gap < 1e-4
    assert (got.rank, got.is_identified, got.notes) == (7, True, ())


def test_starts_agree_and_no_other_weights_are_better() -> None:
    """Convexity: twenty starts end at one value, and a general-purpose optimiser finds none below it."""
    rng = np.random.default_rng(2)
    p = 0.7 * mix(rng.dirichlet(np.ones(8))) + 0.3 * rng.dirichlet(np.ones(4), size=16)
    got = read_out(p, THETA, n_starts=20, n_draws=1)
    assert got.start_gap < 1e-8

    def objective(z: np.ndarray) -> float:
        w = np.exp(z - z.max())
        return float(np.sum(p * np.log(p / mix(w / w.sum()))) / 16)

    best = min(float(minimize(objective, rng.normal(size=8)).fun) for _ in range(3))
    assert abs(got.residual - best) < 1e-6
    assert objective(np.log(np.maximum(got.weight, 1e-300))) == pytest.approx(got.residual, abs=1e-9)


def test_steps_lower_the_objective() -> None:
    """Stopped later, the objective is never higher."""
    p = np.random.default_rng(3).dirichlet(np.ones(4), size=16)
    start, even = np.full((1, 8), 1 / 8), np.ones((1, 16))
    values = []
    for most in (1, 2, 4, 8, 16, 64, 256):
        w = minimise(p, THETA, even, start, most=most)[0]
        values.append(np.sum(p * np.log(p / mix(w))))
    assert (np.diff(values) <= 1e-12).all()


def test_sampled_predictions_give_near_weights_and_intervals_that_hold_them() -> None:
    """40 worlds of 500 answers a probe: 90% intervals over probes cover 8 weights each; three errors below 90%.

    Weights of one world are dependent, so the error is taken over worlds.
    """
    rng = np.random.default_rng(4)
    held, worst = [], 0.0
    for seed in range(40):
        w = rng.dirichlet(np.full(8, 2.0))
        p = np.array([rng.multinomial(500, row) / 500 for row in mix(w)])
        got = read_out(p, THETA, n_draws=100, n_starts=1, seed=seed)
        held.append(np.mean((got.low <= w) & (w <= got.high)))
        worst = max(worst, float(np.abs(got.weight - w).sum() / 2))
        assert got.residual < got.cross_fitted_residual < 0.02
    assert worst < 0.2
    assert np.mean(held) > 0.9 - 3 * np.std(held) / np.sqrt(40)


def test_a_novel_component_shows_as_misfit() -> None:
    """The null is an exact mixture; the plant a share of answers that no persona gives."""
    rng = np.random.default_rng(5)
    novel = rng.dirichlet(np.ones(4), size=16)
    w = rng.dirichlet(np.ones(8))
    misfits = []
    for share in (0.0, 0.1, 0.3, 1.0):
        got = read_out((1 - share) * mix(w) + share * novel, THETA, n_draws=1)
        misfits.append(got.cross_fitted_residual)
        assert got.residual <= got.cross_fitted_residual + 1e-9
    assert misfits[0] < 1e-6
    assert misfits[0] + 0.002 < misfits[1] < misfits[2] < misfits[3]
    assert misfits[3] > 0.2
    # With the novel table among the components the misfit is gone and its share is found.
    got = read_out(0.7 * mix(w) + 0.3 * novel, np.concatenate([THETA, novel[None]]), n_draws=1)
    assert got.residual < 1e-12
    assert got.weight[8] == pytest.approx(0.3, abs=1e-6)


def test_weights_that_cannot_be_told_apart_are_not_identified() -> None:
    twins = np.concatenate([THETA, THETA[:1]])
    got = read_out(mix(np.full(8, 1 / 8)), twins, n_draws=1)
    assert not got.is_identified
    assert got.rank == 7
    assert "8 of 9 components" in got.notes[0]
    assert got.weight[0] + got.weight[8] == pytest.approx(1 / 8, abs=1e-6)  # the sum still is
    few = read_out(mix(np.full(8, 1 / 8))[:2], THETA[:, :2], n_draws=1)  # two probes: 6 numbers for 7 unknowns
    assert not few.is_identified


def test_leaked_mass_is_reported_and_too_much_is_refused() -> None:
    w = np.full(8, 1 / 8)
    got = read_out(0.95 * mix(w), 0.98 * THETA, n_draws=1)
    assert got.leaked == pytest.approx(np.full(16, 0.05))
    assert got.component_leaked == pytest.approx(np.full(16, 0.02))
    assert np.abs(got.weight - w).max() < 1e-6
    with pytest.raises(InputError, match=r"the model gives 40%.*at most 10%"):
        read_out(0.6 * mix(w), THETA)
    with pytest.raises(InputError, match=r"component 3 \(from 0\) gives 50%"):
        read_out(mix(w), THETA * np.where(np.arange(8) == 3, 0.5, 1.0)[:, None, None])
    assert read_out(0.6 * mix(w), THETA, most_leaked=0.5, n_draws=1).notes[0].startswith("16 probes leak")


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"n_starts": 0}, {"n_draws": 0}, {"n_folds": 1}, {"level": 1.0}, {"groups": ["a"] * 3}):
        with pytest.raises(InvalidSettings):
            read_out(THETA[0], THETA, **settings)  # type: ignore[arg-type]


def test_probes_of_one_group_are_resampled_together() -> None:
    """Each probe given four times: as probes of their own the interval narrows, as groups it does not."""
    rng = np.random.default_rng(7)
    p = 0.7 * mix(rng.dirichlet(np.ones(8))) + 0.3 * rng.dirichlet(np.ones(4), size=16)
    once, four = read_out(p, THETA), (np.tile(p, (4, 1)), np.tile(THETA, (1, 4, 1)))
    apart, grouped = read_out(*four), read_out(*four, groups=list(range(16)) * 4)
    assert apart.weight == pytest.approx(once.weight, abs=1e-5)
    width = [float((r.high - r.low).sum()) for r in (once, apart, grouped)]
    assert width[1] < 0.7 * width[0]
    assert width[2] == pytest.approx(width[0], rel=0.15)


def test_answer_sets_of_different_sizes_are_filled_with_nothing() -> None:
    theta = THETA.copy()
    theta[:, ::2, 3] = 0
    theta /= theta.sum(axis=2, keepdims=True)
    w = np.random.default_rng(6).dirichlet(np.ones(8))
    assert np.abs(read_out(mix(w, theta), theta, n_draws=1).weight - w).max() < 1e-6


@pytest.mark.parametrize(
    ("p", "theta", "error", "message"),
    [
        (np.ones((4, 2)), THETA, InvalidSettings, "are wanted"),
        (np.log(THETA[0]), THETA, NumericsError, "not probabilities"),
        (THETA[0] * 0, THETA, InputError, "probe 0 .*no answer has any probability"),
        (np.full((16, 4), 0.25), np.tile([1.0, 0, 0, 0], (8, 16, 1)), InputError, "impossible under every component"),
        (THETA[0, :1], THETA[:, :1], InvalidSettings, "two groups are needed"),
    ],
)
def test_what_cannot_be_read_is_refused(p: np.ndarray, theta: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_out(p, theta)
