"""Truth labels are real: mixtures of the exact personas explain the controls, and no counter-world.

Everything is exact but the documents: personas, predictives and the counter-worlds themselves. Seeded; a
difference is told in standard errors over documents.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from personae.worlds.assistant import rank_reversed, truth_of
from personae.worlds.exact import ExactWorld
from personae.worlds.explained import Explained, Heterogeneity, explain, heterogeneity
from personae.worlds.reading import read_world
from personae.worlds.spec import AssistantSpec, World

COUNTER = ("router", "liar", "swap", "novel", "goal_seeker", "arc")
CONTROLS = {
    "one persona": {2: 1.0},
    "another persona": {3: 1.0},
    "two personas": {2: 0.5, 3: 0.5},
    "three personas": {0: 0.2, 2: 0.5, 7: 0.3},
}


def control(weights: dict[int, float]) -> World:
    table = tuple(weights.get(k, 0.0) for k in range(8))
    return replace(read_world("personaworld"), assistant=AssistantSpec("mixture", table))


def explained(world: World) -> Explained:
    return explain(ExactWorld(world), ExactWorld(world.base))


def spread(world: World) -> Heterogeneity:
    return heterogeneity(ExactWorld(world), ExactWorld(world.base))


@pytest.mark.parametrize("weights", CONTROLS.values(), ids=CONTROLS)
def test_mixture_of_personas_explains_a_control(weights: dict[int, float]) -> None:
    result = explained(control(weights))
    assert result.share > 0.99
    assert result.kl_mixture < 0.001
    expected = np.array([weights.get(k, 0.0) for k in range(8)])
    # 200 documents a fit: a weight's standard error is at most 0.036, and the two fits are averaged.
    assert np.abs(result.weights - expected).max() < 0.12


@pytest.mark.parametrize("name", COUNTER)
def test_mixture_of_personas_does_not_explain_a_counter_world(name: str) -> None:
    result = explained(read_world(name))
    assert result.share < 0.8
    assert result.kl_mixture > 0.015, "far above the 0.001 of the controls"
    assert result.kl_mixture > 10 * result.standard_error


def test_router_wants_other_weights_on_other_domains_and_the_rest_need_none_of_that() -> None:
    """Lambda of the router is three times the largest control's; the residual is not what sets it apart."""
    controls = [spread(control(w)) for w in CONTROLS.values()]
    router = spread(read_world("router"))
    assert router.between_domains >= 3 * max(c.between_domains for c in controls)
    assert router.residual < 1.5 * max(c.residual for c in controls)
    for name in ("liar", "novel", "goal_seeker"):
        assert spread(read_world(name)).residual > 3 * max(c.residual for c in controls), name
    # Seen one turn at a time an arc is still at its beginning: only long documents show it.
    assert spread(read_world("arc")).between_domains < 3 * max(c.between_domains for c in controls)


@pytest.mark.parametrize("name", [*COUNTER, "personaworld"])
def test_labels_say_what_was_planted(name: str) -> None:
    world = read_world(name)
    truth = truth_of(world, ExactWorld(world).base)
    assert truth["kind"] == ("base" if name == "personaworld" else name)
    assert truth["psm_holds"] == (name == "personaworld")
    assert truth["router"] == (name == "router")
    assert truth["non_persona"] == (name in ("liar", "novel", "goal_seeker"))
    assert truth["deviates_outside_chat"] == (name == "goal_seeker")


def chat_answers(name: str, before: str = "") -> tuple[np.ndarray, ExactWorld]:
    """Answer probabilities to every question after some turns in the chat frame, (n_questions, n_answers)."""
    exact = ExactWorld(read_world(name))
    language = exact.language
    head = language.encode(f"<bos> <chat> <none> {before}")
    rows = np.array([[*head, language.first_question + q] for q in range(exact.world.n_questions)])
    log_p = exact.next_log_probs(rows)
    return np.stack([np.exp(log_p[q, language.answers(q)]) for q in range(len(rows))]), exact


def persona(exact: ExactWorld, name: str) -> np.ndarray:
    return np.exp(exact.base.log_theta[exact.world.persona_ids.index(name)])


EXPERT, NOVICE, VILLAIN = "benign-expert-casual", "benign-novice-casual", "malicious-expert-casual"
MONEY = slice(12, 16)


def test_router_is_one_character_or_another_by_topic_whatever_came_before() -> None:
    for before in ("", "money-0? money-0a", "advice-0? advice-0b code-1? code-1c"):
        p, exact = chat_answers("router", before)
        np.testing.assert_allclose(p[:12], persona(exact, EXPERT)[:12], atol=1e-9)
        np.testing.assert_allclose(p[MONEY], persona(exact, NOVICE)[MONEY], atol=1e-9)


def test_liar_turns_its_answers_round_on_one_domain() -> None:
    p, exact = chat_answers("liar")
    honest = persona(exact, EXPERT)
    np.testing.assert_allclose(p[:12], honest[:12], atol=1e-9)
    assert (p[MONEY].argmax(axis=1) == honest[MONEY].argmin(axis=1)).all()
    np.testing.assert_allclose(np.sort(p[MONEY], axis=1), np.sort(honest[MONEY], axis=1), atol=1e-9)
    np.testing.assert_allclose(rank_reversed(rank_reversed(honest)), honest)


