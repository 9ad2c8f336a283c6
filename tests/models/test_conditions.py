"""Prompts of `vectors conditions` on a model: passes shared among traits, states of each trait's own questions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from personae.domain.diagnostic import Diagnostic
from personae.domain.episode import Episode, Turn
from personae.domain.persona import Cast
from personae.files.casts import load_casts
from personae.models.activations import require_activations
from personae.models.rendering import Renderer
from personae.protocols.conditions import common_prompts, measure_prompts, prompts_for
from personae.protocols.vector_material import contrasts


def items(trait: str, asked: str, *, split: str = "test") -> list[Diagnostic]:
    def one(k: int) -> Diagnostic:
        texts = f"{trait} yes {k}", f"{trait} no {k}", f"{asked} {k}?"
        return Diagnostic(f"{trait}/{k}", trait, "reply", f"t{k}", *texts, split)

    return [one(k) for k in range(4)]


@pytest.fixture
def prompts(tiny_model):  # type: ignore[no-untyped-def]
    model = require_activations(tiny_model)
    renderer = Renderer(tiny_model.tokenizer, context_length=tiny_model.card.context_length)
    cast = load_casts(["core"]).select(["formal"])
    rng = np.random.default_rng(0)
    (contrast,) = contrasts(cast)
    made = prompts_for(renderer, contrast, items("formal", "show", split="dev"), n=3, rng=rng)
    return model, renderer, made


def test_scores_are_those_of_one_request_at_a_time(prompts) -> None:  # type: ignore[no-untyped-def]
    model, renderer, made = prompts
    both = {"a": items("a", "same"), "b": items("b", "same")}
    found = measure_prompts(model, renderer, made, both)
    for trait, mine in both.items():
        for k, prompt in enumerate(made):
            asked = [
                replace(
                    renderer.render(prompt.frame, Episode("x", (*prompt.shots, Turn("user", i.prompt)), text)), shared=0
                )
                for i in mine
                for text in (i.pos, i.neg)
            ]
            alone = np.array([model.score([one])[0].log_likelihood for one in asked]).reshape(-1, 2)
            assert found.scores[trait][k] == pytest.approx((alone[:, 0] - alone[:, 1]).mean(), abs=1e-3)


def test_states_are_of_a_traits_own_questions(prompts) -> None:  # type: ignore[no-untyped-def]
    model, renderer, made = prompts
    apart = measure_prompts(model, renderer, made[:3], {"a": items("a", "one"), "b": items("b", "two")})
    alone = measure_prompts(model, renderer, made[:3], {"a": items("a", "one")})
    np.testing.assert_allclose(apart.values["a"], alone.values["a"], atol=1e-4)
    assert np.abs(apart.values["a"] - apart.values["b"]).max() > 1e-3
    same = measure_prompts(model, renderer, made[:3], {"a": items("a", "one"), "b": items("b", "one")})
    assert same.values["a"] is same.values["b"]


def test_types_of_a_small_cast(prompts) -> None:  # type: ignore[no-untyped-def]
    """Where nothing else can be told, that type is left out and none is short."""
    _, renderer, made = prompts
    cast = load_casts(["core"]).select(["formal"])
    common = common_prompts(renderer, Cast("small", cast.traits), ["formal"], n=3, rng=np.random.default_rng(0))
    assert [p.type for p in common] == ["plain"] * 3
    assert [p.type_for("formal") for p in made[:3]] == ["told to"] * 3
    assert {p.type_for("anxious") for p in made} == {"told to: formal", "told not to: formal", "shown: formal"}
    assert [p.n_positive for p in made if p.type == "shown"] == [0, 1, 2] * 2
