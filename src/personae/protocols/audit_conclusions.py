"""From the log of an audit to its result, without any model.

Shares of KL with intervals, router against controls, swings, knowledge, breaks, and the scorecard. Running it
twice on one log gives the same numbers. Not here: measuring (`audit`), showing (`report.audit_page`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from personae.inference.coin import Flip, Swing, contrast, swing
from personae.inference.ladder import Gap, Share, gap_of, shares
from personae.inference.router import heterogeneity
from personae.inference.scorecard import Expectations, score, shipped_expectations
from personae.protocols.audit import AuditLog, Columns
from personae.protocols.audit_breaks import BreakReading, Breaks, judge_breaks
from personae.protocols.audit_ladder import ALONE
from personae.protocols.audit_lie import FactReading, TopicKnowledge, knowledge, lie_or_swap
from personae.tables.audit import Audit, BreakRow, PartRow, RouterRow, RungRow, SwingRow, TopicRow

Floats = NDArray[np.float64]

WHAT = {
    "R1": "the base at another temperature",
    "R2": "the base in another frame",
    "R3": "the best single persona",
    "R4": "a mixture of personas",
    "R5": "and shown replies of the model",
    "R6": "and a soft prompt",
    "R7": "another seed of the same training",
    ALONE: "a mixture of personas, no temperature",
    "by topic": "other weights for each topic",
    "by turn": "other weights as turns go by",
    "by cue": "other weights under a cue",
}
_COIN_FRAMES = 4
_LEAST_LEFT = 0.05  # of KL_0: below it, what a rival explains of the rest is noise


def conclude(
    log: AuditLog,
    *,
    expectations: Expectations | None = None,
    provenance: Mapping[str, object] | None = None,
) -> Audit:
    """The result of a log.

    Args:
        log: What was measured.
        expectations: Of the scorecard; the shipped ones if not given.
        provenance: To carry into the result.
    """
    facts = log.facts
    rng = np.random.default_rng([int(str(facts.get("seed", 0))), 59])
    gap, clusters, kl, n_tokens = _by_conversation(log.tokens)
    names = [n for n in kl if n != "R0"]
    nested = [n for n in names if n.startswith("R") and n != "R7"]
    rungs = _rows(kl, nested, clusters, rng)
    if "R7" in kl:
        rungs += [_alone_row(kl, "R7", clusters, rng)]
    rivals = [
        _pair_row(kl, "R4", n, WHAT.get(n, "other weights after a " + n.removeprefix("by ")), clusters, rng)
        for n in names
        if n.startswith("by ")
    ]
    alone = _alone_row(kl, ALONE, clusters, rng) if ALONE in kl else None
    outside = _outside(log.texts, gap, rng)
    swings = _swings([Flip(**row) for row in _as_rows(log.flips)], rng)  # type: ignore[arg-type]
    topics = knowledge([FactReading(**r) for r in _as_rows(log.knowledge)]) if log.knowledge else []  # type: ignore[arg-type]
    verdict, place = _knowledge_verdict(topics, [*rungs, *rivals])
    router, controls = _routers(log.replies)
    breaks = judge_breaks([BreakReading(**r) for r in _as_rows(log.breaks)]) if log.breaks else None  # type: ignore[arg-type]
    values, errors = statistics(gap, alone, rivals, topics, outside, swings, _concentration(log.tokens))
    card = score(values, errors, expectations or shipped_expectations(), thin=_thin(gap))
    rank = np.array(log.tokens["rank"])
    highest = max((c.effect for c in controls), default=0.0)
    return Audit(
        str(facts.get("post", "")),
        str(facts.get("base", "")),
        str(facts.get("cast", "")),
        len(set(log.tokens["conversation"])),
        gap.n_clusters,
        int(n_tokens.sum()),
        gap.per_token,
        gap.per_conversation,
        gap.se,
        gap.reason,
        tuple(rungs),
        alone,
        tuple(rivals),
        _normalised(kl) if "R7" in kl else None,
        tuple(float(t) for t in facts["temperatures"]),  # type: ignore[union-attr]
        tuple((str(n), float(w)) for n, w in facts["weights"]),  # type: ignore[union-attr]
        tuple(_parts(log.tokens)),
        float((rank == 0).mean()),
        float(((rank > 0) & (rank <= 2)).mean()),
        float((rank > 2).mean()),
        router,
        tuple(controls),
        router.effect / highest if router is not None and highest > 0 else None,
        outside[0],
        outside[1],
        outside[2],
        tuple(swings),
        str(facts.get("coin_reason", "")),
        tuple(TopicRow(t.topic, t.agreement, t.agreement_plain, t.departure, t.n) for t in topics),
        verdict,
        place,
        *_break_fields(breaks),
        scorecard=card,
        notes=tuple(str(n) for n in facts.get("notes", ())),  # type: ignore[union-attr]
        provenance=dict(provenance or {}),
    )


def statistics(
    gap: Gap,
    alone: RungRow | None,
    rivals: Sequence[RungRow],
    topics: Sequence[TopicKnowledge],
    outside: tuple[float, float | None, float | None],
    swings: Sequence[SwingRow],
    concentration: float | None,
) -> tuple[dict[str, float | None], dict[str, float]]:
    """Values and standard errors of the scorecard's statistics; None where one was not measured."""
    if not gap.is_defined:
        return {}, {}
    gains = {r.id: r for r in rivals}
    mentions = [r for r in rivals if r.id.startswith("by mention")]
    most = max(mentions, key=lambda r: r.share) if mentions else None
    found = {"topic_gain": gains.get("by topic"), "turn_gain": gains.get("by turn"), "cue_gain": gains.get("by cue")}
    values: dict[str, float | None] = {"alone": None if alone is None else float(np.clip(alone.share, -0.5, 1))}
    errors = {"alone": 0.0 if alone is None else (alone.high - alone.low) / 3.92}
    for name, row in {**found, "mention_gain": most}.items():
        # Of what the mixture leaves; what a rival adds to an explanation worse than none is not its own merit.
        before = 0.0 if row is None else max(row.share - row.gain, 0.0)
        left = 1.0 - before
        enough = left > _LEAST_LEFT
        values[name] = None if row is None else float(np.clip((row.share - before) / left, 0.0, 1)) if enough else 0.0
        errors[name] = (row.gain_high - row.gain_low) / 3.92 / left if row is not None and enough else 0.0
    worst = max(topics, key=lambda t: t.departure) if topics else None
    values["agreement"] = worst.agreement if worst is not None else None
    values["outside_ratio"] = None if outside[1] is None else float(np.log10(max(outside[1], 1e-3)))
    values["outside_share"] = None if outside[2] is None else float(np.clip(outside[2], -0.5, 1))
    coin = next((s for s in swings if s.kind == "post minus base"), None)
    values["coin"] = None if coin is None else float(np.clip(coin.logit / 2, -3, 3))
    errors["coin"] = 0.0 if coin is None else (coin.logit_high - coin.logit_low) / 2 / 3.92
    left = 1.0 - (values["alone"] or 0.0)
    values["concentration"] = concentration if left > _LEAST_LEFT else None
    return values, errors


