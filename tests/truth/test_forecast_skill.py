"""Learning from past runs and judging it: a law that is known, scores that know nothing, coverage, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from past_runs import TRAITS, make_runs, with_shuffled_scores
from personae.errors import InputError, InvalidSettings
from personae.inference.common_mode import Prediction, cells_of, fit_common_mode
from personae.inference.forecast_skill import (
    Held,
    compare,
    leave_one_family_out,
    random_direction_null,
    skill,
    trained_cells,
)
from personae.tables.run_registry import PastRun, RunRegistry


def held_of(runs: tuple[PastRun, ...], *, score: bool) -> Held:
    cells = cells_of(runs, "good" if score else None)
    return leave_one_family_out(cells, uses_score=score, trained=trained_cells(cells, runs))


def test_a_known_law_is_forecast_and_beats_the_form_alone() -> None:
    runs = make_runs()
    good, form = held_of(runs, score=True), held_of(runs, score=False)
    figures = skill(good, n_draws=200)
    assert figures.n_runs == 24
    assert figures.n_cells == 120
    assert figures.n_other == 96
    for value, least in ((figures.spearman, 0.8), (figures.spearman_other, 0.7), (figures.sign, 0.85)):
        assert value.value is not None
        assert value.value > least
    assert compare(("good", good), ("form", form), n_draws=200).is_better
    assert compare(("good", good), ("form", form), figure="rmse", n_draws=200).is_better


def test_the_slope_and_the_common_mode_are_recovered() -> None:
    """With no score the forecast is the common mode; what the score adds is slope times score."""
    runs = make_runs(noise=0.05, n_families=12)
    model = fit_common_mode(cells_of(runs, "good"))
    new = cells_of(make_runs(noise=0.0, n_families=12, seed=0)[:3], "good")
    silent = replace(new, score=np.zeros(len(new)))
    said, nothing = model.predict(new), model.predict(silent)
    assert nothing.mean == pytest.approx(nothing.common)
    assert said.mean - nothing.mean == pytest.approx(new.score, abs=0.15)
    assert said.common == pytest.approx(nothing.common)


def test_scores_that_know_nothing_give_no_skill() -> None:
    """The null: scores of other families. Over simulations the gain over the form alone is not above 0."""
    gains, flagged = [], 0
    for seed in range(6):
        runs = make_runs(seed=seed, doses=2)
        null = held_of(with_shuffled_scores(runs, seed), score=True)
        found = compare(("null", null), ("form", held_of(runs, score=False)), n_draws=200)
        gains.append(found.difference)
        flagged += found.is_better
    assert np.mean(gains) < 0.03
    assert flagged <= 1  # 5% each: two or more of six in 3 of 100


def spilling(spill: float, seed: int) -> tuple[PastRun, ...]:
    """Runs in which a trait also follows what the file says of other traits, by a law that all files share."""
    rng = np.random.default_rng(1000 + seed)
    law = spill * rng.normal(size=(len(TRAITS), len(TRAITS))) * (1 - np.eye(len(TRAITS)))
    made = []
    for run in make_runs(n_families=14, doses=2, seed=seed):
        more = law @ np.array([run.readings["good"][t] for t in TRAITS])
        made.append(replace(run, shift={t: run.shift[t] + m for t, m in zip(TRAITS, more, strict=True)}))
    return tuple(made)


def both_ways(runs: tuple[PastRun, ...]) -> tuple[Held, Held]:
    """Forecasts that compare files by all their readings, and forecasts that do not."""
    readings = np.array([[r.readings["good"][t] for t in TRAITS] for r in runs])
    return (leave_one_family_out(cells_of(runs, "good", readings)), leave_one_family_out(cells_of(runs, "good")))


def test_files_alike_teach_what_a_traits_own_score_does_not_say() -> None:
    """Control: where traits follow each other's readings, comparing files finds it for families left out."""
    alike, alone = both_ways(spilling(0.5, 0))
    assert compare(("alike", alike), ("alone", alone), n_draws=200).is_better
    assert compare(("alike", alike), ("alone", alone), figure="rmse", n_draws=200).is_better
    covered = [skill(both_ways(spilling(0.5, seed))[0], n_draws=10).coverage.value for seed in range(4)]
    assert 0.84 <= np.mean(covered) <= 0.97


