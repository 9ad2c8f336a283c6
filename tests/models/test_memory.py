"""A batch that does not fit is cut until it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from personae.errors import OutOfMemory
from personae.models.hf import HFModel
from personae.models.protocol import Scorable


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("too much"), MemoryError("too much")])
def test_batches_are_halved_until_they_fit(tiny_model: HFModel, monkeypatch, failure: Exception) -> None:
    model, rng = tiny_model, np.random.default_rng(0)
    batch = [Scorable(tuple(int(i) for i in rng.integers(10, 390, size=30)), 20) for _ in range(40)]
    whole = model.score(batch)
    monkeypatch.setattr(model, "_batch_tokens", 1024)
    sizes: list[int] = []
    inner = HFModel._score_chunk

    def small_card(self, prefix, hosts, items, row_of):
        sizes.append(30 * len(hosts))
        if sizes[-1] > 300:
            raise failure
        return inner(self, prefix, hosts, items, row_of)

    monkeypatch.setattr(HFModel, "_score_chunk", small_card)
    for one, cut in zip(whole, model.score(batch), strict=True):
        np.testing.assert_allclose(one.log_probs, cut.log_probs, atol=2e-4)
    assert model._batch_tokens == 256  # 1024, 512 and 256 were tried
    assert max(sizes) > 300
    before = len(sizes)
    model.score(batch)
    assert max(sizes[before:]) <= 300  # what was learnt stays


def test_what_never_fits_is_told(tiny_model: HFModel, monkeypatch) -> None:
    monkeypatch.setattr(tiny_model, "_batch_tokens", 1024)

    def full(self, prefix, hosts, items, row_of):
        raise MemoryError("none left")

    monkeypatch.setattr(HFModel, "_score_chunk", full)
    with pytest.raises(OutOfMemory, match="did not fit the memory"):
        tiny_model.score([Scorable(tuple(range(10, 40)), 20)])
