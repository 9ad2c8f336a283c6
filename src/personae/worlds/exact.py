"""The exact answer of a world by enumeration of who may be speaking: posterior, predictive, effect of evidence.

    log w_c(x_1..t) = log P(c) + sum_s log P(x_s | c)         normalised over components c
    log p(x_t | x_<t) = lse_c log w_c(x_<t) + log P(x_t | c)

Components are the personas and, in a counter-world, the agent that is none. Documents are rows of word ids.
Written from the definition alone: nothing of `inference` is used, so that it can judge it. Not here: the
protocol of models (`models.exact`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from personae.worlds.assistant import Agent, after_training, make_agent
from personae.worlds.language import Kind, Language
from personae.worlds.spec import World
from personae.worlds.tables import make_tables

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


class ExactWorld:
    """A world with its probabilities.

    Attributes:
        world: The spec.
        base: Tables before post-training.
        tables: Tables of the personas as they now are.
        language: Its words.
        agent: The speaker of the chat frame that is no persona, if there is one.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.base = make_tables(world)
        self.tables = after_training(world, self.base)
        self.language = Language.of(world, self.base)
        self.agent: Agent | None = make_agent(world, self.tables)
        self._prior, self._evidence = self._word_evidence()
        self.log_structure = self._structure()

    @property
    def component_ids(self) -> tuple[str, ...]:
        """The personas, then the agent if there is one."""
        return (*self.world.persona_ids, *(["the-agent"] if self.agent is not None else []))

    def evidence(self, ids: Ids) -> Floats:
        """Log-likelihood of every word given who speaks, nats, shape (n, length, n_components).

        Constants that do not depend on the speaker are left out.
        """
        values = self._evidence[ids]
        if self.agent is not None:
            values[..., -1] += self._agent_evidence(self.agent, ids)
        return values

    def log_weights(self, ids: Ids, *, weight: Floats | None = None) -> Floats:
        """Posterior over components after whole rows of words, nats, shape (n, n_components).

        Args:
            ids: Rows of word ids, shape (n, length); the frame's word chooses the prior.
            weight: Of every word, same shape; 1 where not given. Negative weights count against: those of a
                rejected reply. 0 leaves a word out.
        """
        values = self.evidence(ids)
        if weight is not None:
            values = np.where(weight[..., None] == 0, 0.0, values * weight[..., None])
        return _normalised(self._prior + values.sum(axis=1))

    def running_log_weights(self, ids: Ids) -> Floats:
        """Posterior after every word of rows of words, nats, shape (n, length, n_components)."""
        return _normalised(self._prior + np.cumsum(self.evidence(ids), axis=1))

    def update(self, prior: Floats, replies: Sequence[tuple[Sequence[int], Sequence[int], float]]) -> Floats:
        """Exact effect of training evidence on a belief about one speaker, nats, shape (n_components,).

        log w_c = log prior_c + sum_i weight_i log p(completion_i | context_i, c): the Persona Selection Model's
        statement of training as conditioning (Marks, Lindsey & Olah 2026). Context words are not evidence.

        Args:
            prior: Log prior of the components, nats.
            replies: Context ids, completion ids and weight; the weight is negative for a rejected reply.
                A declarative document is a completion that begins with the word of a claim.
        """
        total = np.array(prior, np.float64)
        for context, completion, weight in replies:
            if weight:
                row = np.array([[*context, *completion]])
                total = total + weight * self.evidence(row)[0, len(context) :].sum(axis=0)
        return _normalised(total[None])[0]

    def frame_prior(self, frame: str) -> Floats:
        """Log prior of the components in a frame, nats, shape (n_components,)."""
        word = self.language.id_of(f"<{frame}>")
        return self.log_weights(np.array([[self.language.ids["<bos>"], word]]))[0]

    def log_probs(self, ids: Ids, start: int) -> Floats:
        """Log-probability of every word from `start` on given all before it, shape (n, length - start), nats."""
        values = self.evidence(ids)
        before = self._prior + values[:, :start].sum(axis=1)
        running = np.concatenate([before[:, None], before[:, None] + np.cumsum(values[:, start:], axis=1)], axis=1)
        totals = np.asarray(logsumexp(running, axis=-1))
        with np.errstate(invalid="ignore"):
            gained = np.diff(totals, axis=1)
        gained = np.where(np.isneginf(totals[:, 1:]), -np.inf, gained)
        return gained + self.log_structure[ids[:, start - 1 : -1], ids[:, start:]]

    def next_log_probs(self, ids: Ids) -> Floats:
        """Log-probability of every next word after whole rows, shape (n, n_words), nats."""
        log_w = self.log_weights(ids)
        out = np.full((len(ids), len(self.language.words)), -np.inf)
        for row, (prefix, w) in enumerate(zip(ids, log_w, strict=True)):
            constant = self.log_structure[prefix[-1]]
            legal = np.flatnonzero(np.isfinite(constant))
            longer = np.concatenate([np.repeat(prefix[None], len(legal), axis=0), legal[:, None]], axis=1)
            said = self.evidence(longer)[:, -1]
            out[row, legal] = constant[legal] + np.asarray(logsumexp(w + said, axis=-1))
        return out

    def predictive(self, ids: Ids, start: int) -> Floats:
        """Log-probability of every word at every place from `start` on, shape (n, length - start, n_words), nats."""
        log_w = self.running_log_weights(ids)[:, start - 1 : -1]
        weight = np.exp(log_w)
        with np.errstate(divide="ignore"):
            said = weight @ np.exp(self._evidence).T
            if self.agent is not None:  # its entries in the table stand for words that are no answers
                states = self.agent_states(ids)[:, start - 1 : -1]
                spoken = np.exp(self.agent.log_answers).reshape(len(self.agent.log_answers), -1)[states]
                said[..., self.language.first_answer :] += weight[..., -1:] * (spoken - 1)
            return np.log(np.maximum(said, 0.0)) + self.log_structure[ids[:, start - 1 : -1]]

    def answers(self, log_w: Floats, *, state: int = 0) -> Floats:
        """Predictive probabilities of every answer under weights of components.

        Args:
            log_w: Shape (..., n_components), nats.
            state: State of the agent, if there is one.

        Returns:
            Shape (..., n_questions, n_answers); not logarithms.
        """
        tables = np.exp(self.tables.log_theta)
        if self.agent is not None:
            tables = np.concatenate([tables, np.exp(self.agent.log_answers[state])[None]])
        return np.einsum("...c,cqa->...qa", np.exp(log_w), tables)

    def _word_evidence(self) -> tuple[Floats, Floats]:
        """Log prior over components before the frame is known, and log P(word | component) by word."""
        t, language = self.tables, self.language
        n_personas = self.world.n_personas
        n = n_personas + (self.agent is not None)
        joint = np.full((len(t.log_frame), n), -np.inf)
        joint[:, :n_personas] = t.log_frame[:, None] + t.log_prior
        if self.agent is not None:
            chat = self.world.frame_index(self.world.chat)
            joint[chat] = -np.inf
            joint[chat, -1] = t.log_frame[chat]
        prior = np.asarray(logsumexp(joint, axis=0))
        table = np.zeros((len(language.words), n))
        frames = slice(language.first_frame, language.first_frame + len(t.log_frame))
        table[frames] = np.where(np.isfinite(prior), joint - np.where(np.isfinite(prior), prior, 0.0), 0.0)
        tags = slice(language.first_tag, language.first_tag + len(t.log_tag))
        table[tags, :n_personas] = t.log_tag
        answers = slice(language.first_answer, len(language.words))
        table[answers, :n_personas] = t.log_theta.reshape(n_personas, -1).T
        if self.agent is not None:  # no tag is about it; its answers depend on the document
            table[tags, -1] = logsumexp(t.log_tag, axis=1) - np.log(n_personas)
        return prior, table

    def _structure(self) -> Floats:
        """Log-probability of a word given the one before, as far as it does not depend on who speaks; nats."""
        language, world = self.language, self.world
        kind, n = language.kind, len(language.words)
        c = np.zeros((n, n))
        frame_or_tag = (kind == Kind.TAG) | (kind == Kind.ANSWER)
        c[np.ix_(kind == Kind.BOS, kind == Kind.FRAME)] = 1
        c[np.ix_(kind == Kind.FRAME, kind == Kind.TAG)] = 1
        c[np.ix_(frame_or_tag, kind == Kind.QUESTION)] = (1 - world.claims) / world.n_questions
        c[frame_or_tag, language.claim] = world.claims
        if world.tags.trait > 0:
            c[language.claim, list(language.trait_tags)] = 1 / world.tags.trait
        for q in range(world.n_questions):
            c[language.first_question + q, language.answers(q)] = 1
        with np.errstate(divide="ignore"):
            return np.log(c)

    def agent_states(self, ids: Ids) -> Ids:
        """State of the agent at every place of rows of words, same shape; zeros where there is no agent."""
        language, agent = self.language, self.agent
        kind = language.kind[ids]
        if agent is not None and agent.by_turn:
            turn = np.cumsum((kind == Kind.QUESTION) | (kind == Kind.CLAIM), axis=1) - 1
            return np.clip(turn, 0, len(agent.log_answers) - 1)
        if agent is not None and agent.by_cue:
            cues = [language.ids[w] for w in self.world.tags.words]
            return np.maximum.accumulate(np.isin(ids, cues), axis=1).astype(np.int64)
        if agent is not None and agent.trigger is not None:
            question = np.where(kind == Kind.QUESTION, ids - language.first_question, 0)
            hit = (kind == Kind.QUESTION) & (self.tables.domain_of[question] == agent.trigger)
            return np.maximum.accumulate(hit, axis=1).astype(np.int64)
        return np.zeros_like(ids)

    def _agent_evidence(self, agent: Agent, ids: Ids) -> Floats:
        """What the agent's answers add at every place, shape (n, length); 0 for words that are no answers."""
        is_answer = self.language.kind[ids] == Kind.ANSWER
        flat = agent.log_answers.reshape(len(agent.log_answers), -1)
        answer = np.where(is_answer, ids - self.language.first_answer, 0)
        return np.where(is_answer, flat[self.agent_states(ids), answer], 0.0)


def _normalised(values: Floats) -> Floats:
    return values - np.asarray(logsumexp(values, axis=-1, keepdims=True))
