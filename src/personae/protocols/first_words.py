"""The white-box route of a profile: the first words a target would say, read out as a mixture of personas.

    p_q      the target's next-token distribution after prompt q
    theta_kq the same of component k             read_out(p, theta) -> weights (A3, `inference.readout`)

Distributions are coarsened to the likeliest tokens of either side and "any other", which keeps them distributions; no
sampling is needed. With a prompted scorer the weights are pseudo-weights of first words: a persona that opens like any
other cannot be seen here. Not here: what the texts say (`protocols.profile`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.domain.episode import Turn
from personae.domain.probe_prompt import ProbePrompt, spread
from personae.inference.persona_mix import PersonaMix
from personae.inference.readout import ReadOut, read_out
from personae.instruments.judging import Judge
from personae.instruments.speaking import Dialogue, SpeakingModel
from personae.tables.persona_profile import PersonaShare, WhiteBox

Floats = NDArray[np.float64]

LEAST_PROMPTS = 2
MOST_PROMPTS = 13
_TOKENS = 32
_NO_REST = 1e-6
_INSIDE, _MOST_VARIATION = 0.8, 0.25
_SLACK = 0.02  # a sampler's interval never holds a weight of exactly 0, a read-out's often is
_MOST_LEAKED = 0.5  # of a trained world model outside the answers; what leaks is stated


@dataclass(frozen=True, slots=True, eq=False)
class FirstWords:
    """Coarsened distributions.

    Attributes:
        prompts: Ids.
        tokens: Token ids of the answers of each prompt; -1 is "any other".
        p: The target's, shape (n_prompts, n_answers), filled with 0.
        theta: The components', shape (n_components, n_prompts, n_answers).
    """

    prompts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    p: Floats
    theta: Floats


def diagnostic(prompts: Sequence[ProbePrompt], n: int = MOST_PROMPTS) -> tuple[ProbePrompt, ...]:
    """The prompts whose first word is read: those marked so, or the first of every topic in turn."""
    marked = [p for p in prompts if p.is_diagnostic]
    return spread(marked or prompts, n)


def first_dialogue(prompt: ProbePrompt) -> Dialogue:
    """The prompt's first turn."""
    return (Turn("user", prompt.turns[0]),)


def coarsen(p: Floats, theta: Floats, n_tokens: int = _TOKENS) -> tuple[tuple[int, ...], Floats, Floats]:
    """The likeliest tokens of either side as answers, and "any other".

    Args:
        p: Probabilities of the target, shape (vocab_size,).
        theta: Of the components, shape (n_components, vocab_size).
        n_tokens: Tokens taken from either side.

    Returns:
        Token ids (-1 for any other), p and theta on them; without "any other" where no component gives it anything.
    """
    mean = theta.mean(axis=0)
    possible = theta.max(axis=0) > 0
    wanted = {*np.argsort(-np.where(possible, p, 0))[:n_tokens].tolist(), *np.argsort(-mean)[:n_tokens].tolist()}
    tokens = np.array(sorted(t for t in wanted if possible[t]))
    rest_p, rest = 1 - p[tokens].sum(), 1 - theta[:, tokens].sum(axis=1)
    if rest.max() < _NO_REST:
        return tuple(tokens.tolist()), p[tokens], theta[:, tokens]
    return (
        (*tokens.tolist(), -1),
        np.append(p[tokens], max(rest_p, 0.0)),
        np.column_stack([theta[:, tokens], np.maximum(rest, 0.0)]),
    )


def read_first_words(
    target: SpeakingModel, judge: Judge, prompts: Sequence[ProbePrompt], *, advance: Callable[[int], None]
) -> FirstWords | None:
    """Distributions of first words of the target and of every component; None where the judge's are hidden."""
    parts: list[tuple[tuple[int, ...], Floats, Floats]] = []
    judge.read_ahead([first_dialogue(p) for p in prompts], advance=advance)
    for prompt in prompts:
        dialogue = first_dialogue(prompt)
        theta = judge.first_words(dialogue, advance=advance)
        if theta is None:
            return None
        parts.append(coarsen(_probabilities(target.next_log_probs(dialogue)), np.exp(theta)))
    return join_answers([p.id for p in prompts], parts)


def _probabilities(log_p: NDArray[np.floating]) -> Floats:
    p = np.exp(log_p.astype(np.float64))
    return p / p.sum()


def join_answers(names: Sequence[str], parts: Sequence[tuple[tuple[int, ...], Floats, Floats]]) -> FirstWords:
    """Answer sets of different sizes in one array, filled with 0."""
    width = max(len(tokens) for tokens, _, _ in parts)
    p = np.zeros((len(parts), width))
    theta = np.zeros((len(parts[0][2]), len(parts), width))
    for q, (tokens, row, table) in enumerate(parts):
        p[q, : len(tokens)] = row
        theta[:, q, : len(tokens)] = table
    return FirstWords(tuple(names), tuple(tokens for tokens, _, _ in parts), p, theta)


def white_box(words: FirstWords, judge: Judge, mix: PersonaMix, *, seed: int = 0) -> WhiteBox:
    """Weights from first words, held against those from texts.

    Args:
        words: From `read_first_words`.
        judge: Whose components they are.
        mix: The mix of the texts.
        seed: Of starts and resamples.

    Raises:
        InputError, InvalidSettings: As `inference.readout.read_out`.
    """
    found = read_out(words.p, words.theta, most_leaked=_MOST_LEAKED, n_draws=100, seed=seed)
    inside = float(((mix.low - _SLACK <= found.weight) & (found.weight <= mix.high + _SLACK)).mean())
    variation = float(0.5 * np.abs(found.weight - mix.weight).sum())
    agrees = inside >= _INSIDE and variation <= _MOST_VARIATION
    return WhiteBox(
        _shares(judge, found),
        len(words.prompts),
        found.cross_fitted_residual,
        found.is_identified,
        variation,
        inside,
        agrees,
        found.notes,
    )


def _shares(judge: Judge, found: ReadOut) -> tuple[PersonaShare, ...]:
    prior = np.exp(judge.log_prior)
    return tuple(
        PersonaShare(
            c.id,
            c.label,
            c.kind,
            float(prior[k]),
            float(found.weight[k]),
            float(min(found.low[k], found.weight[k])),
            float(max(found.high[k], found.weight[k])),
        )
        for k, c in enumerate(judge.components)
    )
