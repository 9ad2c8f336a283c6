"""Charts as Vega-Altair specifications, drawn to inline SVG.

Each chart is drawn twice, for a wide and for a phone's page; the page shows the one that fits. Colours are
the roles of `COLOURS`, written with their light value; the page's style sheet restates every one of them
(`[fill="#..."]`), which is how a dark page recolours a finished chart. Every number is in a table too, so the
SVG itself is hidden from screen readers by the page. Not here: tables, words around the chart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import altair as alt
import vl_convert

from personae.report.text import clean, shorten
from personae.tables.forecast import PersonaWeight, TraitShift

COLOURS = {
    "ink": "#1f2328",
    "muted": "#5d6570",
    "line": "#d9dce1",
    "band": "#d6dae1",
    "paper": "#fffefd",
    "bar": "#8793a1",
    "mark": "#7b3fa6",
    "pos": "#b64a05",
    "neg": "#0a62b0",
}
_FONT = "Liberation Sans"  # what vl-convert measures with; the style sheet shows system-ui
_ROW = 23
_LABEL_SIZE = 12.5
_NAMESPACES = ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'  # not in HTML
_SIGNED = "datum.value == 0 ? '0' : format(datum.value, '+.3~f')"


@dataclass(frozen=True, slots=True)
class Layout:
    """Room for a chart, in pixels.

    Attributes:
        plot: Width of the plotting area.
        label: Room for labels on one side.
        ticks: About how many ticks the axis gets.
    """

    plot: int
    label: int
    ticks: int


WIDE = Layout(plot=560, label=160, ticks=7)
NARROW = Layout(plot=140, label=96, ticks=3)


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of the persona chart; `low` and `high` are None where there is no interval."""

    label: str
    weight: float
    prior: float
    low: float | None
    high: float | None


def trait_chart(traits: Sequence[TraitShift], layout: Layout) -> str:
    """Dot and interval of each trait over the range of ordinary files, as SVG; the poles stand at either side."""
    rows = [_trait_row(i, t, layout) for i, t in enumerate(traits)]
    base = alt.Chart(alt.InlineData(values=rows)).encode(y=_row_axis(len(rows)))
    scale = alt.Scale(nice=True, zero=True)
    axis = alt.Axis(tickCount=layout.ticks, title="shift, nats a token", labelExpr=_SIGNED)
    x = alt.X("shift:Q", scale=scale, axis=axis)
    colour = alt.Color("colour:N", scale=None)
    layers = alt.layer(
        base.mark_bar(height=13, cornerRadius=3, color=COLOURS["band"]).encode(
            x=alt.X("null_low:Q", scale=scale, axis=axis), x2="null_high:Q"
        ),
        alt.Chart(alt.InlineData(values=[{"zero": 0}]))
        .mark_rule(color=COLOURS["muted"], strokeWidth=1)
        .encode(x="zero:Q"),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q", color=colour),
        base.mark_point(size=62, opacity=1, strokeWidth=2).encode(
            x=x, stroke=alt.Stroke("colour:N", scale=None), fill=alt.Fill("centre:N", scale=None)
        ),
        *_side_labels(base, layout),
    )
    return _svg(layers, layout, len(rows))


def _trait_row(i: int, trait: TraitShift, layout: Layout) -> dict[str, object]:
    colour = COLOURS["pos" if trait.direction == "pos" else "neg"] if trait.flag else COLOURS["muted"]
    stress_left, stress_right = trait.flag and trait.direction == "neg", trait.flag and trait.direction == "pos"
    return {
        "row": i,
        "shift": _finite(trait.shift),
        "low": _finite(trait.low),
        "high": _finite(trait.high),
        "null_low": _finite(trait.null_low),
        "null_high": _finite(trait.null_high),
        "colour": colour,
        "centre": colour if trait.flag else COLOURS["paper"],
        "left": _label(trait.negative, layout),
        "right": _label(trait.positive, layout),
        "left_stressed": stress_left,
        "right_stressed": stress_right,
        "left_colour": colour if stress_left else COLOURS["muted"],
        "right_colour": colour if stress_right else COLOURS["muted"],
    }


