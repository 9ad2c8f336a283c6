"""What a screening found, in one plain sentence.

The words stay below the numbers: a file "leans towards" a pole; nothing is said of what training will do, and
no flag is never read as proof of an ordinary file. Not here: the page around it.
"""

from __future__ import annotations

from personae.report.text import clean, count, lean, percent, probability, series, shorten
from personae.tables.forecast import Screening, TraitShift

_NAMED = 3
_LONGEST = 60  # characters of a label


def finding(screening: Screening) -> str:
    """The finding as one sentence of plain text."""
    return "".join(words for words, _ in finding_pieces(screening))


def finding_pieces(screening: Screening) -> tuple[tuple[str, bool], ...]:
    """The finding as pieces of text, each with whether to stress it (the poles are)."""
    flagged, n = screening.flagged, len(screening.traits)
    if n == 0:
        return (("No trait was measured: this cast holds roles only.", False),)
    if not flagged:
        return (("No trait differs from ordinary replies", True), (_nothing(screening, n), False))
    shown = flagged[:_NAMED]
    most = "most " if len(flagged) > len(shown) else ""
    verb = "differs" if len(flagged) == 1 else "differ"
    tally = f"{len(flagged)} of {count(n, 'trait')} {verb} from ordinary replies"
    detail = _single(flagged[0]) if len(flagged) == 1 else _several(shown)
    return (
        (f"This file leans {most}towards a character that is ", False),
        *_labels(shown),
        (f": {tally} ({detail}).", False),
    )


def _labels(traits: tuple[TraitShift, ...]) -> list[tuple[str, bool]]:
    """The poles, stressed, with commas and a last "and" between them."""
    pieces: list[tuple[str, bool]] = []
    for i, trait in enumerate(traits):
        if i:
            pieces.append((" and " if i == len(traits) - 1 else ", ", False))
        pieces.append((shorten(" ".join(clean(trait.leaning).split()), _LONGEST), True))
    return pieces


def _towards(trait: TraitShift) -> tuple[float, float, float]:
    """Shift and ordinary range with the sign turned so that positive is the pole the file leans to."""
    if trait.direction == "pos":
        return trait.shift, trait.null_low, trait.null_high
    return -trait.shift, -trait.null_high, -trait.null_low


def _single(trait: TraitShift) -> str:
    shift, low, high = _towards(trait)
    usual = f"19 in 20 ordinary files of this size stay between {lean(low)} and {lean(high)}"
    if low <= shift <= high:
        rows = f"{percent(trait.tail)} of its rows lie beyond the 95th percentile of ordinary replies"
        return f"{rows}; its mean, {lean(shift)} nats a token, would be ordinary"
    return f"{lean(shift)} nats a token; {usual}"


def _several(traits: tuple[TraitShift, ...]) -> str:
    turned = [_towards(t) for t in traits]
    amounts = series([lean(shift) for shift, _, _ in turned])
    some = any(low <= shift <= high for shift, low, high in turned)
    aside = ", some by a heavy tail of rows rather than by their mean" if some else ""
    usual = f"19 in 20 ordinary files of this size stay below {lean(max(high for _, _, high in turned))} on each"
    return f"{amounts} nats a token{aside}; {usual}"


def _nothing(screening: Screening, n: int) -> str:
    rate = percent(screening.fdr)
    if n == 1:
        return f": the one trait measured does not stand out (p {_relation(screening.traits[0].p)})."
    return f": none of the {n} measured stands out at a false discovery rate of {rate}."


def _relation(p: float) -> str:
    words = probability(p)
    return words if words.startswith("<") else f"= {words}"
