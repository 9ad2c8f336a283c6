"""Rung R6: a soft prompt finds a prefix that is there, and nothing where there is none.

The target is a small transformer behind vectors that nobody knows, the base the same one without: what any prompt can
explain is all there is.
"""

from __future__ import annotations

import numpy as np
import pytest

from personae.errors import InvalidSettings
from personae.inference.ladder import gap_of, shares
from personae.instruments.voices import Talk, Voice, hold, plain_frame
from personae.models.exact import ExactModel
from personae.models.hf import HFModel
from personae.models.hf_soft_prompt import SoftPrompted, SoftPrompts
from personae.models.protocol import LanguageModel, SamplingPlan, Scorable
from personae.models.rendering import Frame, Renderer
from personae.models.soft_prompt import SoftPromptPlan
from personae.protocols.audit_ladder import LadderRun, run_ladder
from personae.protocols.audit_parties import Parties, parties
from personae.protocols.audit_soft import can_learn
from personae.worlds.reading import read_world

ASKS = ("trains", "bread", "loans", "cats", "paint", "verbs", "stars", "shoes", "tea", "maps", "rain", "keys")
PLAN = SoftPromptPlan(n_vectors=2, steps=60, batch_tokens=800, rate=0.3)


def audited(post: LanguageModel, base: HFModel, plan: SoftPromptPlan | None = PLAN) -> LadderRun:
    renderer = Renderer(base.tokenizer, context_length=base.card.context_length)
    plain = plain_frame(renderer)
    other = Voice("pirate", base, renderer, Frame("pirate", "You are a pirate.", plain.style))
    who = Parties(Voice("post", post, renderer, plain), Voice("base", base, renderer, plain), (), (other,))
    talks = [Talk(a, a, (f"Tell me about {a}.",), ("a",)) for a in ASKS]
    held = hold([who.post] * len(talks), talks, SamplingPlan(12, 1.0, 3))
    return run_ladder(who, held, n_shots=0, rivals=(), soft=plan)


def explained(run: LadderRun) -> dict[str, float]:
    kl = np.array([k.sum(axis=1) for k in run.explained.kl]).T
    made = shares(kl[0], kl[1:], [h.talk.cluster for h in run.held], rng=np.random.default_rng(0), n_draws=50)
    return {name: s.value for name, s in zip(run.explained.rungs[1:], made, strict=True)}


def hidden(base: HFModel, size: float) -> SoftPrompted:
    prompts = SoftPrompts(base)
    start = prompts.begin([40, 41], 2).vectors
    noise = np.random.default_rng(5).normal(0, float(np.sqrt((start**2).mean())) * size, start.shape)
    return prompts.under((start + noise).astype(np.float32))


# Random weights are chaotic in rotary positions; half of the KL between them is not found by chance either.
@pytest.mark.parametrize(("name", "size", "least"), [("gpt2", 1.0, 0.8), ("llama", 0.3, 0.5)])
def test_hidden_prefix_is_recovered_on_conversations_that_were_not_learned_from(
    name: str, size: float, least: float, tiny_models: dict[str, HFModel]
) -> None:
    base = tiny_models[name]
    found = explained(audited(hidden(base, size), base))
    assert found["R4"] < 0.1
    assert found["R6"] >= least
    assert list(found)[-1] == "R6"


def test_temperature_leaves_nothing_for_a_soft_prompt(tiny_models: dict[str, HFModel]) -> None:
    class Sharper(HFModel):
        def _logits(self, hidden):  # type: ignore[no-untyped-def]
            return super()._logits(hidden) * 1.5

    base = tiny_models["llama"]
    run = audited(Sharper(base.module, base.tokenizer, base.card), base)
    found = explained(run)
    assert found["R1"] >= 0.95
    assert abs(found["R6"] - found["R4"]) <= 0.02


def test_base_against_itself_has_no_gain(tiny_models: dict[str, HFModel]) -> None:
    run = audited(tiny_models["llama"], tiny_models["llama"])
    place = run.explained.rungs.index("R6")
    left = np.array([k[place].sum() for k in run.explained.kl])
    zero = np.array([k[0].sum() for k in run.explained.kl])
    gap = gap_of(zero, np.array([h.n_tokens for h in run.held], np.float64), [h.talk.cluster for h in run.held])
    assert not gap.is_defined
    assert left.mean() < 1e-3, "the mixture keeps to the base"


