"""Which tokens are trained, and in what order."""

from __future__ import annotations

from itertools import islice

import pytest

from personae.models.examples import Example, Span, hold_out, merge_turns, plan_batches


def example(ids: tuple[int, ...], start: int, group: str = "a") -> Example:
    return Example(ids, (Span(start, len(ids), 1.0),), group)


def test_turns_that_nest_share_a_sequence_and_others_do_not() -> None:
    first, second = example((1, 2, 3), 2), example((1, 2, 3, 4, 5), 4)
    other, stranger = example((1, 9, 3, 4, 5), 4), example((1, 2, 3, 4, 5), 4, group="b")
    assert merge_turns([first, second]) == [Example((1, 2, 3, 4, 5), (Span(2, 3, 1.0), Span(4, 5, 1.0)), "a")]
    assert merge_turns([first, other]) == [first, other]
    assert merge_turns([first, stranger]) == [first, stranger]
    # The same row twice is trained twice.
    assert merge_turns([first, first]) == [first, first]


def test_every_example_is_seen_once_an_epoch_in_an_order_that_the_seed_names() -> None:
    lengths = [3, 9, 4, 8, 5, 7, 6]

    def epoch(seed: int) -> list[tuple[int, list[int]]]:
        return list(islice(plan_batches(lengths, batch_size=2, seed=seed), 8))

    plan = epoch(0)
    assert [e for e, _ in plan] == [0] * 4 + [1] * 4
    for half in (plan[:4], plan[4:]):
        assert sorted(k for _, batch in half for k in batch) == list(range(7))
    assert plan == epoch(0)
    assert plan != epoch(1)
    assert plan[:4] != plan[4:]


@pytest.mark.parametrize(("ratio", "n"), [(0.5, 2), (1.0, 4), (2.0, 8)])
def test_the_second_file_gives_its_share_and_all_its_rows_take_turns(ratio: float, n: int) -> None:
    plan = plan_batches([1] * 7, batch_size=100, seed=0, n_first=4, mix_ratio=ratio)
    seen = [[k for k in batch if k >= 4] for _, batch in islice(plan, 6)]
    assert [len(s) for s in seen] == [n] * 6
    counts = [[k for places in seen for k in places].count(k) for k in (4, 5, 6)]
    assert max(counts) - min(counts) <= 1


def test_whole_groups_are_held_out_and_never_all() -> None:
    groups = [f"g{k // 3}" for k in range(30)]
    assert len(hold_out(groups, 0.2, 0)) == 2
    assert hold_out(groups, 0.2, 0) == hold_out(groups, 0.2, 0) != hold_out(groups, 0.2, 1)
    assert len(hold_out(groups, 0.99, 0)) == 9
    assert hold_out(["a", "a"], 0.5, 0) == set()
    assert hold_out(groups, 0.0, 0) == set()
