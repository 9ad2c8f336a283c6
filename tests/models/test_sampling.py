"""Prompts sampled together speak as they would alone; earlier turns are read off the last one's pass."""

from __future__ import annotations

import numpy as np
import pytest

from personae.models.hf import HFModel
from personae.models.protocol import SamplingPlan, Scorable


def prompts(model: HFModel) -> list[tuple[int, ...]]:
    texts = ("Hello", "What is the time, and who are you?", "Hi", "A longer one " * 6, "Tell me more")
    return [tuple(model.tokenizer.bos_ids) + tuple(model.tokenizer.encode(t)) for t in texts]


def test_company_does_not_change_what_is_said(tiny_model: HFModel) -> None:
    """Every row has its own stream, named by its place; only rounding may differ, and here it changes no token."""
    asked, plan = prompts(tiny_model)[:4], SamplingPlan(max_tokens=5, seed=3)
    together = tiny_model.sample(asked, plan)
    for place, made in list(enumerate(together))[::3]:
        # The same place in a batch whose other rows are all the shortest prompt.
        others = [asked[2]] * len(asked)
        others[place] = asked[place]
        alone = tiny_model.sample(others, plan)[place]
        assert alone.token_ids == made.token_ids
        assert np.allclose(alone.log_probs, made.log_probs, atol=tiny_model.card.tolerance)


def test_log_probs_of_padded_rows_are_those_of_scoring(tiny_model: HFModel) -> None:
    asked = prompts(tiny_model)
    for prompt, made in zip(asked, tiny_model.sample(asked, SamplingPlan(max_tokens=6, seed=4)), strict=True):
        scored = tiny_model.score([Scorable((*prompt, *made.token_ids), len(prompt))])[0].log_probs
        assert np.abs(scored - made.log_probs).max() < tiny_model.card.tolerance


def test_rows_that_end_leave_and_the_others_go_on(tiny_models: dict[str, HFModel]) -> None:
    model = tiny_models["llama"]
    asked = prompts(model) * 5
    made = model.sample(asked, SamplingPlan(max_tokens=60, seed=5, temperature=1.5))
    lengths = [len(m.token_ids) for m in made]
    stopped = [m for m in made if m.token_ids[-1] in model.tokenizer.stop_ids]
    assert stopped, "no row ended: the test shows nothing"
    assert len(set(lengths)) > 3
    assert all(t not in model.tokenizer.stop_ids for m in made for t in m.token_ids[:-1])


def test_turns_of_a_conversation_score_as_alone(tiny_model: HFModel) -> None:
    ids = tuple(np.random.default_rng(0).integers(5, 60, size=40).tolist())
    other = (*ids[:20], 61, 62, 63)
    batch = [
        Scorable(ids[:12], 8, 3),
        Scorable(ids, 30, 3),
        Scorable(ids[:25], 20, 3),
        Scorable(other, 15, 3),
        Scorable(ids, 25, 3),
        Scorable(ids[:12], 8, 0),
    ]
    together = tiny_model.score(batch)
    for item, found in zip(batch, together, strict=True):
        alone = tiny_model.score([item])[0].log_probs
        assert alone.shape == found.log_probs.shape
        assert np.abs(alone - found.log_probs).max() < tiny_model.card.tolerance


def test_nested_requests_are_run_once(tiny_models: dict[str, HFModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models["llama"]
    ids = tuple(range(5, 45))
    run: list[int] = []
    whole = HFModel._hidden

    def watched(self: HFModel, prefix, tokens):  # the tokens that are really run
        run.append(tokens.numel())
        return whole(self, prefix, tokens)

    monkeypatch.setattr(HFModel, "_hidden", watched)
    model.score([Scorable(ids[:k], k - 4, 2) for k in (10, 20, 30, 40)])
    assert sum(run) == len(ids) - 2
