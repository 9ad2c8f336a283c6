"""The update for one speaker: exact posteriors, stated rules for impossible episodes, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from persona_world import answer_tables
from personae.domain.persona import BACKGROUND
from personae.errors import IncomparableEvidence, InvalidSettings, NumericsError
from personae.inference.update import condition, update, update_by_step
from personae.tables.evidence import Evidence

PRIOR = np.log(np.array([0.5, 0.25, 0.25]))


def test_a_biased_coin_by_hand() -> None:
    """Prior 1/2, three heads, P(head) 3/4 against 1/2: (27/64) / (27/64 + 8/64) = 27/35."""
    p = update(np.log([0.5, 0.5]), np.log([[0.75, 0.5]] * 3), personas=["biased", "fair"])
    assert p.weight("biased") == pytest.approx(27 / 35)
    assert p.log_marginal_likelihood == pytest.approx(np.log(0.5 * 27 / 64 + 0.5 / 8))


def test_the_speaker_is_found_and_the_posterior_is_calibrated() -> None:
    """Simulation-based calibration (Talts et al. 2018): the randomised rank of the speaker is uniform, KS p > 0.01.

    The positive control: evidence counted twice is over-confident and fails.
    """
    theta, rng = answer_tables(), np.random.default_rng(0)
    prior = np.log(rng.dirichlet(np.full(8, 3.0)))

    def ranks(eta: float) -> tuple[float, float]:
        place, right = [], []
        for _ in range(1500):
            speaker, asked = rng.choice(8, p=np.exp(prior)), rng.integers(16, size=3)
            said = [rng.choice(4, p=theta[speaker, q]) for q in asked]
            w = update(prior, np.log(theta[:, asked, said]).T, eta=eta).weights
            place.append(w[:speaker].sum() + rng.random() * w[speaker])
            right.append(w[speaker])
        return float(stats.kstest(place, "uniform").pvalue), float(np.mean(right))

    exact, weight = ranks(1.0)
    assert exact > 0.01
    assert weight > np.exp(prior).max()
    assert ranks(3.0)[0] < 1e-3


def test_weight_zero_leaves_out_and_impossible_rules_out() -> None:
    evidence = np.array([[0.0, -1.0, -np.inf], [0.0, -np.inf, 0.0]])
    assert update(PRIOR, evidence, weight=[1, 0]).weights[2] == 0.0
    assert update(PRIOR, evidence, weight=[0, 0]).weights == pytest.approx(np.exp(PRIOR))
    assert update(PRIOR, evidence).weights.tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(NumericsError, match=r"episode 1 .*negative weight and is impossible"):
        update(PRIOR, evidence, weight=[1, -1])
    with pytest.raises(NumericsError, match="impossible under every persona"):
        update(PRIOR, np.full((1, 3), -np.inf))
    with pytest.raises(NumericsError, match="impossible under every persona"):
        update_by_step(PRIOR, np.array([[-np.inf] * 3, [0.0] * 3]))


def test_discouraged_replies_count_against() -> None:
    p = update(PRIOR, np.array([[0.0, -2.0, -4.0]]), weight=[-1.0])
    assert p.shift_in_log_odds(["2"], ["0"]) == pytest.approx(4.0)
    assert p.log_marginal_likelihood is None


def test_a_prior_of_zero_stays() -> None:
    with np.errstate(divide="ignore"):
        prior = np.log([0.5, 0.5, 0.0])
    p = update(prior, np.array([[-9.0, -9.0, 0.0]]))
    assert p.weights == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize(
    ("prior", "evidence", "settings", "error"),
    [
        (PRIOR, np.zeros((2, 2)), {}, InvalidSettings),
        (PRIOR, np.zeros(3), {}, InvalidSettings),
        (PRIOR, np.zeros((2, 3)), {"weight": [1.0]}, InvalidSettings),
        (PRIOR, np.zeros((2, 3)), {"eta": 0.0}, InvalidSettings),
        (PRIOR, np.zeros((1, 3)), {"weight": [np.nan]}, InvalidSettings),
        (PRIOR, np.zeros((1, 3)), {"personas": ["a", "a", "b"]}, InvalidSettings),
        (PRIOR, np.array([[0.0, np.nan, 0.0]]), {}, NumericsError),
        (PRIOR, np.array([[0.0, np.inf, 0.0]]), {}, NumericsError),
        (np.full(3, -np.inf), np.zeros((1, 3)), {}, NumericsError),
    ],
)
def test_what_cannot_be_updated_is_refused(
    prior: np.ndarray, evidence: np.ndarray, settings: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        update(prior, evidence, **settings)  # type: ignore[arg-type]


def test_evidence_tables_bring_their_weights() -> None:
    logs = np.array([[-1.0, -2.0], [-3.0, -4.0], [-2.0, -2.0]])
    ids, ones = ("e1", "e2"), np.ones(2, dtype=np.int64)
    table = Evidence(("rude", "rude", BACKGROUND), logs, ids, ones, np.array([1.0, -1.0]), ids, ones)
    p = condition(table, ["rude", BACKGROUND], np.log([0.5, 0.5]))
    rude = table.log_likelihood("rude")
    assert p.log_odds(["rude"]) == pytest.approx(rude[0] - rude[1])
    steps = condition(table, ["rude", BACKGROUND], np.log([0.5, 0.5]), by_step=True)
    assert steps.log_odds(["rude"]) == pytest.approx([0.0, rude[0] + 2.0, rude[0] - rude[1]])
    with pytest.raises(IncomparableEvidence, match="no persona 'kind'"):
        condition(table, ["kind", "rude"], np.log([0.5, 0.5]))
