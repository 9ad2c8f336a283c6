"""The probabilities of a world, computed from its spec and seed.

    logit[k, q] = base[q] + scale sum_r C[dom(q), r] v[k, r] u[q, r] + noise e[k, q],    theta = softmax(logit)
    P(tag | k)  = none | trait: 1/R (reliability or its complement) / synonyms | irrelevant: 1/words

Notation: persona k, question q, trait r, v its sign, C the domains' loadings; base, u, e ~ N(0, 1) from the
seed, one number an answer. Not here: what follows from them (`worlds.exact`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from personae.worlds.spec import World

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """Log-probabilities, nats.

    Attributes:
        log_theta: Of every answer, shape (n_personas, n_questions, n_answers).
        log_prior: Of every persona in every frame, shape (n_frames, n_personas); -inf where it never speaks.
        log_frame: Of the frames, shape (n_frames,).
        log_tag: Of every word in the tag slot, shape (n_tag_words, n_personas): none, trait tags, irrelevant.
        tag_words: The words of `log_tag`, and for trait tags (trait, sign), else None.
        domain_of: Domain of every question, shape (n_questions,).
    """

    log_theta: Floats
    log_prior: Floats
    log_frame: Floats
    log_tag: Floats
    tag_words: tuple[tuple[str, tuple[int, int] | None], ...]
    domain_of: NDArray[np.int64]


def make_tables(world: World) -> Tables:
    """Every probability of a world before post-training."""
    domain_of = np.repeat(np.arange(len(world.domains)), [d.n_questions for d in world.domains])
    weights = np.array([f.weight for f in world.frames])
    with np.errstate(divide="ignore"):
        log_prior = np.log(np.array([f.prior for f in world.frames], np.float64))
    words = _tag_words(world)
    log_tag = _log_tags(world, words)
    return Tables(
        _log_theta(world, domain_of), log_prior, np.log(weights / weights.sum()), log_tag, tuple(words), domain_of
    )


def _log_theta(world: World, domain_of: NDArray[np.int64]) -> Floats:
    rng = np.random.default_rng(world.seed)
    n_questions, n_answers, n_traits = world.n_questions, world.n_answers, len(world.traits)
    base = rng.standard_normal((n_questions, n_answers))
    direction = rng.standard_normal((n_questions, n_traits, n_answers))
    peculiar = rng.standard_normal((world.n_personas, n_questions, n_answers))
    loadings = np.array([d.loadings for d in world.domains])[domain_of]
    shift = np.einsum("qr,kr,qra->kqa", loadings, world.signs.astype(np.float64), direction)
    return log_softmax(base[None] + world.scale * shift + world.noise * peculiar, axis=-1)


def _tag_words(world: World) -> list[tuple[str, tuple[int, int] | None]]:
    from_traits = [
        (word, (r, sign))
        for r, trait in enumerate(world.traits)
        for sign, words in ((1, trait.positive_tags), (-1, trait.negative_tags))
        for word in words
    ]
    return [("<none>", None), *from_traits, *((w, None) for w in world.tags.words)]


def _log_tags(world: World, words: list[tuple[str, tuple[int, int] | None]]) -> Floats:
    tags = world.tags
    table = np.empty((len(words), world.n_personas))
    for row, (word, meaning) in enumerate(words):
        if meaning is None:
            share = tags.none if word == "<none>" else tags.irrelevant / max(1, len(tags.words))
            table[row] = share
        else:
            r, sign = meaning
            true = world.signs[:, r] == sign
            synonyms = len(world.traits[r].positive_tags)
            reliable = np.where(true, tags.reliability, 1 - tags.reliability)
            table[row] = tags.trait / len(world.traits) * reliable / synonyms
    with np.errstate(divide="ignore"):
        return np.log(table)
