"""The sentence at the top of an audit: what personas explain, and which view the statistics speak for."""

from __future__ import annotations

from personae.report.text import percent
from personae.tables.audit import VIEW_NAMES, Audit


def audit_finding(result: Audit) -> str:
    """One sentence, or two."""
    return "".join(words for words, _ in finding_pieces(result))


def finding_pieces(result: Audit) -> list[tuple[str, bool]]:
    """The sentence in pieces, and which of them are stressed."""
    if result.undefined:
        return [("Nothing to explain", True), (f": {result.undefined}.", False)]
    row = result.alone or result.rungs[-1]
    pieces = [
        ("Personas explain ", False),
        (percent(max(row.share, 0.0)), True),
        (f" (95% interval {percent(max(row.low, 0.0))} to {percent(max(row.high, 0.0))}) of what changed.", False),
    ]
    card = result.scorecard
    if card is None:
        return pieces
    if not card.verdict:
        return [*pieces, (" No verdict on the views", True), (f": {card.abstains}.", False)]
    odds = "more than 100" if card.odds > 100 else f"{card.odds:.1f}"
    return [
        *pieces,
        (" The statistics look like those of: ", False),
        (VIEW_NAMES[card.verdict], True),
        (f" ({odds} to 1 against the next, {VIEW_NAMES[card.rival]}).", False),
    ]
