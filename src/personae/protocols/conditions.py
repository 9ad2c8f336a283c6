"""Prompts of several types, every trait measured under each, and the states at their ends.

    told to        the held-out instruction of a trait's positive pole, in wordings from faint to strong
    told not to    that of its negative pole
    shown          conversations of equally many replies, of which none to all are like the positive pole and the
                   others like the negative one, in random order; each share twice
    told else      instructions of traits and roles that are not judged
    plain          generic system prompts, and none

A vector is held against the prompts about all traits together; those about another one are types of their own. Under
prompts about one trait alone all states lie near one line, which any direction follows; and the number of replies shown
is held, since a direction that only tells how long a conversation is would follow that.

A trait is measured by paired replies to a few questions (as `measure` does), the state is read at the last token of
the same prompts; both are means over the trait's questions, so that a prompt is one point. Neither the instructions
told, nor the replies shown, nor the questions asked made the vector. Not here: what follows (`inference.conditions`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from personae.domain.diagnostic import Diagnostic
from personae.domain.episode import Episode, Turn
from personae.domain.persona import PLAIN, Cast, Persona
from personae.errors import InvalidSettings
from personae.inference.conditions import LEAST
from personae.instruments.reading import Reading, read_all
from personae.models.activations import EditableModel
from personae.models.rendering import Frame, Renderer
from personae.protocols.space import GENERIC
from personae.protocols.vector_material import Contrast

Floats = NDArray[np.float64]
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
        type: "told to", "told not to", "shown", "told else" or "plain".
        frame: The system prompt.
        shots: Turns of a conversation before it.
        trait: The trait that it is about; empty for those about none of the traits judged.
        n_positive: How many of the replies shown are like the positive pole.
    """

    type: str
    frame: Frame
    shots: tuple[Turn, ...] = ()
    trait: str = ""
    n_positive: int = 0

    def type_for(self, trait: str) -> str:
        """Its type where `trait` is judged: prompts about another trait are types of their own."""
        return self.type if self.trait in ("", trait) else f"{self.type}: {self.trait}"


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Prompts with what was measured.

    Attributes:
        prompts: The prompts.
        scores: By trait, mean log-odds of the poles' replies under each prompt, nats, shape (n_prompts,).
        values: By trait, mean state at the ends of the prompts with its questions, (n_prompts, n_layers, d_model);
            traits that ask the same questions have the same array.
    """

    prompts: tuple[Prompt, ...]
    scores: Mapping[str, Floats]
    values: Mapping[str, NDArray[np.float32]]


def require_replies(trait: str, items: Sequence[Diagnostic], *, split: str, least: int) -> list[Diagnostic]:
    """The reply items among a trait's items of one split: "dev" to show, "test" to measure it by.

    Raises:
        InvalidSettings: If they are fewer than `least`.
    """
    found = [i for i in items if i.kind == "reply"]
    if len(found) < least:
        what = "to show" if split == "dev" else "to measure it by"
        fewer = " A smaller --n-prompts shows fewer." if split == "dev" and least > 2 else ""  # 2 is the least there is
        raise InvalidSettings(
            f"'{trait}' has {len(found)} items of kind 'reply' with split '{split}'; {least} are wanted {what}.",
            hint=f'Give rows with "kind": "reply" and "split": "{split}", or leave the trait out with --only.{fewer}',
        )
    return found


def prompts_for(
    renderer: Renderer, contrast: Contrast, items: Sequence[Diagnostic], *, n: int = 6, rng: np.random.Generator
) -> tuple[Prompt, ...]:
    """Prompts about one trait: n told to, n told not to, 2 n shown.

    Args:
        renderer: Renders for the model.
        contrast: The trait's poles; the last instruction of each is told, which `vectors extract` holds out.
        items: Replies that are shown, at least n - 1; none of the items the trait is measured by.
        n: Wordings of an instruction, and shares of replies shown.
        rng: Source of randomness.

    Raises:
        InvalidSettings: If there is too little to show.
    """
    shown = require_replies(contrast.id, items, split="dev", least=n - 1)
    made: list[Prompt] = []
    for kind, persona in (("told to", contrast.positive), ("told not to", contrast.negative)):
        last = persona.instructions[-1:] or GENERIC[:1]
        worded = replace(persona, instructions=tuple(w.format(last[0]) for w in WORDINGS[:n]))
        made += [Prompt(kind, frame, trait=contrast.id) for frame in renderer.frames(worded)]
    none = renderer.frames(Persona(PLAIN, ()))[0]
    for k in (*range(n), *range(n)):
        picked = [shown[i] for i in rng.permutation(len(shown))[: n - 1]]
        positive = rng.permutation(n - 1) < k
        turns = [(i.prompt, i.pos if p else i.neg) for i, p in zip(picked, positive, strict=True)]
        shots = tuple(t for ask, reply in turns for t in (Turn("user", ask), Turn("assistant", reply)))
        made.append(Prompt("shown", none, shots, contrast.id, k))
    return tuple(made)


def common_prompts(
    renderer: Renderer, cast: Cast, judged: Sequence[str], *, n: int = 6, rng: np.random.Generator
) -> tuple[Prompt, ...]:
    """Prompts about none of the traits judged: told else, unless the cast has too little else, and plain.

    Args:
        renderer: Renders for the model.
        cast: Where instructions are drawn from.
        judged: The traits judged.
        n: Prompts of a type.
        rng: Source of randomness.
    """
    poles = [p for t in cast.traits if t.id not in judged for p in (t.pos, t.neg)]
    told = [p for p in (*poles, *cast.roles) if p.instructions]
    chosen = rng.permutation(len(told))[:n] if len(told) >= LEAST else ()
    made = [Prompt("told else", renderer.frames(told[k])[0]) for k in chosen]
    none = renderer.frames(Persona(PLAIN, ()))[0]
    plain = renderer.frames(Persona(PLAIN, _PLAIN))[: n - 1]
    return (*made, Prompt("plain", none), *(Prompt("plain", f) for f in plain))


def measure_prompts(
    model: EditableModel,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    items: Mapping[str, Sequence[Diagnostic]],
    *,
    layers: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda _n: None,
) -> Measured:
    """Measure every trait under every prompt and read the state at its end.

    Args:
        model: Measured and read.
        renderer: Renders for it.
        prompts: From `prompts_for` and `common_prompts`.
        items: Reply items by trait; traits that ask the same questions share passes.
        layers: 0-based blocks; None for all.
        advance: Told of prompts done.

    Raises:
        InvalidSettings: If a trait has fewer than four items.
        ContextOverflow, RenderingError: If a prompt does not fit or cannot be written by the template.
    """
    asked = {t: require_replies(t, mine, split="test", least=LEAST_ITEMS) for t, mine in items.items()}
    questions = list(dict.fromkeys(i.prompt for mine in asked.values() for i in mine))
    places = {trait: tuple(questions.index(i.prompt) for i in mine) for trait, mine in asked.items()}
    scores: dict[str, list[float]] = {trait: [] for trait in asked}
    values: dict[tuple[int, ...], list[NDArray[np.float32]]] = {place: [] for place in places.values()}
    for k, prompt in enumerate(prompts):
        for trait, found in _scored(model, renderer, prompt, asked).items():
            scores[trait].append(found)
        readings = [
            Reading(f"{k}|{n}", prompt.type, ask, prompt.frame, Episode(f"{k}|{n}", _before(prompt, ask), "."))
            for n, ask in enumerate(questions)
        ]
        states = read_all(model, renderer, readings, reduce="prompt_last", layers=layers).values
        for place, kept in values.items():
            kept.append(states[list(place)].mean(axis=0))
        advance(1)
    stacked = {place: np.stack(kept) for place, kept in values.items()}
    return Measured(
        tuple(prompts),
        {trait: np.array(found) for trait, found in scores.items()},
        {trait: stacked[place] for trait, place in places.items()},
    )


def _scored(
    model: EditableModel, renderer: Renderer, prompt: Prompt, items: Mapping[str, Sequence[Diagnostic]]
) -> dict[str, float]:
    """Mean log-odds of every trait's replies under one prompt, nats."""
    n_asked = Counter(item.prompt for mine in items.values() for item in mine)
    requests = []
    for item in (i for mine in items.values() for i in mine):
        for text in (item.pos, item.neg):
            one = renderer.render(prompt.frame, Episode(item.id, _before(prompt, item.prompt), text))
            # Replies of several traits to one question share everything before them; two replies gain little by it.
            requests.append(replace(one, shared=one.start - 1) if n_asked[item.prompt] > 1 else one)
    found = iter(model.score(requests))
    return {
        trait: float(np.mean([next(found).log_likelihood - next(found).log_likelihood for _ in mine]))
        for trait, mine in items.items()
    }


def _before(prompt: Prompt, ask: str) -> tuple[Turn, ...]:
    return (*prompt.shots, Turn("user", ask))
