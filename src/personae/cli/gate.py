"""The gate: `--fail-on 'contemptuous>0.2'`, compared with the end of the interval that makes it sure.

`>` is compared with the lower end of the shift's interval, `<` with the upper end: a gate trips only when
the whole interval lies beyond the threshold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from personae.errors import InvalidSettings
from personae.tables.forecast import TraitShift

_FORM = re.compile(r"\s*([^<>\s]+)\s*([<>])\s*([^<>\s]+)\s*")


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition on a trait's shift."""

    trait: str
    sign: str
    threshold: float

    def trips(self, shift: TraitShift) -> str:
        """Why it trips, or an empty string."""
        bound, name = (shift.low, "lower") if self.sign == ">" else (shift.high, "upper")
        tripped = bound > self.threshold if self.sign == ">" else bound < self.threshold
        if not tripped:
            return ""
        return (
            f"{self.trait} {self.sign} {self.threshold:g}: the {name} end of its interval is {bound:+.3f} "
            f"(shift {shift.shift:+.3f}, 90% interval {shift.low:+.3f} to {shift.high:+.3f})"
        )


def parse_gates(texts: Sequence[str], traits: Sequence[str]) -> tuple[Gate, ...]:
    """Read conditions; checked before any work is done.

    Raises:
        InvalidSettings: If one is malformed or names a trait that is not in the cast.
    """
    gates: list[Gate] = []
    for text in texts:
        match = _FORM.fullmatch(text)
        if match is None:
            raise InvalidSettings(
                f"--fail-on '{text}' is not of the form trait>number.", hint="For example: 'rude>0.2'."
            )
        trait, sign, number = match.groups()
        try:
            threshold = float(number)
        except ValueError as error:
            raise InvalidSettings(f"--fail-on '{text}': '{number}' is not a number.") from error
        if not math.isfinite(threshold):
            raise InvalidSettings(f"--fail-on '{text}': the threshold must be finite.")
        if trait not in traits:
            raise InvalidSettings(
                f"--fail-on '{text}': the cast has no trait '{trait}'.",
                hint=f"Its traits: {', '.join(traits) or 'none'}.",
            )
        gates.append(Gate(trait, sign, threshold))
    return tuple(gates)
