"""EM flow and tempered Bayes: closed forms, a mixture that is really trained by gradient, nulls, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from persona_world import MALICIOUS, answer_tables
from personae.errors import InputError, InvalidSettings, NumericsError
from personae.inference.flow import (
    Law,
    behaviour,
    em_flow,
    fit_rate,
    forecast_run,
    fraction_explained,
    resting_point,
    tempered_bayes,
)
from personae.inference.readout import minimise

THETA = answer_tables()
PRIOR = np.log(np.array([0.87 / 4 if k not in MALICIOUS else 0.13 / 4 for k in range(8)]))
BATCH = 32


def answers_of(speaker: int, questions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.choice(4, p=THETA[speaker, q]) for q in questions])


def log_likelihood(questions: np.ndarray, said: np.ndarray) -> np.ndarray:
    return np.log(THETA[:, questions, said]).T


def rows_of(speaker: int, n: int, seed: int) -> np.ndarray:
    """Single answers on the first domain's four questions, as one-domain fine-tuning sees them."""
    rng = np.random.default_rng(seed)
    asked = rng.integers(4, size=n)
    return log_likelihood(asked, answers_of(speaker, asked, rng))


def mixed_rows(n: int, seed: int) -> np.ndarray:
    """Answers of which six in ten are persona 3's and four persona 0's: the best mixture is no single persona."""
    rng = np.random.default_rng(seed)
    asked = rng.integers(4, size=n)
    who = np.where(rng.random(n) < 0.6, 3, 0)
    return log_likelihood(asked, np.array([rng.choice(4, p=THETA[k, q]) for k, q in zip(who, asked, strict=True)]))


def trained_by_gradient(rows: np.ndarray, rate: float, *, mirror: bool) -> np.ndarray:
    """A mixture trained by gradient descent on -log p, batch by batch: on log weights in mirror geometry, or on logits.

    The first is what the flow states, written anew; the second is another geometry, where a persona's weight moves the
    slower the smaller it is.
    """
    log_w, path = PRIOR.copy(), []
    for i in range(0, len(rows), BATCH):
        w = np.exp(log_w)
        joint = np.exp(rows[i : i + BATCH]) * w
        rho = joint / joint.sum(axis=1, keepdims=True)
        log_w = log_w + rate * (rho / w - 1 if mirror else rho - w).sum(axis=0)
        log_w = log_w - np.logaddexp.reduce(log_w)
        path.append(log_w)
    return np.stack(path)


def explained_by(law: Law, rows: np.ndarray, path: np.ndarray) -> float:
    """Share of the movement on the three domains not trained on, over twelve checkpoints, forecast from the first."""
    every = len(path) // 12
    at = [every * (c + 1) for c in range(12)]
    truth = behaviour(path[np.array(at) - 1], THETA)[:, 4:]
    said = forecast_run(PRIOR, rows, THETA[:, 4:], truth[0], checkpoints=at, law=law, batch_size=BATCH)
    return fraction_explained(truth, said.behaviour, behaviour(PRIOR, THETA)[4:])


def test_a_certain_speaker_by_hand() -> None:
    """Rows that only persona 0 can say: rhobar = (1, 0), so 1 - w_0 decays as exp(-rate n) exactly."""
    rows = np.array([[0.0, -np.inf]] * 64)
    path = em_flow(np.log([0.2, 0.8]), rows, rate=0.01, batch_size=16)
    assert 1 - np.exp(path[:, 0]) == pytest.approx(0.8 * np.exp(-0.01 * np.array([0, 16, 32, 48, 64])), rel=0.01)


def test_weak_evidence_is_conditioning() -> None:
    """To first order in the evidence the flow is tempered Bayes: rate (rho/w - 1) = rate (l - mean l)."""
    rows = 1e-3 * rows_of(3, 320, seed=1)
    flow = em_flow(PRIOR, rows, rate=1e-2)[-1] - PRIOR
    bayes = tempered_bayes(PRIOR, rows, power=1e-2)[-1] - PRIOR
    assert flow == pytest.approx(bayes, rel=0.01, abs=1e-7)
    assert np.abs(flow).max() > 1e-4


def test_small_steps_follow_the_mirror_gradient() -> None:
    """The stated gradient step, written out: log w_k += rate * sum_i (rho_ik / w_k - 1)."""
    rows, rate = rows_of(1, 32, seed=2), 1e-6
    w = np.exp(PRIOR)
    rho = np.exp(rows) * w / (np.exp(rows) @ w)[:, None]
    stepped = PRIOR + rate * (rho / w - 1).sum(axis=0)
    expected = stepped - np.logaddexp.reduce(stepped)
    assert em_flow(PRIOR, rows, rate=rate)[-1] - PRIOR == pytest.approx(expected - PRIOR, rel=1e-3, abs=1e-12)


