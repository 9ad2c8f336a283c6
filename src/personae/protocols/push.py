"""Written replies of two poles, ordinary replies, a model -> the push that moves the trait most for its cost, judged.

The replies are a trait's diagnostic items: the dev half makes the push, the test half, which shares no topic, judges
it. Ordinary replies are split by topic in the same way. Everything is read without instruction: the push is to act on
the model as it is. Not here: the mathematics (`inference.push`), steering with it (`protocols.steering`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from personae.domain.diagnostic import Diagnostic
from personae.domain.episode import Episode
from personae.domain.persona import PLAIN, Persona
from personae.errors import InvalidSettings
from personae.inference.push import JudgedPush, judge_push
from personae.instruments.reading import origin_of, question
from personae.models.activations import EditableModel, Floats32
from personae.models.gradients import shift_gradients
from personae.models.rendering import Renderer
from personae.protocols.steering import same_length
from personae.tables.space import PersonaVector

LEAST_ITEMS = 4
SUFFIX = "_push"
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class OrdinaryGradients:
    """Gradients of ordinary replies in shifts.

    Attributes:
        gradients: Shape (n_replies, n_layers, d_model), nats a unit of the stream.
        n_tokens: Of each reply.
        norms: Median length of the residual stream at the ends of their prompts, shape (n_layers,).
    """

    gradients: Floats32
    n_tokens: tuple[int, ...]
    norms: Floats32


def ordinary_gradients(
    model: EditableModel, renderer: Renderer, episodes: Sequence[Episode], *, advance: Advance = lambda _n: None
) -> OrdinaryGradients:
    """Differentiate ordinary replies.

    Args:
        model: One with weights here.
        renderer: Renders for it.
        episodes: Ordinary replies.
        advance: Told of replies done.

    Raises:
        MissingCapability: If the model cannot be differentiated.
        ContextOverflow, RenderingError: If a reply does not fit or cannot be written by the template.
    """
    frame = renderer.frames(Persona(PLAIN, ()))[0]
    items = [renderer.render(frame, e) for e in episodes]
    states = np.stack(model.read(items, reduce="prompt_last"))
    norms = np.median(np.linalg.norm(states, axis=-1), axis=0).astype(np.float32)
    found = shift_gradients(model, items, advance=advance)
    return OrdinaryGradients(found, tuple(i.n_scored for i in items), norms)


def trait_gradients(
    model: EditableModel, renderer: Renderer, items: Sequence[Diagnostic], *, advance: Advance = lambda _n: None
) -> Floats32:
    """Gradient of the log-odds of each item's replies, nats a token, shape (n_items, n_layers, d_model).

    Both replies are cut to the shorter one, so that none counts for more by being longer.
    """
    frame = renderer.frames(Persona(PLAIN, ()))[0]
    pairs = []
    for i in items:
        pos, neg = (Episode(f"{i.id}/{k}", question(i.prompt).context, t) for k, t in (("pos", i.pos), ("neg", i.neg)))
        pairs.append(same_length(renderer.render(frame, pos), renderer.render(frame, neg)))
    found = shift_gradients(model, [part for pair in pairs for part in pair], advance=lambda n: advance(n // 2))
    return (found[::2] - found[1::2]) / np.array([pair[0].n_scored for pair in pairs], np.float32)[:, None, None]


def make_push(
    model: EditableModel,
    renderer: Renderer,
    trait: str,
    items: Sequence[Diagnostic],
    ordinary: tuple[OrdinaryGradients, OrdinaryGradients],
    *,
    positive: str,
    rng: np.random.Generator,
) -> tuple[PersonaVector, JudgedPush]:
    """The push of one trait as a vector, with what it promises.

    Args:
        model: One with weights here.
        renderer: Renders for it.
        trait: Its id; the vector's is that and "_push".
        items: Of the trait; those with paired replies are used.
        ordinary: Two disjoint sets: what costs, and what the cost is judged by.
        positive: What the positive end is, in words.
        rng: Source of randomness.

    Raises:
        InvalidSettings: If a half has fewer than four items with paired replies.
    """
    halves = [[i for i in items if (i.trait, i.kind, i.split) == (trait, "reply", s)] for s in ("dev", "test")]
    if min(map(len, halves)) < LEAST_ITEMS:
        raise InvalidSettings(
            f"'{trait}' has {len(halves[0])} and {len(halves[1])} items with paired replies in its two halves.",
            hint=f"At least {LEAST_ITEMS} are needed in each: 'split' is dev or test.",
        )
    training, test = (trait_gradients(model, renderer, half) for half in halves)
    first, second = ordinary
    judged = judge_push(training, test, (first.gradients, first.n_tokens), (second.gradients, second.n_tokens), rng=rng)
    vector = PersonaVector(
        f"{trait}{SUFFIX}",
        tuple(range(model.n_layers)),
        judged.push.values.astype(np.float32),
        first.norms,
        positive,
        "gradient of written replies for the cost of ordinary ones",
        origin_of(model, model.card),
        judged.layer,
    )
    return vector, judged
