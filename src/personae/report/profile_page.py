"""The page and the card of a profile: one HTML file each that needs no network and no script.

    Profile -> sections (one function and one template each) -> page
    Profile -> one section                                   -> card, to sit beside a model card

Not here: numbers (`tables.persona_profile`), charts (`report.profile_figures`).
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Sequence

from markupsafe import Markup

from personae.report import figures, profile_figures, text
from personae.report.figures import NARROW, WIDE, Layout
from personae.report.page import fill, provenance_facts, style
from personae.report.profile_finding import finding, finding_pieces
from personae.tables.persona_profile import BACKGROUND_KIND, Profile, TraitMargin

_BARS, _CARD_BARS = 12, 8
_CARD_TRAITS, _CARD_REACH = 6, 6
_COLUMNS = 6
_MOVES = 20


def render_profile(profile: Profile) -> str:
    """The page as one string of HTML; the same profile gives the same string."""
    return _page(f"{profile.target}: {finding(profile)}", [section(profile) for section in SECTIONS])


def render_card(profile: Profile) -> str:
    """The persona card as one string of HTML."""
    bars = profile_figures.bars_of(profile.shares, limit=_CARD_BARS)
    traits = sorted(profile.traits, key=lambda t: -abs(t.mass_pos - t.mass_neg))[:_CARD_TRAITS]
    reach = profile.reach.rows[:_CARD_REACH] if profile.reach else ()
    body = fill(
        "card",
        {
            "p": profile,
            "pieces": finding_pieces(profile),
            "bars": bars,
            "charts": _pair(functools.partial(figures.persona_chart, bars)),
            "traits": traits,
            "reach": reach,
            "date": text.moment(str(profile.provenance.get("date", ""))),
            "versions": profile.provenance.get("versions", {}),
        },
    )
    return _page(f"Persona card: {profile.target}", [body])


def _page(title: str, sections: Sequence[Markup]) -> str:
    none = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    values = {"title": title, "style": style(), "script": Markup(""), "script_hash": none, "sections": sections}
    return str(fill("page", values))


def header(profile: Profile) -> Markup:
    """The finding, and which model, scorer, cast and day it belongs to."""
    return fill(
        "profile_head",
        {
            "p": profile,
            "pieces": finding_pieces(profile),
            "date": text.moment(str(profile.provenance.get("date", ""))),
        },
    )


def distribution(profile: Profile) -> Markup:
    """Weights with intervals, and what is not told apart."""
    bars = profile_figures.bars_of(profile.shares, limit=_BARS)
    charts = _pair(functools.partial(figures.persona_chart, bars))
    return fill("profile_distribution", {"p": profile, "bars": bars, "charts": charts})


def traits(profile: Profile) -> Markup:
    """Weights of poles and leans."""
    rows: list[TraitMargin] = sorted(profile.traits, key=lambda t: -abs(t.mass_pos - t.mass_neg))
    return fill("profile_traits", {"p": profile, "rows": rows})


def topics(profile: Profile) -> Markup:
    """The mix by topic, its test, and what the model says of itself."""
    total: dict[str, float] = {}
    labels: dict[str, str] = {}
    for row in profile.topics.rows:
        for s in row.leading:
            total[s.persona] = total.get(s.persona, 0.0) + s.weight
            labels[s.persona] = s.label or s.persona
    columns = [(k, labels[k]) for k in sorted(total, key=lambda k: -total[k])[:_COLUMNS]]
    charts = _pair(functools.partial(profile_figures.topic_chart, profile.topics, columns)) if columns else {}
    return fill("profile_topics", {"p": profile, "charts": charts})


def telling(profile: Profile) -> Markup:
    """The prompts that told personas apart."""
    return fill("profile_telling", {"p": profile})


def white_box(profile: Profile) -> Markup:
    """The read-out of first words against the texts."""
    rows = []
    if profile.white_box is not None:
        for share in sorted(profile.white_box.shares, key=lambda s: -s.weight)[:_BARS]:
            rows.append((share, profile.share_of(share.persona)))
    return fill("profile_white_box", {"p": profile, "rows": rows})


def favour(profile: Profile) -> Markup:
    """Whom the scorer favours, and the weights by turning its confusion round."""
    if profile.favour is None:
        return Markup("")
    offsets = dict(profile.favour.offsets)
    rows = [(profile.share_of(r[0]), r, offsets[r[0]]) for r in profile.favour.recovered[:_BARS]]
    return fill("profile_favour", {"p": profile, "f": profile.favour, "rows": rows})


def versus(profile: Profile) -> Markup:
    """What moved between two targets."""
    if profile.versus is None:
        return Markup("")
    shown = profile.versus.moves[: max(_MOVES, len(profile.versus.found))]
    return fill("profile_versus", {"p": profile, "v": profile.versus, "shown": shown})


def reach(profile: Profile) -> Markup:
    """How far every persona is, and whether the model conditions as Bayes would."""
    if profile.reach is None:
        return fill("profile_no_reach", {"p": profile}) if profile.reach_reason else Markup("")
    charts = _pair(functools.partial(profile_figures.reach_chart, profile.reach.rows))
    return fill("profile_reach", {"r": profile.reach, "charts": charts})


def making(profile: Profile) -> Markup:
    """How the numbers were made, and what cannot be measured."""
    return fill(
        "profile_making",
        {"p": profile, "facts": provenance_facts(profile.provenance), "background_kind": BACKGROUND_KIND},
    )


SECTIONS: tuple[Callable[[Profile], Markup], ...] = (
    header,
    distribution,
    favour,
    versus,
    reach,
    topics,
    traits,
    telling,
    white_box,
    making,
)


def _pair(chart: Callable[[Layout], str]) -> dict[str, Markup]:
    return {"wide": Markup(chart(WIDE)), "narrow": Markup(chart(NARROW))}
