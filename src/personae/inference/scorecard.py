"""Which view of the system do the statistics speak for? A small generative model fitted on worlds.

    p(x | view) = mean over kinds of worlds that stand for the view of  prod_j t_4((x_j - m_j) / s_j) / s_j
    s_j^2 = spread of statistic j over worlds of the kind + its measurement error^2

A view may show in several ways (a router by topic or by swap), so it is a mixture of kinds. Statistics that
were not measured are left out of the product. Tails are heavy (Student's t with 4 degrees of freedom), and
log-likelihoods are tempered because statistics are not independent. It abstains when the best view is not
clearly ahead, or when no view expects anything like the statistics. Not here: measuring them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from personae.tables.audit import VIEW_NAMES, VIEWS, Scorecard, StatisticRow

Floats = NDArray[np.float64]

KIND_VIEWS = {
    "mixture": "strict",
    "filter": "relaxed",
    "leak": "leakage",
    "router": "router",
    "swap": "router",
    "goal_seeker": "shoggoth",
    "novel": "shoggoth",
    "liar": "actor",
    "actor": "actor",
    "arc": "narrative",
}
STATISTICS = {
    "alone": "share of KL that personas explain",
    "topic_gain": "share of the rest that weights by topic explain",
    "turn_gain": "share of the rest that weights by turn explain",
    "cue_gain": "share of the rest that weights by cue explain",
    "mention_gain": "share of the rest that weights after a mention explain",
    "agreement": "agreement with the reference on the topic of largest departure",
    "outside_ratio": "KL out of chat over KL in chat (log10)",
    "outside_share": "share of KL out of chat that personas explain",
    "coin": "swing of outcomes outside chats, logits",
    "concentration": "concentration of what is left on one topic",
}
LEAST_PROBABILITY = 0.6
FARTHEST = 4.5  # root mean square of standardised distances to the nearest kind
_FREEDOM = 4.0
_TEMPER = 0.5
_LEAST_SPREAD = {"outside_ratio": 0.3}
_SPREAD = 0.08
_PRIOR_WORLDS = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class Expectations:
    """What every kind of world expects.

    Attributes:
        kinds: Their names.
        mean, sd: Shape (n_kinds, n_statistics); NaN where a kind never has the statistic.
        n: Worlds that each was fitted on.
    """

    kinds: tuple[str, ...]
    mean: Floats
    sd: Floats
    n: tuple[int, ...]


def fit_expectations(values: Sequence[Mapping[str, float | None]], kinds: Sequence[str]) -> Expectations:
    """Mean and spread of every statistic over the worlds of each kind.

    A few worlds say little about a spread, so each variance is drawn towards the statistic's typical one over kinds,
    which counts as four worlds.
    """
    names = list(STATISTICS)
    table = np.array([[np.nan if row.get(n) is None else float(row[n] or 0.0) for n in names] for row in values])
    known = [k for k in KIND_VIEWS if k in set(kinds)]
    mean, sd, counts = [], [], []
    for kind in known:
        rows = table[np.array([k == kind for k in kinds])]
        enough = np.isfinite(rows).sum(axis=0) >= max(2, len(rows) // 3)
        centre = np.array([c[np.isfinite(c)].mean() if e else np.nan for c, e in zip(rows.T, enough, strict=True)])
        spread = np.array([c[np.isfinite(c)].std(ddof=1) if e else np.nan for c, e in zip(rows.T, enough, strict=True)])
        mean.append(centre)
        sd.append(spread)
        counts.append(len(rows))
    own = np.array(sd)
    typical = np.array([np.sqrt(np.mean(c[np.isfinite(c)] ** 2)) if np.isfinite(c).any() else np.nan for c in own.T])
    n = np.array(counts, np.float64)[:, None]
    drawn = np.sqrt((n * own**2 + _PRIOR_WORLDS * typical**2) / (n + _PRIOR_WORLDS))
    least = np.array([_LEAST_SPREAD.get(name, _SPREAD) for name in names])
    return Expectations(tuple(known), np.array(mean), np.maximum(drawn, least), tuple(counts))


def shipped_expectations() -> Expectations:
    """Those fitted on the training worlds (`benchmarks/scorecard`)."""
    text = (resources.files("personae") / "reference" / "scorecard.json").read_text(encoding="utf-8")
    value = json.loads(text)
    array = lambda rows: np.array([[np.nan if x is None else x for x in row] for row in rows], np.float64)  # noqa: E731
    assert value["statistics"] == list(STATISTICS)
    return Expectations(tuple(value["kinds"]), array(value["mean"]), array(value["sd"]), tuple(value["n"]))


def dump_expectations(expectations: Expectations) -> dict[str, object]:
    """As plain values for JSON."""

    def rows(table: Floats) -> list[list[float | None]]:
        return [[round(float(x), 5) if np.isfinite(x) else None for x in row] for row in table]

    return {
        "statistics": list(STATISTICS),
        "kinds": list(expectations.kinds),
        "n": list(expectations.n),
        "mean": rows(expectations.mean),
        "sd": rows(expectations.sd),
    }


def score(
    values: Mapping[str, float | None], errors: Mapping[str, float], expectations: Expectations, *, thin: str = ""
) -> Scorecard:
    """Likelihood of every view given the statistics.

    Args:
        values: By statistic; None where it was not measured.
        errors: Standard errors of the values.
        expectations: Of every kind.
        thin: Why the evidence is too thin for any verdict, if it is.
    """
    names = list(STATISTICS)
    x = np.array([np.nan if values.get(n) is None else float(values[n] or 0.0) for n in names])
    se = np.array([errors.get(n, 0.0) for n in names])
    log_kind, distance = _log_likelihood(x, se, expectations)
    log_view = np.array([_of_view(log_kind, expectations.kinds, v) for v in VIEWS])
    probability = np.exp(_TEMPER * (log_view - log_view.max()))
    probability /= probability.sum()
    order = np.argsort(-probability)
    best, rival = VIEWS[int(order[0])], VIEWS[int(order[1])]
    odds = float(probability[order[0]] / max(probability[order[1]], 1e-12))
    abstains = thin
    if not abstains and np.isfinite(x).sum() < 3:
        abstains = f"only {int(np.isfinite(x).sum())} statistics could be measured"
    if not abstains and distance > FARTHEST:
        abstains = f"no view expects statistics like these (distance {distance:.1f}, at most {FARTHEST:g})"
    if not abstains and probability[order[0]] < LEAST_PROBABILITY:
        abstains = f"{VIEW_NAMES[best]} and {VIEW_NAMES[rival]} are nearly as likely ({odds:.1f} to 1)"
    rows = _rows(x, se, expectations, log_kind)
    return Scorecard(
        {v: float(p) for v, p in zip(VIEWS, probability, strict=True)},
        "" if abstains else best,
        rival,
        abstains,
        _would_change(rows, best, rival),
        rows,
        odds,
    )


def _log_likelihood(x: Floats, se: Floats, expectations: Expectations) -> tuple[Floats, float]:
    """Of every kind, nats; and how far the nearest kind lies, in root mean square of spreads."""
    scale = np.sqrt(expectations.sd**2 + se**2)
    z = (x - expectations.mean) / scale
    both = np.isfinite(z)
    each = np.where(both, stats.t.logpdf(np.where(both, z, 0.0), _FREEDOM) - np.log(np.where(both, scale, 1.0)), 0.0)
    # A kind that never has a statistic which was measured: as unlikely as two spreads away from a wide one.
    missing = np.isfinite(x) & ~np.isfinite(expectations.mean)
    each = each + np.where(missing, stats.t.logpdf(1.0, _FREEDOM), 0.0)
    size = np.sqrt(np.where(both, z**2, 0.0).sum(axis=1) / np.maximum(both.sum(axis=1), 1))
    return each.sum(axis=1), float(size.min())


def _of_view(log_kind: Floats, kinds: Sequence[str], view: str) -> float:
    mine = [value for value, kind in zip(log_kind, kinds, strict=True) if KIND_VIEWS[kind] == view]
    return float(np.logaddexp.reduce(mine) - np.log(len(mine))) if mine else -np.inf


def _rows(x: Floats, se: Floats, expectations: Expectations, log_kind: Floats) -> tuple[StatisticRow, ...]:
    """What the likeliest kind of every view expects."""
    leading: dict[str, int] = {}
    for view in VIEWS:
        mine = [i for i, kind in enumerate(expectations.kinds) if KIND_VIEWS[kind] == view]
        if mine:
            leading[view] = max(mine, key=lambda i: float(log_kind[i]))
    rows: list[StatisticRow] = []
    for j, (name, what) in enumerate(STATISTICS.items()):
        rows.append(
            StatisticRow(
                name,
                what,
                float(x[j]) if np.isfinite(x[j]) else None,
                float(se[j]),
                {v: float(expectations.mean[i, j]) for v, i in leading.items() if np.isfinite(expectations.mean[i, j])},
                {v: float(expectations.sd[i, j]) for v, i in leading.items() if np.isfinite(expectations.sd[i, j])},
            )
        )
    return tuple(rows)


def _would_change(rows: Sequence[StatisticRow], best: str, rival: str) -> tuple[str, ...]:
    """The statistics on which the two views differ most, with what the rival expects."""
    found: list[tuple[float, str]] = []
    for row in rows:
        if best not in row.expected or rival not in row.expected:
            continue
        spread = max(np.hypot(row.sd[best], row.sd[rival]), 1e-9)
        gap = abs(row.expected[best] - row.expected[rival]) / spread
        now = "it was not measured" if row.value is None else f"it was {row.value:.2f}"
        found.append((gap, f"{row.what} near {row.expected[rival]:.2f} ({now})"))
    return tuple(text for gap, text in sorted(found, reverse=True)[:3] if gap > 1)