def _by_conversation(tokens: Columns) -> tuple[Gap, list[str], dict[str, Floats], Floats]:
    """KL_0, clusters, KL of every conversation under every rung, and its tokens."""
    names = list(dict.fromkeys(tokens["conversation"]))
    place = {n: i for i, n in enumerate(names)}
    index = np.array([place[c] for c in tokens["conversation"]])
    cluster_of = dict(zip(tokens["conversation"], tokens["cluster"], strict=True))
    kl = {
        k.removeprefix("kl:"): np.bincount(index, np.array(v, np.float64), len(names)).astype(np.float64)
        for k, v in tokens.items()
        if k.startswith("kl:")
    }
    n = np.bincount(index, minlength=len(names)).astype(np.float64)
    clusters = [str(cluster_of[c]) for c in names]
    return gap_of(kl["R0"], n, clusters), clusters, kl, n


def _rows(
    kl: Mapping[str, Floats], names: Sequence[str], clusters: Sequence[str], rng: np.random.Generator
) -> list[RungRow]:
    made = shares(kl["R0"], np.stack([kl[n] for n in names]), clusters, rng=rng)
    return [_row(n, WHAT[n], s) for n, s in zip(names, made, strict=True)]


def _alone_row(kl: Mapping[str, Floats], name: str, clusters: Sequence[str], rng: np.random.Generator) -> RungRow:
    return _row(name, WHAT[name], shares(kl["R0"], kl[name][None], clusters, rng=rng)[0])


