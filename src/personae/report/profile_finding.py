"""The sentence at the top of a profile's page. Not here: anything drawn, so that a terminal can have it quickly."""

from __future__ import annotations

from personae.report import text
from personae.tables.persona_profile import PLAIN_KIND, PersonaShare, Profile


def finding(profile: Profile) -> str:
    """The finding as one sentence."""
    return "".join(words for words, _ in finding_pieces(profile))


def finding_pieces(profile: Profile) -> list[tuple[str, bool]]:
    """The finding in pieces, each with whether it is stressed."""
    if profile.versus is not None:
        return _moved_pieces(profile)
    first, persona = profile.leading, profile.leading_persona
    head = f"{profile.target} speaks as "
    if first.kind != PLAIN_KIND:
        return [(head, False), (_spoken(first), True), (f" in {_with_interval(first)} of its answers.", False)]
    pieces = [(head, False), ("itself", True), (f" in {_with_interval(first)} of its answers", False)]
    if persona is not None:
        pieces.append((f"; the nearest persona is {_spoken(persona)}, {_with_interval(persona)}.", False))
    else:
        pieces.append((".", False))
    return pieces


def _moved_pieces(profile: Profile) -> list[tuple[str, bool]]:
    versus = profile.versus
    assert versus is not None
    between = f" between {profile.target} and {versus.other}"
    if not versus.found:
        return [("Nothing moved", True), (f"{between}: no difference in {len(versus.moves)} measures.", False)]
    first = versus.found[0]
    way = "more" if first.difference > 0 else "less"
    rest = f", first of all {first.label} ({way} in {versus.other})."
    return [(f"{text.count(len(versus.found), 'measure')} moved", True), (f"{between}{rest}", False)]


def _spoken(share: PersonaShare) -> str:
    return share.label or share.persona


def _with_interval(share: PersonaShare) -> str:
    return f"{text.percent(share.weight)} ({text.percent(share.low)} to {text.percent(share.high)})"
