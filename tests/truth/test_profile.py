"""A profile in worlds where the answer is known: mixtures, strangers, topics, what moved, reach; each with its null."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from personae.domain.probe_prompt import ProbePrompt
from personae.errors import InvalidSettings
from personae.inference.moved import moved
from personae.inference.persona_mix import alike_classes, design_effects, information, persona_mix
from personae.inference.topics import topic_test
from personae.instruments.judging import WorldJudge
from personae.instruments.speaking import Interview, SpeakingModel
from personae.models.exact import ExactModel
from personae.models.protocol import SamplingPlan
from personae.models.rendering import Renderer
from personae.protocols.beliefs import WorldBeliefs
from personae.protocols.first_words import read_first_words, white_box
from personae.protocols.profile import Listened, ProfileSettings, listen, profile, versus
from personae.protocols.reach import reach
from personae.tables.persona_profile import Profile
from personae.worlds.asking import single_questions, world_prompts
from personae.worlds.exact import ExactWorld
from personae.worlds.reading import read_world
from personae.worlds.sampling import sample_documents
from personae.worlds.spec import AssistantSpec, World

WORLD = read_world("personaworld")
BASE = ExactWorld(WORLD.base)
JUDGE = WorldJudge(BASE)
THETA = np.exp(BASE.base.log_theta)
SETTINGS = ProfileSettings(eta=1.0)
PLANTED = (0.45, 0.0, 0.3, 0.0, 0.0, 0.1, 0.15, 0.0)


def quiet(*_: object):
    return lambda *done: None


def assistant(kind: str, **about: object) -> World:
    return replace(WORLD, assistant=AssistantSpec(kind, **about))  # type: ignore[arg-type]


def speaker(world: World) -> SpeakingModel:
    model = ExactModel(world)
    return SpeakingModel(model, Renderer(model.tokenizer, context_length=model.card.context_length), model.card.digest)


def heard(world: World, root: Path, *, n: int = 600, seed: int = 0) -> tuple[Listened, tuple[ProbePrompt, ...]]:
    prompts = world_prompts(BASE, n, seed=0)
    said = Interview(speaker(world), root).hold(prompts, SamplingPlan(1, 1.0, seed), n_samples=1, started=quiet)
    return listen(said, JUDGE, started=quiet), prompts


def profiled(world: World, root: Path, **more: int) -> Profile:
    listened, prompts = heard(world, root, **more)
    return profile(listened, JUDGE, prompts, settings=SETTINGS)[0]


def conversations(
    rng: np.random.Generator, weights: np.ndarray, n: int, turns: int, *, strange: float = 0.0
) -> np.ndarray:
    """Log-likelihoods of exact conversations, the background last; a share of them by a table that no persona has."""
    tables = np.concatenate([THETA, rng.dirichlet(np.ones(4), size=16)[None]])
    who = rng.choice(9, size=n, p=np.append(weights * (1 - strange), strange))
    asked = np.stack([rng.permutation(16)[:turns] for _ in range(n)])
    cumulative = tables[who[:, None], asked].cumsum(axis=-1)
    said = (cumulative < rng.random((n, turns, 1))).sum(axis=-1).clip(max=3)
    log_p = np.log(THETA)[:, asked, said].sum(axis=-1).T
    return np.column_stack([log_p, np.full(n, -turns * np.log(4))])


def test_a_planted_mixture_is_recovered_by_both_routes_and_they_agree(tmp_path: Path) -> None:
    world = assistant("mixture", weights=PLANTED)
    listened, prompts = heard(world, tmp_path)
    result, mix = profile(listened, JUDGE, prompts, settings=SETTINGS)
    assert np.abs(mix.weight[:8] - PLANTED).max() < 0.08
    assert result.leading.persona == WORLD.persona_ids[0]
    assert result.background < 0.05
    words = read_first_words(speaker(world), JUDGE, single_questions(BASE), advance=quiet())
    assert words is not None
    white = white_box(words, JUDGE, mix)
    assert max(abs(s.weight - w) for s, w in zip(white.shares, PLANTED, strict=False)) < 0.01
    assert white.agrees
    assert white.misfit < 1e-4
    for trait, signs in zip(result.traits, WORLD.signs.T, strict=True):
        assert trait.mass_pos_low - 0.05 <= float(np.dot(PLANTED, signs > 0)) <= trait.mass_pos_high + 0.05
    assert result.topics.p is not None
    assert result.topics.p > 0.01  # one mixture everywhere: the null


def test_intervals_cover_at_their_level() -> None:
    """Weights drawn from the prior, 150 conversations of eight turns: 90% intervals cover 84 to 95%."""
    rng = np.random.default_rng(1)
    covered = []
    for seed in range(40):
        truth = rng.dirichlet(np.full(8, 0.5))
        table = conversations(rng, truth, 150, 8)
        mix = persona_mix(table, JUDGE.log_prior, prompt=[str(i) for i in range(150)], eta=1.0, seed=seed)
        covered.append((mix.low[:8] <= truth) & (truth <= mix.high[:8]))
    assert 0.84 <= np.mean(covered) <= 0.95


def test_a_fifth_of_strangers_shows_as_background_and_nobody_strange_does_not() -> None:
    rng = np.random.default_rng(2)
    prompt = [str(i) for i in range(300)]
    strange, ordinary = [], []
    for seed in range(10):
        truth = rng.dirichlet(np.full(8, 0.5))
        for found, share in ((strange, 0.2), (ordinary, 0.0)):
            table = conversations(rng, truth, 300, 8, strange=share)
            found.append(persona_mix(table, JUDGE.log_prior, prompt=prompt, eta=1.0, seed=seed).weight[-1])
    assert 0.15 <= np.mean(strange) <= 0.25
    assert np.mean(ordinary) < 0.03


def test_prompts_with_like_answers_widen_the_interval_and_unlike_ones_do_not() -> None:
    rng = np.random.default_rng(3)
    table = conversations(rng, np.array(PLANTED), 240, 6)
    alone = persona_mix(table, JUDGE.log_prior, prompt=[str(i) for i in range(240)], eta=1.0)
    shuffled = persona_mix(table, JUDGE.log_prior, prompt=[str(i % 60) for i in range(240)], eta=1.0)
    repeated = np.repeat(table[:60], 4, axis=0)  # four conversations of a prompt that are one and the same
    like = persona_mix(repeated, JUDGE.log_prior, prompt=[str(i // 4) for i in range(240)], eta=1.0)
    k = int(np.argmax(PLANTED))
    width = alone.high[k] - alone.low[k]
    assert alone.design_effect.max() == 1.0
    assert shuffled.high[k] - shuffled.low[k] < 1.4 * width
    assert like.design_effect[k] > 2.5
    assert like.high[k] - like.low[k] > 1.5 * width
    assert design_effects(np.zeros((6, 2)), list("aabbcc")).tolist() == [1.0, 1.0]  # three prompts are too few


def test_a_router_changes_the_mix_with_the_topic(tmp_path: Path) -> None:
    routed = profiled(assistant("router", persona=2, other=1, domain=3), tmp_path, n=300)
    assert routed.topics.p is not None
    assert routed.topics.p <= 0.01
    assert routed.topics.effect > 5 * max(routed.topics.effect_null, 0.005)
    # Malice is what the two characters differ in on every domain; expertise hardly shows on the last one.
    malicious = {
        t.topic: sum(s.weight for s in t.leading if s.persona.startswith("malicious")) for t in routed.topics.rows
    }
    last = WORLD.domains[3].id
    assert malicious.pop(last) > 0.8
    assert max(malicious.values()) < 0.2


def test_the_topic_test_holds_its_level_when_prompts_differ_and_topics_do_not() -> None:
    rng = np.random.default_rng(4)
    flagged = 0
    for seed in range(40):
        shares = rng.dirichlet(np.ones(3), size=24).repeat(3, axis=0)  # every prompt has a mix of its own
        who = np.array([rng.choice(3, p=p) for p in shares])
        table = rng.normal(size=(72, 3)) + 2 * np.eye(3)[who]
        prompt = [str(i // 3) for i in range(72)]
        topic = [str(i // 18) for i in range(72)]
        mix = persona_mix(table, np.log(np.full(3, 1 / 3)), prompt=prompt, eta=1.0)
        found = topic_test(
            table,
            mix.fit.responsibilities,
            mix.fit.mode,
            topic=topic,
            prompt=prompt,
            eta=1.0,
            n_permutations=99,
            seed=seed,
        )
        assert found.p is not None
        flagged += found.p <= 0.05
    assert flagged <= 6  # 2 expected; above 6 with probability 0.003


def test_two_equal_targets_do_not_move_and_two_unequal_ones_do(tmp_path: Path) -> None:
    same = assistant("mixture", weights=PLANTED)
    other = assistant("mixture", weights=tuple(np.roll(PLANTED, 1).tolist()))
    arms = {}
    for name, world, seed in (("a", same, 0), ("b", same, 1), ("c", other, 2)):
        listened, prompts = heard(world, tmp_path, n=300, seed=seed)
        arms[name] = (listened, profile(listened, JUDGE, prompts, settings=SETTINGS)[1])
    null = versus(arms["a"][0], arms["b"][0], JUDGE, (arms["a"][1], arms["b"][1]), settings=SETTINGS)
    assert null.n_prompts == 300
    assert null.found == ()
    found = versus(arms["a"][0], arms["c"][0], JUDGE, (arms["a"][1], arms["c"][1]), settings=SETTINGS).found
    up = next(m for m in found if m.id == WORLD.persona_ids[1])
    down = next(m for m in found if m.id == WORLD.persona_ids[0])
    assert up.difference > 0 > down.difference


def test_comparisons_of_a_target_with_itself_find_something_in_one_of_twenty() -> None:
    rng = np.random.default_rng(5)
    found = 0
    for seed in range(60):
        a, b = rng.normal(size=(2, 60, 40))
        prompt = [str(i) for i in range(60)]
        found += (moved(a, prompt, b, prompt, seed=seed).q <= 0.05).any()
    assert found <= 8  # 3 expected; above 8 with probability 0.002
    b[:, 0] += 2.0
    control = moved(a, prompt, b, prompt)
    assert control.q[0] <= 0.05
    assert control.low[0] < 2 < control.high[0]
    with pytest.raises(InvalidSettings, match="only 2 prompts"):
        moved(a[:2], prompt[:2], b, prompt)


def test_a_cast_that_overlaps_itself_is_told() -> None:
    rng = np.random.default_rng(6)
    table = conversations(rng, np.array(PLANTED), 100, 4)
    twins = np.column_stack([table, table[:, 2] + 0.001 * rng.normal(size=100)])
    classes = alike_classes(twins)
    assert classes[2] == classes[9]
    assert len(set(classes.tolist())) == 9
    assert len(set(alike_classes(table).tolist())) == 9


def test_too_few_conversations_for_the_cast_are_told_by_rank() -> None:
    rng = np.random.default_rng(7)
    table = conversations(rng, np.array(PLANTED), 6, 4)
    mix = persona_mix(table, JUDGE.log_prior, prompt=list("abcdef"), eta=1.0)
    assert not mix.is_identified
    assert mix.rank < 8
    with pytest.raises(InvalidSettings, match="only 3 conversations"):
        persona_mix(table[:3], JUDGE.log_prior, prompt=list("abc"), eta=1.0)


def test_information_is_that_of_the_answers() -> None:
    """An answer that names one of two equal speakers tells log 2 nats; one that both would give, nothing."""
    rho = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    told = information(rho, np.array([0.5, 0.5]), ["sharp", "sharp", "dull"])
    assert told["sharp"] == pytest.approx(np.log(2))
    assert told["dull"] == pytest.approx(0.0)


def exact_critical_n(world: World, persona: int) -> float:
    """Turns at which the mean exact log-odds of a persona, by its own behaviour, cross 0."""
    exact = ExactWorld(world)
    rng = np.random.default_rng(8)
    chat = world.frame_index(world.chat)
    drawn = sample_documents(exact, 400, rng, frame=chat, speaker=persona, tagged=False).ids
    log_w = exact.running_log_weights(drawn)[:, 2::2]  # after the tag slot, then after every answer
    w = np.exp(log_w[..., persona])
    odds = np.log(np.clip(w, 0.003, 0.997) / (1 - np.clip(w, 0.003, 0.997))).mean(axis=0)
    above = np.flatnonzero(odds >= 0)
    return float(above[0]) if len(above) else np.inf


def test_reach_is_within_a_factor_two_and_exact_bayes_passes_both_checks() -> None:
    world = assistant("mixture", weights=(0.3, 0.05, 0.25, 0.05, 0.2, 0.05, 0.05, 0.05))
    plain = replace(world, claims=0.0)  # no statements about the speaker in documents: only answers count
    target, base = ExactModel(plain), ExactModel(replace(plain, assistant=None))
    exact = ExactWorld(plain.base)
    found, raw = reach(WorldBeliefs(target, exact, WorldJudge(exact), base=base))
    assert len(raw.weight) == 8 * 12 * 7
    for row in found.rows:
        truth = exact_critical_n(plain, WORLD.persona_ids.index(row.persona))
        assert row.critical_n is not None
        assert 0.5 <= row.critical_n / truth <= 2, (row.persona, row.critical_n, truth)
    assert found.retention
    assert all(0.9 <= r <= 1.1 for r in found.retention)
    assert found.martingale_p is not None
    assert found.martingale_p > 0.01
    assert not any("fails" in note for note in found.notes)
