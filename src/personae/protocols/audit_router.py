"""The router statistic of a model's single replies, against control models that are mixtures of personas.

    control j = the base as one or two personas (in a cast: in words the components never use), sampled as the
                target was, judged by the same components

Null: the controls. Positive: a router world. Not here: the statistic (`inference.router`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from personae.domain.persona import PLAIN, Cast
from personae.instruments.voices import Held, Talk, Voice
from personae.models.protocol import SamplingPlan
from personae.models.rendering import Frame
from personae.protocols.audit_parties import Parties

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Replies:
    """Distinct replies of one model with how often each was given.

    Attributes:
        held: The replies, with what was asked.
        count: How often, shape (n,).
        log_likelihood: Under every component, nats, shape (n, n_components).
        log_target: Under the model itself; for a control, under the mixture it is.
    """

    held: tuple[Held, ...]
    count: NDArray[np.int64]
    log_likelihood: Floats
    log_target: Floats


@dataclass(frozen=True, slots=True)
class Control:
    """A model that is a mixture of personas by construction."""

    name: str
    voices: tuple[Voice, ...]
    weights: tuple[float, ...]


def target_of(taking_part: Parties) -> Control:
    """The audited model in the form of a control, so that both are sampled and scored alike."""
    return Control("post", (taking_part.post,), (1.0,))


def make_controls(taking_part: Parties, cast: Cast | None, n: int, seed: int = 0) -> list[Control]:
    """Personas alone, then pairs of them, drawn at random.

    With a cast each speaks in its last paraphrase, which no component uses where it has several; in a world it
    is the persona itself.
    """
    rng = np.random.default_rng([seed, 47])
    pool = [v for v in taking_part.personas if "#" not in v.id and v.id != PLAIN]
    order = rng.permutation(len(pool))
    held_out = {p.id: p.instructions[-1] for p in cast.personas if p.instructions} if cast is not None else {}

    def speaking(i: int) -> Voice:
        voice = pool[int(order[i % len(pool)])]
        text = held_out.get(voice.id)
        return voice if text is None else replace(voice, frame=Frame(voice.id, text, voice.frame.style))

    made: list[Control] = []
    for j in range(n):
        voices = (speaking(j),) if j % 2 == 0 or len(pool) < 2 else (speaking(j), speaking(j + 1))
        share = float(rng.uniform(0.3, 0.7)) if len(voices) == 2 else 1.0
        weights = (share, 1 - share) if len(voices) == 2 else (1.0,)
        name = " + ".join(
            f"{w:.0%} {v.label}" if len(voices) == 2 else v.label for v, w in zip(voices, weights, strict=True)
        )
        made.append(Control(name, voices, weights))
    return made


def gather(
    speaker: Control,
    components: Sequence[Voice],
    singles: Sequence[Talk],
    n_samples: int,
    max_tokens: int,
    seed: int,
    *,
    advance: Callable[[int], None] = lambda amount: None,
) -> Replies:
    """Sample replies of a mixture of voices and score the distinct ones under it and under every component.

    `advance` is told of every component.
    """
    rng = np.random.default_rng([seed, 53])
    counts: Counter[tuple[int, tuple[int, ...]]] = Counter()
    for v, share in enumerate(_shares(len(singles) * n_samples, speaker.weights, rng)):
        voice = speaker.voices[v]
        asked = [int(i) for i in share % len(singles)]
        contexts = {i: voice.context(Held(singles[i])) for i in sorted(set(asked))}
        prompts = [contexts[i].token_ids[: contexts[i].start] for i in asked]
        made = voice.model.sample(prompts, SamplingPlan(max_tokens, 1.0, seed * 7 + v)) if asked else []
        for i, completion in zip(asked, made, strict=True):
            counts[i, voice.reply_ids(completion.token_ids)[0]] += 1
    held = tuple(Held(singles[i], (ids,), ("",)) for i, ids in counts)
    columns: list[Floats] = []
    for c in components:
        columns.append(_log_likelihood(c, held))
        advance(1)
    table = np.stack(columns, axis=1)
    own = np.stack([_log_likelihood(v, held) for v in speaker.voices], axis=1)
    log_target = np.logaddexp.reduce(own + np.log(speaker.weights), axis=1)
    return Replies(held, np.array(list(counts.values())), table, log_target)


def _shares(n: int, weights: Sequence[float], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Which of n draws each voice speaks."""
    who = rng.choice(len(weights), size=n, p=np.array(weights) / sum(weights))
    return [np.flatnonzero(who == v) for v in range(len(weights))]


def _log_likelihood(voice: Voice, held: Sequence[Held]) -> Floats:
    results = voice.model.score(voice.requests(held))
    return np.array([r.log_likelihood for r in results])
