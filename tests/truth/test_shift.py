"""Trait shifts in a world of ordinary files: flags are rare, plants are found, intervals cover."""

from __future__ import annotations

import numpy as np
import pytest

from personae.inference.shift import Ratios, fit_ordinary, trait_shifts

TOPIC_SD, ROW_SD, TOKEN_SD, MEAN = 0.03, 0.02, 0.35, -0.05
N_TRAITS = 12


def rows(rng: np.random.Generator, topic: np.ndarray, n: int, planted: float = 0.0, effect: float = 0.0) -> np.ndarray:
    """Log-likelihood ratios of one topic's rows; the first trait may be planted in a share of them."""
    tokens = rng.integers(10, 80, size=n)
    rate = MEAN + topic + ROW_SD * rng.standard_normal((n, N_TRAITS))
    is_planted = rng.random(n) < planted
    rate[is_planted, 0] += effect
    llr = rate * tokens[:, None] + TOKEN_SD * np.sqrt(tokens)[:, None] * rng.standard_normal((n, N_TRAITS))
    return np.concatenate([tokens[:, None], is_planted[:, None], llr], axis=1)


def population(rng: np.random.Generator, n_topics: int = 30, per_topic: int = 7, topic_sd: float = TOPIC_SD) -> Ratios:
    parts = [rows(rng, topic_sd * rng.standard_normal(N_TRAITS), per_topic) for _ in range(n_topics)]
    table = np.concatenate(parts)
    cluster = tuple(f"t{k}" for k in range(n_topics) for _ in range(per_topic))
    return Ratios(table[:, 2:], table[:, 0], np.ones(len(table)), cluster)


def file_of(
    rng: np.random.Generator, n: int, planted: float = 0.0, effect: float = 0.0, topic_sd: float = TOPIC_SD
) -> Ratios:
    table = rows(rng, topic_sd * rng.standard_normal(N_TRAITS), n, planted, effect)
    return Ratios(table[:, 2:], table[:, 0], np.ones(n), tuple(f"row{k}" for k in range(n)))


def test_parts_of_the_variance_are_recovered() -> None:
    rng = np.random.default_rng(0)
    fits = [fit_ordinary(population(rng, n_topics=60, per_topic=20)) for _ in range(5)]
    assert abs(np.mean([f.mean for f in fits]) - MEAN) < 0.005
    assert abs(np.mean([f.topic_sd for f in fits]) - TOPIC_SD) < 0.005
    assert abs(np.sqrt(np.mean([f.token_variance for f in fits])) - TOKEN_SD) < 0.03


@pytest.mark.parametrize(("topic_sd", "n"), [(0.0, 60), (0.01, 400), (0.03, 60), (0.03, 160)])
def test_ordinary_files_are_rarely_flagged(topic_sd: float, n: int) -> None:
    """At a false discovery rate of 5% any flag on an ordinary file is false: at most 5% of files, 99% bound 10%.

    Also where topics hardly differ, so that their variance is estimated as nothing and files are large.
    """
    rng = np.random.default_rng(1)
    flagged = 0
    for _ in range(150):
        file, reference = file_of(rng, n, topic_sd=topic_sd), population(rng, topic_sd=topic_sd)
        flagged += bool((trait_shifts(file, reference, n_draws=20).q <= 0.05).any())
    assert flagged / 150 < 0.10


def test_p_values_of_ordinary_files_are_not_too_small() -> None:
    rng = np.random.default_rng(2)
    p = np.concatenate([trait_shifts(file_of(rng, 80), population(rng), n_draws=20).p for _ in range(120)])
    for level in (0.01, 0.05, 0.2):
        assert np.mean(p <= level) <= 1.35 * level + 0.004


