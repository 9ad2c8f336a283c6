"""The posterior table: shapes, odds, summaries, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from personae.errors import InvalidSettings, NumericsError, UnknownPersona
from personae.numerics.logspace import log_normalise
from personae.tables.posterior import Posterior

PRIOR = np.log([0.5, 0.25, 0.25])
NAMES = ("assistant", "pirate", "background")


def posterior(weights: object, **axes: bool) -> Posterior:
    with np.errstate(divide="ignore"):
        return Posterior(NAMES, PRIOR.copy(), np.log(np.array(weights, dtype=float)), **axes)


def test_weights_odds_and_entropy() -> None:
    p = posterior([0.2, 0.8, 0.0])
    assert p.weight("pirate") == pytest.approx(0.8)
    assert p.log_odds(["pirate"], ["assistant"]) == pytest.approx(np.log(4))
    assert p.log_odds(["pirate"]) == pytest.approx(np.log(4))
    assert p.log_odds(["background"]) == -np.inf
    assert p.shift_in_log_odds(["pirate"], ["assistant"]) == pytest.approx(np.log(8))
    assert p.entropy() == pytest.approx(-0.2 * np.log(0.2) - 0.8 * np.log(0.8))
    assert posterior([1.0, 0.0, 0.0]).entropy() == 0.0


def test_steps_and_draws() -> None:
    steps = posterior([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], has_steps=True)
    assert steps.log_odds(["pirate"]).shape == (2,)
    assert steps.final.weight("pirate") == steps.weight("pirate") == pytest.approx(0.8)
    rng = np.random.default_rng(0)
    draws = Posterior(NAMES, PRIOR.copy(), log_normalise(rng.normal(size=(400, 3))), has_draws=True)
    low, high = draws.interval(level=0.5)
    assert ((low < draws.weights.mean(axis=0)) & (draws.weights.mean(axis=0) < high)).all()
    with pytest.raises(InvalidSettings, match="needs draws"):
        steps.interval()


@pytest.mark.parametrize(
    ("names", "weights", "error"),
    [
        (("a", "a", "b"), PRIOR, InvalidSettings),
        (NAMES, PRIOR[:2], InvalidSettings),
        (NAMES, np.zeros(3), NumericsError),
        (NAMES, np.array([np.nan, 0.0, 0.0]), NumericsError),
    ],
)
def test_what_is_no_posterior_is_refused(names: tuple[str, ...], weights: np.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error):
        Posterior(names, PRIOR.copy(), weights.copy())


def test_odds_that_have_no_value_are_refused() -> None:
    p = posterior([1.0, 0.0, 0.0])
    with pytest.raises(NumericsError, match="rules out both"):
        p.log_odds(["pirate"], ["background"])
    with pytest.raises(UnknownPersona, match="no persona 'wizard'"):
        p.weight("wizard")
    with pytest.raises(InvalidSettings, match="two sets"):
        p.log_odds(["pirate"], ["pirate"])
