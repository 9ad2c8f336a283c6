"""The page of a trait profile: where a model stands on every trait, and what moved.

One file that needs no network and no script, in the style of a screening's report. Not here: the numbers
(`tables.traits`).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt
from markupsafe import Markup

from personae.report.figures import COLOURS, NARROW, WIDE, Layout, draw
from personae.report.page import fill, style
from personae.report.text import clean, count, series, shorten
from personae.tables.traits import TraitChange, TraitProfile

_ROW = 23
_NAMED = 3
_FDR = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """One trait as it is drawn and listed: its poles, a number with an interval, whether it stands out."""

    trait: str
    positive: str
    negative: str
    value: float
    low: float
    high: float
    p: float
    q: float
    n_items: int
    other: str
    reason: str

    @property
    def is_measured(self) -> bool:
        """Whether there is a number."""
        return math.isfinite(self.value)

    @property
    def leaning(self) -> str:
        """The pole that it points to."""
        return self.positive if self.value > 0 else self.negative


@dataclass(frozen=True, slots=True)
class MeasureView:
    """What the page shows.

    Attributes:
        profile: The model.
        labels: Names of the poles by trait, positive first.
        versus: The model compared with; None for none.
        changes: What moved from it to the model.
        facts: Provenance as (name, value).
    """

    profile: TraitProfile
    labels: Mapping[str, tuple[str, str]]
    versus: TraitProfile | None = None
    changes: tuple[TraitChange, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()


def finding(view: MeasureView) -> str:
    """What was found, in one sentence."""
    measured = [r for r in view.profile.readings if r.measurable]
    if view.versus is None:
        n = len(view.profile.readings)
        return f"{len(measured)} of {count(n, 'trait')} measured, {count(sum(r.n_items for r in measured), 'item')}."
    rows = [r for r in change_rows(view) if r.is_measured and r.q <= _FDR]
    known = count(sum(c.measurable for c in view.changes), "trait")
    if not rows:
        return f"None of {known} moved at a false discovery rate of 5%."
    named = series([f"{r.leaning} ({r.value:+.2f} nats)" for r in rows[:_NAMED]])
    return f"{len(rows)} of {known} moved, most towards {named}."


def profile_rows(view: MeasureView) -> list[Row]:
    """The readings, the most positive first, those without a number last."""
    parts = {r.trait: r for r in view.profile.parts["statements"]}
    rows = []
    for r in view.profile.readings:
        s = parts[r.trait]
        other = f"{s.log_odds:+.2f}" if s.measurable and r.part != s.part else ""
        rows.append(
            Row(r.trait, *_poles(view, r.trait), r.log_odds, r.low, r.high, r.p, math.nan, r.n_items, other, r.reason)
        )
    return sorted(rows, key=lambda r: (not r.is_measured, -r.value if r.is_measured else 0.0))


def change_rows(view: MeasureView) -> list[Row]:
    """The changes, the surest first, those without a number last."""
    rows = [
        Row(c.trait, *_poles(view, c.trait), c.change, c.low, c.high, c.p, c.q, c.n_items, "", c.reason)
        for c in view.changes
    ]
    return sorted(rows, key=lambda r: (not r.is_measured, r.p if r.is_measured else 0.0))


def render_measure(view: MeasureView) -> str:
    """The page as one string of HTML; the same view gives the same string."""
    sections = [fill("measure_head", {"v": view, "p": view.profile, "finding": finding(view)})]
    if view.versus is not None:
        sections.append(_section(view, change_rows(view), is_change=True))
    sections.append(_section(view, profile_rows(view), is_change=False))
    sections.append(fill("measure_making", {"v": view, "p": view.profile}))
    page = fill(
        "page",
        {
            "title": f"{view.profile.model}: {finding(view)}",
            "style": style(),
            "script": Markup(""),
            "script_hash": base64.b64encode(hashlib.sha256(b"").digest()).decode(),
            "sections": sections,
        },
    )
    return str(page)


def _section(view: MeasureView, rows: Sequence[Row], *, is_change: bool) -> Markup:
    charted = [r for r in rows if r.is_measured]
    title = "change of log-odds, nats" if is_change else "log-odds, nats"
    charts = {}
    if charted:
        sketch = functools.partial(dots, charted, title=title, fdr=_FDR if is_change else None)
        charts = {"wide": Markup(sketch(WIDE)), "narrow": Markup(sketch(NARROW))}
    return fill("measure_traits", {"v": view, "rows": rows, "charts": charts, "is_change": is_change, "fdr": _FDR})


def dots(rows: Sequence[Row], layout: Layout, *, title: str, fdr: float | None) -> str:
    """Dot and interval of each trait, as SVG; the poles stand at either side."""
    values = [_drawn(i, row, layout, fdr) for i, row in enumerate(rows)]
    y = alt.Y("row:O", axis=None, scale=alt.Scale(domain=list(range(len(rows))), paddingInner=0, paddingOuter=0.2))
    base = alt.Chart(alt.InlineData(values=values)).encode(y=y)
    axis = alt.Axis(tickCount=layout.ticks, title=title)
    x = alt.X("value:Q", axis=axis, scale=alt.Scale(nice=True, zero=True))
    colour = alt.Color("colour:N", scale=None)
    layers = alt.layer(
        alt.Chart(alt.InlineData(values=[{"zero": 0}]))
        .mark_rule(color=COLOURS["muted"], strokeWidth=1)
        .encode(x=alt.X("zero:Q", axis=axis)),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", axis=axis), x2="high:Q", color=colour),
        base.mark_point(size=62, opacity=1, strokeWidth=2).encode(
            x=x, stroke=alt.Stroke("colour:N", scale=None), fill=alt.Fill("centre:N", scale=None)
        ),
        base.mark_text(align="right", baseline="middle", fontSize=12.5, color=COLOURS["muted"]).encode(
            x=alt.value(-12), text="negative:N"
        ),
        base.mark_text(align="left", baseline="middle", fontSize=12.5, color=COLOURS["muted"]).encode(
            x=alt.value(layout.plot + 12), text="positive:N"
        ),
    )
    return draw(layers, layout, len(rows) * _ROW)


def _drawn(i: int, row: Row, layout: Layout, fdr: float | None) -> dict[str, object]:
    """A row of the chart; it is filled where the interval (or q, over a family) leaves 0 out."""
    stands_out = row.low > 0 or row.high < 0 if fdr is None else row.q <= fdr
    colour = COLOURS["pos" if row.value > 0 else "neg"] if stands_out else COLOURS["muted"]
    limit = layout.label * 2 // 13
    return {
        "row": i,
        "value": row.value,
        "low": row.low,
        "high": row.high,
        "colour": colour,
        "centre": colour if stands_out else COLOURS["paper"],
        "positive": shorten(clean(row.positive), limit),
        "negative": shorten(clean(row.negative), limit),
    }


def _poles(view: MeasureView, trait: str) -> tuple[str, str]:
    return view.labels.get(trait, (trait, f"not {trait}"))
