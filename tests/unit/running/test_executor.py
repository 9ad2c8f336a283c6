"""Executors: results in order, little taken ahead, and nothing lost or doubled when workers die."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import work_items
from personae.errors import BackendError, InputError, InvalidSettings
from personae.running.executor import Executor, Pool, ProcessEmployer, SerialExecutor, make_executor


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    made = Pool(ProcessEmployer({"OMP_NUM_THREADS": "1"}), 2)
    yield made
    made.close()


@pytest.fixture(params=["serial", "processes"])
def executor(request: pytest.FixtureRequest, pool: Pool) -> Executor:
    return SerialExecutor() if request.param == "serial" else pool


def test_results_come_in_order_and_workers_share_them(executor: Executor) -> None:
    made = list(executor.map(work_items.squared, range(40)))
    assert [value for value, _ in made] == [x * x for x in range(40)]
    assert len({pid for _, pid in made}) == executor.n_workers
    assert (os.getpid() in {pid for _, pid in made}) == (executor.n_workers == 1)


def test_nothing_gives_nothing(executor: Executor) -> None:
    assert list(executor.map(work_items.squared, [])) == []


def test_little_is_taken_before_it_is_needed(pool: Pool) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for x in range(1000):
            taken.append(x)
            yield x

    results = pool.map(work_items.squared, items())
    for k in range(20):
        assert next(results)[0] == k * k
        assert len(taken) <= k + 1 + 4 * pool.n_workers
    results.close()  # type: ignore[attr-defined]
    assert len(taken) < 40


def test_workers_have_the_threads_they_were_given(pool: Pool) -> None:
    assert set(pool.map(work_items.threads, range(4))) == {"1"}


def test_an_items_error_arrives_whole_and_the_pool_goes_on(pool: Pool) -> None:
    with pytest.raises(InputError, match=r"data.jsonl, line 7: seven") as caught:
        list(pool.map(work_items.refuses_seven, range(20)))
    assert (caught.value.hint, caught.value.line) == ("Take eight.", 7)
    with pytest.raises(ZeroDivisionError) as bug:
        list(pool.map(work_items.breaks_at_seven, range(20)))
    assert "breaks_at_seven" in "".join(bug.value.__notes__)
    assert [v for v, _ in pool.map(work_items.squared, range(5))] == [0, 1, 4, 9, 16]


def test_what_a_dead_worker_had_is_done_again(pool: Pool, tmp_path: Path) -> None:
    lost = pool.n_lost
    made = list(pool.map(work_items.dies_once, [(x, str(tmp_path)) for x in range(9)]))
    assert made == [x * x for x in range(9)]
    assert pool.n_lost == lost + 3


def test_work_that_kills_every_worker_ends_the_run(pool: Pool) -> None:
    with pytest.raises(BackendError, match="3 workers died") as caught:
        list(pool.map(work_items.always_dies, range(2)))
    assert "--workers" in caught.value.hint
    assert [v for v, _ in pool.map(work_items.squared, range(3))] == [0, 1, 4]


def test_closing_leaves_no_process_behind() -> None:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    pool = Pool(ProcessEmployer({}), 2)
    assert len(list(pool.map(work_items.squared, range(4)))) == 4
    started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    pool.close()
    _, alive = psutil.wait_procs([p for p in started if "resource_tracker" not in " ".join(_line(p))], timeout=10)
    assert alive == []


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("threads", {}, "--executor is 'threads'"),
        ("processes", {"workers": 0}, "--workers is 0"),
        ("serial", {"workers": 2}, "--workers needs"),
        ("serial", {"address": "auto"}, "--address"),
        ("processes", {"gpus_per_worker": 1}, "--gpus-per-worker"),
        ("ray", {"gpus_per_worker": -1}, "--gpus-per-worker is -1"),
    ],
)
def test_settings_that_cannot_be(kind: str, options: dict, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        make_executor(kind, **options)
