"""Rows left out, trained again: what was left of a trait's shift.

Not here: how rows are named and trainings compared (`protocols.attribution`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its 90% interval (Fieller 1954); None where the whole is not clear of 0: then it means nothing."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Removal:
    """What was left of a trait's shift without some rows.

    Attributes:
        method: How rows were named.
        n_dropped: How many were left out.
        shift, se: Of the training without them, nats.
        gone, gone_se: Shift with all rows less that without these, paired by item, nats.
        removed: `gone` as a share of the full training's shift; above 1 if the sign turned.
        of_induced: `gone` as a share of what the planted rows induced; None where none are marked.
        separation: AUROC of planted rows under the ranking; None likewise.
    """

    method: str
    n_dropped: int
    shift: float
    se: float
    gone: float
    gone_se: float
    removed: Share
    of_induced: Share | None
    separation: float | None


@dataclass(frozen=True, slots=True)
class Attribution:
    """Outcome for one trait of one file.

    Attributes:
        trait: Its id.
        side: +1 or -1: the pole towards which rows were ranked.
        shift, se: Of the training with all rows, nats.
        induced, induced_se: Of that, what is gone without the planted rows; None where none are marked.
        n_rows: Rows of the file.
        removals: One a method.
        notes: What a reader must know.
    """

    trait: str
    side: float
    shift: float
    se: float
    induced: float | None
    induced_se: float | None
    n_rows: int
    removals: tuple[Removal, ...]
    notes: tuple[str, ...] = ()
