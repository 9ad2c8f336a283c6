"""Cast x questions x model -> Activations: the residual stream under personas.

    prompts    question under every instruction of a persona, read at the last token of the prompt
    replies    what the model said under it, read as the mean over the reply, under the instruction it was said with
    texts      given replies, read without any instruction

Everything of one model is read in one call, so that prompts which share an instruction share a pass over it.
Not here: which replies are kept (`protocols.vectors`) and what follows from the states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from personae.domain.episode import Episode, Turn
from personae.domain.persona import Persona
from personae.models.activations import EditableModel, ReadsActivations, Reduce
from personae.models.protocol import ModelCard, Scorable
from personae.models.rendering import Frame, Renderer
from personae.tables.activations import Activations, Origin

_TOGETHER = 256
ANY_REPLY = "."  # stands for the reply where only the prompt is wanted

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Reading:
    """One thing to read.

    Attributes:
        item: Unique id.
        label: Persona it stands for.
        group: Question it belongs to.
        frame: How the model is put into the persona.
        episode: Context and reply.
    """

    item: str
    label: str
    group: str
    frame: Frame
    episode: Episode


def origin_of(model: ReadsActivations, card: ModelCard) -> Origin:
    """Which model vectors of this one belong to."""
    return Origin(card.name, card.digest, card.tokenizer_digest, model.n_layers, model.d_model)


def question(text: str, reply: str = ANY_REPLY, *, name: str = "") -> Episode:
    """A user's question with a reply."""
    return Episode(name or text, (Turn("user", text),), reply)


def prompts(renderer: Renderer, persona: Persona, questions: Sequence[str]) -> list[Reading]:
    """Every question under every frame of a persona, to be read at the prompt's end."""
    return [
        Reading(f"{persona.id}|{k}|{q}", persona.id, q, frame, question(q))
        for k, frame in enumerate(renderer.frames(persona))
        for q in questions
    ]


def read_all(
    model: EditableModel,
    renderer: Renderer,
    readings: Sequence[Reading],
    *,
    reduce: Reduce,
    layers: Sequence[int] | None = None,
    advance: Advance = lambda _n: None,
) -> Activations:
    """Read the residual stream of everything asked for.

    Args:
        model: The model, or a steered view of it.
        renderer: Renders for this model.
        readings: Item ids unique.
        reduce: "prompt_last" or "response_mean".
        layers: 0-based blocks; None for all.
        advance: Told of items done.

    Raises:
        ContextOverflow, RenderingError: If an episode does not fit or cannot be written by the template.
        InvalidSettings: If a layer does not exist.
        NumericsError: If an activation is not finite.
    """
    items = [renderer.render(r.frame, r.episode) for r in readings]
    # Those that share a prefix stand together, so that a chunk meets few of them.
    order = sorted(range(len(items)), key=lambda i: (items[i].token_ids[: items[i].shared], len(items[i].token_ids)))
    states: dict[int, np.ndarray] = {}
    for chunk in _chunks(order, items):
        for i, state in zip(chunk, model.read([items[i] for i in chunk], layers=layers, reduce=reduce), strict=True):
            states[i] = state
        advance(len(chunk))
    chosen = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    return Activations(
        tuple(r.item for r in readings),
        tuple(r.label for r in readings),
        tuple(r.group for r in readings),
        chosen,
        np.stack([states[i] for i in range(len(items))]) if items else np.empty((0, len(chosen), model.d_model), "f4"),
        reduce,
        origin_of(model, model.card),
    )


def _chunks(order: Sequence[int], items: Sequence[Scorable]) -> list[list[int]]:
    """Pieces of the order that end where a shared prefix ends, unless one is very common."""
    pieces: list[list[int]] = []
    last: tuple[int, ...] | None = None
    for i in order:
        prefix = items[i].token_ids[: items[i].shared]
        if not pieces or len(pieces[-1]) >= _TOGETHER or (prefix != last and len(pieces[-1]) >= _TOGETHER // 8):
            pieces.append([])
        pieces[-1].append(i)
        last = prefix
    return pieces
