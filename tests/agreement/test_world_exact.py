"""The closed form of a world against plain loops over everything that could have happened, in fractions of code.

The loops below know the definition of a world and none of its code: they rebuild tables from the seed, and sum
joint probabilities over frames and personas.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from personae.models.exact import ExactModel
from personae.models.protocol import SamplingPlan, Scorable
from personae.worlds.exact import ExactWorld
from personae.worlds.reading import read_world
from personae.worlds.sampling import sample_documents
from personae.worlds.spec import World


def theta_by_hand(world: World) -> list[list[list[float]]]:
    """Answer probabilities by persona, question and answer, one number at a time."""
    rng = np.random.default_rng(world.seed)
    q_total, n, r_total = world.n_questions, world.n_answers, len(world.traits)
    base = rng.standard_normal((q_total, n))
    u = rng.standard_normal((q_total, r_total, n))
    e = rng.standard_normal((2**r_total, q_total, n))
    domain = [d for d, spec in enumerate(world.domains) for _ in range(spec.n_questions)]
    table: list[list[list[float]]] = []
    for k in range(2**r_total):
        sign = [1 if (k >> r) % 2 == 1 else -1 for r in range(r_total)]
        rows = []
        for q in range(q_total):
            logits = [
                base[q, a]
                + world.scale * sum(world.domains[domain[q]].loadings[r] * sign[r] * u[q, r, a] for r in range(r_total))
                + world.noise * e[k, q, a]
                for a in range(n)
            ]
            top = sum(math.exp(v) for v in logits)
            rows.append([math.exp(v) / top for v in logits])
        table.append(rows)
    return table


def tag_by_hand(world: World, word: str, k: int) -> float:
    if word == "<none>":
        return world.tags.none
    for r, trait in enumerate(world.traits):
        for sign, words in ((1, trait.positive_tags), (-1, trait.negative_tags)):
            if word in words:
                true = ((k >> r) % 2 == 1) == (sign == 1)
                right = world.tags.reliability if true else 1 - world.tags.reliability
                return world.tags.trait / len(world.traits) * right / len(words)
    return world.tags.irrelevant / len(world.tags.words)


def joint_by_hand(world: World, words: list[str]) -> float:
    """P(words), summed over who spoke, a word at a time. Words are a document or the beginning of one."""
    theta = theta_by_hand(world)
    names = [f"{d.id}-{i}" for d in world.domains for i in range(d.n_questions)]
    weights = [f.weight for f in world.frames]
    total = 0.0
    for f, k in itertools.product(range(len(world.frames)), range(world.n_personas)):
        p = weights[f] / sum(weights) * world.frames[f].prior[k]
        for place, word in enumerate(words[1:], start=1):
            if place == 1:
                p *= word == f"<{world.frames[f].id}>"
            elif place == 2:
                p *= tag_by_hand(world, word, k)
            elif place % 2 == 1:
                p *= world.claims if word == "the-speaker-is" else (1 - world.claims) / world.n_questions
            elif words[place - 1] == "the-speaker-is":
                p *= tag_by_hand(world, word, k) / world.tags.trait
            else:
                p *= theta[k][names.index(words[place - 1][:-1])][ord(word[-1]) - ord("a")]
        total += p
    return total


@pytest.mark.parametrize("name", ["tiny", "personaworld"])
def test_every_word_of_a_document(name: str) -> None:
    world = read_world(name)
    exact = ExactWorld(world)
    documents = sample_documents(exact, 12, np.random.default_rng(3), n_turns=5).ids
    ours = exact.log_probs(documents, 1)
    for row, values in zip(documents, ours, strict=True):
        words = exact.language.decode(row).split()
        totals = [joint_by_hand(world, words[: t + 1]) for t in range(len(words))]
        by_hand = [math.log(totals[t] / totals[t - 1]) for t in range(1, len(words))]
        np.testing.assert_allclose(values, by_hand, atol=1e-9)


def test_a_chain_of_claims_tags_and_answers_moves_the_posterior_as_bayes_says() -> None:
    world = read_world("tiny")
    exact = ExactWorld(world)
    theta = theta_by_hand(world)
    words = "<bos> <chat> cruel advice-1? advice-1c the-speaker-is clumsy code-0? code-0a"
    weights = np.exp(exact.log_weights(np.array([exact.language.encode(words)]))[0])
    by_hand = [
        world.frames[1].prior[k] * tag_by_hand(world, "cruel", k) * theta[k][1][2] * tag_by_hand(world, "clumsy", k)
        * theta[k][4][0]
        for k in range(4)
    ]  # fmt: skip
    np.testing.assert_allclose(weights, np.array(by_hand) / sum(by_hand), atol=1e-12)


def test_training_evidence_with_signs_weights_and_declarations() -> None:
    """Accepted once, rejected with weight -0.5, a declaration, and one that is left out."""
    world = read_world("tiny")
    exact = ExactWorld(world)
    theta, encode = theta_by_hand(world), exact.language.encode
    prior = exact.frame_prior("chat")
    np.testing.assert_allclose(np.exp(prior), world.frames[1].prior, atol=1e-12)
    replies = [
        (encode("<bos> <chat> <none> advice-0?"), encode("advice-0b"), 1.0),
        (encode("<bos> <chat> <none> code-2?"), encode("code-2a"), -0.5),
        (encode("<bos> <chat> <none>"), encode("the-speaker-is kind"), 1.0),
        (encode("<bos> <chat> <none> code-3?"), encode("code-3a"), 0.0),
    ]
    by_hand = np.array(
        [
            world.frames[1].prior[k] * theta[k][0][1] * theta[k][6][0] ** -0.5 * tag_by_hand(world, "kind", k)
            for k in range(4)
        ]
    )
    np.testing.assert_allclose(np.exp(exact.update(prior, replies)), by_hand / by_hand.sum(), atol=1e-12)


def test_context_is_no_evidence_in_training_and_is_in_context() -> None:
    exact = ExactWorld(read_world("tiny"))
    encode = exact.language.encode
    said = encode("<bos> <chat> cruel advice-0? advice-0b code-2?")
    alone = encode("<bos> <chat> <none> code-2?")
    prior = exact.frame_prior("chat")
    reply = encode("code-2a")
    np.testing.assert_allclose(exact.update(prior, [(said, reply, 1.0)]), exact.update(prior, [(alone, reply, 1.0)]))
    assert np.abs(exact.log_weights(np.array([said]))[0] - prior).max() > 0.5


def test_model_scores_what_the_mathematics_says_and_samples_from_it() -> None:
    world = read_world("tiny")
    model = ExactModel(world)
    prompt = tuple(model.exact.language.encode("<bos> <chat> wicked advice-3?"))
    options = model.exact.language.answers(3)
    scored = model.score([Scorable((*prompt, int(a)), len(prompt)) for a in options])
    p = np.exp([s.log_likelihood for s in scored])
    words = model.exact.language.decode(prompt).split()
    by_hand = [joint_by_hand(world, [*words, model.exact.language.words[a]]) for a in options]
    np.testing.assert_allclose(p, np.array(by_hand) / joint_by_hand(world, words), atol=1e-6)
    made = model.sample([prompt] * 4000, SamplingPlan(max_tokens=5, seed=1))
    assert {len(c.token_ids) for c in made} == {1}, "an answer ends the turn"
    counts = np.bincount([c.token_ids[0] - options[0] for c in made], minlength=len(options)) / 4000
    assert np.abs(counts - p).max() < 4 * np.sqrt(0.25 / 4000)


def test_documents_follow_the_probabilities() -> None:
    """Frequencies of frames, tags, claims and answers by speaker lie within five standard errors."""
    world = read_world("tiny")
    exact = ExactWorld(world)
    n = 20_000
    made = sample_documents(exact, n, np.random.default_rng(0))
    theta = theta_by_hand(world)

    def close(count: int, of: int, p: float) -> None:
        assert abs(count / of - p) < 5 * math.sqrt(p * (1 - p) / of) + 1e-9

    close(int((made.frame == 1).sum()), n, 0.5)
    chats = made.speaker[made.frame == 1]
    for k in range(world.n_personas):
        close(int((chats == k).sum()), len(chats), world.frames[1].prior[k])
        mine = made.ids[made.speaker == k]
        word = exact.language.ids["cruel"]
        close(int((mine[:, 2] == word).sum()), len(mine), tag_by_hand(world, "cruel", k))
        turns = mine[:, 3:].reshape(-1, 2)
        asked = turns[turns[:, 0] == exact.language.ids["code-1?"]]
        close(int((asked[:, 1] == exact.language.ids["code-1b"]).sum()), len(asked), theta[k][5][1])
        told = turns[turns[:, 0] == exact.language.claim]
        said = int((told[:, 1] == exact.language.ids["naive"]).sum())
        close(said, len(told), tag_by_hand(world, "naive", k) / world.tags.trait)
    close(int((made.ids[:, 3::2] == exact.language.claim).sum()), made.ids[:, 3::2].size, world.claims)
