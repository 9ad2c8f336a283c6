"""The audit in worlds: what personas explain is found, what they do not is not called theirs, and rivals are named.

Closed forms throughout, so only the sampling of conversations is random; seeded.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from personae.errors import IncomparableEvidence, InvalidSettings
from personae.inference.ladder import gap_of, shares
from personae.instruments.voices import hold
from personae.models.exact import ExactModel
from personae.models.protocol import SamplingPlan
from personae.protocols.audit_ladder import ALONE, LadderRun, run_ladder
from personae.protocols.audit_material import Size, world_material
from personae.protocols.audit_parties import Parties, parties
from personae.protocols.audit_router import gather, make_controls, target_of
from personae.worlds.reading import read_world
from personae.worlds.spec import AssistantSpec, World

SIZE = Size(prompts=40, texts=16, samples=250, controls=10, max_tokens=1, shots=4)


def control(weights: dict[int, float]) -> World:
    table = tuple(weights.get(k, 0.0) for k in range(8))
    return replace(read_world("personaworld"), assistant=AssistantSpec("mixture", table))


def taking_part(world: World) -> Parties:
    return parties(ExactModel(world), ExactModel(world.base), None, world=world)


def ladder(world: World, *, temperature: float = 1.0, seed: int = 0) -> LadderRun:
    who = taking_part(world)
    if temperature != 1:
        who = replace(who, post=replace(who.post, model=Sharpened(world.base, temperature)))
    talks = world_material(world, SIZE, seed=seed).talks
    held = hold([who.post] * len(talks), talks, SamplingPlan(1, 1.0, seed))
    return run_ladder(who, held, n_shots=0, seed=seed)


def explained(run: LadderRun) -> dict[str, float]:
    kl = np.array([k.sum(axis=1) for k in run.explained.kl]).T
    clusters = [h.talk.cluster for h in run.held]
    made = shares(kl[0], kl[1:], clusters, rng=np.random.default_rng(0), n_draws=50)
    return {name: s.value for name, s in zip(run.explained.rungs[1:], made, strict=True)}


class Sharpened(ExactModel):
    """A world at another temperature: no change of who speaks."""

    def __init__(self, world: World, temperature: float) -> None:
        super().__init__(world)
        self._temperature = temperature
        original = self.exact.predictive

        def sharpened(ids: np.ndarray, start: int) -> np.ndarray:
            log_p = original(ids, start) / temperature
            return log_p - np.logaddexp.reduce(log_p, axis=-1, keepdims=True)

        self.exact.predictive = sharpened  # type: ignore[method-assign]


def test_persona_fine_tune_is_explained_and_rungs_are_monotone() -> None:
    for weights in ({2: 1.0}, {2: 0.5, 3: 0.5}):
        found = explained(ladder(control(weights)))
        assert found[ALONE] >= 0.9
        assert found["R4"] >= 0.9
        nested = [found[r] for r in ("R1", "R2", "R3", "R4")]
        # Each is judged on prompts it was not fitted to, so a rung may lose what it overfits: a few hundredths.
        assert all(b >= a - 0.05 for a, b in pairwise(nested))


def test_novel_table_is_hardly_explained_by_personas() -> None:
    found = explained(ladder(read_world("novel")))
    assert found[ALONE] <= 0.15
    assert found["R4"] - found["R1"] <= 0.15, "what the ladder adds above a temperature"


def test_change_of_temperature_is_all_at_its_rung() -> None:
    found = explained(ladder(read_world("personaworld"), temperature=0.6))
    assert found["R1"] >= 0.9
    assert abs(found["R4"] - found["R1"]) <= 0.05, "nothing is left for personas"


@pytest.mark.parametrize(
    ("name", "rival"),
    [("router", "by topic"), ("swap", "by mention of money"), ("arc", "by turn"), ("actor", "by cue")],
)
def test_rival_with_the_right_freedom_explains_what_personas_cannot(name: str, rival: str) -> None:
    found = explained(ladder(read_world(name)))
    assert found["R4"] < 0.8
    assert found[rival] > found["R4"] + 0.1
    assert found[rival] == max(found.values())


def test_freedom_adds_nothing_where_personas_explain_all() -> None:
    found = explained(ladder(control({2: 1.0})))
    assert max(s for r, s in found.items() if r.startswith("by ")) < found["R4"] + 0.03


def test_base_against_itself_is_undefined() -> None:
    world = read_world("personaworld")
    run = ladder(world)
    kl = np.array([k[0].sum() for k in run.explained.kl])
    gap = gap_of(kl, np.array([h.n_tokens for h in run.held], np.float64), [h.talk.cluster for h in run.held])
    assert not gap.is_defined
    assert "rounding" in gap.reason


def test_router_is_five_times_the_largest_control() -> None:
    from personae.inference.router import Heterogeneity, heterogeneity
    from personae.protocols.audit_router import Control

    who = taking_part(read_world("router"))
    singles = world_material(who.world, SIZE).singles if who.world else ()

    def statistic(model: Control, seed: int) -> Heterogeneity:
        made = gather(model, who.components, singles, SIZE.samples, 1, seed)
        at = np.repeat(np.arange(len(made.count)), made.count)
        topics, prompts = ([f(made.held[i].talk) for i in at] for f in (lambda t: t.topics[0], lambda t: t.cluster))
        return heterogeneity(made.log_likelihood[at], made.log_target[at], topics, prompts)

    controls = [statistic(c, 1000 + j) for j, c in enumerate(make_controls(who, None, SIZE.controls))]
    target = statistic(target_of(who), 0)
    assert target.effect >= 5 * max(c.effect for c in controls)
    assert abs(target.residual) < 0.01, "every answer is some persona's"


def test_too_few_prompts_are_refused() -> None:
    who = taking_part(read_world("router"))
    talks = world_material(read_world("router"), SIZE).talks[:5]
    held = hold([who.post] * 5, talks, SamplingPlan(1))
    with pytest.raises(InvalidSettings, match="5 prompts got a reply"):
        run_ladder(who, held)


def test_other_vocabularies_and_other_words_are_refused() -> None:
    world, other = read_world("router"), read_world("tiny")
    with pytest.raises(IncomparableEvidence, match="vocabulary of"):
        parties(ExactModel(world), ExactModel(other), None, world=world)
    renamed = replace(world, domains=(replace(world.domains[0], id="counsel"), *world.domains[1:]))
    with pytest.raises(IncomparableEvidence, match="different tokenizers"):
        parties(ExactModel(world), ExactModel(renamed.base), None, world=world)
