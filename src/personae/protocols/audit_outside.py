"""Out of chat: has post-training changed text that has no Assistant in it, and is it a persona's doing?

    ratio = KL a token out of chat / KL a token in chat         share = FVE of the personas, out of chat

Null: a world whose Assistant stays in its chats (0). Positive: a leak (personas explain it), a goal-seeker
(they do not). Not here: the ladder that measures both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from personae.instruments.keeping import Shelf
from personae.instruments.voices import Talk, hold
from personae.models.protocol import SamplingPlan
from personae.protocols.audit_ladder import LadderRun, Started, run_ladder
from personae.protocols.audit_parties import Parties


def run_outside(
    taking_part: Parties,
    texts: Sequence[Talk],
    *,
    max_tokens: int,
    seed: int = 0,
    started: Started = lambda label, total: lambda amount: None,
    shelf: Shelf | None = None,
) -> LadderRun:
    """A ladder on texts without a speaker, which the target continues."""
    plan = SamplingPlan(max_tokens, 1.0, seed + 17)
    held = hold([taking_part.post] * len(texts), texts, plan, advance=started("Texts out of chat", len(texts)))
    here = replace(taking_part, frames=(), again=None)
    return run_ladder(here, held, n_shots=0, rivals=(), seed=seed, started=started, shelf=shelf)
