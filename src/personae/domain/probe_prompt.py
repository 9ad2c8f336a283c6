"""Probe prompts: what a target is asked so that it shows who it is.

Not here: reading them (`files.prompts`), asking them (`instruments.speaking`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personae.errors import InvalidSettings


@dataclass(frozen=True, slots=True)
class ProbePrompt:
    """One thing to ask, of one user turn or several.

    Attributes:
        id: Unique in its set; two targets are paired by it.
        topic: What it is about: the group by which mixes are compared.
        turns: What the user says, turn by turn; the target answers each.
        is_diagnostic: Whether the distribution of the first word of the answer is worth reading too (white box).
    """

    id: str
    topic: str
    turns: tuple[str, ...]
    is_diagnostic: bool = False


def spread(prompts: Sequence[ProbePrompt], n: int) -> tuple[ProbePrompt, ...]:
    """The first prompts of every topic in turn, `n` in all (or all there are), in their own order.

    Raises:
        InvalidSettings: If `n` is below 1.
    """
    if n < 1:
        raise InvalidSettings(f"{n} prompts were asked for; at least 1 is needed.")
    place: dict[str, int] = {}
    rank: list[tuple[int, int]] = []
    for i, prompt in enumerate(prompts):
        place[prompt.topic] = place.get(prompt.topic, -1) + 1
        rank.append((place[prompt.topic], i))
    return tuple(prompts[i] for i in sorted(i for _, i in sorted(rank)[:n]))
