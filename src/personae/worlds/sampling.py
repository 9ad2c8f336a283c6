"""Documents of a world, drawn exactly: what its model is trained on, and what statistics are tried on.

Not here: rows of text for files (`worlds.material`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.worlds.exact import ExactWorld
from personae.worlds.language import Kind

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """Documents and who spoke in them.

    Attributes:
        ids: Shape (n, 3 + 2 n_turns): <bos>, frame, tag, then questions and answers in turn.
        speaker: Component that spoke, shape (n,).
        frame: Frame of each, shape (n,).
    """

    ids: Ids
    speaker: Ids
    frame: Ids


def sample_documents(
    exact: ExactWorld,
    n: int,
    rng: np.random.Generator,
    *,
    frame: int | None = None,
    speaker: int | None = None,
    tagged: bool = True,
    chat_share: float | None = None,
    n_turns: int | None = None,
) -> Documents:
    """Draw documents.

    Args:
        exact: The world.
        n: How many.
        rng: Source of randomness.
        frame: All in this frame; None draws frames.
        speaker: All by this component; None draws from the frame's prior.
        tagged: Draw the tag slot; False leaves it empty.
        chat_share: Share of documents in the chat frame, the rest in the others; None keeps the world's own.
        n_turns: Turns; None takes the world's.
    """
    world, language = exact.world, exact.language
    frames = _draw_frames(exact, n, rng, frame, chat_share)
    log_prior = np.stack([exact.frame_prior(f.id) for f in world.frames])
    who = np.full(n, speaker) if speaker is not None else _draw(np.exp(log_prior)[frames], rng)
    ids = np.full((n, 3 + 2 * (n_turns or world.n_turns)), language.no_tag, np.int64)
    ids[:, 0] = language.ids["<bos>"]
    ids[:, 1] = language.first_frame + frames
    said = np.exp(exact.evidence(np.arange(len(language.words))[None])[0])  # of tags; answers come below
    if tagged:
        tags = np.flatnonzero(language.kind == Kind.TAG)
        ids[:, 2] = tags[_draw(said[tags][:, who].T, rng)]
    asked = rng.integers(0, world.n_questions, size=(n, (ids.shape[1] - 3) // 2))
    claims = rng.random(asked.shape) < world.claims
    ids[:, 3::2] = np.where(claims, language.claim, language.first_question + asked)
    _answer(exact, ids, who, claims, said, rng)
    return Documents(ids, who, frames)


def _draw_frames(
    exact: ExactWorld, n: int, rng: np.random.Generator, frame: int | None, chat_share: float | None
) -> Ids:
    if frame is not None:
        return np.full(n, frame)
    weights = np.exp(exact.tables.log_frame)
    if chat_share is not None and len(weights) > 1:
        chat = exact.world.frame_index(exact.world.chat)
        others = np.delete(weights, chat)
        weights = np.insert(others / others.sum() * (1 - chat_share), chat, chat_share)
    return rng.choice(len(weights), size=n, p=weights / weights.sum())


def _answer(
    exact: ExactWorld,
    ids: Ids,
    who: Ids,
    claims: NDArray[np.bool_],
    said: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Fill in the answers: given the questions and who speaks they are independent, also an agent's."""
    language = exact.language
    question = np.where(claims, 0, ids[:, 3::2] - language.first_question)
    theta = np.exp(exact.tables.log_theta)
    personas = len(theta)
    p = theta[np.minimum(who, personas - 1)[:, None], question]
    if exact.agent is not None:
        spoken = np.exp(exact.agent.log_answers[exact.agent_states(ids)[:, 3::2], question])
        p = np.where((who == personas)[:, None, None], spoken, p)
    pick = _draw(p.reshape(-1, p.shape[-1]), rng).reshape(question.shape)
    ids[:, 4::2] = np.take_along_axis(language.answers(question), pick[..., None], axis=-1)[..., 0]
    rows, turns = np.nonzero(claims)
    if len(rows):
        trait_tags = np.array(language.trait_tags)
        ids[rows, 4 + 2 * turns] = trait_tags[_draw(said[trait_tags][:, who[rows]].T, rng)]


def _draw(p: NDArray[np.float64], rng: np.random.Generator) -> Ids:
    """One place a row, with probabilities proportional to the row."""
    cumulative = np.cumsum(p, axis=1)
    pick = rng.random(len(p)) * cumulative[:, -1]
    return np.minimum((cumulative < pick[:, None]).sum(axis=1), p.shape[1] - 1)
