"""Charts of a world's page: belief curve, read-out, frame priors, loss. Colours and style are those of `figures`.

Not here: tables, which hold every number that is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from personae.report.figures import COLOURS, Layout, draw
from personae.tables.world_check import BeliefCurve

_HEIGHT = 260


def _axis(layout: Layout, title: str) -> alt.Axis:
    return alt.Axis(tickCount=layout.ticks, title=title)


def belief_chart(curve: BeliefCurve, layout: Layout) -> str:
    """Exact belief as a line, the model's as dots."""
    rows = [{"turn": n, "exact": e, "model": m} for n, e, m in zip(curve.turns, curve.exact, curve.model, strict=True)]
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=alt.X("turn:Q", axis=_axis(layout, "turns")))
    line = base.mark_line(color=COLOURS["bar"], strokeWidth=3).encode(
        y=alt.Y("exact:Q", axis=_axis(layout, f"log-odds of {curve.trait}, nats"))
    )
    dots = base.mark_point(color=COLOURS["mark"], filled=True, size=70, opacity=1).encode(y="model:Q")
    return draw(alt.layer(line, dots), _fitted(layout), _HEIGHT)


def scatter_chart(pairs: Sequence[tuple[float, float]], layout: Layout) -> str:
    """Log-odds read out of the model against the exact ones, and the line on which they are equal."""
    rows = [{"exact": x, "model": y} for x, y in pairs]
    low = min((v for p in pairs for v in p), default=-1.0)
    high = max((v for p in pairs for v in p), default=1.0)
    ends = alt.InlineData(values=[{"exact": low, "model": low}, {"exact": high, "model": high}])
    x = alt.X("exact:Q", axis=_axis(layout, "exact log-odds, nats"))
    y = alt.Y("model:Q", axis=_axis(layout, "read out of the model, nats"))
    line = alt.Chart(ends).mark_line(color=COLOURS["muted"], strokeWidth=1).encode(x=x, y=y)
    dots = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_point(color=COLOURS["mark"], filled=True, size=16, opacity=0.55)
        .encode(x=x, y=y)
    )
    return draw(alt.layer(line, dots), _fitted(layout), _HEIGHT)


def loss_chart(losses: Sequence[tuple[int, float]], layout: Layout) -> str:
    """Training loss by step."""
    rows = [{"step": s, "loss": v} for s, v in losses]
    line = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(color=COLOURS["mark"], strokeWidth=2)
        .encode(
            x=alt.X("step:Q", axis=_axis(layout, "step")),
            y=alt.Y("loss:Q", scale=alt.Scale(zero=False), axis=_axis(layout, "loss, nats an answer")),
        )
    )
    return draw(alt.layer(line), _fitted(layout), 180)


def prior_chart(rows: Sequence[tuple[str, float, float | None]], layout: Layout) -> str:
    """Prior of each persona in one frame as a bar, and what was read out of the model as a tick."""
    values = [{"row": i, "label": n, "exact": e, "model": m} for i, (n, e, m) in enumerate(rows)]
    base = alt.Chart(alt.InlineData(values=values)).encode(
        y=alt.Y("row:O", axis=None, scale=alt.Scale(domain=list(range(len(rows))), paddingInner=0, paddingOuter=0.2))
    )
    x = alt.X("exact:Q", axis=alt.Axis(tickCount=layout.ticks, format="~%", title="probability"))
    layers = alt.layer(
        base.mark_bar(height=12, color=COLOURS["bar"]).encode(x=x),
        base.transform_filter("isValid(datum.model)")
        .mark_tick(color=COLOURS["mark"], thickness=2.5, height=18, opacity=1)
        .encode(x="model:Q"),
        base.mark_text(align="right", baseline="middle", fontSize=12.5, color=COLOURS["ink"]).encode(
            x=alt.value(-10), text="label:N"
        ),
    )
    return draw(layers, Layout(layout.plot, layout.label * 3 // 2, layout.ticks), max(1, len(rows)) * 21)


def _fitted(layout: Layout) -> Layout:
    """Charts without side labels take their room too."""
    return Layout(layout.plot + layout.label // 2, layout.label // 2, layout.ticks)
