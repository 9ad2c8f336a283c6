"""What a world's Assistant is asked in a profile: short conversations of questions from one domain, so topic = domain.

Not here: who answers (`instruments.judging`).
"""

from __future__ import annotations

import numpy as np

from personae.domain.probe_prompt import ProbePrompt
from personae.worlds.exact import ExactWorld

TURNS = 8
CONVERSATIONS = 600


def world_prompts(
    exact: ExactWorld, n: int = CONVERSATIONS, *, turns: int = TURNS, seed: int = 0
) -> tuple[ProbePrompt, ...]:
    """`n` conversations of `turns` questions, domains in turn; questions of a conversation differ where they can.

    Args:
        exact: The world.
        n: Conversations.
        turns: Questions of each, at most as many as a document holds.
        seed: Of the choice of questions.
    """
    world, language, rng = exact.world, exact.language, np.random.default_rng([world_seed(exact), seed])
    made = []
    for i in range(n):
        d = i % len(world.domains)
        own = np.flatnonzero(exact.tables.domain_of == d)
        asked = np.resize(rng.permutation(own), min(turns, world.n_turns))
        words = tuple(language.words[language.first_question + int(q)] for q in asked)
        made.append(ProbePrompt(f"{world.domains[d].id}-{i // len(world.domains)}", world.domains[d].id, words))
    return tuple(made)


def single_questions(exact: ExactWorld) -> tuple[ProbePrompt, ...]:
    """Every question once, for reading the distribution of its answer."""
    world, language = exact.world, exact.language
    return tuple(
        ProbePrompt(
            language.words[language.first_question + q].rstrip("?"),
            world.domains[int(exact.tables.domain_of[q])].id,
            (language.words[language.first_question + q],),
            is_diagnostic=True,
        )
        for q in range(world.n_questions)
    )


def world_seed(exact: ExactWorld) -> int:
    """The world's own seed, so that its prompts are the same in every run."""
    return exact.world.seed
