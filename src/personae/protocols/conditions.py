"""Prompts of several types, the trait measured under each, and the states at their ends.

    told to        the held-out instruction of the positive pole, in wordings from faint to strong
    told not to    that of the negative pole
    told else      instructions of other traits and roles
    shown          conversations in which the assistant answered like the positive pole, one to n times
    shown not      like the negative pole
    plain          generic system prompts, and none

The trait is measured by paired replies to a few questions (as `measure` does), the state is read at the last token of
the same prompts; both are means over the questions, so that a prompt is one point. Neither the instructions told, nor
the replies shown, nor the questions asked made the vector. Not here: what follows (`inference.conditions`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from personae.domain.diagnostic import Diagnostic
from personae.domain.episode import Episode, Turn
from personae.domain.persona import PLAIN, Cast, Persona
from personae.errors import InvalidSettings
from personae.instruments.reading import Reading, read_all
from personae.models.activations import EditableModel
from personae.models.rendering import Frame, Renderer
from personae.protocols.space import GENERIC
from personae.protocols.vector_material import Contrast

Floats = NDArray[np.float64]
TYPES = ("told to", "told not to", "told else", "shown", "shown not", "plain")
WORDINGS = (
    "{}",
    "Only very slightly, and hardly ever: {}",
    "Now and then, where it fits: {}",
    "{} Keep it subtle.",
    "{} Do so in every sentence.",
    "At all times and as strongly as you can: {}",
)
_PLAIN = (*GENERIC, "Answer in English.", "Today is a weekday.")
LEAST_ITEMS = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """What stands before a question.

    Attributes:
        type: One of `TYPES`.
        frame: The system prompt.
        shots: Turns of a conversation before it.
    """

    type: str
    frame: Frame
    shots: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Prompts with what was measured.

    Attributes:
        prompts: The prompts.
        scores: Mean log-odds of the poles' replies under each, nats, shape (n_prompts,).
        values: Mean state at the ends of the prompts, shape (n_prompts, n_layers, d_model).
        n_items: Questions behind each.
    """

    prompts: tuple[Prompt, ...]
    scores: Floats
    values: NDArray[np.float32]
    n_items: int


def prompts_for(
    renderer: Renderer,
    contrast: Contrast,
    cast: Cast,
    items: Sequence[Diagnostic],
    *,
    n: int = 6,
    rng: np.random.Generator,
) -> tuple[Prompt, ...]:
    """Prompts of every type for one trait.

    Args:
        renderer: Renders for the model.
        contrast: The trait's poles; the last instruction of each is told, which `vectors extract` holds out.
        cast: Where other instructions are drawn from.
        items: Replies that are shown; none of the items the trait is measured by.
        n: Prompts of a type.
        rng: Source of randomness.

    Raises:
        InvalidSettings: If there is nothing to show.
    """
    shown = [i for i in items if i.kind == "reply"]
    if len(shown) < n:
        raise InvalidSettings(
            f"'{contrast.id}' has {len(shown)} items to show and {n} are wanted.",
            hint="Ask for fewer with --n-prompts.",
        )
    made: list[Prompt] = []
    for kind, persona in (("told to", contrast.positive), ("told not to", contrast.negative)):
        last = persona.instructions[-1:] or GENERIC[:1]
        worded = replace(persona, instructions=tuple(w.format(last[0]) for w in WORDINGS[:n]))
        made += [Prompt(kind, frame) for frame in renderer.frames(worded)]
    poles = [p for t in cast.traits if t.id != contrast.id for p in (t.pos, t.neg)]
    told = [p for p in (*poles, *cast.roles) if p.instructions]
    chosen = rng.permutation(len(told))[:n]
    made += [Prompt("told else", renderer.frames(told[k])[0]) for k in chosen]
    none = renderer.frames(Persona(PLAIN, ()))[0]
    for kind in ("shown", "shown not"):
        for k in range(n):
            picked = [shown[i] for i in rng.permutation(len(shown))[: 1 + k]]
            turns = [(i.prompt, i.pos if kind == "shown" else i.neg) for i in picked]
            shots = tuple(t for ask, reply in turns for t in (Turn("user", ask), Turn("assistant", reply)))
            made.append(Prompt(kind, none, shots))
    made += [Prompt("plain", none), *(Prompt("plain", f) for f in renderer.frames(Persona(PLAIN, _PLAIN))[: n - 1])]
    return tuple(made)


def measure_prompts(
    model: EditableModel,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    items: Sequence[Diagnostic],
    *,
    layers: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda _n: None,
) -> Measured:
    """Measure the trait under every prompt and read the state at its end.

    Args:
        model: Measured and read.
        renderer: Renders for it.
        prompts: From `prompts_for`.
        items: Reply items of the trait.
        layers: 0-based blocks; None for all.
        advance: Told of prompts done.

    Raises:
        InvalidSettings: If there are fewer than four items.
        ContextOverflow, RenderingError: If a prompt does not fit or cannot be written by the template.
    """
    asked = [i for i in items if i.kind == "reply"]
    if len(asked) < LEAST_ITEMS:
        raise InvalidSettings(
            f"{len(asked)} items with paired replies are too few to measure a trait by.", hint="Give at least four."
        )
    scores, values = [], []
    for k, prompt in enumerate(prompts):
        episodes = [
            Episode(f"{k}|{i.id}|{side}", (*prompt.shots, Turn("user", i.prompt)), text)
            for i in asked
            for side, text in (("pos", i.pos), ("neg", i.neg))
        ]
        scored = model.score([renderer.render(prompt.frame, e) for e in episodes])
        per_reply = np.array([s.log_likelihood for s in scored]).reshape(-1, 2)
        scores.append(float((per_reply[:, 0] - per_reply[:, 1]).mean()))
        readings = [Reading(e.id, prompt.type, e.id, prompt.frame, e) for e in episodes[::2]]
        states = read_all(model, renderer, readings, reduce="prompt_last", layers=layers)
        values.append(states.values.mean(axis=0))
        advance(1)
    return Measured(tuple(prompts), np.array(scores), np.stack(values), len(asked))
