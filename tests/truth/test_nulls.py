"""The null battery: uniform where there is nothing, sure where a direction was planted, strong where data are thin."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from personae.errors import InvalidSettings, NumericsError
from personae.inference.nulls import Judged, Poles, null_battery

D, LAYERS, QUESTIONS = 24, 3, 20


def activations(rng: np.random.Generator, effect: float, *, n: int = 2 * QUESTIONS) -> tuple[np.ndarray, np.ndarray]:
    """Anisotropic noise; one layer carries `effect` standard deviations of the label along one fixed direction."""
    scale = np.geomspace(4, 0.2, D)
    x = rng.normal(size=(n, LAYERS, D)) * scale
    label = np.arange(n) % 2 == 0
    planted = np.zeros(D)
    planted[10] = 1.0
    x[:, 1] += np.outer(np.where(label, 1, -1) * effect * scale[10], planted)
    return x, label


def strata(n: int) -> list[int]:
    return [i // 2 for i in range(n)]


def test_a_planted_direction_is_found() -> None:
    rng = np.random.default_rng(0)
    (x, label), (y, truth) = activations(rng, 2.5), activations(rng, 2.5, n=60)
    for statistic, target in (("auroc", truth), ("correlation", np.where(truth, 1.0, -1.0))):
        found = null_battery(Poles(x, label, strata(len(x))), Judged(y, target), statistic, rng=rng)
        assert found.layer == 1
        assert found.null("permuted labels").p < 0.01
        assert found.null("random").p < 0.01
        assert found.beats_every_null, found
        assert found.verdict == "beats every null"
        assert found.value > 0.85
        assert found.signed > 0


def test_shuffled_labels_give_a_uniform_p() -> None:
    """A hundred repeats; the false-alarm rate of the test itself is one in a thousand."""
    rng = np.random.default_rng(1)
    p: list[float] = []
    for _ in range(100):
        (x, label), (y, truth) = activations(rng, 2.5), activations(rng, 2.5, n=40)
        shuffled = label.copy()
        for at in range(0, len(label), 2):
            shuffled[at : at + 2] = rng.permutation(label[at : at + 2])
        poles = Poles(x, shuffled, strata(len(x)))
        found = null_battery(poles, Judged(y, truth), "auroc", rng=rng, n_permutations=99, n_random=2)
        # Within its ties a permutation p-value is uniform on {1/100, ..., 1}.
        p.append(found.null("permuted labels").p - rng.uniform(0, 0.01))
    assert kstest(p, "uniform").pvalue > 0.001
    assert 0 <= np.mean(np.array(p) < 0.05) <= 0.13


def test_labels_in_line_with_the_plant_would_not_be_uniform() -> None:
    """The uniformity above is no accident of weak data: with the true labels most p are small (by chance, one in ten
    thousand times half of ten)."""
    rng = np.random.default_rng(2)
    p = []
    for _ in range(10):
        (x, label), (y, truth) = activations(rng, 2.5), activations(rng, 2.5, n=40)
        poles = Poles(x, label, strata(len(x)))
        found = null_battery(poles, Judged(y, truth), "auroc", rng=rng, n_permutations=99, n_random=2)
        p.append(found.null("permuted labels").p)
    assert np.mean(np.array(p) <= 0.05) >= 0.5


def test_one_dimensional_shifts_leave_little_room() -> None:
    """Twenty-four models that moved along one line: almost any direction like the data 'predicts' how far."""
    rng = np.random.default_rng(3)
    amount, line = rng.normal(size=24), rng.normal(size=D)
    shifts = np.stack([np.outer(amount, line) + 0.3 * rng.normal(size=(24, D)) for _ in range(LAYERS)], axis=1)
    x, label = activations(rng, 1.0)
    found = null_battery(Poles(x, label, strata(len(x))), Judged(shifts, amount), "correlation", rng=rng)
    assert found.null("random").median > 0.5
    isotropic = rng.normal(size=(500, D))
    weak = [abs(np.corrcoef(rng.normal(size=(24, D)) @ v, amount)[0, 1]) for v in isotropic]
    assert np.median(weak) < 0.3, "data without the line leave room: the null above measures the line"


def test_a_direction_shared_by_all_traits_beats_no_other_trait() -> None:
    """A vector of general oddness separates well, and so do the vectors of all other traits."""
    rng = np.random.default_rng(4)
    (x, label), (y, truth) = activations(rng, 2.5), activations(rng, 2.5, n=60)
    shared = np.zeros((5, LAYERS, D))
    shared[:, 1, 10] = 1.0
    found = null_battery(Poles(x, label, strata(len(x))), Judged(y, truth), "auroc", rng=rng, others=shared)
    assert not found.null("other traits").beaten
    assert not found.beats_every_null
    assert "does not beat other traits" in found.verdict


def test_pooled_correlations_may_be_about_conditions_only() -> None:
    """Two prompt types differ in both; within a type there is nothing. Pooled r is high, r within is not."""
    rng = np.random.default_rng(5)
    x, label = activations(rng, 2.5)
    y, kind = activations(rng, 2.5, n=80)
    target = np.where(kind, 1.0, -1.0) + 0.5 * rng.normal(size=80)
    pooled = null_battery(Poles(x, label, strata(len(x))), Judged(y, target), "correlation", rng=rng)
    within = null_battery(
        Poles(x, label, strata(len(x))), Judged(y, target, [bool(k) for k in kind]), "correlation", rng=rng
    )
    assert pooled.value > 0.7
    assert within.value < 0.45
    assert within.statistic == "r within conditions"
    assert not within.beats_every_null


def test_bad_input() -> None:
    rng = np.random.default_rng(6)
    x, label = activations(rng, 1.0)
    poles = Poles(x, label, strata(len(x)))
    with pytest.raises(InvalidSettings, match="nothing to correlate"):
        null_battery(poles, Judged(x, np.full(len(x), 0.1)), "correlation", rng=rng)
    with pytest.raises(InvalidSettings, match="zeros and ones"):
        null_battery(poles, Judged(x, np.ones(len(x))), "auroc", rng=rng)
    with pytest.raises(InvalidSettings, match="do not fit"):
        null_battery(poles, Judged(x[:, :, :-1], label), "auroc", rng=rng)
    with pytest.raises(InvalidSettings, match="both poles"):
        null_battery(Poles(x, np.ones(len(x), bool), strata(len(x))), Judged(x, label), "auroc", rng=rng)
    broken = x.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(NumericsError):
        null_battery(poles, Judged(broken, label), "auroc", rng=rng)