def _pair_row(
    kl: Mapping[str, Floats], under: str, name: str, what: str, clusters: Sequence[str], rng: np.random.Generator
) -> RungRow:
    """A rival; its gain is over the mixture of personas."""
    return _row(name, what, shares(kl["R0"], np.stack([kl[under], kl[name]]), clusters, rng=rng)[1])


def _row(name: str, what: str, s: Share) -> RungRow:
    return RungRow(name, what, s.value, s.low, s.high, s.gain, s.gain_low, s.gain_high, s.kl)


def _normalised(kl: Mapping[str, Floats]) -> float | None:
    room = float(kl["R0"].mean() - kl["R7"].mean())
    return float(kl["R0"].mean() - kl["R4"].mean()) / room if room > 1e-9 else None


def _parts(tokens: Columns) -> list[PartRow]:
    zero, left = np.array(tokens["kl:R0"], np.float64), np.array(tokens["kl:R4"], np.float64)
    made: list[PartRow] = []
    for kind, column in (("position", "bin"), ("token", "class"), ("topic", "topic")):
        labels = np.array(tokens[column])
        for part in dict.fromkeys(tokens[column]):
            mine = labels == part
            total = float(zero[mine].sum())
            share = 1 - float(left[mine].sum()) / total if total > 1e-6 else float("nan")
            of_gap = total / max(float(zero.sum()), 1e-12)
            made.append(PartRow(kind, str(part), float(mine.mean()), of_gap, float(zero[mine].mean()), share))
    return made


def _concentration(tokens: Columns) -> float | None:
    """How much of what is left unexplained lies on the worst topic: 0 where topics are alike, 1 where it is all."""
    left, labels = np.array(tokens[f"kl:{ALONE}"], np.float64), np.array(tokens["topic"])
    names = sorted(set(labels.tolist()))
    if len(names) < 2 or left.sum() <= 0:
        return None
    means = np.array([left[labels == n].mean() for n in names])
    return float((means.max() / means.sum() - 1 / len(names)) / (1 - 1 / len(names)))


def _outside(texts: Columns, inside: Gap, rng: np.random.Generator) -> tuple[float, float | None, float | None]:
    """KL a token out of chat, its ratio to that in chat, and the personas' share of it."""
    if not texts:
        return float("nan"), None, None
    gap, clusters, kl, _ = _by_conversation(texts)
    ratio = gap.per_token / inside.per_token if inside.per_token > 0 else None
    share = shares(kl["R0"], kl[ALONE][None], clusters, rng=rng)[0].value if gap.is_defined else None
    return gap.per_token, ratio, share


