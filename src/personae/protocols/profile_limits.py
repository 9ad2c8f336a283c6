"""What a profile cannot say, in sentences: the part of the result that keeps the rest honest.

Not here: the numbers themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from personae.tables.persona_profile import BACKGROUND_KIND, Profile

_WIDE = 0.25
_FEW_RIGHT = 0.5
_NAMED = 6
_SMALL = 1e9


def with_limits(profile: Profile, *, n_parameters: int | None, calibration: Mapping[str, object] | None) -> Profile:
    """The profile with its list of what is not measurable.

    Args:
        profile: Complete otherwise.
        n_parameters: Of the scoring model; 0 where it is not known, None where likelihoods are exact.
        calibration: What was stored for this scorer and cast, if anything.
    """
    return replace(profile, not_measurable=(*_scorer(profile, n_parameters, calibration), *_weights(profile)))


def _scorer(profile: Profile, n_parameters: int | None, calibration: Mapping[str, object] | None) -> list[str]:
    if n_parameters is None:
        return []
    lines: list[str] = []
    if 0 < n_parameters < _SMALL:  # a server does not tell
        lines.append(
            f"{profile.scorer} has {n_parameters / 1e6:,.0f} million parameters: it hears manner and vocabulary, "
            "hardly intent, truth or competence. Personas that differ in these only are not told apart."
        )
        lines.append(
            f"Strangers to the cast are seldom noticed by so small a scorer: “none of these” "
            f"({profile.background:.0%}) is a lower bound."
        )
    if calibration is None:
        lines.append(
            f"The power on the likelihood is not calibrated for {profile.scorer} and this cast: the order of weights "
            "is firmer than their sizes and intervals. `personae calibrate` measures it."
        )
        return lines
    missed = [
        str(r["persona"])
        for r in _records(calibration.get("recall"))
        if _number(r.get("n")) and _number(r.get("right")) < _FEW_RIGHT * _number(r.get("n"))
    ]
    if missed:
        named = ", ".join(missed[:_NAMED]) + (f" and {len(missed) - _NAMED} more" if len(missed) > _NAMED else "")
        lines.append(f"In calibration the scorer knew fewer than half of the conversations of {named}.")
    return lines


def _records(value: object) -> list[Mapping[str, object]]:
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list | tuple) else []


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _weights(profile: Profile) -> list[str]:
    lines: list[str] = []
    if not profile.is_identified:
        lines.append(
            f"{profile.n_conversations} conversations cannot tell {len(profile.shares)} components apart one by one "
            f"(they see {profile.rank} of {len(profile.shares) - 1} directions); sums over traits and classes are "
            "firmer."
        )
    wide = [s.label or s.persona for s in profile.shares if s.high - s.low > _WIDE and s.kind != BACKGROUND_KIND]
    if wide:
        lines.append(f"Weights known only within more than {_WIDE:.0%}: {', '.join(wide[:_NAMED])}.")
    if profile.white_box is not None and not profile.white_box.agrees:
        lines.append(
            "First words and texts give different mixtures: either the prompted personas are poor descriptions of this "
            "model, or they differ later than in their first word."
        )
    if profile.reach is not None and any(r.note for r in profile.reach.rows):
        blind = [r.label or r.persona for r in profile.reach.rows if r.note]
        more = f" and {len(blind) - _NAMED} more" if len(blind) > _NAMED else ""
        lines.append(
            f"Reach could not be read for {', '.join(blind[:_NAMED])}{more}: their own turns do not raise them."
        )
    return lines
