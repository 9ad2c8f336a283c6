"""The benchmark's own arithmetic on made-up runs: opposites cancel what all runs share, and a null stays quiet."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmarks.environment import laid_out
from benchmarks.forecast.analyse import ceiling, opposites, pairs, raw, shuffled
from benchmarks.forecast.families import datasets
from benchmarks.forecast.measuring import items, shifts

from personae.inference.common_mode import Prediction, cells_of
from personae.inference.forecast_skill import Held, trained_cells
from personae.tables.run_registry import PastRun, RunForm

TRAITS = items().traits


def made_runs(*, shared: float, knows: bool, noise: float = 0.0, seed: int = 0) -> list[PastRun]:
    """Runs of every written file and its opposite: shift = shared movement + what the file says + noise."""
    rng = np.random.default_rng(seed)
    movement = rng.normal(0, shared, len(TRAITS))
    said: dict[str, np.ndarray] = {}
    runs = []
    for d in datasets().values():
        said[d.name] = -said[d.opposite] if d.opposite in said else rng.normal(0, 1, len(TRAITS))
        shift = movement + said[d.name] + rng.normal(0, noise, len(TRAITS))
        score = said[d.name] if knows else rng.normal(0, 1, len(TRAITS))
        form = RunForm("sft", 96, 30, 4, 0.1, 96, 1e-3, 12)
        values = dict(zip(TRAITS, map(float, shift), strict=True))
        readings = {"reader": dict(zip(TRAITS, map(float, score), strict=True))}
        errors = dict.fromkeys(TRAITS, noise or 1e-3)
        run = f"smollm2/{d.name}-0/96"
        runs.append(PastRun(run, d.family, "smollm2", "digest", form, values, errors, readings, trained=TRAITS[:1]))
    return runs


def held_of(runs: list[PastRun]) -> Held:
    """Forecasts that are the readings themselves."""
    cells = cells_of(runs, "reader")
    return Held(cells, Prediction(cells.score, np.ones(len(cells)), np.zeros(len(cells))), trained_cells(cells, runs))


def test_each_pair_is_found_once() -> None:
    runs = made_runs(shared=0, knows=True)
    assert len(pairs(runs)) == len(runs) // 2
    assert len({name for pair in pairs(runs) for name in pair}) == len(runs)


def test_opposites_cancel_what_all_runs_share() -> None:
    runs = made_runs(shared=5, knows=True)
    assert raw("reader", runs)["spearman"] < 0.5
    assert raw("reader", runs)["net"] == pytest.approx(1, abs=0.02)
    changes = {r.run: [r.shift[i.trait] for i in items().items] for r in runs}
    found = opposites(held_of(runs), runs, changes)
    assert found["spearman"] == pytest.approx(1)
    assert found["sign_other"] == found["sign_own"] == 1


def test_readings_that_know_nothing_do_not_beat_shuffled_ones() -> None:
    quiet, loud = (shuffled("reader", made_runs(shared=2, knows=k), n=99) for k in (False, True))
    for null in ("files", "traits"):
        assert quiet[f"{null}_p"] > 0.02
        assert loud[f"{null}_p"] == pytest.approx(0.01)
        assert loud["observed"] > loud[f"{null}_97.5"] + 0.5


def test_the_ceiling_is_what_noise_leaves() -> None:
    """True variance 1, noise variance 1: measured and true shifts correlate by the root of a half."""
    found = ceiling(made_runs(shared=0, knows=True, noise=1.0))
    assert found["raw"] == pytest.approx(np.sqrt(0.5), abs=0.06)


def test_a_shift_is_the_mean_change_of_its_items() -> None:
    before = {i.id: 1.0 for i in items().items}
    after = {i.id: 1.0 + (2.5 if i.trait == "formal" else 0.0) for i in items().items}
    found = shifts(before, after)
    assert found["formal"] == [2.5, 0.0]
    assert found["curious"] == [0.0, 0.0]


def test_results_are_written_so_that_what_fits_stands_on_a_line() -> None:
    body = {"a": [1.5, None, "x" * 150], "b": {"c": [[1, 2], {"d": "e" * 160}], "f": {}}, "g": [1, 2, 3]}
    text = laid_out(body)
    assert json.loads(text) == body
    assert ' "g": [1, 2, 3]' in text.splitlines()
    assert max(len(line) for line in text.splitlines() if "eee" not in line) <= 170
