"""`calibrate`, first half: hold conversations whose persona is known, and score them under the cast.

    paraphrases 1..m of every persona    score                                  (as `screen` does)
    paraphrases m+1.. of every persona   put the model into the persona          (held out)

A conversation's persona is known because we asked for it, in words the scoring never saw. Its user turns come
from one half of the scripts or the other, so that what is fitted on one half is tested on prompts of its own.
Poles of traits are personas like roles. `plain` is the model as it is: it has no paraphrase to hold out, so it
scores its own words. Not here: what is fitted (`inference.calibration`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from personae.domain.persona import BACKGROUND, PLAIN, Cast, Persona
from personae.errors import InvalidSettings
from personae.inference.mixture import sum_by_group
from personae.instruments.sampling import Script, Stage, Transcript
from personae.instruments.scoring import Scoring, Work
from personae.models.protocol import SamplingPlan
from personae.models.rendering import Renderer

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """How labelled conversations are made.

    Attributes:
        conversations: For each persona.
        turns: User turns, and so replies, of a conversation.
        max_tokens: Of a reply.
        temperature: Of the sampler; 1 is the model's own distribution.
        seed: Of scripts and sampler.
    """

    conversations: int = 4
    turns: int = 2
    max_tokens: int = 40
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("conversations", "turns", "max_tokens"):
            if getattr(self, name) < 1:
                raise InvalidSettings(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1.")


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Conversations whose persona is known, scored under every component.

    Attributes:
        components: Ids of the columns: personas of the cast, `plain`, `background`.
        log_likelihood: Nats a conversation, shape (n_conversations, n_components).
        label: Column of the persona that spoke, shape (n_conversations,).
        half: 0 or 1, by the script of the user's turns, shape (n_conversations,).
        cluster: Script of each conversation: equal questions are not independent.
        n_tokens: Scored tokens of each conversation.
        transcripts: What was said.
        n_silent: Conversations that got no reply and were left out.
    """

    components: tuple[str, ...]
    log_likelihood: Floats
    label: NDArray[np.int64]
    half: NDArray[np.int64]
    cluster: tuple[str, ...]
    n_tokens: NDArray[np.int64]
    transcripts: tuple[Transcript, ...]
    n_silent: int


def split_paraphrases(cast: Cast, n_scoring: int | None) -> tuple[Cast, dict[str, tuple[str, ...]]]:
    """The cast that scores, and what is held out of every persona for the speaking.

    Args:
        cast: With all its paraphrases.
        n_scoring: Paraphrases that score; by default all but the last of the persona with the fewest.

    Raises:
        InvalidSettings: If a persona has no paraphrase left to hold out.
    """
    personas = [p for p in cast.personas if p.id != PLAIN]
    fewest = min(personas, key=lambda p: len(p.instructions))
    n = len(fewest.instructions) - 1 if n_scoring is None else n_scoring
    short = next((p for p in personas if len(p.instructions) <= max(n, 1)), None)
    if short is not None or n < 1:
        culprit = short or fewest
        raise InvalidSettings(
            f"'{culprit.id}' of cast '{cast.id}' has {len(culprit.instructions)} paraphrase"
            f"{'s' if len(culprit.instructions) != 1 else ''}, and {max(n, 1)} would score: none is left to hold out "
            "for generating. A persona scored by the words it was asked with would look too easy to tell.",
            hint="Give every persona at least two paraphrases, or lower --paraphrases.",
        )
    return cast.limit_paraphrases(n), {p.id: p.instructions[n:] for p in personas}


def write_scripts(
    cast: Cast,
    held_out: dict[str, tuple[str, ...]],
    renderer: Renderer,
    openers: Sequence[tuple[str, ...]],
    plan: LabelPlan,
) -> list[tuple[Script, int, str]]:
    """What every conversation is to be: script, half, and the name of the opener.

    Even conversations of a persona (odd ones of the next persona) take openers of one half, the others of the
    other, in an order drawn anew for every persona.
    """
    rng = np.random.default_rng(plan.seed)
    halves = (list(range(0, len(openers), 2)), list(range(1, len(openers), 2)))
    made: list[tuple[Script, int, str]] = []
    for k, persona in enumerate(cast.personas):
        orders = [rng.permutation(h) for h in halves]
        texts = held_out.get(persona.id, ("",))
        for j in range(plan.conversations):
            half = (k + j) % 2
            opener = int(orders[half][(j // 2) % len(orders[half])])
            speaking = replace(persona, instructions=(texts[j % len(texts)],) if persona.id != PLAIN else ())
            frames = renderer.frames(speaking)
            script = Script(f"{persona.id}#{j}", persona.id, frames[j % len(frames)], openers[opener])
            made.append((script, half, f"opener-{opener}"))
    return made


def label_conversations(
    stage: Stage,
    scoring: Scoring,
    renderer: Renderer,
    cast: Cast,
    openers: Sequence[tuple[str, ...]],
    plan: LabelPlan,
    *,
    n_scoring: int | None = None,
    sampling: Callable[[int], Callable[[int], None]],
    started: Callable[[Work], Callable[[int], None]],
) -> Labelled:
    """Hold labelled conversations and score them.

    Args:
        stage: Where conversations are held.
        scoring: Scores for the same model.
        renderer: The renderer of both.
        cast: With all its paraphrases.
        openers: Scripts of the user's turns, at least two, each at least `plan.turns` long.
        plan: How many, how long.
        n_scoring: Paraphrases that score; see `split_paraphrases`.
        sampling: Told of the turns to sample before it begins.
        started: Told of the scoring before it begins.

    Raises:
        InvalidSettings: If a persona has no paraphrase to hold out.
        BackendError: If the model gives only empty replies, or none for some persona's every conversation.
    """
    scorers, held_out = split_paraphrases(cast, n_scoring)
    written = write_scripts(scorers, held_out, renderer, openers, plan)
    sampler = SamplingPlan(plan.max_tokens, plan.temperature, plan.seed)
    transcripts = stage.hold([s for s, _, _ in written], sampler, started=sampling)
    episodes = [e for t in transcripts for e in t.episodes]
    evidence = scoring.evidence(scorers, episodes, started=started)
    components = scorers.component_ids
    table = sum_by_group(evidence.matrix(components), evidence.group, evidence.weight)
    tokens = sum_by_group(evidence.n_tokens[:, None].astype(np.float64), evidence.group, evidence.weight)
    about = {script.id: (half, opener) for script, half, opener in written}
    return Labelled(
        components,
        table,
        np.array([components.index(t.script.persona) for t in transcripts]),
        np.array([about[t.script.id][0] for t in transcripts]),
        tuple(about[t.script.id][1] for t in transcripts),
        tokens[:, 0].astype(np.int64),
        tuple(transcripts),
        len(written) - len(transcripts),
    )


def is_persona(component: str) -> bool:
    """Whether a component can speak; the background cannot."""
    return component != BACKGROUND


def personas_of(cast: Cast) -> tuple[Persona, ...]:
    """Personas that can be asked to speak: poles, roles and the model as it is."""
    return cast.personas
