"""What sort of token: ends the turn, form, refusal, function word, content. For breakdowns only."""

from __future__ import annotations

import re
from collections.abc import Sequence

from personae.models.protocol import Tokenizer

_WORDS = """a an the and or but if of in on at to for from by with as is are was were be been am do does did has have
had will would can could should may might must not no it its this that these those i you he she we they me him her us
them my your his our their so than then there here what which who when where how why"""
_FUNCTION = frozenset(_WORDS.split())
_REFUSAL = re.compile(
    r"^\W*(i('m| am) (sorry|unable)|i (can't|cannot|can not|won't|will not)|sorry|as an ai)", re.IGNORECASE
)
_REFUSED_TOKENS = 12


def token_classes(tokenizer: Tokenizer, reply: Sequence[int]) -> list[str]:
    """The class of each token of a reply."""
    refuses = _REFUSAL.match(tokenizer.decode(list(reply))) is not None
    out: list[str] = []
    for place, token in enumerate(reply):
        word = tokenizer.decode([token]).strip().lower()
        if token in tokenizer.stop_ids:
            out.append("end of turn")
        elif refuses and place < _REFUSED_TOKENS:
            out.append("refusal")
        elif not any(c.isalnum() for c in word):
            out.append("form")
        else:
            out.append("function word" if word in _FUNCTION else "content")
    return out


def position_bin(place: int) -> str:
    """Where in its reply a token stands."""
    for most, name in ((0, "first"), (3, "2 to 4"), (15, "5 to 16")):
        if place <= most:
            return name
    return "17 on"
