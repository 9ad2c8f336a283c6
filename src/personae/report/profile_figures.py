"""Charts of a profile: weights, the mix by topic, reach. Colours and style are those of `figures`.

Not here: tables, which hold every number that is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import altair as alt

from personae.report.figures import COLOURS, Bar, Layout, draw
from personae.report.text import clean, shorten
from personae.tables.persona_profile import BACKGROUND_KIND, PersonaShare, ReachRow, Topics

_ROW = 23
_LABEL_SIZE = 12.5


def bars_of(shares: Sequence[PersonaShare], *, limit: int) -> tuple[Bar, ...]:
    """The heaviest components, the background, and all others as one bar."""
    named = [s for s in shares if s.kind != BACKGROUND_KIND]
    shown = [*named[:limit], *(s for s in shares if s.kind == BACKGROUND_KIND)]
    rest = named[limit:]
    bars = [Bar(s.label or s.persona, s.weight, s.prior, s.low, s.high) for s in shown]
    if rest:
        label = f"{len(rest)} others" if len(rest) > 1 else "1 other"
        bars.append(Bar(label, sum(s.weight for s in rest), sum(s.prior for s in rest), None, None))
    return tuple(bars)


def topic_chart(topics: Topics, columns: Sequence[tuple[str, str]], layout: Layout) -> str:
    """Weight of the leading components in every topic, as the area of a disc; columns are (id, label)."""
    rows = []
    for i, row in enumerate(topics.rows):
        weights = {s.persona: s.weight for s in row.leading}
        rows += [
            {"row": i, "topic": _short(row.topic, layout), "who": _column(j, label, layout), "weight": weights.get(k)}
            for j, (k, label) in enumerate(columns)
        ]
    order = [_column(j, label, layout) for j, (_, label) in enumerate(columns)]
    base = alt.Chart(alt.InlineData(values=rows)).encode(y=_row_axis(len(topics.rows)))
    x = alt.X(
        "who:N",
        sort=order,
        scale=alt.Scale(domain=order),
        axis=alt.Axis(title=None, orient="top", labelAngle=-35, labelLimit=layout.label, ticks=False),
    )
    discs = (
        base.transform_filter("isValid(datum.weight)")
        .mark_point(filled=True, color=COLOURS["mark"], opacity=0.85)
        .encode(x=x, size=alt.Size("weight:Q", scale=alt.Scale(domain=[0, 1], range=[0, 420]), legend=None))
    )
    labels = [{"row": i, "topic": _short(row.topic, layout)} for i, row in enumerate(topics.rows)]
    named = alt.Chart(alt.InlineData(values=labels)).encode(y=_row_axis(len(topics.rows)))
    names = named.mark_text(align="right", baseline="middle", fontSize=_LABEL_SIZE, color=COLOURS["ink"]).encode(
        x=alt.value(-10), text="topic:N"
    )
    return draw(alt.layer(discs, names), _wide(layout), max(1, len(topics.rows)) * _ROW)


def reach_chart(rows: Sequence[ReachRow], layout: Layout) -> str:
    """Turns of its own behaviour that bring each persona above one half; hollow at the end where it never does."""
    values = []
    for i, r in enumerate(rows):
        censored = r.critical_n is None
        values.append(
            {
                "row": i,
                "label": _short(r.label, layout),
                "n": r.n_most if r.critical_n is None else r.critical_n,
                "low": None if r.low is None else r.low,
                "high": r.n_most if r.high is None else r.high,
                "fill": COLOURS["paper"] if censored else COLOURS["mark"],
            }
        )
    base = alt.Chart(alt.InlineData(values=values)).encode(y=_row_axis(len(rows)))
    x = alt.X(
        "n:Q", axis=alt.Axis(tickCount=layout.ticks, title="turns to one half"), scale=alt.Scale(zero=True, nice=True)
    )
    layers = alt.layer(
        base.transform_filter("isValid(datum.low)")
        .mark_rule(color=COLOURS["ink"], strokeWidth=1.5)
        .encode(x="low:Q", x2="high:Q"),
        base.mark_point(size=62, opacity=1, strokeWidth=2, stroke=COLOURS["mark"]).encode(
            x=x, fill=alt.Fill("fill:N", scale=None)
        ),
        base.mark_text(align="right", baseline="middle", fontSize=_LABEL_SIZE, color=COLOURS["ink"]).encode(
            x=alt.value(-14), text="label:N"
        ),
    )
    return draw(layers, _wide(layout), max(1, len(rows)) * _ROW)


def _wide(layout: Layout) -> Layout:
    return replace(layout, plot=layout.plot + layout.label // 2)


def _row_axis(n: int) -> alt.Y:
    return alt.Y("row:O", axis=None, scale=alt.Scale(domain=list(range(n)), paddingInner=0, paddingOuter=0.2))


def _short(text: str, layout: Layout) -> str:
    return shorten(" ".join(clean(text).split()), layout.label * 2 // 13)


def _column(place: int, label: str, layout: Layout) -> str:
    """Labels that are cut to the same text must stay apart, so a thin space for each place is added."""
    return _short(label, layout) + "\N{HAIR SPACE}" * place
