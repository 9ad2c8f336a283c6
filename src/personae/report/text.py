"""Words and numbers as a reader meets them: data made visible, figures with a sign and a sensible length.

`clean` turns characters that hide, reorder or break text into visible ones, so that a page (or a terminal)
shows what a file holds. It is not what keeps data out of the markup: escaping does that. Not here: layout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls other than tab and line feed
    "\u202a-\u202e\u2066-\u2069"  # overrides of reading direction
    "\ud800-\udfff\ufffe\uffff"  # halves of pairs, and what no encoding may carry
    "\U000e0000-\U000e007f]"  # invisible copies of ASCII
)
_MISSING = "—"


def clean(text: str) -> str:
    r"""Text in which nothing is hidden: controls and direction overrides become visible, line ends line feeds.

    Example:
        >>> clean("a\x00b\u202ec\r\nd")
        'a␀b[U+202E]c\nd'
    """
    return _HIDDEN.sub(_show, text.replace("\r\n", "\n"))


def _show(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else "\N{REPLACEMENT CHARACTER}" if 0xD800 <= code <= 0xDFFF else f"[U+{code:04X}]"


def shorten(text: str, limit: int) -> str:
    """The text, or its start and an ellipsis when it is longer than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def number(value: float, digits: int = 2) -> str:
    """A number with `digits` decimals, a true minus sign, and a dash when there is none.

    Example:
        >>> number(-0.061), number(float("-inf")), number(float("nan"))
        ('−0.06', '−∞', '—')
    """
    if math.isnan(value):
        return _MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    body = f"{value:.{digits}f}".lstrip("-")
    return f"−{body}" if value < 0 and float(body) != 0 else body


def signed(value: float, digits: int = 2) -> str:
    """As `number`, with a plus sign before what is above zero."""
    body = number(value, digits)
    return f"+{body}" if value > 0 and body.strip("0.") else body


def lean(value: float) -> str:
    """A signed shift: two decimals, or three when it is below a tenth."""
    return signed(value, 2 if abs(value) >= 0.0995 else 3)


def probability(value: float) -> str:
    """A probability with three decimals, never rounded to nothing."""
    return "<0.001" if 0 <= value < 0.001 else number(value, 3)


def percent(value: float) -> str:
    """A share as a percentage, never rounded to nothing."""
    if not math.isfinite(value):
        return _MISSING
    if 0 < value < 0.001:
        return "<0.1%"
    return f"{number(100 * value, 0 if value >= 0.0995 else 1).removesuffix('.0')}%"


def share(value: float) -> str:
    """A share as a percentage with one decimal, for columns."""
    return "<0.1%" if 0 < value < 0.0005 else f"{number(100 * value, 1)}%" if math.isfinite(value) else _MISSING


def ratio(value: float, base: float) -> str:
    """How many times the base a value is, with two digits: "× 22", "× 0.31"."""
    if not (base > 0 and math.isfinite(value / base)):
        return _MISSING
    times = value / base
    return "× <0.01" if 0 < times < 0.005 else f"× {number(times, 0 if times >= 9.95 else 1 if times >= 0.995 else 2)}"


def count(n: int, noun: str, plural: str = "") -> str:
    """A count with its noun: "1 row", "2,000 rows"."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def series(words: Sequence[str]) -> str:
    """Words joined as in a sentence.

    Example:
        >>> series(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def moment(stamp: str) -> str:
    """An ISO date and time for people; anything else as it is."""
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    zone = f" {when.tzname()}" if when.tzinfo else ""
    return f"{when:%Y-%m-%d %H:%M}{zone}"