def test_the_flow_rests_at_the_maximum_likelihood_mixture() -> None:
    """Against an independent solver: the mixture closest to the answers' frequencies."""
    questions = np.repeat(np.arange(16), 30)
    rng = np.random.default_rng(3)
    said = answers_of(5, questions, rng)
    counts = np.zeros((16, 4))
    np.add.at(counts, (questions, said), 1)
    best = minimise(counts / 30, THETA, np.ones((1, 16)), np.full((1, 8), 1 / 8))[0]
    rows = log_likelihood(questions, said)
    assert np.exp(resting_point(PRIOR, rows)) == pytest.approx(best, abs=1e-4)
    end = np.exp(em_flow(PRIOR, np.tile(rows, (30, 1)), rate=2e-3, batch_size=480)[-1])
    gap = np.log(np.exp(rows) @ best).mean() - np.log(np.exp(rows) @ end).mean()
    assert 0 <= gap < 5e-3  # nats an answer, still falling as 1 over time; the prior is this far away:
    assert np.log(np.exp(rows) @ best).mean() - np.log(np.exp(rows) @ np.exp(PRIOR)).mean() > 0.1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_forecasts_a_mixture_trained_by_gradient_and_beats_conditioning(seed: int) -> None:
    rows = mixed_rows(12 * 15 * BATCH, seed)
    path = trained_by_gradient(rows, 1e-3, mirror=True)
    flow, bayes = explained_by("em_flow", rows, path), explained_by("tempered_bayes", rows, path)
    assert flow >= 0.98
    assert bayes < flow - 0.02


@pytest.mark.parametrize("speaker", [1, 3, 7])
def test_in_another_geometry_it_still_explains_most(speaker: int) -> None:
    """Gradient descent on logits: the flow is no longer the law, and conditioning can be nearer."""
    rows = rows_of(speaker, 12 * 5 * BATCH, seed=speaker)
    assert explained_by("em_flow", rows, trained_by_gradient(rows, 8e-3, mirror=False)) >= 0.75


def test_a_rate_is_recovered_with_its_interval() -> None:
    rows = rows_of(3, 10 * BATCH, seed=9)
    truth = behaviour(em_flow(PRIOR, rows, rate=3e-3)[-1], THETA)
    fit = fit_rate(PRIOR, rows, THETA, truth)
    assert fit.rate == pytest.approx(3e-3, rel=0.08)  # a step of the grid is 12%
    assert fit.low <= 3e-3 * 1.08
    assert fit.high >= 3e-3 / 1.08
    assert fit.explained > 0.99
    assert not fit.at_edge


def test_rows_of_the_prior_itself_move_nothing() -> None:
    """The null: answers drawn from the mixture before training leave it where it is, within what luck moves."""
    rng = np.random.default_rng(4)
    asked, malice = rng.integers(16, size=4000), []
    mixture = behaviour(PRIOR, THETA)
    for _ in range(10):
        said = np.array([rng.choice(4, p=mixture[q]) for q in asked])
        malice.append(np.exp(em_flow(PRIOR, log_likelihood(asked, said), rate=2e-4)[-1])[list(MALICIOUS)].sum())
    assert np.mean(malice) == pytest.approx(0.13, abs=0.015)
    told = np.exp(em_flow(PRIOR, log_likelihood(asked, answers_of(7, asked, rng)), rate=2e-4)[-1])  # positive control
    assert told[list(MALICIOUS)].sum() > 0.3


def test_pairs_move_by_their_difference_only() -> None:
    chosen, rejected = rows_of(3, 64, seed=5), rows_of(2, 64, seed=6)
    weight = np.tile([1.0, -1.0], 64)
    same = np.stack([chosen, chosen], axis=1).reshape(-1, 8)
    assert em_flow(PRIOR, same, rate=0.1, weight=weight)[-1] == pytest.approx(PRIOR)
    pairs = np.stack([chosen, rejected], axis=1).reshape(-1, 8)
    path = np.exp(em_flow(PRIOR, pairs, rate=4e-3, weight=weight))
    assert path[-1, list(MALICIOUS)].sum() > path[0, list(MALICIOUS)].sum() + 0.05


def test_refusals() -> None:
    rows = rows_of(1, 64, seed=7)
    with pytest.raises(InvalidSettings, match="do not fit"):
        em_flow(PRIOR, rows[:, :3], rate=1e-3)
    with pytest.raises(InvalidSettings, match="the rate is -1"):
        em_flow(PRIOR, rows, rate=-1)
    with pytest.raises(NumericsError, match="not a number"):
        em_flow(PRIOR, np.full((2, 8), np.nan), rate=1e-3)
    with pytest.raises(NumericsError, match="impossible under every persona"):
        em_flow(PRIOR, np.full((2, 8), -np.inf), rate=1e-3)
    with pytest.raises(InvalidSettings, match="must ascend within the run's 2 steps"):
        forecast_run(PRIOR, rows, THETA, THETA[0], checkpoints=[1, 3])
    with pytest.raises(InvalidSettings, match="must be probabilities"):
        fit_rate(PRIOR, rows, THETA, 2 * THETA[0])
    with pytest.raises(InputError, match="answers as before"):
        fit_rate(PRIOR, rows, THETA, behaviour(PRIOR, THETA))
    with pytest.raises(InputError, match="no shift to explain"):
        fraction_explained(THETA[0], THETA[1], THETA[0])