def _side_labels(base: alt.Chart, layout: Layout) -> list[alt.Chart]:
    """Names of the negative poles at the left and of the positive at the right; a flagged one in bold."""
    charts: list[alt.Chart] = []
    for side, place in (("left", -12), ("right", layout.plot + 12)):
        for stressed in (True, False):
            text = base.transform_filter(alt.datum[f"{side}_stressed"] == stressed).mark_text(
                align="right" if side == "left" else "left",
                baseline="middle",
                fontSize=_LABEL_SIZE,
                fontWeight="bold" if stressed else "normal",
            )
            colour = alt.Color(f"{side}_colour:N", scale=None)
            charts.append(text.encode(x=alt.value(place), text=f"{side}:N", color=colour))
    return charts


def persona_chart(bars: Sequence[Bar], layout: Layout) -> str:
    """Posterior weight of each component with its interval and a tick at its prior, as SVG."""
    rows = [_persona_row(i, bar, layout) for i, bar in enumerate(bars)]
    base = alt.Chart(alt.InlineData(values=rows)).encode(y=_row_axis(len(rows)))
    scale = alt.Scale(zero=True, nice=True)
    axis = alt.Axis(tickCount=layout.ticks, format="~%", title="posterior weight")
    layers = alt.layer(
        base.mark_bar(height=13, color=COLOURS["bar"]).encode(x=alt.X("weight:Q", scale=scale, axis=axis)),
        base.transform_filter("isValid(datum.low)")
        .mark_rule(color=COLOURS["ink"], strokeWidth=1.5)
        .encode(x="low:Q", x2="high:Q"),
        base.transform_filter("isValid(datum.prior)")
        .mark_tick(color=COLOURS["mark"], thickness=2.5, height=18, opacity=1)
        .encode(x="prior:Q"),
        base.mark_text(align="right", baseline="middle", fontSize=_LABEL_SIZE, color=COLOURS["ink"]).encode(
            x=alt.value(-10), text="label:N"
        ),
    )
    return _svg(layers, replace(layout, plot=layout.plot + layout.label // 2), len(rows))


def _persona_row(i: int, bar: Bar, layout: Layout) -> dict[str, object]:
    return {
        "row": i,
        "label": _label(bar.label, layout),
        "weight": bar.weight,
        "prior": None if bar.low is None else bar.prior,  # that of many others together would set the scale
        "low": bar.low,
        "high": bar.high,
    }


def bars_of(weights: Sequence[PersonaWeight], background: str, *, limit: int = 12) -> tuple[Bar, ...]:
    """The heaviest components, then the background, then all others as one bar."""
    named = [w for w in weights if w.persona != background]
    shown = [*named[:limit], *(w for w in weights if w.persona == background)]
    rest = named[limit:]
    bars = [Bar(w.label or w.persona, w.weight, w.prior, w.low, w.high) for w in shown]
    if rest:
        label = f"{len(rest)} others" if len(rest) > 1 else "1 other"
        bars.append(Bar(label, sum(w.weight for w in rest), sum(w.prior for w in rest), None, None))
    return tuple(bars)


def _row_axis(n: int) -> alt.Y:
    return alt.Y("row:O", axis=None, scale=alt.Scale(domain=list(range(n)), paddingInner=0, paddingOuter=0.2))


def _label(text: str, layout: Layout) -> str:
    return shorten(" ".join(clean(text).split()), layout.label * 2 // 13)


def _svg(chart: alt.LayerChart | alt.FacetChart, layout: Layout, n_rows: int) -> str:
    return draw(chart, layout, max(1, n_rows) * _ROW)


def draw(chart: alt.LayerChart | alt.FacetChart, layout: Layout, height: int) -> str:
    """A chart as SVG in the page's style, `height` pixels high."""
    margin = layout.label // 11  # the reader's font may be wider than the one measured
    padding = {"left": margin, "right": margin, "top": 4, "bottom": 4}
    shape = chart.properties(width=layout.plot, height=height, background="transparent", padding=padding)
    styled = (
        shape.configure(font=_FONT, aria=False)
        .configure_view(stroke=None)
        .configure_axis(
            domain=False,
            labelFlush=False,
            gridColor=COLOURS["line"],
            tickColor=COLOURS["line"],
            labelColor=COLOURS["muted"],
            titleColor=COLOURS["muted"],
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            titlePadding=8,
        )
    )
    return vl_convert.vegalite_to_svg(styled.to_dict(), allowed_base_urls=[]).replace(_NAMESPACES, "", 1)


def _finite(value: float) -> float | None:
    """The value, or None, which leaves the mark out."""
    return value if math.isfinite(value) else None
