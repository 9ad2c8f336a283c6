"""`audit`: every protocol once, into a log; from the log alone, the result.

    measure(parties, material) -> AuditLog (tables on disk)  -> conclude -> Audit -> page

What is measured is kept token by token, reply by reply and cell by cell, so every number on the page can be
made again without a model. Not here: the protocols (`audit_*`), the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from personae.domain.persona import Cast
from personae.instruments.keeping import Shelf
from personae.instruments.voices import Held, hold
from personae.models.protocol import SamplingPlan
from personae.models.soft_prompt import SoftPromptPlan
from personae.protocols.audit_breaks import plant_breaks, read_breaks
from personae.protocols.audit_coin import audit_cells, throw, world_flips
from personae.protocols.audit_ladder import LadderRun, Started, run_ladder
from personae.protocols.audit_lie import read_facts
from personae.protocols.audit_material import Material, Size
from personae.protocols.audit_outside import run_outside
from personae.protocols.audit_parties import Parties
from personae.protocols.audit_router import Replies, gather, make_controls, target_of
from personae.protocols.audit_tokens import position_bin, token_classes

Floats = NDArray[np.float64]
Columns = dict[str, list[object]]
_PLANTED = 24


@dataclass(frozen=True, slots=True, eq=False)
class AuditLog:
    """What was measured.

    Attributes:
        facts: Settings, names, fitted weights and temperatures, notes: plain values.
        tokens, texts: One row a token in chat and out of chat, with KL under every rung ("kl:R4").
        replies: One row a distinct reply of the target or a control to a single prompt.
        flips: One row a throw of the coin.
        knowledge: One row a question with possible answers.
        breaks: One row a conversation.
        said: What was said, one row a conversation.
    """

    facts: dict[str, object]
    tokens: Columns
    texts: Columns
    replies: Columns
    flips: Columns
    knowledge: Columns
    breaks: Columns
    said: Columns


def measure(
    taking_part: Parties,
    material: Material,
    size: Size,
    *,
    cast: Cast | None,
    seed: int = 0,
    protocols: Sequence[str] = ("ladder", "outside", "coin", "knowledge", "router", "breaks"),
    soft: SoftPromptPlan | None = None,
    started: Started = lambda label, total: lambda amount: None,
    shelf: Shelf | None = None,
) -> AuditLog:
    """Run the protocols.

    Args:
        taking_part: Who is compared.
        material: What is asked.
        size: How much.
        cast: The cast of the components, for controls in other words; None in a world.
        seed: Of everything random.
        protocols: Which to run; the ladder always is.
        soft: How the soft prompt of rung R6 is learned; None leaves it out.
        started: Called with a label and a total before each part; gives a function told of progress.
        shelf: Where passes of the ladder are kept; None for nowhere. Models keep their own (`keeping.keep`).

    Raises:
        InvalidSettings: If there are too few prompts.
    """
    plan = SamplingPlan(size.max_tokens, 1.0, seed)
    talks = material.talks
    advance = started("Conversations", sum(len(t.asks) for t in talks))
    held = hold([taking_part.post] * len(talks), talks, plan, advance=advance)
    ladder = run_ladder(taking_part, held, n_shots=size.shots, soft=soft, seed=seed, started=started, shelf=shelf)
    notes = list(ladder.notes)
    facts: dict[str, object] = {
        "components": list(ladder.components),
        "labels": [v.label for v in taking_part.components],
        "rungs": list(ladder.explained.rungs),
        "temperatures": [f.temperature for f in ladder.explained.fits],
        "weights": _weights(ladder),
        "seed": seed,
        "is_world": taking_part.world is not None,
        "source": material.source,
        "max_tokens": size.max_tokens,
    }
    texts: Columns = {}
    if "outside" in protocols and material.texts:
        outside = run_outside(
            taking_part,
            material.texts,
            max_tokens=max(size.max_tokens // 2, 1),
            seed=seed,
            started=started,
            shelf=shelf,
        )
        texts = _token_columns(outside, taking_part)
    flips: list[object] = []
    facts["coin_reason"] = "" if "coin" in protocols else "not run"
    if "coin" in protocols and taking_part.world is not None:
        flips = list(world_flips(taking_part.post, taking_part.base, material.facts))
    elif "coin" in protocols:
        few = 6 if size.prompts >= 64 else 3
        thrown = audit_cells(few)
        advance = started("Coin", 2 * len(thrown))
        flips, facts["coin_reason"] = throw(taking_part.post, taking_part.base, thrown, advance=advance)  # type: ignore[assignment]
    knowledge: list[object] = []
    if "knowledge" in protocols:
        best = _single(ladder)
        reference = next(v for v in taking_part.components if v.id == best) if taking_part.world else taking_part.base
        knowledge = list(read_facts(taking_part.post, reference, material.facts))
        facts["reference"] = reference.id
    replies: Columns = {}
    if "router" in protocols:
        replies = _router(taking_part, material, size, cast, seed, started)
    breaks: list[object] = []
    if "breaks" in protocols:
        breaks = list(_breaks(taking_part, ladder, material, plan, started))
    facts["notes"] = notes
    return AuditLog(
        facts,
        _token_columns(ladder, taking_part),
        texts,
        replies,
        _columns(flips),
        _columns(knowledge),
        _columns(breaks),
        _said(ladder.held),
    )


def _router(
    taking_part: Parties,
    material: Material,
    size: Size,
    cast: Cast | None,
    seed: int,
    started: Started,
) -> Columns:
    models = [target_of(taking_part), *make_controls(taking_part, cast, size.controls, seed)]
    advance = started("Router and controls", len(models) * len(taking_part.components))
    columns: Columns = {k: [] for k in ("model", "prompt", "topic", "count", "log_target", "log_likelihood")}
    for j, model in enumerate(models):
        made: Replies = gather(
            model,
            taking_part.components,
            material.singles,
            size.samples,
            size.max_tokens,
            seed + 1000 * j,
            advance=advance,
        )
        columns["model"] += [model.name] * len(made.held)
        columns["prompt"] += [h.talk.cluster for h in made.held]
        columns["topic"] += [h.talk.topics[0] for h in made.held]
        columns["count"] += [int(c) for c in made.count]
        columns["log_target"] += [float(x) for x in made.log_target]
        columns["log_likelihood"] += [list(map(float, row)) for row in made.log_likelihood]
    return columns


def _breaks(
    taking_part: Parties, ladder: LadderRun, material: Material, plan: SamplingPlan, started: Started
) -> list[object]:
    """Ordinary conversations, the battery where there is one, and planted breaks."""
    text = next((v for v in taking_part.frames if v.id == "text"), None)
    if text is None:
        return []
    inside = [v for v in (taking_part.base, *taking_part.personas)]
    share = dict(_weights(ladder))
    weight = np.array([max(share.get(v.id, 0.0), 1e-6) for v in inside])
    # Only components that count: each costs a pass.
    kept = np.flatnonzero(weight >= min(0.02, float(weight.max())))
    inside, log_weights = [inside[int(k)] for k in kept], np.log(weight[kept] / weight[kept].sum())
    ordinary = [h for h in ladder.held if not h.talk.cue][:64]
    advance = started("Breaks of character", 2 + bool(material.breaks))
    made = list(read_breaks(text, inside, log_weights, ordinary, "ordinary"))
    advance(1)
    planted, cuts = plant_breaks(text, ordinary[:_PLANTED], plan)
    if planted:
        made += read_breaks(text, inside, log_weights, planted, "planted", cuts)
    advance(1)
    if material.breaks:
        battery = hold([taking_part.post] * len(material.breaks), material.breaks, plan)
        made += read_breaks(text, inside, log_weights, battery, "battery")
        advance(1)
    return list(made)


def _weights(ladder: LadderRun, rung: str = "R4") -> list[tuple[str, float]]:
    """Mean fitted weight of every component, whatever its temperature."""
    n = len(ladder.components)
    both = np.mean([np.exp(f.log_weights[rung][""]) for f in ladder.explained.fits], axis=0)
    return [(name, float(w)) for name, w in zip(ladder.components, both[:n] + both[n:], strict=True)]


def _single(ladder: LadderRun) -> str:
    n = len(ladder.components)
    chosen = [int(f.log_weights["R3"][""].argmax()) % n for f in ladder.explained.fits]
    return ladder.components[chosen[0]]


def _token_columns(run: LadderRun, taking_part: Parties) -> Columns:
    """One row a token."""
    tokenizer = taking_part.post.model.tokenizer
    columns: Columns = {
        k: []
        for k in (
            "conversation",
            "cluster",
            "topic",
            "cue",
            "turn",
            "place",
            "token",
            "bin",
            "class",
            "rank",
            "log_post",
            "log_base",
        )
    } | {f"kl:{r}": [] for r in run.explained.rungs}
    for held, kl, reading in zip(run.held, run.explained.kl, run.explained.readings, strict=True):
        at = 0
        for turn, reply in enumerate(held.replies):
            for place, (token, kind) in enumerate(zip(reply, token_classes(tokenizer, reply), strict=True)):
                row: Mapping[str, object] = {
                    "conversation": held.talk.id,
                    "cluster": held.talk.cluster,
                    "topic": held.talk.topics[turn],
                    "cue": held.talk.cue,
                    "turn": turn,
                    "place": place,
                    "token": int(token),
                    "bin": position_bin(place)
                    if len(reply) > 1 or len(held.replies) == 1
                    else f"turn {turn // 4 * 4 + 1} on",
                    "class": kind,
                    "rank": int(reading.rank[at]),
                    "log_post": float(reading.log_target[at]),
                    "log_base": float(reading.log_likelihood[0, at]),
                } | {f"kl:{r}": float(kl[k, at]) for k, r in enumerate(run.explained.rungs)}
                for name, value in row.items():
                    columns[name].append(value)
                at += 1
    return columns


def _columns(rows: Sequence[object]) -> Columns:
    made = [asdict(r) for r in rows]  # type: ignore[call-overload]
    return {k: [r[k] for r in made] for k in made[0]} if made else {}


def _said(held: Sequence[Held]) -> Columns:
    return {
        "conversation": [h.talk.id for h in held],
        "asks": [list(h.talk.asks) for h in held],
        "cue": [h.talk.cue for h in held],
        "replies": [list(h.texts) for h in held],
    }
