"""Belief probes: a planted linear belief is found, random features and permuted personas are not."""

from __future__ import annotations

import numpy as np
import pytest

from persona_world import MALICIOUS, answer_tables, beliefs
from personae.errors import InputError, InvalidSettings
from personae.inference.probe import BeliefProbe, fit_probe

N_DOCUMENTS, N_TURNS, WIDTH = 40, 12, 16
RNG = np.random.default_rng(0)
LOG_WEIGHTS = beliefs(RNG, answer_tables(), N_DOCUMENTS, N_TURNS)
DOCUMENTS = [f"d{k // N_TURNS}" for k in range(N_DOCUMENTS * N_TURNS)]
PLANE = RNG.normal(size=(8, WIDTH))
PLANTED = LOG_WEIGHTS @ PLANE + 0.5 * RNG.normal(size=(len(LOG_WEIGHTS), WIDTH))


@pytest.fixture(scope="module")
def planted() -> BeliefProbe:
    return fit_probe(PLANTED, LOG_WEIGHTS, DOCUMENTS, MALICIOUS, n_permutations=3)


def test_a_planted_belief_is_found(planted: BeliefProbe) -> None:
    assert planted.r2 > 0.9
    assert planted.permuted_r2 <= 0.1
    assert planted.selectivity > 0.8
    assert planted.position_r2 < 0.2
    truth = planted.target
    assert 1 - ((truth - planted.predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum() == pytest.approx(
        planted.r2, abs=0.05
    )


def test_it_holds_on_documents_it_has_not_seen_and_refuses_others(planted: BeliefProbe) -> None:
    rng = np.random.default_rng(1)
    fresh = beliefs(rng, answer_tables(), 10, N_TURNS)
    activations = fresh @ PLANE + 0.5 * rng.normal(size=(len(fresh), WIDTH))
    odds = np.logaddexp.reduce(fresh[:, MALICIOUS], axis=1) - np.logaddexp.reduce(fresh[:, (0, 2, 4, 6)], axis=1)
    assert planted.score(activations, odds, [f"new{k // N_TURNS}" for k in range(len(fresh))]) > 0.9
    with pytest.raises(InputError, match=r"2 of the documents .* \(the first: 'd3'\)"):
        planted.score(activations[:3], odds[:3], ["d3", "d4", "new"])


def test_random_features_say_nothing() -> None:
    features = np.random.default_rng(2).normal(size=PLANTED.shape)
    null = fit_probe(features, LOG_WEIGHTS, DOCUMENTS, MALICIOUS, n_permutations=1)
    assert abs(null.r2) < 0.05
    assert abs(null.selectivity) < 0.1


def test_memory_of_documents_is_no_belief() -> None:
    """The negative control of folds: features that only name the document would score high within documents."""
    names = np.repeat(np.eye(N_DOCUMENTS), N_TURNS, axis=0)
    probe = fit_probe(names, LOG_WEIGHTS, DOCUMENTS, MALICIOUS, n_permutations=1)
    scattered = fit_probe(names, LOG_WEIGHTS, list(range(len(names))), MALICIOUS, n_permutations=1)
    assert probe.r2 < 0.1
    assert scattered.r2 > 0.2  # what a row-wise split would have claimed


def test_position_alone_is_seen_for_what_it_is() -> None:
    """A single persona loses with position whoever speaks: activations that hold only the position explain some."""
    place = np.tile(np.arange(N_TURNS), N_DOCUMENTS)
    rng = np.random.default_rng(4)
    only_place = place[:, None] * rng.normal(size=WIDTH) + 0.1 * rng.normal(size=PLANTED.shape)
    probe = fit_probe(only_place, LOG_WEIGHTS, DOCUMENTS, [3], n_permutations=3)
    assert probe.r2 > 0.1
    assert probe.position_r2 == pytest.approx(probe.r2, abs=0.05)
    assert probe.selectivity < 0.1


@pytest.mark.parametrize(
    ("documents", "positive", "message"),
    [
        (["one"] * len(PLANTED), MALICIOUS, "1 documents"),
        (DOCUMENTS, range(8), "some, and not all"),
        (DOCUMENTS, (), "some, and not all"),
        (DOCUMENTS[1:], MALICIOUS, "do not fit"),
    ],
)
def test_what_cannot_be_probed_is_refused(documents: list[str], positive: list[int], message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        fit_probe(PLANTED, LOG_WEIGHTS, documents, positive)


def test_direction_is_in_units_of_the_activations(planted: BeliefProbe) -> None:
    assert planted.predict(PLANTED) == pytest.approx(planted.target, abs=4.0)
    scaled = fit_probe(100 * PLANTED, LOG_WEIGHTS, DOCUMENTS, MALICIOUS, n_permutations=1)
    assert scaled.direction * 100 == pytest.approx(planted.direction, rel=1e-6)
