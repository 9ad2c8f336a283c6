"""An audit as JSON and as lines in a terminal."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.inference.trend import Change
from personae.report.audit_finding import audit_finding
from personae.tables.audit import VIEW_NAMES, Audit


def audit_json(result: Audit, *, report: Path, run: Path) -> dict[str, object]:
    """One object with every number; what is not finite is null."""
    values = {k: v for k, v in result.to_dict().items() if k != "provenance"}
    head = {"command": "audit", "finding": audit_finding(result)}
    return {**head, **_finite(values), "report": str(report), "run": str(run)}  # type: ignore[dict-item]


def _finite(value: object) -> object:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {k: _finite(v) for k, v in value.items()}
        case list() | tuple():
            return [_finite(v) for v in value]
        case _:
            return value


def print_audit(result: Audit, report: Path) -> None:
    """The finding, the ladder and the scorecard."""
    console = Console(highlight=False)
    console.print(Text(audit_finding(result), style="bold"))
    console.print(
        Text(
            f"KL from {result.post} to {result.base}: {result.kl_per_token:.4g} nats a token "
            f"({result.n_conversations} conversations, {result.n_tokens} tokens)"
        )
    )
    if not result.undefined:
        table = Table(show_edge=False, pad_edge=False, box=None)
        for name in ("", "explains", "95% interval", "adds"):
            table.add_column(name, justify="left" if not name else "right")
        shown = [*result.rungs, *([result.alone] if result.alone else []), *result.rivals]
        for row in shown:
            name = f"{row.id}  {row.what}" if row.id.startswith("R") else row.what
            table.add_row(Text(name), f"{row.share:.2f}", f"{row.low:.2f} .. {row.high:.2f}", f"{row.gain:+.2f}")
        console.print(table)
    card = result.scorecard
    if card is not None and not result.undefined:
        ordered = sorted(card.probability.items(), key=lambda item: -item[1])[:3]
        console.print(Text("views: " + ", ".join(f"{VIEW_NAMES[v]} {p:.0%}" for v, p in ordered)))
    console.print(Text(f"report: {report}", style="dim"))


def print_trend(names: list[str], found: list[Change]) -> None:
    """Steps at which a statistic changed."""
    console = Console(highlight=False)
    changed = [c for c in found if c.is_found]
    if not changed:
        console.print(Text(f"no change over {len(names)} checkpoints (family-wise error 5%)", style="bold"))
    for c in changed:
        line = f"{names[c.step]}: {c.statistic} {c.before:.3g} -> {c.after:.3g} (adjusted p {c.p:.2g})"
        console.print(Text(line))
