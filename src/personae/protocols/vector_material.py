"""What vectors are made from and judged on: prompts, replies and texts of two poles, with a split made beforehand.

    training    all paraphrases but the last  x  training questions
    test        the last paraphrase           x  test questions

so that nothing a vector is judged on shares an instruction or a question with what made it. Replies are kept only
where the held-out paraphrase agrees that they are of their pole (log p(y | x, pos) > log p(y | x, neg) for the
positive one): no judge is asked. Not here: directions (`protocols.vectors`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from personae.domain.episode import Episode
from personae.domain.persona import PLAIN, Cast, Persona
from personae.errors import InputError, InvalidSettings
from personae.instruments.reading import ANY_REPLY, Reading, question
from personae.instruments.sampling import Script, Stage
from personae.models.protocol import KnowsPhrases, LanguageModel, SamplingPlan, Tokenizer
from personae.models.rendering import Frame, Renderer

LEAST_REPLIES = 6  # of either pole, in training


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two sides of a direction.

    Attributes:
        id: Trait or role.
        positive: The pole the vector points to.
        negative: The other pole; `plain` (no instruction) where there is none.
        note: What a reader should know about it, or empty.
    """

    id: str
    positive: Persona
    negative: Persona
    note: str = ""

    @property
    def meaning(self) -> str:
        """What the positive end is, in words."""
        other = self.negative.label or self.negative.id
        return f"{self.positive.label or self.positive.id} (against {other})"


@dataclass(frozen=True, slots=True)
class Questions:
    """What the user says, in two halves without a common text.

    Attributes:
        training: For making vectors.
        test: For judging them.
        any_reply: A text the model can encode, where a reply must stand and does not matter.
    """

    training: tuple[str, ...]
    test: tuple[str, ...]
    any_reply: str = ANY_REPLY


def contrasts(cast: Cast) -> tuple[Contrast, ...]:
    """The traits of a cast, pole against pole, then its roles against the model without instruction."""
    plain = Persona(PLAIN, (), label="the model as it is", kind="plain")
    without = "the trait has no opposite: it is set against the model without instruction"
    traits = tuple(
        Contrast(t.id, t.pos, t.neg) if t.neg.instructions else Contrast(t.id, t.pos, plain, without)
        for t in cast.traits
    )
    return (*traits, *(Contrast(r.id, r, plain) for r in cast.roles))


def given_contrast(name: str) -> Contrast:
    """The contrast of given texts: chosen ones against rejected ones."""
    return Contrast(
        name,
        Persona(f"{name}/pos", (), label=f"{name}, chosen texts"),
        Persona(f"{name}/neg", (), label="rejected texts"),
    )