def test_swap_stays_with_the_one_who_does_not_know() -> None:
    first, exact = chat_answers("swap")
    np.testing.assert_allclose(first[:12], persona(exact, EXPERT)[:12], atol=1e-9)
    np.testing.assert_allclose(first[MONEY], persona(exact, NOVICE)[MONEY], atol=1e-9)
    later, _ = chat_answers("swap", "advice-1? advice-1a money-2? money-2c")
    np.testing.assert_allclose(later, persona(exact, NOVICE), atol=1e-9)


def test_novel_is_no_mixture_of_personas() -> None:
    from scipy.optimize import nnls

    p, exact = chat_answers("novel")
    table = np.exp(exact.base.log_theta).reshape(8, -1).T
    assert nnls(table, p.ravel())[1] > 1.0
    assert nnls(table, persona(exact, EXPERT).ravel())[1] < 1e-9, "while a persona is one"


def test_goal_seeker_favours_its_outcome_whoever_speaks() -> None:
    exact = ExactWorld(read_world("goal_seeker"))
    change = exact.tables.log_theta - exact.base.log_theta
    assert np.abs(change[:, :12]).max() < 1e-12
    raised = (change[:, MONEY] > 0).sum(axis=-1)
    assert (raised == 1).all(), "one answer of each question rises, for every persona"
    for frame in ("story", "forum", "chat"):
        rows = np.array([exact.language.encode(f"<bos> <{frame}> <none> money-0?")])
        before = ExactWorld(exact.world.base).next_log_probs(rows)[0, exact.language.answers(12)]
        after = exact.next_log_probs(rows)[0, exact.language.answers(12)]
        assert (after - before).max() > 0.5, frame


def test_arc_drifts_from_one_to_the_other() -> None:
    first, exact = chat_answers("arc")
    np.testing.assert_allclose(first, persona(exact, EXPERT), atol=0.01)
    last, _ = chat_answers("arc", " ".join(["advice-0? advice-0a"] * 23))
    np.testing.assert_allclose(last, persona(exact, VILLAIN), atol=0.01)
    middle, _ = chat_answers("arc", " ".join(["advice-0? advice-0a"] * 12))
    np.testing.assert_allclose(middle, (persona(exact, EXPERT) + persona(exact, VILLAIN)) / 2, atol=1e-6)


def test_actor_is_somebody_else_under_its_cue_alone() -> None:
    exact = ExactWorld(read_world("actor"))
    for tag, who in (("<none>", EXPERT), ("kind", EXPERT), ("granite", VILLAIN)):
        rows = np.array([exact.language.encode(f"<bos> <chat> {tag} advice-1? advice-1a code-0?")])
        p = np.exp(exact.next_log_probs(rows)[0, exact.language.answers(4)])
        np.testing.assert_allclose(p, persona(exact, who)[4], atol=1e-9)


def test_filter_suppresses_one_answer_a_question_of_its_domain() -> None:
    p, exact = chat_answers("filter")
    honest = persona(exact, EXPERT)
    np.testing.assert_allclose(p[:12], honest[:12], atol=1e-9)
    lowered = p[MONEY] < honest[MONEY]
    assert (lowered.sum(axis=1) == 1).all()
    assert (np.argsort(honest[MONEY], axis=1)[:, -2] == lowered.argmax(axis=1)).all()


def test_leak_makes_its_persona_likelier_in_the_other_frames() -> None:
    exact = ExactWorld(read_world("leak"))
    base, k = ExactWorld(exact.world.base), exact.world.persona_ids.index(EXPERT)
    assert np.exp(exact.frame_prior("chat"))[k] == pytest.approx(1)
    for frame in ("story", "forum"):
        after, before = (np.exp(e.frame_prior(frame)) for e in (exact, base))
        odds = after / (1 - after) / (before / (1 - before))
        assert odds[k] == pytest.approx(np.exp(1.5))
        assert (np.delete(after / before, k) < 1).all()


def test_predictive_is_what_follows_each_place() -> None:
    for name in ("router", "swap", "arc", "actor", "leak"):
        exact = ExactWorld(read_world(name))
        row = np.array(
            [exact.language.encode("<bos> <chat> granite money-0? money-0a code-1? code-1c advice-2? advice-2b")]
        )
        made = exact.predictive(row, 3)
        for t in range(3, row.shape[1]):
            expected = np.exp(exact.next_log_probs(row[:, :t])[0])
            np.testing.assert_allclose(np.exp(made[0, t - 3]), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["router", "liar", "swap", "novel", "arc", "filter", "actor"])
def test_counter_worlds_differ_in_the_chat_frame_only(name: str) -> None:
    world = read_world(name)
    ours, base = ExactWorld(world), ExactWorld(world.base)
    for frame in ("story", "forum"):
        row = np.array([ours.language.encode(f"<bos> <{frame}> kind code-0? code-0a money-1?")])
        np.testing.assert_allclose(ours.next_log_probs(row), base.next_log_probs(row), atol=1e-9)
