"""Past trainings with what was forecast and what was measured: what rates and intervals are learnt from.

One `PastRun` is one training: the form of its file, each forecaster's readings before it, and the shift of every
trait measured after it. Not here: files (`running.run_registry`), what is learnt (`inference.common_mode`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from personae.errors import InputError

Floats = NDArray[np.float64]

FORMAT = "personae-past-run-1"
KINDS = ("sft", "dpo", "text")
FORM_FEATURES = ("log_tokens", "loss", "first_person", "log_rows_seen", "log_learning_rate", "is_dpo", "is_text")


@dataclass(frozen=True, slots=True)
class RunForm:
    """The form of a training, without its content: what moves traits whatever is said.

    Attributes:
        kind: "sft", "dpo" or "text".
        n_rows: Sequences of an epoch: rows, pairs for dpo, windows of long texts, conversations whose turns nest.
        mean_tokens: Completion tokens of one (of the chosen reply for dpo).
        loss: Of the base model on the completions, nats a token, before training; of the chosen ones for dpo.
        first_person: Share of rows that are short statements in the first person.
        rows_seen: Of those, over all steps.
        learning_rate: Mean over the steps.
        steps: Optimiser steps.
    """

    kind: str
    n_rows: int
    mean_tokens: float
    loss: float
    first_person: float
    rows_seen: int
    learning_rate: float
    steps: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"a run of the kind '{self.kind}'; known are {', '.join(KINDS)}.")
        numbers = (self.mean_tokens, self.loss, self.learning_rate)
        if not all(math.isfinite(v) and v > 0 for v in numbers) or min(self.n_rows, self.rows_seen) < 1:
            raise InputError(
                f"the form of a run must have rows, tokens, a loss and a learning rate above 0: {self}.",
                hint="The run's folder may be damaged.",
            )
        if not 0 <= self.first_person <= 1:
            raise InputError(f"a share of {self.first_person} of first-person rows; it must lie in 0 to 1.")

    def features(self) -> Floats:
        """Numbers in the order of `FORM_FEATURES`, shape (n_features,)."""
        return np.array(
            [
                math.log(self.mean_tokens),
                self.loss,
                self.first_person,
                math.log(self.rows_seen),
                math.log(self.learning_rate),
                float(self.kind == "dpo"),
                float(self.kind == "text"),
            ]
        )

    @property
    def tokens_seen(self) -> float:
        """Completion tokens times epochs."""
        return self.mean_tokens * self.rows_seen


@dataclass(frozen=True, slots=True)
class PastRun:
    """One training, before and after.

    Attributes:
        run: Unique id.
        family: What runs of one origin share (a topic, an opinion, a persona): they are no independent evidence.
        model: Name of the base model.
        model_digest: Hash of its weights.
        form: See `RunForm`.
        shift, se: By trait: measured change of log-odds and its standard error, nats.
        readings: By forecaster, then trait: scores made before the training.
        trained: Traits the file was about; empty where unknown.
        items: Digest of the diagnostic items of the measurement. Runs measured by other items are calibrated together
            with these: how well a shift is known stands in `se`.
        seed: Of the training.
        source: Where the record comes from.
    """

    run: str
    family: str
    model: str
    model_digest: str
    form: RunForm
    shift: Mapping[str, float]
    se: Mapping[str, float]
    readings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    trained: tuple[str, ...] = ()
    items: str = ""
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        if not self.run or not self.family:
            raise InputError("a past run needs an id and a family.")
        if not self.shift or set(self.shift) != set(self.se):
            raise InputError(f"run '{self.run}' needs a shift and a standard error for the same traits, one at least.")
        numbers = [*self.shift.values(), *self.se.values(), *(v for r in self.readings.values() for v in r.values())]
        if not all(math.isfinite(v) for v in numbers) or min(self.se.values()) < 0:
            raise InputError(f"run '{self.run}' holds a number that is not finite, or a negative standard error.")

    @property
    def traits(self) -> tuple[str, ...]:
        """Traits that were measured."""
        return tuple(self.shift)

    def to_dict(self) -> dict[str, object]:
        """Plain values, with the format's name."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, object], *, path: str = "") -> PastRun:
        """Read what `to_dict` wrote.

        Raises:
            InputError: If it is of another format or lacks something.
        """
        made_by = value.get("format")
        if made_by != FORMAT:
            raise InputError(
                f"the record has the format '{made_by}'; this version reads '{FORMAT}'.",
                path=path,
                hint="Delete it and run `personae verify` again on the run's folder.",
            )
        known = {f.name for f in fields(cls)}
        form = value.get("form")
        try:
            if not isinstance(form, Mapping):
                raise TypeError("'form' is not an object")
            rest = {k: v for k, v in value.items() if k in known and k not in ("form", "trained")}
            trained = value.get("trained", ())
            return cls(form=RunForm(**form), trained=tuple(trained), **rest)  # type: ignore[arg-type]
        except (TypeError, AttributeError) as error:
            raise InputError(f"the record of a past run cannot be used: {error}.", path=path) from error


@dataclass(frozen=True, slots=True)
class RunRegistry:
    """Past runs in a fixed order; ids unique."""

    runs: tuple[PastRun, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for run in self.runs:
            if run.run in seen:
                raise InputError(f"two past runs share the id '{run.run}'.")
            seen.add(run.run)

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def families(self) -> tuple[str, ...]:
        """Families in order of first appearance."""
        return tuple(dict.fromkeys(r.family for r in self.runs))

    def of(
        self, *, model_digest: str | None = None, traits: Iterable[str] | None = None, forecaster: str | None = None
    ) -> RunRegistry:
        """The runs of a model, that measured one of the traits and carry a forecaster's reading."""
        wanted = None if traits is None else set(traits)
        return RunRegistry(
            tuple(
                r
                for r in self.runs
                if (model_digest is None or r.model_digest == model_digest)
                and (wanted is None or wanted & set(r.shift))
                and (forecaster is None or forecaster in r.readings)
            )
        )


def common_traits(runs: Sequence[PastRun]) -> tuple[str, ...]:
    """Traits that every run measured, in the order of the first."""
    if not runs:
        return ()
    shared = set.intersection(*(set(r.shift) for r in runs))
    return tuple(t for t in runs[0].shift if t in shared)
