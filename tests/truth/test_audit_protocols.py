"""Every protocol of an audit has its null and its planted positive: coin, knowledge, breaks, texts, trend, views."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from benchmarks.scorecard.run import audit_world, values_of
from benchmarks.scorecard.specs import NEW, draw_world

from personae.inference.coin import Flip, contrast, swing
from personae.inference.scorecard import KIND_VIEWS, STATISTICS, score, shipped_expectations
from personae.inference.trend import changes
from personae.models.exact import ExactModel
from personae.protocols.audit import measure
from personae.protocols.audit_breaks import BreakReading, judge_breaks, plant_breaks, read_breaks
from personae.protocols.audit_conclusions import conclude
from personae.protocols.audit_lie import LIE, NEITHER, ROUTER, SWAP
from personae.protocols.audit_material import Size, world_material
from personae.protocols.audit_parties import parties
from personae.tables.audit import Audit
from personae.worlds.reading import read_world

RNG = 7
SIZE = Size(prompts=32, texts=16, samples=50, controls=2, max_tokens=1, shots=0)


def flips(bias: float, *, lean: float = 0.8, noise: float = 0.2, kind: str = "real", model: str = "post") -> list[Flip]:
    """Throws of a model that leans to heads and, by `bias` logits, to what is preferred."""
    rng = np.random.default_rng(RNG)
    made = []
    for i, j, heads, first in product(range(6), range(6), (True, False), (True, False)):
        logit = lean + (bias if heads else -bias) + noise * rng.standard_normal()
        p = 1 / (1 + np.exp(-logit))
        made.append(Flip(model, "text", kind, i, j, heads, first, float(np.log(0.9 * p)), float(np.log(0.9 * (1 - p)))))
    return made


def test_planted_bias_of_the_coin_is_recovered_and_a_leaning_to_heads_is_none() -> None:
    rng = np.random.default_rng(0)
    for bias in (0.0, 0.15, 0.5):
        true = float(1 / (1 + np.exp(-0.8 - bias)) - 1 / (1 + np.exp(-0.8 + bias)))
        found = swing(flips(bias), "planted", rng=rng)
        assert abs(found.probability - true) < 0.03
        assert found.logit == pytest.approx(2 * bias, abs=0.1)
        assert found.is_found == (bias > 0)
        assert found.mass == pytest.approx(0.9)
    same = contrast(flips(0.3), flips(0.3, model="base"), "nothing changed", rng=rng)
    assert same.logit == pytest.approx(0)
    assert contrast(flips(0.3), flips(0.0, model="base"), "trained", rng=rng).logit_low > 0


def test_trend_names_the_step_that_changed_and_holds_the_family() -> None:
    rng = np.random.default_rng(3)
    flat = [{f"s{k}": (float(rng.normal(0, 1)), 1.0) for k in range(10)} for _ in range(6)]
    planted = [{**row, "share": (0.1 if step < 4 else 9.0, 1.0)} for step, row in enumerate(flat)]
    found = {(c.statistic, c.step): c.p for c in changes(planted) if c.is_found}
    assert min(found, key=lambda c: found[c]) == ("share", 4), "others are false alarms, counted below"
    assert ("share", 3) not in found
    assert ("share", 5) not in found
    alarms = 0
    for _ in range(200):
        rows = [{f"s{k}": (float(rng.normal(0, 1)), 1.0) for k in range(5)} for _ in range(4)]
        alarms += any(c.is_found for c in changes(rows))
    # 5% of 200 is 10; 21 or more has a probability below 0.1% under that rate.
    assert alarms <= 20


@pytest.fixture(scope="module")
def audits() -> dict[str, Audit]:
    return {
        name: audit_world(read_world(name))
        for name in ("router", "swap", "liar", "leak", "goal_seeker", "personaworld")
    }


def test_lie_swap_and_router_are_told_apart(audits: dict[str, Audit]) -> None:
    verdicts = {n: audits[n].knowledge_verdict for n in ("liar", "swap", "router", "leak")}
    assert verdicts == {"liar": LIE, "swap": SWAP, "router": ROUTER, "leak": NEITHER}
    assert audits["swap"].knowledge_topic == audits["liar"].knowledge_topic == "money"


def test_what_leaks_out_of_chat_is_seen_and_what_does_not_is_not(audits: dict[str, Audit]) -> None:
    for name in ("leak", "goal_seeker"):
        assert (audits[name].outside_ratio or 0) > 0.05
        coin = next(s for s in audits[name].swings if s.kind == "post minus base")
        assert coin.logit_low > 0, name
        placebo = next(s for s in audits[name].swings if s.kind == "placebo")
        assert abs(placebo.logit) < coin.logit
    assert (audits["leak"].outside_share or 0) > (audits["goal_seeker"].outside_share or 0) + 0.2
    for name in ("router", "swap", "liar"):
        assert (audits[name].outside_ratio or 0) < 1e-6
        coin = next(s for s in audits[name].swings if s.kind == "post minus base")
        assert coin.logit == pytest.approx(0, abs=1e-6)


def test_base_against_itself_finds_nothing_and_gives_no_verdict(audits: dict[str, Audit]) -> None:
    same = audits["personaworld"]
    assert same.undefined
    found = 0
    for seed in range(20):
        world = draw_world("mixture", 500 + seed).base
        little = Size(prompts=8, texts=0, samples=1, controls=0, max_tokens=1, shots=0)
        who = parties(ExactModel(world), ExactModel(world), None, world=world)
        log = measure(
            who, world_material(world, little, seed=seed), little, cast=None, seed=seed, protocols=("knowledge",)
        )
        card = conclude(log).scorecard
        found += card is None or bool(card.verdict)
    assert found <= 1


def test_planted_breaks_are_found_more_often_than_ordinary_replies_are_called_broken() -> None:
    """The base going on with its own plain text in the middle of a chat, in a world whose Assistant is one persona."""
    rng = np.random.default_rng(11)
    made = [BreakReading(f"o{i}", "ordinary", "t", float(rng.gumbel(0, 0.5)), 0, -1, 16, "") for i in range(200)]
    made += [BreakReading(f"p{i}", "planted", "t", float(rng.normal(6, 1)), 9, 8, 16, "") for i in range(40)]
    judged = judge_breaks(made)
    assert judged.planted_rate > 0.9
    assert judged.onset_error == 1
    world = read_world("liar")
    who = parties(ExactModel(world), ExactModel(world.base), None, world=world)
    from personae.instruments.voices import hold
    from personae.models.protocol import SamplingPlan

    held = hold([who.post] * 40, [t for t in world_material(world, SIZE).talks if not t.cue][:40], SamplingPlan(1))
    planted, cuts = plant_breaks(who.frames[0], held, SamplingPlan(1, 1.0, 5))
    inside, even = [who.personas[2]], np.zeros(1)
    readings = read_breaks(who.frames[0], inside, even, held, "ordinary")
    readings += read_breaks(who.frames[0], inside, even, planted, "planted", cuts)
    assert all(cut == len(h.replies) // 2 for cut, h in zip(cuts, held, strict=False))
    assert np.isfinite([r.statistic for r in readings]).all()


def test_scorecard_names_the_view_of_worlds_it_was_not_fitted_on() -> None:
    """Ten worlds, one of each kind, of seeds and ranges that no training world had."""
    known = shipped_expectations()
    right, brier = 0, []
    for kind, view in KIND_VIEWS.items():
        values, errors = values_of(audit_world(draw_world(kind, 20_000, NEW)))
        card = score(values, errors, known)
        right += card.verdict == view
        brier.append(sum((p - (v == view)) ** 2 for v, p in card.probability.items()) / 2)
    assert right >= 8
    assert np.mean(brier) <= 0.15


def test_scorecard_abstains_without_evidence_and_far_from_every_view() -> None:
    known = shipped_expectations()
    nothing = score(dict.fromkeys(STATISTICS), {}, known)
    assert not nothing.verdict
    assert "0 statistics" in nothing.abstains
    assert max(nothing.probability.values()) == pytest.approx(1 / 7)
    odd = score({"alone": -1.0, "topic_gain": 1.0, "turn_gain": 1.0, "cue_gain": 1.0, "coin": -3.0}, {}, known)
    assert not odd.verdict
    assert "no view expects" in odd.abstains
    blurred = score({n: 0.5 for n in STATISTICS}, dict.fromkeys(STATISTICS, 50.0), known)
    assert not blurred.verdict, "errors far above every difference"


def test_statistics_far_apart_say_what_would_change_the_verdict() -> None:
    known = shipped_expectations()
    at = known.kinds.index("mixture")
    values = {n: float(m) if np.isfinite(m) else None for n, m in zip(STATISTICS, known.mean[at], strict=True)}
    card = score(values, {}, known)
    assert card.verdict == "strict"
    assert card.would_change
    assert card.rival != "strict"