def test_comparing_files_costs_nothing_where_there_is_nothing_to_learn() -> None:
    """The null: traits follow their own scores alone. The term's variance goes to 0, and so does the difference."""
    found = [
        compare(("a", a), ("b", b), figure="rmse", n_draws=50)
        for a, b in (both_ways(spilling(0, s)) for s in (1, 2, 3))
    ]
    assert np.mean([f.difference for f in found]) == pytest.approx(0.0, abs=0.02)
    assert not any(f.is_better and f.difference > 0.02 for f in found)


def test_intervals_cover_families_left_out() -> None:
    covered = []
    for seed in range(8):
        covered.append(skill(held_of(make_runs(seed=100 + seed, doses=2), score=True), n_draws=10).coverage.value)
    assert 0.84 <= np.mean(covered) <= 0.97


def test_small_samples_of_one_family_are_refused() -> None:
    runs = make_runs(n_families=2)
    with pytest.raises(InvalidSettings, match="6 past runs of 2 families are too few"):
        fit_common_mode(cells_of(runs, "good"))
    with pytest.raises(InvalidSettings, match="no reading of 'other'"):
        cells_of(runs, "other")
    with pytest.raises(InvalidSettings, match="there are no past runs"):
        cells_of((), "good")


def test_comparisons_need_the_same_cells_and_a_defined_figure() -> None:
    runs = make_runs(n_families=4)
    held = held_of(runs, score=True)
    short = Held(held.cells.take(np.arange(5)), Prediction(*(np.zeros(5),) * 3), np.zeros(5, bool))
    with pytest.raises(InvalidSettings, match="different cells"):
        compare(("a", held), ("b", short))
    flat = Held(held.cells, Prediction(*(np.zeros(len(held.cells)),) * 3), held.is_trained)
    with pytest.raises(InvalidSettings, match="not defined"):
        compare(("a", held), ("flat", flat), n_draws=10)
    with pytest.raises(InvalidSettings, match="no figure"):
        compare(("a", held), ("b", held), figure="luck")
    assert skill(flat, n_draws=10).spearman.value is None


def directions(noise: float, seed: int) -> tuple[np.ndarray, ...]:
    """Runs whose data move along planted directions, at layer 1 of 3, and traits that follow."""
    rng = np.random.default_rng(seed)
    n_runs, n_layers, width, n_traits = 24, 3, 12, 2
    vectors = rng.normal(size=(n_traits, n_layers, width))
    differences = rng.normal(size=(n_runs, n_layers, width))
    shift = np.einsum("rd,kd->rk", differences[:, 1], vectors[:, 1])
    shift = shift / shift.std(axis=0) + noise * rng.normal(size=shift.shape)
    return differences, vectors, shift, np.ones((n_layers, width))


def test_planted_directions_beat_random_ones_and_random_ones_do_not() -> None:
    found = random_direction_null(*directions(0.3, 0), n_draws=200)
    assert found.layer == 1
    assert found.p < 0.01
    assert (found.by_trait > 0.8).all()
    p = []
    for seed in range(60):
        differences, vectors, _, covariance = directions(0.3, seed)
        unrelated = np.random.default_rng(1000 + seed).normal(size=(24, 2))
        p.append(random_direction_null(differences, vectors, unrelated, covariance, n_draws=40, seed=seed).p)
    assert np.mean(np.array(p) < 0.1) <= 0.2  # 10% of 60; more than 12 in 1 of 200
    assert np.mean(p) > 0.4


def test_a_registry_reads_what_it_wrote_and_refuses_other_formats() -> None:
    run = make_runs(n_families=1)[0]
    assert PastRun.from_dict(run.to_dict()) == run
    with pytest.raises(InputError, match="this version reads 'personae-past-run-1'"):
        PastRun.from_dict({**run.to_dict(), "format": "personae-past-run-9"})
    with pytest.raises(InputError, match="cannot be used"):
        PastRun.from_dict({**run.to_dict(), "form": {"kind": "sft"}})
    with pytest.raises(InputError, match="not finite"):
        replace(run, shift={t: float("nan") for t in TRAITS})
    with pytest.raises(InputError, match="two past runs share the id"):
        RunRegistry((run, run))
    assert len(RunRegistry(make_runs()).of(model_digest="other")) == 0
    assert RunRegistry(make_runs()).of(forecaster="good", traits=["kind"]).families == tuple(f"f{i}" for i in range(8))
