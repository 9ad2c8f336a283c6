"""A judge that favours one persona: labels find the favour, and a mixture fitted without it is right again."""

from __future__ import annotations

import numpy as np
import pytest

from personae.errors import InvalidSettings
from personae.inference.judge_bias import confusion, deconvolved, fit_judge_bias, turned_round, without_bias
from personae.inference.mixture import fit_mixture

K, N, PRIOR = 4, 800, np.full(4, np.log(0.25))


def spoken(who: np.ndarray, favour: np.ndarray, *, scale: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods of conversations of three to thirty words from known tables, by a judge with a favour a word."""
    rng = np.random.default_rng(seed)
    theta = np.random.default_rng(9).dirichlet(np.full(12, 5.0), size=K)
    n = rng.integers(3, 31, len(who))
    table = np.stack(
        [np.log(theta[:, rng.choice(12, size=m, p=theta[k])]).sum(axis=1) for k, m in zip(who, n, strict=True)]
    )
    return scale * (table + n[:, None] * favour), n


def labelled(favour: np.ndarray, **more: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    who = np.repeat(np.arange(K), N // K)
    return (*spoken(who, favour, seed=1, **more), who)  # type: ignore[arg-type, return-value]


FAVOUR = np.array([0.25, 0.0, 0.0, -0.1])


def test_favour_is_found_and_weights_come_right() -> None:
    table, n, who = labelled(FAVOUR)
    bias = fit_judge_bias(table, who, n)
    np.testing.assert_allclose(bias.offset, FAVOUR.mean() - FAVOUR, atol=0.04)
    assert bias.log_loss < bias.log_loss_without - 0.05
    truth = np.array([0.0, 0.7, 0.3, 0.0])
    mixed, m = spoken(np.repeat([1, 2], [420, 180]), FAVOUR, seed=2)
    raw = fit_mixture(mixed, PRIOR, eta=fit_judge_bias(table, who, n, offsets=False).eta).weight
    mended = fit_mixture(without_bias(mixed, m, bias), PRIOR, eta=bias.eta).weight
    assert np.abs(raw - truth).max() > 0.15, "the favoured persona takes what is not its own"
    assert np.abs(mended - truth).max() <= 0.07
    whole = turned_round(table, who, n, mixed, m)
    assert (whole.low <= truth + 1e-9).all()
    assert (truth <= whole.high + 1e-9).all()
    turned = deconvolved(mixed, m, bias, confusion(table, who, bias, n))
    np.testing.assert_allclose(whole.weight, turned)
    assert np.abs(turned - truth).max() <= 0.1
    assert turned.sum() == pytest.approx(1)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_fair_judge_keeps_its_weights_and_the_power_undoes_a_scale(scale: float) -> None:
    table, n, who = labelled(np.zeros(K), scale=scale)
    bias = fit_judge_bias(table, who, n)
    assert np.abs(bias.offset).max() * scale**-1 < 0.04
    assert bias.eta == pytest.approx(1 / scale, rel=0.25)
    mixed, m = spoken(np.repeat([0, 3], [300, 300]), np.zeros(K), scale=scale, seed=3)
    before = fit_mixture(mixed, PRIOR, eta=bias.eta).weight
    after = fit_mixture(without_bias(mixed, m, bias), PRIOR, eta=bias.eta).weight
    assert np.abs(before - after).max() < 0.03


def test_columns_beyond_the_labels_are_left_alone() -> None:
    table, n, who = labelled(FAVOUR)
    bias = fit_judge_bias(table, who, n)
    wide = np.column_stack([table, np.full(len(table), -3.0)])
    made = without_bias(wide, n, bias)
    np.testing.assert_array_equal(made[:, -1], wide[:, -1])
    np.testing.assert_allclose(made[:, :K] - table, n[:, None] * bias.offset)


def test_one_persona_cannot_be_calibrated() -> None:
    with pytest.raises(InvalidSettings, match="1 personas"):
        fit_judge_bias(np.zeros((5, 1)), np.zeros(5, np.int64), np.ones(5, np.int64))
