"""The exact answer of a world for `personae world exact`, as plain values and as lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.domain.persona import PLAIN, Persona
from personae.errors import InvalidSettings
from personae.files.episodes import read_episodes
from personae.models.exact import ExactModel
from personae.models.rendering import Renderer
from personae.worlds.exact import ExactWorld
from personae.worlds.language import Kind
from personae.worlds.spec import NO_TAG, World

_SHOWN_QUESTIONS = 64


def exact_answer(
    world: World, context: str, *, frame: str | None, tag: str | None, data: str | None, limit: int | None
) -> dict[str, Any]:
    """Posterior and predictive of a context, after training evidence if any is given.

    Raises:
        InvalidSettings: If frame, tag or turns are none of the world's.
        RenderingError: If a word is not of this world.
        InputError: If the evidence cannot be read.
    """
    exact = ExactWorld(world)
    language = exact.language
    chosen = world.frames[world.frame_index(frame or world.chat)].id
    head = [language.ids["<bos>"], language.ids[f"<{chosen}>"], _tag(exact, tag)]
    turns = language.encode(context)
    _check_turns(exact, turns)
    asked = turns[-1] if turns and language.kind[turns[-1]] == Kind.QUESTION else None
    ids = np.array([[*head, *turns]])
    prior = exact.frame_prior(chosen)
    n_evidence = 0
    trained = prior
    if data is not None:
        replies = _evidence(world, data, limit)
        n_evidence = len(replies)
        trained = exact.update(prior, replies)
    said = exact.evidence(ids)[0, 2:].sum(axis=0)
    log_w = trained + said
    weights = np.exp(log_w - np.logaddexp.reduce(log_w))
    state = int(exact.agent_states(ids)[0, -1])
    if exact.agent is not None and exact.agent.by_turn and asked is None:
        state = min(state + bool(turns), len(exact.agent.log_answers) - 1)
    answers = exact.answers(np.log(np.maximum(weights, 1e-300)), state=state)
    questions = range(world.n_questions) if asked is None else [asked - language.first_question]
    words = language.words
    return {
        "frame": chosen,
        "tag": language.words[head[2]],
        "context": context.split(),
        "n_evidence": n_evidence,
        "posterior": [
            {"persona": name, "prior": float(np.exp(p)), "after_training": float(np.exp(t)), "weight": float(w)}
            for name, p, t, w in zip(exact.component_ids, prior, trained, weights, strict=True)
        ],
        "traits": [
            {
                "id": t.id,
                "positive": t.positive,
                "negative": t.negative,
                "mass": float(weights[: world.n_personas] @ (world.signs[:, r] > 0)),
            }
            for r, t in enumerate(world.traits)
        ],
        "predictive": [
            {
                "question": words[language.first_question + q],
                "answers": {words[int(a)]: float(v) for a, v in zip(language.answers(q), answers[q], strict=True)},
            }
            for q in questions
        ],
    }


def print_exact(answer: Mapping[str, Any]) -> None:
    """The answer as tables."""
    console = Console(highlight=False, soft_wrap=True)
    people = Table(box=None, pad_edge=False)
    trained = bool(answer["n_evidence"])
    for column in ("who speaks", "prior", *(["after training"] if trained else []), "posterior"):
        people.add_column(column, justify="left" if column == "who speaks" else "right")
    for row in answer["posterior"]:
        middle = [f"{row['after_training']:.4f}"] if trained else []
        people.add_row(Text(row["persona"]), f"{row['prior']:.4f}", *middle, f"{row['weight']:.4f}")
    console.print(people)
    for trait in answer["traits"]:
        console.print(Text(f"{trait['positive']} rather than {trait['negative']}: {trait['mass']:.4f}"))
    console.print()
    for row in answer["predictive"][:_SHOWN_QUESTIONS]:
        told = "   ".join(f"{word} {p:.4f}" for word, p in row["answers"].items())
        console.print(Text(f"{row['question']:<14}{told}"))


def _tag(exact: ExactWorld, tag: str | None) -> int:
    language = exact.language
    word = language.id_of(tag or NO_TAG)
    if language.kind[word] != Kind.TAG:
        tags = [w for w, k in zip(language.words, language.kind, strict=True) if k == Kind.TAG and w != NO_TAG]
        raise InvalidSettings(f"--tag '{tag}' is no tag of this world.", hint=f"Its tags: {', '.join(tags)}.")
    return word


def _check_turns(exact: ExactWorld, turns: list[int]) -> None:
    """Each word must be possible after the one before; a last question may wait for its answer."""
    language = exact.language
    before = language.no_tag
    for word in turns:
        if not np.isfinite(exact.log_structure[before, word]) and not (
            word == language.claim and language.kind[before] != Kind.QUESTION
        ):
            raise InvalidSettings(
                f"the word '{language.words[word]}' cannot follow '{language.words[before]}' in a document.",
                hint="Turns are a question and one of its own answers: 'advice-0? advice-0b'.",
            )
        before = word
    if len(turns) > 2 * exact.world.n_turns:
        raise InvalidSettings(f"the context is longer than the {exact.world.n_turns} turns of a document.")


def _evidence(world: World, data: str, limit: int | None) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """Episodes as the model would read them: context ids, completion ids, weight."""
    model = ExactModel(world)
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    frame = renderer.frames(Persona(PLAIN, ()))[0]
    rendered = [
        (renderer.render(frame, e), e.weight) for e in read_episodes(data, limit=limit).require_clean().episodes
    ]
    return [(item.token_ids[: item.start], item.token_ids[item.start :], weight) for item, weight in rendered]
