"""Episodes: a context, the completion whose probability counts, a weight and a group.

Not here: file formats (`files.episodes`), tokens (`models.rendering`). Checks happen here once; code that
holds an `Episode` trusts it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from personae.errors import InputError, InvalidSettings

SPEAKERS = ("system", "user", "assistant")
# What separates the parts of a digest must not stand inside them, or two contents could share one key.
_SEPARATORS = str.maketrans({"\0": "\2a", "\1": "\2b", "\2": "\2c"})


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker said."""

    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Episode:
    """One (x, y) pair.

    Attributes:
        id: Unique in its set.
        context: Turns before the completion; empty for a document.
        completion: The text whose log-likelihood counts. Never empty.
        weight: Counts the episode in sums; negative means evidence against (a rejected reply). Finite.
        group: Conversation or other cluster; the unit of resampling.
        line: 1-based line or row in the source file, 0 where there is none.
        is_document: Whether it is a declarative text, not a reply.
    """

    id: str
    context: tuple[Turn, ...]
    completion: str
    weight: float = 1.0
    group: str = ""
    line: int = 0
    is_document: bool = False

    def __post_init__(self) -> None:
        if not self.completion.strip():
            raise InputError("the completion is empty", hint="Remove the row or give it a reply.")
        if not math.isfinite(self.weight):
            raise InputError(f"the weight is {self.weight}, not a finite number")
        _check_turns(self.context)
        if not self.group:
            object.__setattr__(self, "group", self.id)

    @property
    def content_digest(self) -> bytes:
        """16 bytes that name context and completion, not id, weight or place: the store's key."""
        parts = [f"{t.speaker}\0{t.text.translate(_SEPARATORS)}" for t in self.context]
        body = "\1".join([*parts, f"document={self.is_document}", self.completion.translate(_SEPARATORS)])
        return hashlib.blake2b(body.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _check_turns(context: tuple[Turn, ...]) -> None:
    """System first or not at all; then user and assistant in turn; the user speaks last before the reply."""
    body = context[1:] if context and context[0].speaker == "system" else context
    for turn in context:
        if turn.speaker not in SPEAKERS:
            raise InputError(f"unknown role '{turn.speaker}'", hint="Roles are system, user and assistant.")
    for index, turn in enumerate(body):
        if turn.speaker == "system":
            raise InputError("roles out of order: a system turn may only come first")
        expected = "user" if index % 2 == 0 else "assistant"
        if turn.speaker != expected:
            raise InputError(
                f"roles out of order: turn {index + 1} is from {turn.speaker}, expected {expected}",
                hint="After an optional system turn, user and assistant take turns, the user first.",
            )
    if len(body) % 2 == 0 and body:
        raise InputError("roles out of order: two assistant turns in a row")


def require_weight(episodes: Iterable[Episode]) -> None:
    """Refuse episodes of which none counts.

    Raises:
        InvalidSettings: If every weight is 0.
    """
    if not any(e.weight for e in episodes):
        raise InvalidSettings("every episode has weight 0: there is nothing to screen.")
