"""Rung R6: vectors in the place of words. What can any prompt do, if wording is no limit?

    half 1 of the conversations -> soft prompt that makes the base speak like the target -> judged on half 2, and back

A conversation is only ever read under vectors that were learned on the other half, also when weights are fitted, so the
mixture learns how much to trust them out of sample. The vectors stand in the target's own context and may be mixed
with all that the rung before may use: R6 is nested. Positive control: a target that is the base behind a hidden prefix.
Null: a temperature (R1 has it all). Not here: learning (`models.hf_soft_prompt`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from personae.errors import MissingCapability, RenderingError
from personae.instruments.keeping import Shelf, bare, keep
from personae.instruments.scoring import space_of
from personae.instruments.voices import Held, Voice
from personae.models.protocol import KnowsPhrases, Scorable, TokenDistributions
from personae.models.soft_prompt import LearnsSoftPrompts, SoftPromptPlan, SoftPromptState, open_soft_prompts
from personae.protocols.audit_parties import GENERIC, Parties

_STEPS_KEPT = 10


def can_learn(base: Voice) -> str:
    """Why no soft prompt can be learned on this base; empty where one can."""
    try:
        open_soft_prompts(bare(base.model))
    except MissingCapability as error:
        return str(error)
    return ""


def soft_voices(
    taking_part: Parties,
    held: Sequence[Held],
    targets: Sequence[Sequence[TokenDistributions]],
    half: NDArray[np.int64],
    plan: SoftPromptPlan,
    *,
    shelf: Shelf | None = None,
    advance: Callable[[int], None] = lambda amount: None,
) -> tuple[Voice, Voice]:
    """For each half, the base under vectors that were learned on the other.

    Args:
        taking_part: Who is compared.
        held: What the target said.
        targets: Its distributions at every token of every reply, by conversation.
        half: Of each conversation.
        plan: How vectors are learned.
        shelf: Where they are kept on their way, and their passes.
        advance: Told of every step.

    Raises:
        MissingCapability: See `can_learn`.
        ContextOverflow: If a conversation does not fit behind the vectors.
    """
    learner = open_soft_prompts(bare(taking_part.base.model))
    made: list[Voice] = []
    for side in (0, 1):
        others = [i for i, s in enumerate(half) if s != side]
        wanted = [t for i in others for t in targets[i]]
        state = _learn(taking_part, learner, [held[i] for i in others], wanted, plan, shelf, advance)
        model = learner.under(state.vectors)
        voice = replace(
            taking_part.base,
            id="soft",
            model=model if shelf is None else keep(model, shelf),
            label=f"the base behind {plan.n_vectors} learned vectors",
        )
        made.append(voice)
    return made[0], made[1]


def _learn(
    taking_part: Parties,
    learner: LearnsSoftPrompts,
    held: Sequence[Held],
    targets: Sequence[TokenDistributions],
    plan: SoftPromptPlan,
    shelf: Shelf | None,
    advance: Callable[[int], None],
) -> SoftPromptState:
    requests = taking_part.base.requests(held)
    name = _name(taking_part, requests, plan)
    state = learner.begin(_opening(taking_part.base), plan.n_vectors)
    for done in range(0, plan.steps, _STEPS_KEPT):
        state = _some_steps(learner, state, requests, targets, plan, (*name, done), shelf)
        advance(min(_STEPS_KEPT, plan.steps - done))
    return state


def _some_steps(
    learner: LearnsSoftPrompts,
    state: SoftPromptState,
    requests: Sequence[Scorable],
    targets: Sequence[TokenDistributions],
    plan: SoftPromptPlan,
    name: tuple[object, ...],
    shelf: Shelf | None,
) -> SoftPromptState:
    def made() -> dict[str, NDArray[np.float32]]:
        new = learner.learn(state, requests, targets, plan, _STEPS_KEPT)
        return {"vectors": new.vectors, "mean": new.mean, "square": new.square}

    arrays = made() if shelf is None else shelf.passing(name, made)
    return SoftPromptState(**arrays, step=min(state.step + _STEPS_KEPT, plan.steps))


def _name(taking_part: Parties, requests: Sequence[Scorable], plan: SoftPromptPlan) -> tuple[object, ...]:
    spaces = [space_of(v.model.card) for v in (taking_part.post, taking_part.base)]
    return (*spaces, "soft prompt", asdict(plan), [(r.start, r.token_ids) for r in requests])


def _opening(base: Voice) -> list[int]:
    """Tokens whose embeddings the vectors begin at."""
    tokenizer = base.model.tokenizer
    known = tokenizer.phrases if isinstance(tokenizer, KnowsPhrases) else None
    try:
        return tokenizer.encode(" ".join(known.instructions) if known else GENERIC)
    except RenderingError:
        return list(tokenizer.bos_ids) or [0]
