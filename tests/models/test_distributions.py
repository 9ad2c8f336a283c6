"""Distributions of transformers models agree with scores and with one-at-a-time distributions, on every tiny model."""

from __future__ import annotations

import numpy as np

from personae.models.hf import HFModel
from personae.models.protocol import GivesDistributions, Scorable


def test_distributions_agree_with_scores_and_single_prompts(tiny_model: HFModel) -> None:
    model = tiny_model
    assert isinstance(model, GivesDistributions)
    rng = np.random.default_rng(0)
    rows = [tuple(int(i) for i in rng.integers(10, 390, size=n)) for n in (40, 25, 40)]
    rows[2] = rows[0][:12] + rows[2][12:]
    batch = [Scorable(rows[0], 30, 12), Scorable(rows[1], 20), Scorable(rows[2], 30, 12)]
    scores = model.score(batch)
    for item, made, score in zip(batch, model.distributions(batch), scores, strict=True):
        assert made.n_places == item.n_scored
        log_p = made.log_probs(0, made.n_places)
        assert log_p.shape == (item.n_scored, model.card.vocab_size)
        np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, atol=1e-4)
        own = log_p[np.arange(item.n_scored), item.token_ids[item.start :]]
        np.testing.assert_allclose(own, score.log_probs, atol=2e-4)
        np.testing.assert_allclose(made.log_probs(2, 4), log_p[2:4], atol=1e-5)
        alone = model.next_token_log_probs(item.token_ids[: item.start + 2])
        np.testing.assert_allclose(log_p[2], alone, atol=5e-4)