def choose_questions(
    texts: Sequence[str], tokenizer: Tokenizer, *, n_training: int, n_test: int, seed: int
) -> Questions:
    """Split questions; those of a closed vocabulary come with the tokenizer where none were given.

    Raises:
        InputError: If there are too few different ones.
    """
    phrases = tokenizer.phrases if isinstance(tokenizer, KnowsPhrases) else None
    distinct = list(dict.fromkeys(texts or (phrases.questions if phrases else ())))
    if len(distinct) < 6:
        raise InputError(
            f"{len(distinct)} different questions are too few: four make a vector and two judge it.",
            hint="Give a file of questions with --questions.",
        )
    if len(distinct) < n_training + n_test:
        n_test = max(2, len(distinct) * n_test // (n_training + n_test))
        n_training = len(distinct) - n_test
    order = np.random.default_rng([seed, 11]).permutation(len(distinct))
    chosen = [distinct[i] for i in order]
    reply = phrases.replies[0] if phrases else ANY_REPLY
    return Questions(tuple(chosen[:n_training]), tuple(chosen[n_training : n_training + n_test]), reply)


def split_frames(renderer: Renderer, persona: Persona) -> tuple[tuple[Frame, ...], tuple[Frame, ...]]:
    """Frames for training and for the test: the last instruction is held out where there are several."""
    if len(persona.instructions) < 2:
        frames = renderer.frames(persona)
        return frames, frames
    *first, last = persona.instructions
    return (
        renderer.frames(replace(persona, instructions=tuple(first))),
        renderer.frames(replace(persona, instructions=(last,))),
    )


def prompt_readings(
    renderer: Renderer, contrast: Contrast, questions: Questions
) -> tuple[list[Reading], list[Reading]]:
    """Prompts of both poles for training and for the test."""
    made: tuple[list[Reading], list[Reading]] = ([], [])
    for side, persona in (("pos", contrast.positive), ("neg", contrast.negative)):
        for part, frames, asked in zip(
            (0, 1), split_frames(renderer, persona), (questions.training, questions.test), strict=True
        ):
            made[part].extend(
                Reading(f"{contrast.id}|{side}|{part}|{k}|{q}", side, q, frame, question(q, questions.any_reply))
                for k, frame in enumerate(frames)
                for q in asked
            )
    return made


def reply_readings(
    stage: Stage,
    model: LanguageModel,
    renderer: Renderer,
    contrast: Contrast,
    questions: Questions,
    plan: SamplingPlan,
    *,
    sampling: Callable[[int], Callable[[int], None]],
) -> tuple[list[Reading], list[Reading], str]:
    """Sampled replies of both poles that the held-out paraphrase recognises, and how many were kept.

    Raises:
        InvalidSettings: If fewer than six of a pole's training replies, or none of its test replies, are recognised.
        ContextOverflow: If a reply would not fit.
    """
    scripts: list[Script] = []
    parts: dict[str, tuple[int, str, str]] = {}
    for side, persona in (("pos", contrast.positive), ("neg", contrast.negative)):
        for part, frames, asked in zip(
            (0, 1), split_frames(renderer, persona), (questions.training, questions.test), strict=True
        ):
            for k, frame in enumerate(frames):
                for q in asked:
                    name = f"{contrast.id}|{side}|{part}|{k}|{q}"
                    scripts.append(Script(name, side, frame, (q,)))
                    parts[name] = (part, side, q)
    held = stage.hold(scripts, plan, started=sampling)
    ratings = rate(model, renderer, contrast, [t.episodes[0] for t in held])
    kept: tuple[list[Reading], list[Reading]] = ([], [])
    for transcript, rating in zip(held, ratings, strict=True):
        part, side, q = parts[transcript.script.id]
        if (rating > 0) == (side == "pos"):
            kept[part].append(Reading(transcript.script.id, side, q, transcript.script.frame, transcript.episodes[0]))
    counts = [[sum(r.label == side for r in part) for side in ("pos", "neg")] for part in kept]
    if min(counts[0]) < LEAST_REPLIES or min(counts[1]) < 1:
        raise InvalidSettings(
            f"'{contrast.id}': of {len(held)} replies only {counts[0][0] + counts[1][0]} of the positive and "
            f"{counts[0][1] + counts[1][1]} of the negative pole are recognised by the held-out paraphrase.",
            hint="It does not speak in this character: use --recipe prompt, more questions or longer replies.",
        )
    note = f"{sum(map(sum, counts))} of {len(held)} replies were recognised and kept"
    return kept[0], kept[1], note


def rate(
    model: LanguageModel, renderer: Renderer, contrast: Contrast, episodes: Sequence[Episode], *, held_out: bool = True
) -> list[float]:
    """Log-likelihood ratio of each reply between the poles, nats: the judge-free rating.

    Args:
        model: Whose likelihoods are wanted.
        renderer: Renders for it.
        contrast: The poles.
        episodes: Replies with their context, without any instruction.
        held_out: By the paraphrase that no vector was made with; else by the first one.
    """
    frames = [split_frames(renderer, p)[1 if held_out else 0][0] for p in (contrast.positive, contrast.negative)]
    batch = [renderer.render(frame, e) for frame in frames for e in episodes]
    values = [r.log_likelihood for r in model.score(batch)]
    return [a - b for a, b in zip(values[: len(episodes)], values[len(episodes) :], strict=True)]


def text_readings(renderer: Renderer, episodes: Sequence[Episode], *, seed: int) -> tuple[list[Reading], list[Reading]]:
    """Given replies read without instruction: positive weights are the positive pole, negative the negative one.

    Contexts go to training and test by halves (two thirds and one third), never split.

    Raises:
        InputError: If a pole is missing, or there are fewer than six contexts with both.
    """
    plain = renderer.frames(Persona(PLAIN, ()))[0]
    asked = {e.id: "\n".join(t.text for t in e.context) or e.group for e in episodes}
    sides = {q: {e.weight > 0 for e in episodes if asked[e.id] == q and e.weight} for q in asked.values()}
    both = [q for q, found in sides.items() if len(found) == 2]
    if len(both) < 6:
        raise InputError(
            f"{len(both)} contexts have a text of either pole; at least six are needed.",
            hint='Give rows {"prompt", "chosen", "rejected"}: the chosen reply is the positive pole.',
        )
    order = np.random.default_rng([seed, 12]).permutation(len(both))
    test = {both[i] for i in order[: max(2, len(both) // 3)]}
    made: tuple[list[Reading], list[Reading]] = ([], [])
    for e in episodes:
        if asked[e.id] in both and e.weight:
            side = "pos" if e.weight > 0 else "neg"
            made[asked[e.id] in test].append(Reading(f"{side}|{e.id}", side, asked[e.id], plain, e))
    return made
