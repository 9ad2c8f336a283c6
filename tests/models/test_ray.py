"""Ray actors give what the model gives, to the last bit, also when one is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import work_items

ray = pytest.importorskip("ray")

from personae.errors import BackendError, InputError, InvalidSettings  # noqa: E402
from personae.instruments.workers import Loader, PooledModel  # noqa: E402
from personae.models.load import load_model  # noqa: E402
from personae.running import ray_executor  # noqa: E402
from personae.running.executor import Executor, Pool, make_executor  # noqa: E402

# Ray's own warnings (processes it leaves to its daemons, coming changes) are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # so that actors find the functions of these tests
        made = make_executor("ray", workers=2)
        yield made
        made.close()
    assert not ray.is_initialized()


def test_results_come_in_order_from_both_actors(pool: Executor) -> None:
    made = list(pool.map(work_items.squared, range(30)))
    assert [value for value, _ in made] == [x * x for x in range(30)]
    assert len({pid for _, pid in made}) == 2


def test_an_items_error_arrives_as_it_was(pool: Executor) -> None:
    with pytest.raises(InputError, match="line 7: seven") as caught:
        list(pool.map(work_items.refuses_seven, range(10)))
    assert caught.value.hint == "Take eight."


def test_what_a_dead_actor_had_is_done_again(pool: Executor, tmp_path: Path) -> None:
    made = list(pool.map(work_items.dies_once, [(x, str(tmp_path)) for x in range(5)]))
    assert made == [x * x for x in range(5)]
    assert isinstance(pool, Pool)
    assert pool.n_lost == 2


def test_evidence_is_the_same_to_the_last_bit_while_an_actor_is_killed(pool: Executor) -> None:
    local = load_model("world:tiny/exact")
    model = PooledModel(Loader("world:tiny/exact"), pool)
    text = model.tokenizer.apply_template([], open_reply=True)
    opening = tuple(model.tokenizer.encode_template(text))
    phrases = local.tokenizer.phrases  # type: ignore[attr-defined]
    from personae.models.protocol import Scorable

    ids = [tuple(model.tokenizer.encode(f"{q} {r}")) for q, r in zip(phrases.questions, phrases.replies, strict=True)]
    batches = [[Scorable((*opening, *i), len(opening) + 1) for i in ids] for _ in range(12)]
    pids = {pid for _, pid in pool.map(work_items.squared, range(8))}
    made = model.score_batches(batches)
    there = [next(made)]
    os.kill(pids.pop(), signal.SIGKILL)
    there += list(made)
    here = [local.score(b) for b in batches]
    assert [[r.log_probs.tobytes() for r in b] for b in here] == [[r.log_probs.tobytes() for r in b] for b in there]


def test_more_workers_than_the_cluster_holds_are_refused(pool: Executor) -> None:
    with pytest.raises(InvalidSettings, match="do not fit the cluster"):
        make_executor("ray", workers=500)
    with pytest.raises(InvalidSettings, match="do not fit the cluster"):
        make_executor("ray", workers=1, gpus_per_worker=64)


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    for address in ("127.0.0.1:1", "127.0.0.1:99999"):
        with pytest.raises(BackendError, match="nobody listens there") as caught:
            ray_executor._connect(address, 1)
        assert "ray status" in caught.value.hint