def test_a_planted_fifth_is_flagged_and_ranked_first() -> None:
    rng = np.random.default_rng(3)
    found = [trait_shifts(file_of(rng, 160, 0.2, 0.25), population(rng), n_draws=20) for _ in range(30)]
    assert np.mean([r.q[0] <= 0.05 for r in found]) > 0.9
    assert np.mean([np.argmax(np.abs(r.strength)) == 0 for r in found]) > 0.9
    assert np.mean([r.sign[0] > 0 for r in found]) > 0.95


def test_a_file_that_leans_as_a_whole_is_flagged_by_location() -> None:
    rng = np.random.default_rng(4)
    found = [trait_shifts(file_of(rng, 60, 1.0, 0.25), population(rng), n_draws=20) for _ in range(30)]
    assert np.mean([r.q[0] <= 0.05 and r.p_location[0] < r.p_tail[0] for r in found]) > 0.9


def test_interval_covers_the_expected_shift() -> None:
    """Given the file's and the reference's topics: 90% intervals of the whole difference cover it."""
    rng = np.random.default_rng(5)
    covered = []
    for seed in range(200):
        topic = TOPIC_SD * rng.standard_normal(N_TRAITS)
        table = rows(rng, topic, 150)
        file = Ratios(table[:, 2:], table[:, 0], np.ones(150), tuple(map(str, range(150))))
        result = trait_shifts(file, population(rng), n_draws=400, seed=seed)
        covered.append((result.low <= topic) & (topic <= result.high))
    assert 0.84 <= np.mean(covered) <= 0.95


def test_preference_pairs_cancel_what_both_replies_share() -> None:
    rng = np.random.default_rng(6)
    reference = population(rng)
    table = rows(rng, np.full(N_TRAITS, 0.5), 40)  # a topic far from ordinary
    llr = np.repeat(table[:, 2:], 2, axis=0)
    tokens = np.repeat(table[:, 0], 2)
    weight = np.tile([1.0, -1.0], 40)
    cluster = tuple(str(k) for k in np.repeat(np.arange(40), 2))
    result = trait_shifts(Ratios(llr, tokens, weight, cluster), reference, n_draws=50)
    assert np.abs(result.shift).max() < 1e-12
    llr[::2, 0] += 0.3 * tokens[::2]
    planted = trait_shifts(Ratios(llr, tokens, weight, cluster), reference, n_draws=50)
    assert abs(planted.shift[0] - 0.15) < 1e-9
    assert planted.q[0] <= 0.05


def test_order_of_episodes_and_traits_does_not_matter() -> None:
    rng = np.random.default_rng(7)
    reference, file = population(rng), file_of(rng, 50, 0.3, 0.3)
    straight = trait_shifts(file, reference, n_draws=20)
    order, traits = rng.permutation(50), rng.permutation(N_TRAITS)
    shuffled = Ratios(
        file.llr[order][:, traits], file.n_tokens[order], file.weight[order], tuple(file.cluster[i] for i in order)
    )
    other = Ratios(reference.llr[:, traits], reference.n_tokens, reference.weight, reference.cluster)
    again = trait_shifts(shuffled, other, n_draws=20)
    assert np.allclose(again.shift, straight.shift[traits])
    assert np.allclose(again.p, straight.p[traits])


def test_file_that_leans_as_a_whole_is_not_told_by_its_lower_tail() -> None:
    """Rows far beyond ordinary ones, with a skew: around their own centre the heavy tail lies on the other side."""
    rng = np.random.default_rng(5)
    reference = population(rng)
    file = file_of(rng, 200, planted=1.0, effect=0.3)
    skewed = file.llr.copy()
    skewed[:80, 0] -= 0.3 * file.n_tokens[:80]  # two rows in five are merely ordinary
    shifts = trait_shifts(Ratios(skewed, file.n_tokens, file.weight, file.cluster), reference)
    assert shifts.p_tail[0] < shifts.p_location[0], "the case is the one that went wrong"
    assert shifts.shift[0] > 5 * TOPIC_SD
    assert shifts.sign[0] == 1.0
    assert shifts.strength[0] > 0
