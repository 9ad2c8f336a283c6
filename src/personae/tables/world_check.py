"""A trained world held against its exact answer: one row a check, and the curves that a page draws.

Not here: how the numbers are made (`protocols.world_check`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

CHECK_VERSION = 1  # raise it whenever a stored check would come out otherwise
PASSES, FAILS, NOT_RUN = "passes", "fails", "not run"


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One check.

    Attributes:
        id: Short name.
        what: What is measured, with its unit.
        value: The result in words; empty where not run.
        accept: What is accepted, in words.
        verdict: "passes", "fails" or "not run".
        numbers: The figures behind `value`.
        note: Why it was not run, or what to bear in mind.
    """

    id: str
    what: str
    value: str
    accept: str
    verdict: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class BeliefCurve:
    """Mean log-odds of a trait after n turns of a character that has it, nats."""

    trait: str
    turns: tuple[int, ...]
    exact: tuple[float, ...]
    model: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class WorldCheck:
    """Every row, and what is drawn.

    Attributes:
        world: Its id.
        model: Name of the model judged.
        rows: In the order of the table of methods.
        curve: Many-shot belief, exact and model.
        scatter: (exact, model) log-odds of traits after random contexts, nats.
        frame_priors: For each frame (name, exact weights, weights read out of the model).
        losses: (step, mean loss) of its training, nats an answer; empty where unknown.
    """

    world: str
    model: str
    rows: tuple[CheckRow, ...]
    curve: BeliefCurve
    scatter: tuple[tuple[float, float], ...]
    frame_priors: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]
    losses: tuple[tuple[int, float], ...] = ()

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the rows that fail."""
        return tuple(r.id for r in self.rows if r.verdict == FAILS)

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, object]) -> WorldCheck:
        """What `to_dict` gave, also after a way through JSON.

        Raises:
            KeyError, TypeError, ValueError: If it is something else.
        """
        rows, curve = value["rows"], value["curve"]
        if not isinstance(rows, (list, tuple)) or not isinstance(curve, Mapping):
            raise TypeError("not a stored check")
        scatter, priors, losses = (list(value[k]) for k in ("scatter", "frame_priors", "losses"))  # type: ignore[call-overload]
        return cls(
            str(value["world"]),
            str(value["model"]),
            tuple(CheckRow(**r) for r in rows),
            BeliefCurve(str(curve["trait"]), *(tuple(curve[k]) for k in ("turns", "exact", "model"))),
            tuple((float(x), float(y)) for x, y in scatter),
            tuple((str(n), tuple(e), tuple(m)) for n, e, m in priors),
            tuple((int(s), float(v)) for s, v in losses),
        )
