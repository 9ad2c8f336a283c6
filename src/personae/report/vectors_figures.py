"""Charts of the vectors' pages: the map of roles, and dose-response curves. Style and colours are those of `figures`.

Not here: tables, which hold every number that is drawn.
"""

from __future__ import annotations

import altair as alt

from personae.report.figures import COLOURS, Layout, draw
from personae.report.text import clean, shorten
from personae.tables.dose import DoseCurve
from personae.tables.space import PersonaSpace

_MAP_HEIGHT = 430
_CURVE_HEIGHT = 250
_LINES = 40  # of labels that fit above one another on the map
_WIDTH = 0.6  # of a label, in standard deviations


def map_chart(space: PersonaSpace, layout: Layout) -> str:
    """Roles on the first two components, the model without instruction marked."""
    wide = layout.plot > 300
    rows = [
        {"x": float(x), "y": float(y), "label": shorten(clean(label), 22 if wide else 12), "kind": "role"}
        for (x, y), label in zip(space.map, space.labels, strict=True)
    ]
    x, y = space.default_map
    rows.append({"x": float(x), "y": float(y), "label": "the model as it is", "kind": "default"})
    _part_labels(rows)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("x:Q", axis=_axis(layout, "first component, towards the model as it is"), scale=alt.Scale(padding=30)),
        y=alt.Y("y:Q", axis=_axis(layout, "second component"), scale=alt.Scale(padding=20)),
    )
    roles, plain = "datum.kind == 'role'", "datum.kind == 'default'"
    place = base.encode(y=alt.Y("at:Q"))
    layers = alt.layer(
        base.transform_filter(roles).mark_point(color=COLOURS["bar"], filled=True, size=34, opacity=1),
        base.transform_filter(plain).mark_point(color=COLOURS["mark"], filled=True, size=150, opacity=1),
        place.transform_filter(roles)
        .mark_text(align="left", dx=6, fontSize=11 if wide else 9, color=COLOURS["ink"])
        .encode(text="label:N"),
        place.transform_filter(plain)
        .mark_text(align="right", dx=-9, fontSize=12 if wide else 10, fontWeight="bold", color=COLOURS["mark"])
        .encode(text="label:N"),
    )
    return draw(layers, _fitted(layout), _MAP_HEIGHT if wide else 330)


def dose_chart(curve: DoseCurve, layout: Layout) -> str:
    """Effect of the vector with its interval, and the reach of random directions."""
    rows = [
        {
            "dose": d.coefficient,
            "effect": d.effect,
            "low": d.low,
            "high": d.high,
            "up": d.random_largest,
            "down": -d.random_largest,
        }
        for d in curve.doses
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=alt.X("dose:Q", axis=_axis(layout, "dose, residual norms")))
    down = alt.Y("down:Q", axis=_axis(layout, "log-odds, nats a token"))
    layers = alt.layer(
        base.mark_area(color=COLOURS["band"], opacity=1).encode(y=down, y2="up:Q"),
        base.mark_rule(color=COLOURS["mark"], strokeWidth=2).encode(y="low:Q", y2="high:Q"),
        base.mark_line(color=COLOURS["mark"], strokeWidth=2).encode(y="effect:Q"),
        base.mark_point(color=COLOURS["mark"], filled=True, size=55, opacity=1).encode(y="effect:Q"),
    )
    return draw(layers, _fitted(layout), _CURVE_HEIGHT)


def cost_chart(curve: DoseCurve, layout: Layout) -> str:
    """Fluency lost by the vector, and by random directions of its length."""
    rows = [{"dose": d.coefficient, "cost": d.cost, "random": d.random_cost} for d in curve.doses]
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=alt.X("dose:Q", axis=_axis(layout, "dose, residual norms")))
    y = alt.Y("cost:Q", axis=_axis(layout, "lost on ordinary text, nats a token"))
    layers = alt.layer(
        base.mark_line(color=COLOURS["bar"], strokeWidth=3).encode(y="random:Q"),
        base.mark_line(color=COLOURS["mark"], strokeWidth=2).encode(y=y),
        base.mark_point(color=COLOURS["mark"], filled=True, size=55, opacity=1).encode(y="cost:Q"),
    )
    return draw(layers, _fitted(layout), _CURVE_HEIGHT)


def _part_labels(rows: list[dict[str, object]]) -> None:
    """Give every label a height of its own where two points lie close, so that both can be read."""
    low, high = min(float(str(r["y"])) for r in rows), max(float(str(r["y"])) for r in rows)
    step = max(high - low, 1e-6) / _LINES
    placed: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda r: float(str(r["y"]))):
        x, at = float(str(row["x"])), float(str(row["y"]))
        for other_x, other_at in sorted(placed, key=lambda p: p[1]):
            if abs(other_x - x) < _WIDTH and abs(other_at - at) < step:
                at = other_at + step
        placed.append((x, at))
        row["at"] = at


def _axis(layout: Layout, title: str) -> alt.Axis:
    return alt.Axis(tickCount=layout.ticks, title=title)


def _fitted(layout: Layout) -> Layout:
    """Charts without side labels take their room too."""
    return Layout(layout.plot + layout.label // 2, layout.label // 2, layout.ticks)
