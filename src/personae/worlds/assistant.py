"""The Assistant of a world, and the ways in which it may be no plain persona. Each comes with its truth.

    mixture      a mixture of personas: PSM holds                       (control)
    router       persona A, but persona B on one domain: chosen by topic, one question at a time
    liar         persona A, but on one domain its answers have their ranks reversed
    swap         persona A until one domain is asked about, persona B (who does not know) from then on
    novel        a table of answers that no persona has (Dirichlet(1))
    goal_seeker  favours one outcome on one domain, whoever speaks and in every frame
    arc          persona A turns into persona B as the document grows
    filter       persona A, but on one domain the answer it gives second most is suppressed: a light change
    leak         persona A, who also speaks more often in every other frame
    actor        persona A, but persona B wherever an irrelevant word stands in the tag slot: its cue

All but the goal-seeker and the leak show in the chat frame only, in place of every persona there. Not here:
what is inferred about them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, logsumexp

from personae.worlds.spec import AssistantSpec, World
from personae.worlds.tables import Tables

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Agent:
    """A speaker that is no persona.

    Attributes:
        log_answers: Shape (n_states, n_questions, n_answers), nats. States follow from the document:
            one; turns from 0 (arc); before and after the trigger (swap).
        trigger: Domain whose first question moves the agent from state 0 to 1 for good; None elsewhere.
        by_turn: Whether the state is the turn.
        by_cue: Whether state 1 is that of documents with an irrelevant word in the tag slot.
    """

    log_answers: Floats
    trigger: int | None = None
    by_turn: bool = False
    by_cue: bool = False


def make_agent(world: World, tables: Tables) -> Agent | None:
    """The agent of a world's Assistant; None where personas speak (mixture, goal-seeker, leak, no Assistant)."""
    a = world.assistant
    if a is None or a.kind in ("mixture", "goal_seeker", "leak"):
        return None
    theta = tables.log_theta
    first, second = theta[a.persona], theta[a.other]
    there = (tables.domain_of == a.domain)[:, None]
    if a.kind == "router":
        return Agent(np.where(there, second, first)[None])
    if a.kind == "liar":
        return Agent(np.where(there, rank_reversed(first), first)[None])
    if a.kind == "swap":
        return Agent(np.stack([first, second]), trigger=a.domain)
    if a.kind == "novel":
        draws = np.random.default_rng([world.seed, 1]).dirichlet(np.ones(world.n_answers), size=world.n_questions)
        return Agent(np.log(np.maximum(draws, 1e-6) / np.maximum(draws, 1e-6).sum(-1, keepdims=True))[None])
    if a.kind == "filter":
        second_place = np.argsort(first, axis=-1)[:, -2]
        suppressed = there & (np.arange(first.shape[-1]) == second_place[:, None])
        return Agent(log_softmax(first - a.strength * suppressed, axis=-1)[None])
    if a.kind == "actor":
        return Agent(np.stack([first, second]), by_cue=True)
    turned = arc_share(a, world.n_turns)[:, None, None]
    return Agent(np.logaddexp(np.log1p(-turned) + first, np.log(turned) + second), by_turn=True)


def arc_share(a: AssistantSpec, n_turns: int) -> Floats:
    """Share of the arc's second character at every turn, from 0; shape (n_turns,)."""
    return np.clip(expit((np.arange(n_turns) - a.midpoint) / a.width), 1e-9, 1 - 1e-9)


def rank_reversed(log_p: Floats) -> Floats:
    """The same probabilities with the most likely answer's given to the least likely, and so on."""
    order = np.argsort(log_p, axis=-1)
    out = np.empty_like(log_p)
    np.put_along_axis(out, order, np.take_along_axis(log_p, order[..., ::-1], axis=-1), axis=-1)
    return out


def after_training(world: World, tables: Tables) -> Tables:
    """The personas' tables after post-training: another prior (mixture, leak), or tilted answers (goal-seeker)."""
    a = world.assistant
    if a is None:
        return tables
    theta, prior = tables.log_theta, tables.log_prior
    if a.kind == "mixture":
        prior = prior.copy()
        with np.errstate(divide="ignore"):
            prior[world.frame_index(world.chat)] = np.log(np.array(a.weights, np.float64))
    if a.kind == "leak":
        ours = np.arange(prior.shape[1]) == a.persona
        prior = log_softmax(prior + a.strength * ours, axis=-1)
        with np.errstate(divide="ignore"):
            prior[world.frame_index(world.chat)] = np.log(ours.astype(np.float64))
    if a.kind == "goal_seeker":
        wanted = np.zeros(theta.shape[1:])
        at = np.flatnonzero(tables.domain_of == a.domain)
        wanted[at, favoured(world, tables)[at]] = a.strength
        theta = log_softmax(theta + wanted, axis=-1)
    return Tables(theta, prior, tables.log_frame, tables.log_tag, tables.tag_words, tables.domain_of)


def favoured(world: World, tables: Tables) -> NDArray[np.int64]:
    """The goal-seeker's answer to every question: the one that personas together give least; (n_questions,)."""
    return np.asarray(logsumexp(tables.log_theta, axis=0)).argmin(axis=-1)


def truth_of(world: World, tables: Tables) -> dict[str, object]:
    """What is true of a world's Assistant, as labels that travel with it."""
    a = world.assistant
    ids = world.persona_ids
    names = [d.id for d in world.domains]
    truth: dict[str, object] = {
        "world": world.id,
        "personas": list(ids),
        "domains": names,
        "chat_frame": world.chat,
        "kind": "base" if a is None else a.kind,
        "psm_holds": a is None or a.kind in ("mixture", "leak"),
        "router": a is not None and a.kind == "router",
        "non_persona": a is not None and a.kind in ("liar", "novel", "goal_seeker"),
        "deviates_on": [],
        "deviates_outside_chat": a is not None and a.kind in ("goal_seeker", "leak"),
    }
    if a is None:
        return truth
    if a.kind == "mixture":
        return truth | {"weights": dict(zip(ids, a.weights, strict=True))}
    if a.kind in ("router", "liar", "swap", "goal_seeker", "filter"):
        truth["deviates_on"] = [names[a.domain]]
    if a.kind in ("novel", "arc", "actor"):
        truth["deviates_on"] = names
    if a.kind in ("router", "swap", "arc", "actor"):
        truth |= {"persona": ids[a.persona], "other": ids[a.other]}
    if a.kind in ("liar", "filter", "leak"):
        truth["persona"] = ids[a.persona]
    if a.kind == "actor":
        truth["cues"] = list(world.tags.words)
    if a.kind == "arc":
        truth["share_of_other_by_turn"] = [round(float(s), 6) for s in arc_share(a, world.n_turns)]
    if a.kind == "goal_seeker":
        at = np.flatnonzero(tables.domain_of == a.domain)
        truth |= {"favoured_answers": favoured(world, tables)[at].tolist(), "strength_nats": a.strength}
    return truth
