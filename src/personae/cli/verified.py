"""A verification as text on the terminal: the finding, trait by trait, and what to know.

Not here: the page (`report.verify_page`).
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli.attribution import print_attribution
from personae.report.text import clean
from personae.tables.verification import Verification


def print_verification(result: Verification, report: Path) -> None:
    """Finding, table, notes, and where the page is."""
    console = Console(highlight=False)
    a = result.agreement
    console.print()
    console.print(Text(sentence(result), style="bold"), soft_wrap=True)
    console.print()
    table = Table(box=None, pad_edge=False)
    for name in ("trait", "measured", "± s.e.", "forecast", "90% interval", "common", ""):
        table.add_column(name, justify="left" if name in ("trait", "") else "right", no_wrap=True)
    for r in result.traits[:16]:
        verdict = "" if r.inside is None else ("inside" if r.inside else "outside")
        table.add_row(
            Text(clean(r.trait)),
            f"{r.measured:+.2f}",
            f"{r.measured_se:.2f}",
            f"{r.forecast:+.3g}",
            f"{r.forecast_low:+.3g} {r.forecast_high:+.3g}",
            f"{r.common:+.2f}",
            verdict,
        )
    console.print(table)
    if a.spearman is not None:
        console.print(Text(f"rank correlation over {a.n} traits {a.spearman:+.2f}", style="dim"))
    if a.rmse is not None:
        nothing = f"{a.rmse_nothing:.2f} for a forecast of no change"
        console.print(Text(f"root mean square error {a.rmse:.2f} nats, {nothing}", style="dim"))
    if result.attribution is not None:
        print_attribution(result.attribution)
    for note in result.notes:
        console.print(Text(f"note: {clean(note)}", style="dim"), soft_wrap=True)
    if result.registered:
        console.print(Text(f"Added to the past runs: {result.registered}", style="dim"), soft_wrap=True)
    console.print(Text(f"\nReport: {report}"), soft_wrap=True)


def sentence(result: Verification) -> str:
    """The finding in one sentence."""
    a = result.agreement
    first = result.traits[0]
    moved = f"'{clean(first.trait)}' moved most, by {first.measured:+.2f} ± {first.measured_se:.2f} nats"
    if not result.calibrated:
        return f"{moved}; the forecast has no scale yet (too few past runs), its ranking is shown."
    right = round((a.signs or 0) * a.n_signs)
    sides = f", {right} of {a.n_signs} clear shifts went to the side forecast" if a.signs is not None else ""
    return f"{moved}; {round((a.inside or 0) * a.n)} of {a.n} traits lie in their 90% interval{sides}."