def test_vectors_in_words_are_the_words(tiny_model: HFModel) -> None:
    """Embeddings of tokens behind the first one are those tokens, where positions move up."""
    rows = (5, 40, 41, 9, 10, 11, 12)
    plain = tiny_model.score([Scorable(rows, 4)])[0].log_probs
    prompts = SoftPrompts(tiny_model)
    view = prompts.under(prompts.begin([40, 41], 2).vectors)
    short = Scorable((5, *rows[3:]), 2)
    soft = view.score([short])[0].log_probs
    if getattr(tiny_model.module.config, "rope_parameters", None) is not None:
        np.testing.assert_allclose(soft, plain, atol=1e-4)
        assert view.card.context_length == tiny_model.card.context_length - 2
    else:
        assert view.card.context_length == tiny_model.card.context_length
        assert np.abs(soft - plain).max() > 1e-3, "positions differ"
    assert view.card.digest != tiny_model.card.digest
    np.testing.assert_allclose(tiny_model.score([short])[0].log_probs, tiny_model.score([short])[0].log_probs)
    again = view.distributions([short])[0]
    np.testing.assert_array_equal(view.from_states(view.states_of(again)).log_probs(0, 2), again.log_probs(0, 2))


def test_learning_in_parts_is_learning_at_once(tiny_models: dict[str, HFModel]) -> None:
    base, plan = tiny_models["qwen3"], SoftPromptPlan(n_vectors=2, steps=6, batch_tokens=40)
    items = [Scorable((5, 6, 7, k, k + 1, k + 2), 4) for k in range(30, 40)]
    targets = hidden(base, 0.5).distributions(items)
    prompts = SoftPrompts(base)
    start = prompts.begin([1, 2, 3], 2)
    whole = prompts.learn(start, items, targets, plan, 6)
    part = prompts.learn(prompts.learn(start, items, targets, plan, 2), items, targets, plan, 99)
    assert whole.step == part.step == 6
    np.testing.assert_array_equal(whole.vectors, part.vectors)
    assert np.abs(whole.vectors - start.vectors).max() > 0


def test_gradient_is_that_of_finite_differences(tiny_models: dict[str, HFModel]) -> None:
    import torch

    base = tiny_models["gemma2"]
    items = [Scorable((5, 6, 7, 30, 31, 32), 3), Scorable((5, 8, 33, 34), 2)]
    targets = hidden(base, 0.7).distributions(items)
    prompts = SoftPrompts(base)
    start = prompts.begin([1, 2], 2)

    def loss(vectors: np.ndarray) -> float:
        made = prompts.under(vectors.astype(np.float32)).distributions(items)
        total = sum(
            float((np.exp(t.log_probs(0, m.n_places).astype(np.float64)) * m.log_probs(0, m.n_places)).sum())
            for t, m in zip(targets, made, strict=True)
        )
        return -total / sum(item.n_scored for item in items)

    with prompts._differentiable():
        got = prompts._gradient(torch.from_numpy(start.vectors.copy()), list(zip(items, targets, strict=True))).numpy()
    for k in (0, 1):
        direction = np.random.default_rng(k).normal(size=got.shape)
        step = 1e-3
        slope = (loss(start.vectors + step * direction) - loss(start.vectors - step * direction)) / (2 * step)
        assert float((got * direction).sum()) == pytest.approx(slope, rel=0.02, abs=1e-3)


def test_closed_form_has_no_gradients_and_the_rung_is_left_out_in_words() -> None:
    world = read_world("tiny")
    exact = ExactModel(world)
    who = parties(exact, ExactModel(world.base), None, world=world)
    assert "gives no gradients" in can_learn(who.base)
    ask = who.post.model.tokenizer.phrases.questions[0]  # type: ignore[attr-defined]
    talks = [Talk(str(k), str(k), (ask,), ("advice",)) for k in range(8)]
    held = hold([who.post] * 8, talks, SamplingPlan(1))
    run = run_ladder(who, held, n_shots=0, rivals=(), soft=PLAN)
    assert "R6" not in run.explained.rungs
    assert any("R6" in note and "gradients" in note for note in run.notes)


def test_number_of_vectors_is_checked() -> None:
    with pytest.raises(InvalidSettings, match="1 to 64"):
        SoftPromptPlan(n_vectors=65)
