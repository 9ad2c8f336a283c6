"""The pages of `personae vectors space` and `personae vectors steer`.

Not here: charts (`vectors_figures`), the shared page (`page`).
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from personae.report import vectors_figures
from personae.report.figures import NARROW, WIDE, Layout
from personae.report.page import fill, provenance_facts, style
from personae.report.text import count
from personae.tables.dose import DoseCurve
from personae.tables.space import PersonaSpace, SpaceComparison


def render_space(
    spaces: Sequence[PersonaSpace], compared: SpaceComparison | None, provenance: Mapping[str, object]
) -> str:
    """The page of one space, or of two and their comparison, as one string of HTML."""
    first = spaces[0]
    parts = [fill("space_head", {"s": first, "stressed": _finding(first), "others": spaces[1:]})]
    for at, s in enumerate(spaces):
        charts = _pair(functools.partial(vectors_figures.map_chart, s))
        order = sorted(range(len(s.roles)), key=lambda i: -s.positions[i])
        rows = [(s.labels[i], s.positions[i], s.map[i, 0], s.map[i, 1]) for i in order]
        parts.append(fill("space_map", {"s": s, "charts": charts, "rows": rows, "at": at}))
    if compared is not None:
        parts.append(fill("space_compared", {"c": compared}))
    parts.append(fill("vectors_making", {"facts": provenance_facts(provenance), "kind": "space"}))
    return _page(f"persona space of {first.origin.model}", parts)


def render_dose(curve: DoseCurve, trait: str, provenance: Mapping[str, object]) -> str:
    """The page of a dose-response curve as one string of HTML."""
    charts = {
        "effect": _pair(functools.partial(vectors_figures.dose_chart, curve)),
        "cost": _pair(functools.partial(vectors_figures.cost_chart, curve)),
    }
    parts = [
        fill("dose", {"c": curve, "trait": trait, "charts": charts}),
        fill("vectors_making", {"facts": provenance_facts(provenance), "kind": "dose"}),
    ]
    return _page(f"steering {curve.model} along {curve.vector}", parts)


def _finding(s: PersonaSpace) -> str:
    """The sentence at the top."""
    if s.split_half[0] < 0.9:
        return "The Assistant axis is not repeatable here: do not read the map"
    if s.first_cosine > s.first_null_roles:
        return "The model as it is lies at an end of the main component"
    return f"{count(s.n_for_70, 'component')} hold 70 % of what sets roles apart"


def _page(title: str, sections: list[Markup]) -> str:
    none = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    values = {"title": title, "style": style(), "script": Markup(""), "script_hash": none, "sections": sections}
    return str(fill("page", values))


def _pair(draw: Callable[[Layout], str]) -> dict[str, Markup]:
    return {"wide": Markup(draw(WIDE)), "narrow": Markup(draw(NARROW))}
