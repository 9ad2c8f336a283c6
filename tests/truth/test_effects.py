"""Comparisons on item tables: planted differences, equal arms, pairing, templates, seeds, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from personae.errors import InputError, InvalidSettings
from personae.inference.effects import arm_mean, compare, compare_many
from personae.tables.items import ItemTable, item_table

N_CLUSTERS, SIZE = 20, 5
N = N_CLUSTERS * SIZE
ITEMS = [f"i{k}" for k in range(N)]
CLUSTERS = [f"c{k // SIZE}" for k in range(N)]


def arms(rng: np.random.Generator, lifts: dict[str, float], noise: float = 0.5) -> ItemTable:
    difficulty = np.repeat(rng.normal(size=N_CLUSTERS), SIZE) + rng.normal(size=N)
    scores = [difficulty + lift + noise * rng.normal(size=N) for lift in lifts.values()]
    return item_table(
        np.concatenate(scores),
        item=ITEMS * len(lifts),
        cluster=CLUSTERS * len(lifts),
        arm=[name for name in lifts for _ in range(N)],
    )


def test_a_planted_difference_is_found_and_has_its_sign() -> None:
    effect = compare(arms(np.random.default_rng(0), {"base": 0.0, "tuned": 0.4}), "base", "tuned")
    assert effect.is_paired
    assert effect.difference.low < 0.4 < effect.difference.high
    assert effect.difference.p < 1e-3
    assert effect.p_permutation is not None
    assert effect.p_permutation < 1e-3
    assert effect.bootstrap is not None
    assert effect.bootstrap.se == pytest.approx(effect.difference.se, rel=0.1)
    assert effect.verdict.startswith("'tuned' scores higher than 'base': +0.")
    assert (effect.n_items, effect.n_clusters, effect.n_seeds, effect.left_out) == (100, 20, 1, 0)
    assert "not about how they were trained" in effect.notes[0]


def test_equal_arms_are_equal_up_to_a_margin_or_undecided() -> None:
    table = arms(np.random.default_rng(1), {"base": 0.0, "same": 0.0})
    effect = compare(table, "base", "same", margin=0.3)
    assert effect.equivalence is not None
    assert effect.equivalence.is_equivalent
    assert "are equal up to 0.3" in effect.verdict
    assert compare(table, "base", "same", margin=0.01).verdict.startswith("undecided")


def test_pairing_by_item_sees_what_difficulty_hides() -> None:
    table = arms(np.random.default_rng(2), {"base": 0.0, "tuned": 0.3})
    paired = compare(table, "base", "tuned", n_draws=0)
    labels = {
        name: [f"{arm}/{x}" for arm, x in zip(table.arm, getattr(table, name), strict=True)]
        for name in ("item", "cluster")
    }
    apart = compare(item_table(table.score, arm=table.arm, **labels), "base", "tuned")  # as if on other prompts
    assert paired.difference.value == pytest.approx(apart.difference.value)
    assert apart.difference.se > 3 * paired.difference.se
    assert paired.detectable < apart.detectable / 3
    # Not paired by item, and yet by cluster: the clustered error sees that both arms have the same ones.
    shared = compare(table, "base", "tuned", paired=False)
    assert shared.difference.se == pytest.approx(paired.difference.se)
    assert shared.p_permutation is None


def test_arms_on_other_prompts_are_compared_unpaired() -> None:
    rng = np.random.default_rng(3)
    table = item_table(
        np.concatenate([rng.normal(size=60), rng.normal(1.0, size=90)]),
        item=[f"a{k}" for k in range(60)] + [f"b{k}" for k in range(90)],
        cluster=[f"a{k // 6}" for k in range(60)] + [f"b{k // 6}" for k in range(90)],
        arm=["a"] * 60 + ["b"] * 90,
    )
    effect = compare(table, "a", "b")
    assert not effect.is_paired
    assert effect.p_permutation is not None
    assert effect.p_permutation < 0.01
    assert effect.difference.low < 1.0 < effect.difference.high
    with pytest.raises(InputError, match="share no item"):
        compare(table, "a", "b", paired=True)


def test_templates_are_not_items() -> None:
    """Each score given ten times as a template: nothing may get narrower."""
    once = arms(np.random.default_rng(4), {"a": 0.0, "b": 0.1})
    ten = item_table(
        np.tile(once.score, 10),
        item=once.item * 10,
        cluster=once.cluster * 10,
        arm=once.arm * 10,
        template=[t for t in range(10) for _ in range(len(once))],
    )
    got, want = compare(ten, "a", "b", n_draws=0), compare(once, "a", "b", n_draws=0)
    assert got.difference.se == pytest.approx(want.difference.se)
    assert got.n_items == want.n_items


def test_rows_in_another_order_change_nothing() -> None:
    table = arms(np.random.default_rng(5), {"a": 0.0, "b": 0.1})
    shuffled = table.take(np.random.default_rng(6).permutation(len(table)))
    one, other = compare(table, "a", "b", n_draws=0), compare(shuffled, "a", "b", n_draws=0)
    assert other.difference.value == pytest.approx(one.difference.value)
    assert other.difference.se == pytest.approx(one.difference.se)
    swapped = compare(table, "b", "a", n_draws=0).difference
    assert (swapped.low, swapped.high) == pytest.approx((-one.difference.high, -one.difference.low))


def test_seeds_widen_the_error_and_are_told() -> None:
    rng = np.random.default_rng(7)
    tuned = [rng.normal(size=N) * 0.3 + lift for lift in (0.0, 0.5, 1.0)]
    table = item_table(
        np.concatenate([np.zeros(N), *tuned]),
        item=ITEMS * 4,
        cluster=CLUSTERS * 4,
        arm=["base"] * N + ["tuned"] * 3 * N,
        seed=["-"] * N + [s for s in "123" for _ in range(N)],
    )
    effect = compare(table, "base", "tuned")
    # Seed means 0, 0.5, 1 alone have a standard error of 0.5 / sqrt(3), with two degrees of freedom.
    assert effect.difference.se == pytest.approx(0.5 / np.sqrt(3), rel=0.1)
    assert effect.difference.df == pytest.approx(2, rel=0.15)
    assert effect.difference.p > 0.05 > effect.naive.p
    assert effect.bootstrap is not None
    assert effect.bootstrap.se == pytest.approx(effect.difference.se, rel=0.15)
    assert effect.p_permutation is None
    assert "its own variance between seeds" in effect.notes[0]
    assert arm_mean(table, "tuned").se == pytest.approx(effect.difference.se, rel=0.05)


def test_matched_seeds_are_paired() -> None:
    rng = np.random.default_rng(8)
    luck = np.repeat(rng.normal(size=4), N)
    lift = np.concatenate([np.zeros(4 * N), np.full(4 * N, 0.3)])
    table = item_table(
        np.tile(luck, 2) + lift + 0.2 * rng.normal(size=8 * N),
        item=ITEMS * 8,
        cluster=CLUSTERS * 8,
        arm=["a"] * 4 * N + ["b"] * 4 * N,
        seed=[s for s in range(4) for _ in range(N)] * 2,
    )
    effect = compare(table, "a", "b")
    assert effect.difference.se < 0.05  # luck is shared, so it cancels
    assert effect.difference.low < 0.3 < effect.difference.high
    relabelled = item_table(
        table.score, item=table.item, cluster=table.cluster, arm=table.arm,
        seed=[f"{a}{s}" for a, s in zip(table.arm, table.seed, strict=True)],
    )  # fmt: skip
    other = compare(relabelled, "a", "b")
    assert other.difference.se > 5 * effect.difference.se
    assert other.bootstrap is None


def test_items_of_one_arm_only_are_left_out_of_pairs() -> None:
    table = arms(np.random.default_rng(9), {"a": 0.0, "b": 0.2})
    effect = compare(table.take(np.arange(len(table) - 30)), "a", "b", n_draws=0)
    assert (effect.n_items, effect.left_out) == (70, 30)
    assert any("30 items" in note for note in effect.notes)


def test_a_family_of_arms_is_corrected() -> None:
    table = arms(np.random.default_rng(10), {"base": 0.0, **{f"null{k}": 0.0 for k in range(8)}, "real": 0.5})
    results = compare_many(table, "base")
    q = {effect.second: q for effect, q in results}
    assert q["real"] < 0.01
    assert all(one >= effect.difference.p for effect, one in results)
    assert min(v for k, v in q.items() if k != "real") > 0.01
    with pytest.raises(InputError, match="no arm to compare"):
        compare_many(table.of_arm("base"), "base")


def test_what_cannot_be_compared_is_refused() -> None:
    table = arms(np.random.default_rng(11), {"a": 0.0, "b": 0.2})
    with pytest.raises(InputError, match="with itself"):
        compare(table, "a", "a")
    with pytest.raises(InputError, match="no arm 'c'"):
        compare(table, "a", "c")
    with pytest.raises(InvalidSettings, match="margin above 0"):
        compare(table, "a", "b", margin=-1.0)
    with pytest.raises(InvalidSettings, match=r"level is 1\.5"):
        compare(table, "a", "b", level=1.5)
    one_cluster = item_table(table.score, item=table.item, arm=table.arm, cluster=["c"] * len(table))
    with pytest.raises(InvalidSettings, match="too few clusters"):
        compare(one_cluster, "a", "b")
