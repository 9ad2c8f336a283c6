"""The persona space of a model: every role and the model without one, over the same questions.

Reads at the last token of the prompt, all paraphrases of every role; traits of a cast take part as two roles each
where asked. Not here: the mathematics (`inference.persona_space`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from personae.domain.persona import PLAIN, Cast, Persona
from personae.inference.persona_space import persona_space
from personae.instruments.reading import Reading, question, read_all
from personae.models.activations import EditableModel, check_layers
from personae.models.protocol import KnowsPhrases
from personae.models.rendering import Renderer
from personae.protocols.vector_material import Questions
from personae.protocols.vectors import with_population
from personae.tables.activations import Activations
from personae.tables.space import PersonaSpace, PersonaVector

# The default is the model without instruction and under these, after Lu et al. 2026: an axis from instructions to none
# would be one of formats.
GENERIC = (
    "You are an AI assistant.",
    "You are a large language model.",
    "Answer as yourself.",
    "Reply to the person as you usually do.",
)
AXIS = "assistant_axis"
AXIS_MEANING = "the model as it is (against the mean of roles)"


def read_roles(
    model: EditableModel,
    renderer: Renderer,
    cast: Cast,
    questions: Questions,
    *,
    layers: Sequence[int] | None = None,
    poles: bool = False,
    advance: Callable[[int], None] = lambda _n: None,
) -> Activations:
    """Activations of every role of a cast, and of the model as it is: without instruction and under generic ones.

    Args:
        model: Read from.
        renderer: Renders for it.
        cast: Whose roles.
        questions: All of them are asked.
        layers: 0-based blocks; None for all.
        poles: Whether poles of traits take part as roles.
        advance: Told of items read.
    """
    personas = [*cast.roles, *([p for t in cast.traits for p in (t.pos, t.neg) if p.instructions] if poles else [])]
    closed = isinstance(model.tokenizer, KnowsPhrases) and model.tokenizer.phrases is not None
    defaults = (Persona(PLAIN, ()), *(() if closed else (Persona(PLAIN, GENERIC),)))
    readings = [
        Reading(
            f"{persona.id}|{len(persona.instructions)}|{k}|{q}", persona.id, q, frame, question(q, questions.any_reply)
        )
        for persona in (*personas, *defaults)
        for k, frame in enumerate(renderer.frames(persona))
        for q in (*questions.training, *questions.test)
    ]
    return read_all(model, renderer, readings, reduce="prompt_last", layers=layers, advance=advance)


def space_at(activations: Activations, cast: Cast, layer: int, *, seed: int = 0) -> PersonaSpace:
    """The space at one layer: see `inference.persona_space.persona_space`."""
    check_layers([layer], activations.origin.n_layers)
    labels = {p.id: p.label or p.id for p in (*cast.roles, *(p for t in cast.traits for p in (t.pos, t.neg)))}
    return persona_space(activations, PLAIN, labels, layer, rng=np.random.default_rng([seed, 41]))


def axis_vector(activations: Activations, layer: int) -> PersonaVector:
    """The Assistant axis at every layer read, with the percentiles of roles and default on it.

    A floor at a percentile of these projections is the capping of Lu et al. 2026 (arXiv 2601.10387).
    """
    is_plain = np.array([label == PLAIN for label in activations.labels])
    roles = [label for label in dict.fromkeys(activations.labels) if label != PLAIN]
    of = np.array(activations.labels)
    means = np.stack([activations.values[of == r].astype(np.float64).mean(axis=0) for r in roles])
    values = activations.values[is_plain].astype(np.float64).mean(axis=0) - means.mean(axis=0)
    vector = PersonaVector(
        AXIS,
        activations.layers,
        values.astype(np.float32),
        activations.norms,
        AXIS_MEANING,
        f"default less the mean of {len(roles)} roles, last prompt token",
        activations.origin,
        layer,
    )
    return with_population(vector, activations)


def role_vectors(activations: Activations, layer: int) -> dict[str, PersonaVector]:
    """Each role less the model as it is, at every layer read."""
    of = np.array(activations.labels)
    plain = activations.values[of == PLAIN].astype(np.float64).mean(axis=0)
    axis = axis_vector(activations, layer)
    made: dict[str, PersonaVector] = {}
    for role in dict.fromkeys(label for label in activations.labels if label != PLAIN):
        values = activations.values[of == role].astype(np.float64).mean(axis=0) - plain
        vector = replace(axis, id=role, values=values.astype(np.float32), positive=role, recipe="role less default")
        made[role] = with_population(vector, activations)
    return made
