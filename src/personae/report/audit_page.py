"""The page of an audit: what personas explain, by which rung, where; router, coin, knowledge, breaks; the views.

One file that needs no network and no script, in the style of a screening's report. Names come from files and
are escaped. Not here: the numbers (`tables.audit`), the charts (`report.audit_figures`).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Callable

from markupsafe import Markup

from personae.report import audit_figures
from personae.report.audit_finding import audit_finding, finding_pieces
from personae.report.figures import NARROW, WIDE, Layout
from personae.report.page import fill, provenance_facts, style
from personae.report.text import moment, number, signed
from personae.tables.audit import VIEW_NAMES, VIEWS, Audit, RungRow, StatisticRow

_LISTED_WEIGHTS = 10


def render_audit(result: Audit) -> str:
    """The page as one string of HTML; the same audit gives the same string."""
    none = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    sections = [section(result) for section in SECTIONS]
    values = {
        "title": f"{result.post}: {audit_finding(result)}",
        "style": style(),
        "script": Markup(""),
        "script_hash": none,
        "sections": [s for s in sections if s],
    }
    return str(fill("page", values))


def head(result: Audit) -> Markup:
    """The finding, and which models it is about."""
    date = moment(str(result.provenance.get("date", "")))
    return fill("audit_head", {"a": result, "pieces": finding_pieces(result), "date": date})


def ladder(result: Audit) -> Markup:
    """Every rung and rival."""
    if result.undefined:
        return fill("audit_ladder", {"a": result, "charts": {}, "weights": [], "label": rung_label})
    rows = [(rung_label(r), r, False) for r in result.rungs]
    rows += [("personas alone", result.alone, False)] if result.alone else []
    rows += [(r.what if len(r.what) < 30 else r.id, r, True) for r in result.rivals]
    charts = _pair(functools.partial(audit_figures.ladder_chart, rows))
    weights = sorted(result.weights, key=lambda item: -item[1])[:_LISTED_WEIGHTS]
    return fill("audit_ladder", {"a": result, "charts": charts, "weights": weights, "label": rung_label})


def parts(result: Audit) -> Markup:
    """Where the difference lies: by position, token class and topic."""
    kinds = {"position": "Position in the reply", "token": "Sort of token", "topic": "Topic"}
    groups = [(words, [p for p in result.parts if p.kind == k]) for k, words in kinds.items()]
    return fill("audit_parts", {"a": result, "groups": groups}) if not result.undefined else Markup("")


def router(result: Audit) -> Markup:
    """Router statistic against controls."""
    if result.router is None:
        return Markup("")
    charts = _pair(functools.partial(audit_figures.router_chart, result.router, result.controls))
    return fill("audit_router", {"a": result, "charts": charts})


def outside(result: Audit) -> Markup:
    """Out of chat, and the coin."""
    return fill("audit_outside", {"a": result})


def character(result: Audit) -> Markup:
    """What it knows, and where it breaks."""
    return fill("audit_character", {"a": result})


def views(result: Audit) -> Markup:
    """The scorecard."""
    card = result.scorecard
    if card is None:
        return Markup("")
    charts = _pair(functools.partial(audit_figures.view_chart, card)) if not result.undefined else {}
    ordered = sorted(card.probability.items(), key=lambda item: -item[1])
    shown = [v for v, _ in ordered[:3]] if not result.undefined else list(VIEWS[:3])
    table = [(s, _measured(s), [_expected(s, v) for v in shown]) for s in card.statistics]
    return fill(
        "audit_views",
        {
            "a": result,
            "card": card,
            "charts": charts,
            "ordered": ordered,
            "shown": shown,
            "names": VIEW_NAMES,
            "table": table,
        },
    )


def making(result: Audit) -> Markup:
    """How the numbers were made, and what they cannot say."""
    return fill("audit_making", {"a": result, "facts": provenance_facts(result.provenance)})


SECTIONS: tuple[Callable[[Audit], Markup], ...] = (head, ladder, parts, router, outside, character, views, making)


def rung_label(row: RungRow) -> str:
    """What a rung is called in the chart and the table."""
    return f"{row.id} {row.what}" if row.id.startswith("R") else row.what


def _measured(row: StatisticRow) -> str:
    if row.value is None:
        return "—"
    return f"{signed(row.value)} ± {number(row.se)}" if row.se > 0 else signed(row.value)


def _expected(row: StatisticRow, view: str) -> str:
    mean = row.expected.get(view)
    return "—" if mean is None or not math.isfinite(mean) else f"{signed(mean)} ± {number(row.sd[view])}"


def _pair(draw: Callable[[Layout], str]) -> dict[str, Markup]:
    return {"wide": Markup(draw(WIDE)), "narrow": Markup(draw(NARROW))}
