"""The compiled passes against the plain ones, on the same numbers; small fits never import numba."""

from __future__ import annotations

import subprocess
import sys

import numba
import numpy as np
import pytest

from personae.errors import NumericsError
from personae.inference import passes as passes_module
from personae.inference import passes_compiled as compiled_module
from personae.inference.mixture import fit_mixture, maximise, sample_weights
from personae.inference.passes import NumpyPasses, choose_passes
from personae.inference.passes_compiled import CompiledPasses

N, K = 3001, 7  # neither a multiple of the tile


@pytest.fixture(params=["serial", "parallel"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of compiling, whatever the size."""
    monkeypatch.setattr(compiled_module, "_WORTH_THREADS", 0 if request.param == "parallel" else 2**60)
    return request.param


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 3, (N, K))
    values[::17, 2] = -np.inf
    return values - 400  # far below what exp can hold


def test_passes_agree(table: np.ndarray, kind: str) -> None:
    rng = np.random.default_rng(1)
    plain, compiled = NumpyPasses(table), CompiledPasses(table)
    for _ in range(5):
        w, u = rng.dirichlet(np.full(K, 0.3)), rng.random(N)
        expected, value = plain.expect(w)
        got, reached = compiled.expect(w)
        assert np.allclose(got, expected, rtol=1e-12, atol=1e-12)
        assert np.isclose(reached, value, rtol=1e-12)
        assert (compiled.count(w, u) == plain.count(w, u)).all()
        assert plain.count(w, u).sum() == N


def test_mode_and_draws_agree(table: np.ndarray) -> None:
    alpha = np.full(K, 0.5)
    plain, compiled = NumpyPasses(table), CompiledPasses(table)
    mode = maximise(plain, alpha, alpha / alpha.sum())
    assert np.abs(maximise(compiled, alpha, alpha / alpha.sum()) - mode).max() < 1e-8
    a, b = (
        sample_weights(p, alpha, mode, sweeps=100, burn_in=0, rng=np.random.default_rng(2)) for p in (plain, compiled)
    )
    assert np.abs(a - b).max() < 1e-12


def test_result_does_not_depend_on_threads(table: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    w, u = np.full(K, 1 / K), np.random.default_rng(3).random(N)
    serial = CompiledPasses(table)
    found = [(serial.expect(w)[0].tobytes(), serial.count(w, u).tobytes())]
    monkeypatch.setattr(compiled_module, "_WORTH_THREADS", 0)
    compiled = CompiledPasses(table)
    before = numba.get_num_threads()
    for threads in {1, before}:
        numba.set_num_threads(threads)
        found.append((compiled.expect(w)[0].tobytes(), compiled.count(w, u).tobytes()))
    numba.set_num_threads(before)
    assert len({counts for _, counts in found}) == 1
    assert len({expected for expected, _ in found[1:]}) == 1


def test_acceleration_reaches_what_plain_steps_reach() -> None:
    """Overlapping components, where plain EM crawls: the same mode in a twentieth of the passes."""
    rng = np.random.default_rng(4)
    who = rng.choice(5, size=2000, p=[0.4, 0.3, 0.2, 0.1, 0.0])
    values = rng.normal(0, 0.5, (2000, 5))
    values[np.arange(2000), who] += 0.8
    alpha = np.full(5, 0.1)
    counted = Counting(NumpyPasses(values))
    quick = maximise(counted, alpha, np.full(5, 0.2))
    w = np.full(5, 0.2)
    steps = 0
    while True:
        new = alpha + counted.inner.expect(w)[0]
        new /= new.sum()
        steps += 1
        if (new / w).max() - 1 < 1e-9:
            break
        w = new
    assert np.abs(quick - w).max() < 1e-6
    assert counted.calls * 3 < steps


class Counting:
    """Counts passes."""

    def __init__(self, inner: NumpyPasses) -> None:
        self.inner, self.calls = inner, 0
        self.n_rows, self.n_components = inner.n_rows, inner.n_components

    def expect(self, weights: np.ndarray) -> tuple[np.ndarray, float]:
        self.calls += 1
        return self.inner.expect(weights)

    def count(self, weights: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        return self.inner.count(weights, uniforms)


def test_large_work_is_compiled_and_gives_the_same_fit(table: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choose_passes(table, sweeps=800), NumpyPasses)
    log_prior = np.log(np.full(K, 1 / K))
    small = fit_mixture(table, log_prior, eta=0.5, sweeps=60, burn_in=10)
    monkeypatch.setattr(passes_module, "_WORTH_COMPILING", 1)
    assert isinstance(choose_passes(table, sweeps=800), CompiledPasses)
    large = fit_mixture(table, log_prior, eta=0.5, sweeps=60, burn_in=10)
    assert np.allclose(small.weight, large.weight, atol=1e-9)
    assert np.allclose(small.responsibilities, large.responsibilities, atol=1e-6)


def test_small_fits_do_not_import_numba() -> None:
    code = (
        "import sys, numpy as np; from personae.inference.mixture import fit_mixture;"
        "fit_mixture(np.zeros((50, 3)), np.log(np.full(3, 1 / 3))); print('numba' in sys.modules)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "False"


@pytest.mark.parametrize("make", [NumpyPasses, CompiledPasses])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_without_a_finite_likelihood_are_named(make: type, bad: float) -> None:
    values = np.zeros((4, 2))
    values[2] = bad
    with pytest.raises(NumericsError, match="conversation 2 has no finite"):
        make(values)


def test_component_of_prior_zero_stays_at_zero() -> None:
    values = np.random.default_rng(5).normal(size=(40, 3))
    with np.errstate(divide="ignore"):
        log_prior = np.log(np.array([0.5, 0.5, 0.0]))
    fit = fit_mixture(values, log_prior, eta=1.0)
    assert fit.mode[2] == 0
    assert fit.weight[2] < 1e-9
    assert np.isfinite(fit.draws).all()
    assert fit.restart_gap < 1e-4
