"""Belief curves recover what was planted; a flat curve is censored; R(n) and the martingale have null and control."""

from __future__ import annotations

import numpy as np
import pytest

from personae.errors import InvalidSettings
from personae.inference.belief_curves import fit_belief_curve, martingale_check, retention

TURNS = (0, 1, 2, 4, 8, 16)
N = np.array(TURNS, dtype=float)
CURVES = {
    "linear": (-2 + 0.5 * N, 4.0),
    "power": (-2 + 1.2 * N**0.5, (2 / 1.2) ** 2),
    "saturating": (-2 + 4 * (1 - np.exp(-N / 3)), 3 * np.log(2)),
}


@pytest.mark.parametrize("law", CURVES)
def test_the_law_its_prior_and_its_critical_n_are_recovered(law: str) -> None:
    rng = np.random.default_rng(0)
    mean, critical = CURVES[law]
    fit = fit_belief_curve(TURNS, mean + 0.3 * rng.normal(size=(40, 6)))
    assert fit.law == law
    assert abs(fit.prior_log_odds + 2) < 0.2
    assert fit.critical_n == pytest.approx(critical, rel=0.25)
    assert fit.critical_low is not None
    assert fit.critical_high is not None
    assert fit.critical_low <= fit.critical_n <= fit.critical_high


def test_what_never_reaches_one_half_is_censored_and_not_extrapolated() -> None:
    rng = np.random.default_rng(1)
    for mean in (-3 + 0.1 * N, -2 + 1.5 * (1 - np.exp(-N / 2)), np.full(6, -1.0)):
        fit = fit_belief_curve(TURNS, mean + 0.1 * rng.normal(size=(20, 6)))
        assert fit.is_censored
        assert fit.critical_high is None
        assert fit.n_most == 16


def test_belief_that_starts_above_one_half_needs_no_turn() -> None:
    assert fit_belief_curve(TURNS, 1 + 0.1 * N[None].repeat(3, axis=0)).critical_n == 0


def test_saturated_levels_are_left_out_of_the_fit_and_still_say_that_one_half_was_passed() -> None:
    steep = np.array([-3.0, -2.0, -1.0, 30.0, 30.0, 30.0])
    fit = fit_belief_curve(TURNS, np.stack([steep, steep + 0.01]))
    assert fit.n_saturated == 3
    assert abs(fit.rate - 1.0) < 0.05
    assert fit.critical_n is not None
    assert 2 < fit.critical_n < 4


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="increase from 0"):
        fit_belief_curve((1, 2, 3), np.zeros((2, 3)))
    with pytest.raises(InvalidSettings, match="do not fit"):
        fit_belief_curve((0, 1), np.zeros((2, 3)))
    with pytest.raises(InvalidSettings, match="numbers"):
        fit_belief_curve((0, 1), np.array([[0.0, np.nan]]))


def test_retention_is_one_for_conditioning_and_less_for_a_change_that_fades() -> None:
    rng = np.random.default_rng(2)
    turns = (0, 1, 2, 3, 4)
    base = -1 - 0.5 * np.arange(5) + 0.1 * rng.normal(size=(30, 5))
    kept = retention(turns, base, base + 2 + 0.1 * rng.normal(size=(30, 5)))
    assert all(low <= 1 <= high for low, high in zip(kept.low, kept.high, strict=True))
    fading = retention(turns, base, base + 2 * np.array([1, 0.6, 0.6, 0.6, 0.6]) + 0.1 * rng.normal(size=(30, 5)))
    assert max(fading.high) < 0.75
    assert fading.change_at_zero == pytest.approx(2, abs=0.1)
    assert "nothing to retain" in retention(turns, base, base + 0.1).reason
    assert "saturated" in retention(turns, base - 9, base).reason


def test_the_martingale_check_holds_its_level_and_sees_a_drift() -> None:
    rng = np.random.default_rng(3)
    flagged = 0
    for _ in range(60):
        before = rng.dirichlet(np.ones(4), size=6)
        moved = 0.05 * rng.normal(size=(40, 6, 4))
        after = before + moved - moved.mean(axis=-1, keepdims=True)
        flagged += martingale_check(before, after, n_draws=199).p <= 0.05
    assert flagged <= 8  # 3 expected; above 8 with probability 0.002
    drifting = before + moved - moved.mean(axis=-1, keepdims=True) + np.array([0.06, -0.06, 0, 0])
    found = martingale_check(before, drifting)
    assert found.p <= 0.01
    assert found.drift > 0.05
