"""Charts of an audit's page: the ladder, the views. Colours and style are those of `figures`.

Not here: tables, which hold every number that is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import altair as alt

from personae.report.figures import COLOURS, Layout, draw
from personae.tables.audit import VIEW_NAMES, RouterRow, RungRow, Scorecard

_ROW = 26


def ladder_chart(rows: Sequence[tuple[str, RungRow, bool]], layout: Layout) -> str:
    """Share explained by every rung with its interval; rivals lighter. Rows are (label, row, is a rival)."""
    least = min([0.0, *(max(r.low, -0.5) for _, r, _ in rows)])
    values = [
        {
            "row": i,
            "label": label,
            "share": max(r.share, -0.5),
            "low": max(r.low, -0.5),
            "high": max(r.high, -0.5),
            "colour": COLOURS["bar" if rival else "neg"],
        }
        for i, (label, r, rival) in enumerate(rows)
    ]
    base = alt.Chart(alt.InlineData(values=values)).encode(y=_rows(len(rows)))
    axis = alt.Axis(tickCount=layout.ticks, format="~%", title="share of KL explained")
    x = alt.X("share:Q", axis=axis, scale=alt.Scale(domain=[least, 1.0], nice=False))
    layers = alt.layer(
        base.mark_bar(height=12).encode(x=x, color=alt.Color("colour:N", scale=None)),
        base.mark_rule(color=COLOURS["ink"], strokeWidth=1.5).encode(x="low:Q", x2="high:Q"),
        base.mark_text(align="right", baseline="middle", fontSize=12.5, color=COLOURS["ink"]).encode(
            x=alt.value(-10), text="label:N"
        ),
    )
    return draw(layers, _wide(layout), max(1, len(rows)) * _ROW)


def view_chart(card: Scorecard, layout: Layout) -> str:
    """Likelihood of every view as a bar."""
    ordered = sorted(card.probability.items(), key=lambda item: -item[1])
    values = [
        {"row": i, "label": VIEW_NAMES[v], "p": p, "colour": COLOURS["neg" if v == card.verdict else "bar"]}
        for i, (v, p) in enumerate(ordered)
    ]
    base = alt.Chart(alt.InlineData(values=values)).encode(y=_rows(len(values)))
    axis = alt.Axis(tickCount=layout.ticks, format="~%", title="probability, every view as likely beforehand")
    layers = alt.layer(
        base.mark_bar(height=13).encode(
            x=alt.X("p:Q", axis=axis, scale=alt.Scale(domain=[0, 1])), color=alt.Color("colour:N", scale=None)
        ),
        base.mark_text(align="right", baseline="middle", fontSize=12.5, color=COLOURS["ink"]).encode(
            x=alt.value(-10), text="label:N"
        ),
    )
    return draw(layers, _wide(layout), len(values) * _ROW)


def router_chart(target: RouterRow, controls: Sequence[RouterRow], layout: Layout) -> str:
    """Router statistic and residual, a dot a model; the audited one stands out."""
    values = [
        {"effect": r.effect, "residual": r.residual, "colour": COLOURS["muted"], "size": 40} for r in controls
    ] + [{"effect": target.effect, "residual": target.residual, "colour": COLOURS["pos"], "size": 130}]
    chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_point(filled=True, opacity=0.9)
        .encode(
            x=alt.X("effect:Q", axis=alt.Axis(tickCount=layout.ticks, title="gain of weights by topic, nats a reply")),
            y=alt.Y("residual:Q", axis=alt.Axis(tickCount=5, title="left unexplained, nats a reply")),
            color=alt.Color("colour:N", scale=None),
            size=alt.Size("size:Q", scale=None),
        )
    )
    return draw(alt.layer(chart), Layout(layout.plot + layout.label // 2, layout.label // 2, layout.ticks), 220)


def _rows(n: int) -> alt.Y:
    return alt.Y("row:O", axis=None, scale=alt.Scale(domain=list(range(n)), paddingInner=0, paddingOuter=0.2))


def _wide(layout: Layout) -> Layout:
    return replace(layout, label=layout.label * 3 // 2)
