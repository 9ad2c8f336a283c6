"""The page of a verification: what was measured against what was forecast, trait by trait.

One file that needs no network and no script, in the style of a screening's report. Not here: the numbers
(`tables.verification`).
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping
from pathlib import PurePath

import altair as alt
from markupsafe import Markup

from personae.report import text
from personae.report.figures import COLOURS, NARROW, WIDE, Layout, draw
from personae.report.page import fill, style
from personae.tables.verification import Verification, VerifiedTrait

_CHARTED = 30


def render_verification(result: Verification) -> str:
    """The page as one string of HTML."""
    none = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    shown = result.traits[:_CHARTED]
    charts = {
        "wide": Markup(verification_chart(shown, result, WIDE)),
        "narrow": Markup(verification_chart(shown, result, NARROW)),
    }
    section = fill(
        "verify",
        {
            "v": result,
            "name": PurePath(result.data).name,
            "charts": charts,
            "n_charted": len(shown),
            "date": text.moment(str(result.provenance.get("date", ""))),
            "facts": _facts(result),
        },
    )
    page = fill(
        "page",
        {
            "title": f"{PurePath(result.data).name}: forecast and outcome",
            "style": style(),
            "script": Markup(""),
            "script_hash": none,
            "sections": [section],
        },
    )
    return str(page)


def verification_chart(traits: tuple[VerifiedTrait, ...], result: Verification, layout: Layout) -> str:
    """Interval said before as a band, its mean as a tick, the outcome with its interval as a dot; SVG."""
    rows = [
        {
            "row": i,
            "label": r.trait if len(r.trait) <= layout.label // 8 else r.trait[: layout.label // 8 - 1] + "…",
            "low": r.forecast_low if result.calibrated else None,
            "high": r.forecast_high if result.calibrated else None,
            "mean": r.forecast if result.calibrated else None,
            "common": r.common if result.calibrated else None,
            "seen": r.measured,
            "seen_low": r.measured_low,
            "seen_high": r.measured_high,
        }
        for i, r in enumerate(traits)
    ]
    axis = alt.Axis(tickCount=layout.ticks, title="change of log-odds, nats")
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y("row:O", axis=None, scale=alt.Scale(domain=list(range(len(rows))), paddingInner=0, paddingOuter=0.2))
    )
    x = functools.partial(alt.X, axis=axis, scale=alt.Scale(zero=True, nice=True))
    said = base.transform_filter("isValid(datum.mean)")
    layers = alt.layer(
        said.mark_bar(height=13, cornerRadius=3, color=COLOURS["band"]).encode(x=x("low:Q"), x2="high:Q"),
        said.mark_tick(color=COLOURS["bar"], thickness=3, height=15).encode(x=x("mean:Q")),
        alt.Chart(alt.InlineData(values=[{"zero": 0}])).mark_rule(color=COLOURS["muted"]).encode(x=x("zero:Q")),
        base.mark_rule(strokeWidth=2, color=COLOURS["mark"]).encode(x=x("seen_low:Q"), x2="seen_high:Q"),
        base.mark_point(size=55, filled=True, opacity=1, color=COLOURS["mark"]).encode(x=x("seen:Q")),
        base.mark_text(align="right", baseline="middle", fontSize=12.5, color=COLOURS["ink"]).encode(
            x=alt.value(-10), text="label:N"
        ),
    )
    return draw(layers, Layout(layout.plot, layout.label, layout.ticks), max(1, len(rows)) * 24)


def _facts(result: Verification) -> list[tuple[str, str]]:
    form, cost, agreement = result.form, result.cost, result.agreement
    share = cost.get("of_training")
    facts = [
        ("training", f"{form.kind}, {form.n_rows} rows, {form.rows_seen} seen, learning rate {form.learning_rate:g}"),
        ("form", f"{form.mean_tokens:.0f} tokens a row, {form.loss:.2f} nats a token before training"),
        ("forecaster", f"{result.forecaster}; unit: {result.unit}"),
        ("past runs", _pairs(result.calibration) or "too few"),
        ("cost", f"{share:.1%} of the training’s passes" if isinstance(share, float) else "not known"),
        ("rank correlation", "—" if agreement.spearman is None else f"{agreement.spearman:+.2f}"),
        (
            "error",
            "—"
            if agreement.rmse is None
            else f"{agreement.rmse:.2f} nats ({agreement.rmse_nothing:.2f} for “nothing changes”)",
        ),
    ]
    return [(name, text.clean(value)) for name, value in facts]


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in values.items())
