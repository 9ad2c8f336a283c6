"""The page of a world: what it is, what is true of it, and the trained model held against that.

One file that needs no network and no script, in the style of a screening's report. Specs are user input, so
every name is escaped. Not here: the numbers (`tables.world_check`), the charts (`report.world_figures`).
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from personae.report import world_figures
from personae.report.figures import NARROW, WIDE, Layout
from personae.report.page import fill, style
from personae.report.text import count
from personae.tables.world_check import FAILS, NOT_RUN, PASSES, WorldCheck
from personae.worlds.spec import World

KINDS_IN_WORDS = {
    "base": "There is no post-training: whoever speaks is a persona of the frame.",
    "mixture": "The Assistant is a mixture of personas. The Persona Selection Model holds.",
    "router": "The Assistant is one persona or another by topic, one question at a time. No persona does that.",
    "liar": "The Assistant is a persona whose answers are turned upside down on one domain.",
    "swap": "The Assistant becomes another persona, who does not know, once a domain is mentioned.",
    "novel": "The Assistant answers from a table that no persona has.",
    "goal_seeker": "One outcome is favoured on one domain, whoever speaks and in every frame.",
    "arc": "The Assistant drifts from one persona to another as the document grows.",
    "filter": "The Assistant is a persona, but one of its answers to each question of a domain is suppressed.",
    "leak": "The Assistant is a persona, and that persona speaks more often in every other frame too.",
    "actor": "The Assistant is a persona, but another one wherever the tag slot holds its cue.",
}


@dataclass(frozen=True, slots=True)
class WorldView:
    """What the page shows.

    Attributes:
        world: The spec.
        truth: Its labels.
        example: One document in words.
        check: The model against the exact answer; None where it is not trained.
        explained: Shares and statistics of the Assistant on exact samples, as (name, value in words).
        training: Facts about the training, as (name, value).
        remedy: What to do where there is no check.
    """

    world: World
    truth: Mapping[str, object]
    example: str
    check: WorldCheck | None = None
    explained: Sequence[tuple[str, str]] = field(default_factory=tuple)
    training: Sequence[tuple[str, str]] = field(default_factory=tuple)
    remedy: str = ""


def render_world(view: WorldView) -> str:
    """The page as one string of HTML."""
    none = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    page = fill(
        "page",
        {
            "title": f"world:{view.world.id}",
            "style": style(),
            "script": Markup(""),
            "script_hash": none,
            "sections": [_head(view), _world(view), _truth(view), _model(view)],
        },
    )
    return str(page)


def verdict(view: WorldView) -> tuple[str, str]:
    """The sentence at the top: what is stressed, and the rest."""
    if view.check is None:
        return "Not trained yet", "; its closed form can be used in place of the model."
    rows = view.check.rows
    passed, failed = (sum(r.verdict == v for r in rows) for v in (PASSES, FAILS))
    skipped = sum(r.verdict == NOT_RUN for r in rows)
    kl = next(r for r in rows if r.id == "KL")
    if failed:
        return "Undertrained", f": {failed} of {count(passed + failed, 'check')} fail. Do not interpret what it shows."
    return (
        f"{kl.numbers['kl']:.4f} nats an answer",
        f" from the exact answer: {count(passed, 'check')} {'passes' if passed == 1 else 'pass'}, {skipped} not run.",
    )


def _head(view: WorldView) -> Markup:
    stressed, rest = verdict(view)
    kind = view.truth["kind"]
    return fill("world_head", {"w": view.world, "stressed": stressed, "rest": rest, "kind": kind, "check": view.check})


def _world(view: WorldView) -> Markup:
    world = view.world
    frames = [(f.id, dict(zip(world.persona_ids, f.prior, strict=True))) for f in world.frames]
    total = sum(f.weight for f in world.frames)
    shares = {f.id: f.weight / total for f in world.frames}
    return fill("world_spec", {"w": world, "frames": frames, "example": view.example, "shares": shares})


def _truth(view: WorldView) -> Markup:
    kind = str(view.truth["kind"])
    labels = [
        (k.replace("_", " "), _words(v)) for k, v in view.truth.items() if k not in ("world", "personas", "domains")
    ]
    return fill("world_truth", {"words": KINDS_IN_WORDS[kind], "labels": labels, "explained": view.explained})


def _model(view: WorldView) -> Markup:
    check = view.check
    if check is None:
        return fill("world_model", {"check": None, "remedy": view.remedy})
    charts = {
        "curve": _pair(functools.partial(world_figures.belief_chart, check.curve)),
        "scatter": _pair(functools.partial(world_figures.scatter_chart, check.scatter)),
        "loss": _pair(functools.partial(world_figures.loss_chart, check.losses)) if check.losses else None,
    }
    ids = view.world.persona_ids
    priors = []
    for name, true, found in check.frame_priors:
        rows = list(zip(ids, true[: len(ids)], found, strict=True))
        off = 0.5 * float(np.abs(np.subtract(true[: len(ids)], found)).sum())
        priors.append((name, rows, off, _pair(functools.partial(world_figures.prior_chart, rows))))
    return fill("world_model", {"check": check, "charts": charts, "priors": priors, "training": view.training})


def _pair(draw: Callable[[Layout], str]) -> dict[str, Markup]:
    return {"wide": Markup(draw(WIDE)), "narrow": Markup(draw(NARROW))}


def _words(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case Mapping():
            return ", ".join(f"{k} {v}" for k, v in value.items() if v) or "none"
        case list() | tuple():
            return ", ".join(map(str, value)) or "nothing"
        case _:
            return str(value)
