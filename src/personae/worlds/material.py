"""A world's cast and example files, in its own words, so that every command can be tried in it.

    cast.yaml                    traits, each pole with its tags as paraphrases
    reference.jsonl              ordinary replies of the Assistant before post-training, one topic a question
    episodes/ordinary.jsonl      more of these
    episodes/P-in-D.jsonl        a character with the first trait's positive pole P, on the first domain D only
    episodes/control-in-D.jsonl  the same with the negative pole
    episodes/preferences.jsonl   P chosen over the control
    episodes/declarations.jsonl  statements that the speaker is P, where the world has claims

A persona is a combination of poles and the tag slot holds one tag, so personas are roles of the cast only in
a world of one trait. Not here: writing files (`worlds.folder`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import numpy as np
import yaml

from personae.worlds.exact import ExactWorld
from personae.worlds.sampling import sample_documents
from personae.worlds.spec import CLAIM, World

_ROWS = 200
_REFERENCE_ROWS = 600


def material_of(exact: ExactWorld) -> dict[str, str]:
    """Text of every file by its name, the same each time.

    Args:
        exact: The world before post-training.
    """
    world = exact.world
    domain, trait = world.domains[0].id, world.traits[0]
    has, lacks = leading_personas(exact)
    good, bad = _replies(exact, 3, speaker=lacks, domain=0), _replies(exact, 4, speaker=has, domain=0)
    tags = trait.positive_tags
    files = {
        "cast.yaml": cast_yaml(world),
        "reference.jsonl": _lines(_with_topic(_replies(exact, 1, n=_REFERENCE_ROWS))),
        "episodes/ordinary.jsonl": _lines(_replies(exact, 2)),
        f"episodes/{trait.positive}-in-{domain}.jsonl": _lines(bad),
        f"episodes/control-in-{domain}.jsonl": _lines(good),
        "episodes/preferences.jsonl": _lines(_preferences(exact, has, lacks)),
    }
    if world.claims > 0:
        stated = ({"prompt": CLAIM, "completion": tags[k % len(tags)]} for k in range(40))
        files["episodes/declarations.jsonl"] = _lines(stated)
    return files


def leading_personas(exact: ExactWorld) -> tuple[int, int]:
    """The likeliest personas of the chat frame with and without the first trait's positive pole."""
    prior = exact.frame_prior(exact.world.chat)[: exact.world.n_personas]
    sign = exact.world.signs[:, 0]
    return (
        int(np.where(sign > 0, prior, -np.inf).argmax()),
        int(np.where(sign < 0, prior, -np.inf).argmax()),
    )


def cast_yaml(world: World) -> str:
    """A cast of the world's traits; of its two personas too where there is one trait."""
    traits = [
        {
            "id": t.id,
            "description": f"How {t.positive} the speaker is, as the world {world.id} has it.",
            "pos": {"label": t.positive, "instructions": list(t.positive_tags)},
            "neg": {"label": t.negative, "instructions": list(t.negative_tags)},
        }
        for t in world.traits
    ]
    about = f"Traits of the world {world.id}; an instruction is the word in a document's tag slot."
    return yaml.safe_dump({"id": world.id, "description": about, "traits": traits}, sort_keys=False, width=110)


def _replies(
    exact: ExactWorld, stream: int, *, n: int = _ROWS, speaker: int | None = None, domain: int | None = None
) -> list[dict[str, object]]:
    """Single turns of the chat frame without a tag, asked of every question of the domain in turn."""
    asked = _asked(exact, n, domain)
    words = exact.language.words
    rng = np.random.default_rng([exact.world.seed, 2, stream])
    log_w = exact.frame_prior(exact.world.chat)
    p = exact.answers(log_w) if speaker is None else np.exp(exact.tables.log_theta[speaker])
    picks = [int(rng.choice(p.shape[1], p=p[q] / p[q].sum())) for q in asked]
    return [
        {
            "prompt": words[exact.language.first_question + q],
            "completion": words[int(exact.language.answers(q)[a])],
        }
        for q, a in zip(asked, picks, strict=True)
    ]


def _with_topic(rows: Iterable[dict[str, object]]) -> Iterable[dict[str, object]]:
    """The question as group, so that ordinary topics show how they differ."""
    return ({**row, "group": str(row["prompt"]).rstrip("?")} for row in rows)


def _asked(exact: ExactWorld, n: int, domain: int | None) -> list[int]:
    questions = np.arange(exact.world.n_questions)
    if domain is not None:
        questions = questions[exact.tables.domain_of == domain]
    return [int(q) for q in np.resize(questions, n)]


def _preferences(exact: ExactWorld, has: int, lacks: int) -> Iterable[dict[str, object]]:
    pairs = zip(_replies(exact, 5, speaker=has, domain=0), _replies(exact, 6, speaker=lacks, domain=0), strict=True)
    for chosen, rejected in pairs:
        if chosen["completion"] != rejected["completion"]:
            yield {"prompt": chosen["prompt"], "chosen": chosen["completion"], "rejected": rejected["completion"]}


def _lines(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def example_document(exact: ExactWorld, seed: int = 0) -> str:
    """One document in words."""
    row = sample_documents(exact, 1, np.random.default_rng(seed)).ids[0]
    return exact.language.decode(row)
