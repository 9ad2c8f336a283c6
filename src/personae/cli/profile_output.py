"""A profile as JSON, as tables in the run folder, and as lines in a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.instruments.judging import Judge
from personae.protocols.first_words import FirstWords
from personae.protocols.profile import Listened
from personae.protocols.reach import RawBelief
from personae.report.profile_finding import finding
from personae.report.text import clean, number, percent
from personae.running.run import write_table, write_text
from personae.tables.persona_profile import PersonaShare, Profile
from personae.tables.transcripts import COLUMNS, Transcripts

_SHOWN = 8
_UNIT = "nats, summed over the replies of a conversation"


def profile_json(profile: Profile, *, folder: Path) -> dict[str, object]:
    """The contract of `profile --json`: plain, finite values."""
    p = profile
    return {
        "command": "profile",
        "target": p.target,
        "system": p.system,
        "scorer": p.scorer,
        "cast": p.cast,
        "n_prompts": p.n_prompts,
        "n_conversations": p.n_conversations,
        "n_tokens": p.n_tokens,
        "n_empty": p.n_empty,
        "n_refusals": p.n_refusals,
        "finding": finding(p),
        "posterior": [_share(s) for s in p.shares],
        "background": p.background,
        "traits": [
            {
                "id": t.trait,
                "positive": t.positive,
                "negative": t.negative,
                "mass_pos": t.mass_pos,
                "mass_pos_ci": [t.mass_pos_low, t.mass_pos_high],
                "mass_neg": t.mass_neg,
                "mass_neg_ci": [t.mass_neg_low, t.mass_neg_high],
                "lean": t.lean,
                "lean_ci": [_finite(t.lean_low), _finite(t.lean_high)],
            }
            for t in p.traits
        ],
        "topics": {
            "p": p.topics.p,
            "effect": p.topics.effect,
            "effect_null": p.topics.effect_null,
            "reason": p.topics.reason,
            "rows": [
                {"topic": t.topic, "n": t.n, "p": t.p, "q": t.q, "leading": [_share(s) for s in t.leading]}
                for t in p.topics.rows
            ],
        },
        "telling": [
            {"prompt": t.prompt, "topic": t.topic, "asked": t.asked, "information": t.information, "n": t.n}
            for t in p.telling
        ],
        "classes": [{"personas": list(members), "weight": weight} for members, weight in p.classes],
        "self_description": _self_description(p),
        "white_box": _white_box(p),
        "white_box_reason": p.white_box_reason,
        "favour": _favour(p),
        "versus": _versus(p),
        "reach": _reach(p),
        "reach_reason": p.reach_reason,
        "is_identified": p.is_identified,
        "rank": p.rank,
        "eta": p.eta,
        "eta_source": p.eta_source,
        "not_measurable": list(p.not_measurable),
        "notes": list(p.notes),
        "transcripts": str(folder / "transcripts.jsonl"),
        "card": str(folder / "card.html"),
        "report": str(folder / "report.html"),
        "run": str(folder),
    }


def card_json(profile: Profile) -> dict[str, object]:
    """The persona card for programs: distribution, reach, traits, self-description, limits, provenance."""
    whole = profile_json(profile, folder=Path("."))
    names = (
        "target", "system", "scorer", "cast", "n_prompts", "n_conversations", "finding", "posterior", "background",
        "traits", "classes", "self_description", "white_box", "white_box_reason", "reach", "reach_reason", "eta",
        "eta_source", "not_measurable", "notes",
    )  # fmt: skip
    return {"kind": "persona card", "version": 1, **{n: whole[n] for n in names}, **profile.provenance}


def _share(s: PersonaShare) -> dict[str, object]:
    return {
        "persona": s.persona,
        "label": s.label,
        "kind": s.kind,
        "prior": s.prior,
        "weight": s.weight,
        "ci": [s.low, s.high],
    }


def _self_description(p: Profile) -> dict[str, object] | None:
    own = p.self_description
    if own is None:
        return None
    return {
        "described": [_share(s) for s in own.described],
        "behaved": [_share(s) for s in own.behaved],
        "total_variation": own.total_variation,
        "p": own.p,
    }


def _white_box(p: Profile) -> dict[str, object] | None:
    w = p.white_box
    if w is None:
        return None
    return {
        "n_prompts": w.n_prompts,
        "posterior": [_share(s) for s in w.shares],
        "misfit": w.misfit,
        "is_identified": w.is_identified,
        "total_variation": w.total_variation,
        "inside": w.inside,
        "agrees": w.agrees,
        "notes": list(w.notes),
    }


def _favour(p: Profile) -> dict[str, object] | None:
    f = p.favour
    if f is None:
        return None
    return {
        "n_conversations": f.n_conversations,
        "offsets": [{"persona": persona, "nats_a_token": nats} for persona, nats in f.offsets],
        "confusion": [list(row) for row in f.confusion],
        "recovered": [{"persona": i, "weight": w, "ci": [low, high]} for i, w, low, high in f.recovered],
        "log_loss": f.log_loss,
        "log_loss_without": f.log_loss_without,
    }


def _versus(p: Profile) -> dict[str, object] | None:
    v = p.versus
    if v is None:
        return None
    moves = [
        {
            "id": m.id,
            "label": m.label,
            "kind": m.kind,
            "first": m.first,
            "second": m.second,
            "difference": m.difference,
            "ci": [m.low, m.high],
            "p": m.p,
            "q": m.q,
            "flag": m.q <= v.fdr,
        }
        for m in v.moves
    ]
    return {"other": v.other, "n_prompts": v.n_prompts, "fdr": v.fdr, "n_moved": len(v.found), "moves": moves}


def _reach(p: Profile) -> dict[str, object] | None:
    r = p.reach
    if r is None:
        return None
    rows = [
        {
            "persona": x.persona,
            "label": x.label,
            "weight": x.weight,
            "critical_n": x.critical_n,
            "ci": [x.low, x.high],
            "censored": x.critical_n is None,
            "n_most": x.n_most,
            "law": x.law,
            "turns": list(x.turns),
            "log_odds": list(x.log_odds),
            "note": x.note,
        }
        for x in r.rows
    ]
    kept = zip(r.retention_turns, r.retention, r.retention_low, r.retention_high, strict=True)
    return {
        "against": r.against,
        "rows": rows,
        "retention": {
            "persona": r.retained_persona,
            "change_at_zero": r.change_at_zero,
            "rows": [{"turns": n, "ratio": v, "ci": [low, high]} for n, v, low, high in kept],
            "reason": r.retention_reason,
        },
        "martingale": None
        if r.martingale_p is None
        else {"drift": r.martingale_drift, "noise": r.martingale_noise, "p": r.martingale_p},
        "notes": list(r.notes),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_transcripts(folder: Path, stem: str, said: Transcripts) -> None:
    """Replies as JSON lines and as Parquet, before anything is computed from them."""
    rows = said.to_rows()
    write_text(folder / f"{stem}.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    types = {"sample": pa.int32(), "turn": pa.int32(), "n_tokens": pa.int32(), "seed": pa.int64()}
    kinds = {c: types.get(c, pa.float64() if c == "log_prob" else pa.string()) for c in COLUMNS}
    columns = {c: pa.array([r[c] for r in rows], kinds[c]) for c in COLUMNS}
    write_table(folder / f"{stem}.parquet", columns, {"target": said.target, "unit": "log_prob in nats"})


def write_evidence(folder: Path, stem: str, listened: Listened, judge: Judge) -> None:
    """Log-likelihood of every conversation under every component."""
    table = listened.heard.log_likelihood
    n, k = table.shape
    columns = {
        "conversation": [c for c in listened.heard.conversations for _ in range(k)],
        "prompt": [c for c in listened.prompt for _ in range(k)],
        "topic": [c for c in listened.topic for _ in range(k)],
        "persona": [c.id for c in judge.components] * n,
        "n_tokens": listened.heard.n_tokens.repeat(k),
        "log_likelihood": table.ravel(),
    }
    write_table(folder / f"{stem}.parquet", columns, {"unit": _UNIT, "scorer": judge.scorer})


def write_first_words(folder: Path, words: FirstWords, judge: Judge) -> None:
    """Probabilities of first tokens, of the target and of every component; token -1 is any other."""
    rows: list[tuple[str, int, str, float]] = []
    for q, (prompt, tokens) in enumerate(zip(words.prompts, words.tokens, strict=True)):
        for a, token in enumerate(tokens):
            rows.append((prompt, token, "target", float(words.p[q, a])))
            rows += [(prompt, token, c.id, float(words.theta[k, q, a])) for k, c in enumerate(judge.components)]
    prompt, token, who, p = zip(*rows, strict=True)
    columns = {"prompt": prompt, "token": token, "persona": who, "probability": p}
    write_table(folder / "first_words.parquet", columns, {"unit": "probability"})


def write_reach(folder: Path, raw: RawBelief) -> None:
    """Belief in every persona in every context after every number of turns."""
    columns = {
        "persona": list(raw.persona),
        "context": raw.context.astype(np.int64),
        "turns": raw.turns.astype(np.int64),
        "weight": raw.weight,
    }
    write_table(folder / "reach.parquet", columns, {"unit": "probability"})


def print_profile(profile: Profile, folder: Path) -> None:
    """The finding, the weights, what moved, reach and limits, and where the page is."""
    console = Console(highlight=False)
    console.print()
    console.print(Text(_printable(finding(profile)), style="bold"))
    console.print()
    console.print(_weights(profile.shares))
    console.print(Text(f"eta {profile.eta:.3g}, {profile.eta_source}", style="dim"))
    if profile.topics.p is not None:
        console.print(Text(f"Mix by topic: p = {profile.topics.p:.3g} that it is one and the same"))
    if profile.white_box is not None:
        agree = "agree" if profile.white_box.agrees else "do not agree"
        console.print(Text(f"First words {agree} ({percent(profile.white_box.total_variation)} of the weight differs)"))
    elif profile.white_box_reason:
        console.print(Text(_printable(f"First words were not read: {profile.white_box_reason}")))
    if profile.reach_reason:
        console.print(Text(_printable(f"Reach was left out: {profile.reach_reason}")))
    if profile.versus is not None:
        for m in profile.versus.found[:_SHOWN]:
            console.print(Text(f"  moved: {_printable(m.label)} ({m.kind}) {m.difference:+.3f}, q {m.q:.2g}"))
    if profile.reach is not None:
        console.print(Text("\nTurns of its own behaviour that bring a persona to one half:"))
        for r in profile.reach.rows[:_SHOWN]:
            turns = f"more than {r.n_most:g}" if r.critical_n is None else number(r.critical_n, 1)
            console.print(Text(f"  {_printable(r.label)}: {turns}"))
    for line in (*profile.notes, *(profile.reach.notes if profile.reach else ()), *profile.not_measurable):
        console.print(Text(f"note: {_printable(line)}", style="dim"))
    console.print(Text(f"\nReport: {folder / 'report.html'}"), soft_wrap=True)
    console.print(Text(f"Card:   {folder / 'card.html'}"), soft_wrap=True)


def _weights(shares: Sequence[PersonaShare]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("persona", "weight", "90% interval"):
        table.add_column(name, justify="left" if name == "persona" else "right")
    shown = [*shares[:_SHOWN], *(s for s in shares[_SHOWN:] if s.kind == "background")]
    for s in shown:
        table.add_row(
            Text(_printable(s.label or s.persona)), percent(s.weight), f"{percent(s.low)} to {percent(s.high)}"
        )
    return table


def _printable(text: str) -> str:
    return clean(text).replace("\n", " ")
