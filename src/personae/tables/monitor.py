"""What a monitor of conversations found: projections by turn, with alarms, and what watching costs.

Not here: making them (`protocols.monitor`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WatchedTurn:
    """One reply on one vector.

    Attributes:
        episode: Its id.
        group: Conversation.
        line: 1-based line of the file.
        vector: Which direction.
        projection: Of the mean over the reply, in units of the stream.
        z: In standard deviations of ordinary replies, from their mean.
        alarm: Whether z lies above the threshold.
    """

    episode: str
    group: str
    line: int
    vector: str
    projection: float
    z: float
    alarm: bool


@dataclass(frozen=True, slots=True)
class WatchedToken:
    """One token of a reply on one vector; `z` as for turns, of the token's own projection."""

    episode: str
    position: int
    token: str
    vector: str
    projection: float
    z: float


@dataclass(frozen=True, slots=True)
class Watch:
    """A file watched.

    Attributes:
        model: Its name.
        layers: Layer by vector.
        turns: One row a reply and vector.
        tokens: One row a token and vector of the replies with an alarm (or of all where asked).
        threshold: Standard deviations.
        false_alarms: Rate of alarms that the threshold is set for, if ordinary replies are normal on the direction.
        reference_rate: Share of ordinary replies above the threshold that was set by the others (leave one topic out).
        n_reference: Ordinary replies.
        overhead: CPU time that a projection at the watched layers adds to a pass, as a share of the pass.
    """

    model: str
    layers: dict[str, int]
    turns: tuple[WatchedTurn, ...]
    tokens: tuple[WatchedToken, ...]
    threshold: float
    false_alarms: float
    reference_rate: float
    n_reference: int
    overhead: float
