"""What `personae measure` reads and prints: items with the names of their poles, a profile as JSON and as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.domain.diagnostic import DiagnosticSet
from personae.domain.persona import Cast
from personae.errors import InvalidSettings
from personae.files.casts import built_in_casts, load_casts
from personae.files.diagnostics import diagnostics_path, load_diagnostics
from personae.models.catalogue import resolve
from personae.report.text import clean
from personae.tables.traits import TraitChange, TraitProfile, plain_values
from personae.worlds.diagnostics import world_diagnostics

if TYPE_CHECKING:
    from personae.report.traits_page import MeasureView, Row

_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Source:
    """Items, the names of their traits' poles, and the files they came from."""

    items: DiagnosticSet
    labels: Mapping[str, tuple[str, str]]
    paths: tuple[str, ...]


def load_items(model: str, cast: str, files: Sequence[str], only: str | None, *, thorough: bool = False) -> Source:
    """The items to ask: of files, of the world that the model is of, or of the cast.

    Raises:
        UnknownPersona: If the cast is unknown or without items, or a trait has none.
        InvalidSettings: If further items (`thorough`) are asked of files or of a world.
        InputError: If a file cannot be used.
    """
    world = resolve(model).world
    labels: dict[str, tuple[str, str]] = {}
    if files:
        items = load_diagnostics(cast, files, thorough=thorough)
        paths = tuple(files)
        labels = _labels(load_casts([cast]))
    elif world is not None:
        if thorough:
            raise InvalidSettings("a world has no further items.", hint="Leave out --thorough.")
        items, paths = world_diagnostics(world), ()
        labels = {t.id: (t.positive, t.negative) for t in world.traits}
    else:
        known = load_casts([cast])
        items, labels = load_diagnostics(cast, thorough=thorough), _labels(known)
        more = (str(diagnostics_path(f"{cast}-more")),) if thorough else ()
        paths = (str(built_in_casts()[cast]), str(diagnostics_path(cast)), *more)
    if only is not None:
        chosen = [n.strip() for n in only.split(",") if n.strip()]
        if not chosen:
            raise InvalidSettings("--only names no trait.", hint=f"There are {', '.join(items.traits)}.")
        items = items.select(traits=chosen)
    return Source(items, labels, paths)


def labels_of(source: Source) -> dict[str, tuple[str, str]]:
    """Names of both poles of every trait that has items, positive first."""
    return {t: source.labels.get(t, (t.replace("-", " "), f"not {t.replace('-', ' ')}")) for t in source.items.traits}


def _labels(cast: Cast) -> dict[str, tuple[str, str]]:
    return {t.id: (t.pos.label, t.neg.label) for t in cast.traits}


def profile_json(
    profile: TraitProfile,
    labels: Mapping[str, tuple[str, str]],
    versus: TraitProfile | None,
    changes: Sequence[TraitChange],
    *,
    report: Path,
    run: Path,
) -> dict[str, object]:
    """The contract of `measure --json`: plain values, None where there is no number."""
    parts = {name: {r.trait: r for r in found} for name, found in profile.parts.items()}
    return {
        "command": "measure",
        "model": profile.model,
        "cast": profile.cast,
        "system": profile.system,
        "unit": "nats towards the positive pole",
        "n_tokens": profile.n_tokens,
        "traits": [
            {
                **{("id" if k == "trait" else k): v for k, v in plain_values(r).items()},
                "positive": labels[r.trait][0],
                "negative": labels[r.trait][1],
                "parts": {name: plain_values(found[r.trait]) for name, found in parts.items()},
            }
            for r in profile.readings
        ],
        "templates": [plain_values(c) for c in profile.coverage],
        "versus": None
        if versus is None
        else {
            "model": versus.model,
            "system": versus.system,
            "changes": [{("id" if k == "trait" else k): v for k, v in plain_values(c).items()} for c in changes],
        },
        "notes": list(profile.notes),
        "report": str(report),
        "run": str(run),
    }


def print_profile(view: MeasureView, report: Path) -> None:
    """The finding, a row a trait, notes, and where the page is."""
    from personae.report.traits_page import change_rows, finding, profile_rows

    console = Console(highlight=False)
    console.print()
    console.print(Text(clean(finding(view)), style="bold"))
    console.print()
    if view.versus is not None:
        console.print(_table(change_rows(view), "change"))
    else:
        console.print(_table(profile_rows(view), "log-odds"))
    for note in view.profile.notes:
        console.print(Text(f"note: {clean(note)}", style="dim"))
    console.print(Text(f"\nReport: {report}"), soft_wrap=True)


def _table(rows: Sequence[Row], name: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("trait", name, "95% interval", "q" if name == "change" else "statements", "items"):
        table.add_column(column, justify="left" if column == "trait" else "right", no_wrap=True)
    for r in rows[:_SHOWN]:
        last = f"{r.q:.3g}" if name == "change" else r.other
        cells = (
            (f"{r.value:+.2f}", f"{r.low:+.2f} {r.high:+.2f}", last) if r.is_measured else ("", "not measurable", "")
        )
        table.add_row(Text(clean(r.trait)), *cells, str(r.n_items))
    return table
