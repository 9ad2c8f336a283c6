"""Every row of a screening as the page's ledger: which rows, in which order, as text and as embedded JSON.

Not here: markup, and the sorting and filtering that a browser does (`templates/script.js`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.report.text import clean, shorten
from personae.tables.forecast import RowLedger, Screening

MAX_ROWS = 5_000
PLAIN_ROWS = 200
_MAX_CELLS = 300_000  # rows times traits, so that a large cast cannot make a page of many megabytes
_EXCERPT = 280
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


@dataclass(frozen=True, slots=True)
class LedgerTrait:
    """A trait in the ledger's choice, with the labels of its poles."""

    id: str
    positive: str
    negative: str


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One row with its strongest trait; `llr` and `z` point to that trait's positive pole."""

    id: str
    line: int
    n_tokens: int
    weight: float
    excerpt: str
    pole: str
    llr: float
    z: float


@dataclass(frozen=True, slots=True, eq=False)
class LedgerView:
    """The ledger as the page shows it.

    Attributes:
        rows: Kept rows, the strongest first.
        traits: Traits that can be chosen; all of them unless `n_traits` is larger.
        n_rows, n_traits: Sizes before anything was cut.
        weighted: Whether weights differ from 1 and so deserve a column.
        data: The same as JSON that may stand inside a script element.
    """

    rows: tuple[LedgerRow, ...]
    traits: tuple[LedgerTrait, ...]
    n_rows: int
    n_traits: int
    weighted: bool
    data: str


def ledger_view(screening: Screening) -> LedgerView:
    """Choose, order and encode the rows of a screening."""
    ledger = screening.ledger
    every = _traits_of(screening)
    top, strength = _strongest(ledger.z)
    kept = np.argsort(-strength, kind="stable")[:MAX_ROWS]
    order = _evidence_order(screening)[: max(1, _MAX_CELLS // max(1, len(kept)))]
    rows = tuple(_row(ledger, int(i), int(top[i]), every) for i in kept)
    return LedgerView(
        rows=rows,
        traits=tuple(every[j] for j in order),
        n_rows=len(ledger.episodes),
        n_traits=len(every),
        weighted=bool(np.any(ledger.weight != 1)),
        data=embed(_payload(ledger, rows, kept, order, [every[j] for j in order])),
    )


def embed(value: object) -> str:
    r"""JSON that can neither end nor open an element when it stands inside a script element.

    Example:
        >>> embed({"a": "</script>"})
        '{"a":"\\u003c/script\\u003e"}'
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _traits_of(screening: Screening) -> list[LedgerTrait]:
    poles = {t.id: (t.positive, t.negative) for t in screening.traits}
    return [LedgerTrait(t, *poles.get(t, (t, f"not {t}"))) for t in screening.ledger.traits]


def _evidence_order(screening: Screening) -> list[int]:
    """Columns of the ledger, those of the strongest traits first."""
    place = {t.id: i for i, t in enumerate(screening.traits)}
    names = screening.ledger.traits
    return sorted(range(len(names)), key=lambda j: (place.get(names[j], len(place)), j))


def _strongest(z: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Column of the largest |z| of each row (-1 where there is no trait), and that size."""
    if z.shape[1] == 0:
        return np.full(len(z), -1), np.zeros(len(z))
    size = np.nan_to_num(np.abs(z), nan=0.0, posinf=np.inf)
    return np.argmax(size, axis=1), np.max(size, axis=1)


def _row(ledger: RowLedger, i: int, top: int, traits: Sequence[LedgerTrait]) -> LedgerRow:
    z = float(ledger.z[i, top]) if top >= 0 else float("nan")
    return LedgerRow(
        id=ledger.episodes[i],
        line=int(ledger.line[i]),
        n_tokens=int(ledger.n_tokens[i]),
        weight=float(ledger.weight[i]),
        excerpt=shorten(ledger.excerpt[i], _EXCERPT),
        pole="" if top < 0 else traits[top].negative if z < 0 else traits[top].positive,
        llr=float(ledger.llr[i, top]) if top >= 0 else float("nan"),
        z=z,
    )


def _payload(
    ledger: RowLedger,
    rows: Sequence[LedgerRow],
    kept: NDArray[np.int64],
    order: Sequence[int],
    traits: Sequence[LedgerTrait],
) -> dict[str, object]:
    columns = np.array(order, dtype=np.int64)
    return {
        "traits": [[clean(t.positive), clean(t.negative)] for t in traits],
        "line": [r.line for r in rows],
        "id": [clean(r.id) for r in rows],
        "excerpt": [clean(r.excerpt) for r in rows],
        "n_tokens": [r.n_tokens for r in rows],
        "weight": _numbers(np.array([r.weight for r in rows])),
        "pole": [clean(r.pole) for r in rows],
        "top": {"llr": _numbers(np.array([r.llr for r in rows])), "z": _numbers(np.array([r.z for r in rows]))},
        "llr": _numbers(ledger.llr[np.ix_(kept, columns)].T),
        "z": _numbers(ledger.z[np.ix_(kept, columns)].T),
    }


def _numbers(values: NDArray[np.float64]) -> object:
    """Nested lists with two decimals; what is not finite becomes null."""
    rounded = np.round(values.astype(np.float64), 2) + 0.0
    listed = rounded.astype(np.object_)
    listed[~np.isfinite(rounded)] = None
    return listed.tolist()
