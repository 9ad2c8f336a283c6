"""What was sampled, scored or read once is read from disk, to the last bit; damage is made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from personae.errors import StorageError
from personae.instruments.keeping import KeptDistributions, KeptModel, Shelf, bare, keep, request_pieces
from personae.models.exact import ExactModel
from personae.models.hf import HFModel
from personae.models.protocol import Completion, GivesDistributions, SamplingPlan, Scorable, TokenLogprobs
from personae.running.pieces import name_of
from personae.worlds.reading import read_world

ITEMS = [Scorable((5, 6, 7, 20 + k, 30, 31, 32), 4, 2) for k in range(6)] + [Scorable((9, 8, 7, 6), 1)]
PROMPTS = [(5, 6, 7, k) for k in range(20, 26)]
PLAN = SamplingPlan(4, 1.0, 11)


class Counting(HFModel):
    """Counts how often it is run."""

    runs = 0

    def score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
        self.runs += 1
        return super().score(batch)

    def distributions(self, batch: Sequence[Scorable]):  # type: ignore[no-untyped-def]
        self.runs += 1
        return super().distributions(batch)

    def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan) -> list[Completion]:
        self.runs += 1
        return super().sample(batch, plan)


@pytest.fixture
def counting(tiny_models: dict[str, HFModel]) -> Counting:
    one = tiny_models["llama"]
    return Counting(one.module, one.tokenizer, one.card)


def answers(model: KeptDistributions) -> list[np.ndarray]:
    scored = [r.log_probs for r in model.score(ITEMS)]
    read = [d.log_probs(0, d.n_places) for d in model.distributions(ITEMS)]
    said = [x for c in model.sample(PROMPTS, PLAN) for x in (np.array(c.token_ids), c.log_probs)]
    return [*scored, *read, *said]


def test_second_time_nothing_is_run_and_every_bit_is_the_same(counting: Counting, tmp_path: Path) -> None:
    first, second = (keep(counting, Shelf(tmp_path)) for _ in range(2))
    assert isinstance(first, KeptDistributions)
    assert isinstance(second, KeptDistributions)
    made = answers(first)
    n = counting.runs
    assert n == 3
    for a, b in zip(made, answers(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert counting.runs == n
    plain = [r.log_probs for r in counting.score(ITEMS)]
    for a, b in zip(made, plain, strict=False):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_other_model_other_request_and_other_seed_are_other_pieces(
    counting: Counting, tiny_models: dict[str, HFModel], tmp_path: Path
) -> None:
    shelf = Shelf(tmp_path)
    model = keep(counting, shelf)
    first = model.sample(PROMPTS, PLAN)
    assert model.sample(PROMPTS, SamplingPlan(4, 1.0, 12))[0].token_ids != () != first[0].token_ids
    n = counting.runs
    model.sample(PROMPTS[:5], PLAN)
    assert counting.runs == n + 1
    theirs = keep(tiny_models["qwen3"], shelf).score(ITEMS)[0].log_probs
    assert np.abs(theirs - model.score(ITEMS)[0].log_probs).max() > 1e-3


def test_damaged_piece_is_made_again(counting: Counting, tmp_path: Path) -> None:
    before = keep(counting, Shelf(tmp_path)).score(ITEMS)
    (piece,) = tmp_path.rglob("*.npz")
    body = bytearray(piece.read_bytes())
    body[len(body) // 2] ^= 0xFF
    for damage in (bytes(body), bytes(body[:40]), b""):
        piece.write_bytes(damage)
        after = keep(counting, Shelf(tmp_path)).score(ITEMS)
        np.testing.assert_array_equal(before[0].log_probs, after[0].log_probs)


def test_what_served_one_run_goes_and_scores_stay(counting: Counting, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    answers(keep(counting, shelf))  # type: ignore[arg-type]
    assert len(list(tmp_path.rglob("*.npz"))) == 3
    shelf.clear()
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_pieces_hold_every_request_once_and_closed_forms_pass_through(tmp_path: Path) -> None:
    many = [Scorable((1, 2, *range(3, 103 + k % 7)), 5, 2) for k in range(100)]
    pieces = list(request_pieces(many))
    assert sorted(i for p in pieces for i in p) == list(range(100))
    assert len(pieces) > 1
    exact = ExactModel(read_world("tiny"))
    assert keep(exact, Shelf(tmp_path)) is exact
    assert bare(exact) is exact


def test_model_without_distributions_has_none_when_kept(counting: Counting, tmp_path: Path) -> None:
    class Server:
        card, tokenizer = counting.card, counting.tokenizer

        def score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
            return counting.score(batch)

        def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan) -> list[Completion]:
            return counting.sample(batch, plan)

    kept = keep(Server(), Shelf(tmp_path))
    assert type(kept) is KeptModel
    assert not isinstance(kept, GivesDistributions)
    assert isinstance(bare(kept), Server)


def test_full_disk_is_said(counting: Counting, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        keep(counting, Shelf(tmp_path / "file")).score(ITEMS)


def test_names_tell_arrays_by_shape_and_type() -> None:
    rows = np.arange(6)
    assert name_of(rows) == name_of(rows.copy())
    assert (
        len({name_of(rows), name_of(rows.reshape(2, 3)), name_of(rows.astype(np.int32)), name_of(rows.tolist())}) == 4
    )
    assert name_of("a", "b") != name_of("ab")