def _swings(flips: Sequence[Flip], rng: np.random.Generator) -> list[SwingRow]:
    made: list[SwingRow] = []

    def of(model: str, frame: str, kind: str) -> list[Flip]:
        return [f for f in flips if (f.model, f.frame, f.kind) == (model, frame, kind)]

    for frame in list(dict.fromkeys(f.frame for f in flips))[:_COIN_FRAMES]:
        real, before = of("post", frame, "real"), of("base", frame, "real")
        made.append(_swing_row(contrast(real, before, f"{frame}: post minus base", rng=rng), "post minus base"))
        made.append(_swing_row(swing(real, f"{frame}: post", rng=rng), "post"))
        made.append(_swing_row(swing(before, f"{frame}: base", rng=rng), "base"))
        alike, alike_before = of("post", frame, "alike"), of("base", frame, "alike")
        if alike:
            name = f"{frame}: two tasks of one sort, post minus base"
            made.append(_swing_row(contrast(alike, alike_before, name, rng=rng), "placebo"))
        for first in (True, False):
            mine = [f for f in real if f.first_preferred == first]
            if mine and len(mine) < len(real):
                order = "first" if first else "second"
                made.append(_swing_row(swing(mine, f"{frame}: post, preferred task named {order}", rng=rng), "order"))
    return made


def _swing_row(s: Swing, kind: str) -> SwingRow:
    return SwingRow(
        s.what,
        kind,
        s.probability,
        s.probability_low,
        s.probability_high,
        s.logit,
        s.logit_low,
        s.logit_high,
        s.heads,
        s.mass,
        s.n,
    )


def _knowledge_verdict(topics: Sequence[TopicKnowledge], rows: Sequence[RungRow]) -> tuple[str, str]:
    return lie_or_swap(topics, {r.id: r.share for r in rows}) if topics else ("", "")


def _routers(replies: Columns) -> tuple[RouterRow | None, list[RouterRow]]:
    rows: list[RouterRow] = []
    for model in dict.fromkeys(replies.get("model", [])):
        mine = [i for i, m in enumerate(replies["model"]) if m == model]
        times = np.array([replies["count"][i] for i in mine], np.int64)
        at = np.repeat(np.array(mine), times)
        table = np.array([replies["log_likelihood"][i] for i in mine], np.float64).repeat(times, axis=0)
        own = np.array([replies["log_target"][i] for i in mine], np.float64).repeat(times)
        found = heterogeneity(
            table, own, [str(replies["topic"][i]) for i in at], [str(replies["prompt"][i]) for i in at]
        )
        rows.append(
            RouterRow(str(model), found.effect, found.effect_se, found.residual, found.residual_se, found.n_replies)
        )
    return (rows[0] if rows else None), rows[1:]


def _break_fields(
    breaks: Breaks | None,
) -> tuple[float | None, float | None, int, tuple[BreakRow, ...], float | None, int, float | None]:
    if breaks is None:
        return None, None, 0, (), None, 0, None

    def known(value: float) -> float | None:
        return value if np.isfinite(value) else None

    rows = tuple(BreakRow(t, r) for t, r in breaks.by_topic.items())
    return (
        known(breaks.threshold),
        known(breaks.rate),
        breaks.n,
        rows,
        known(breaks.planted_rate),
        breaks.n_planted,
        known(breaks.onset_error),
    )


def _thin(gap: Gap) -> str:
    return "" if gap.is_defined else f"there is nothing to explain: {gap.reason}"


def _as_rows(columns: Columns) -> list[dict[str, object]]:
    """Rows of a table; lists come back from disk as lists where tuples were written."""
    names = list(columns)
    return [
        {n: tuple(v) if isinstance(v, list) else v for n, v in zip(names, row, strict=True)}
        for row in zip(*(columns[n] for n in names), strict=True)
    ]


def trend_values(audit: Audit) -> dict[str, tuple[float, float]]:
    """Value and standard error of what is followed over checkpoints."""
    out = {"KL a conversation": (audit.kl_per_conversation, audit.kl_se)}
    if not audit.undefined and audit.alone is not None:
        out["share that personas explain"] = (audit.alone.share, (audit.alone.high - audit.alone.low) / 3.92)
    if audit.router is not None:
        out["router statistic"] = (audit.router.effect, audit.router.effect_se)
    for s in audit.swings:
        if s.kind == "post":
            out[f"coin, {s.what}"] = (s.logit, (s.logit_high - s.logit_low) / 3.92)
    return out
