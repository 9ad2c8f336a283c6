"""The waist of personae: log-likelihoods of the same completions under every persona.

    frame_log_likelihood[f, i] = log p(y_i | x_i, frame f), summed over completion tokens, nats
    log p(y_i | x_i, persona k) = log (1/R) sum over the R frames of k of exp(...)      (log-mean-exp)

Sums are never divided by length. Not here: how the numbers were made, and what follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from personae.errors import IncomparableEvidence, NumericsError
from personae.numerics.logspace import log_mean_exp

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Log-likelihoods, one row a frame and one column an episode.

    Attributes:
        frame_persona: Persona id of each frame; frames of one persona are its paraphrases. Length n_frames.
        frame_log_likelihood: Shape (n_frames, n_episodes), nats; -inf is legal, NaN is not.
        episodes: Episode ids, unique.
        n_tokens: Scored tokens of each episode, equal under every frame.
        weight: Weight of each episode; may be negative; 0 leaves the episode out.
        group: Conversation of each episode, the unit of resampling.
        line: 1-based line in the source file, 0 where there is none.
        provenance: Model card, versions, dtype, noise floor.
    """

    frame_persona: tuple[str, ...]
    frame_log_likelihood: Floats
    episodes: tuple[str, ...]
    n_tokens: Ints
    weight: Floats
    group: tuple[str, ...]
    line: Ints
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.frame_persona), len(self.episodes))
        assert self.frame_log_likelihood.shape == shape, (self.frame_log_likelihood.shape, shape)
        assert len(self.n_tokens) == len(self.weight) == len(self.group) == len(self.line) == shape[1]
        if np.isnan(self.frame_log_likelihood).any():
            raise NumericsError("evidence holds a log-likelihood that is not a number.")
        if np.isneginf(self.frame_log_likelihood[:, self.weight < 0]).any():
            raise NumericsError("an episode of negative weight is impossible under a persona: its sum is undefined.")
        for array in (self.frame_log_likelihood, self.n_tokens, self.weight, self.line):
            array.setflags(write=False)

    @property
    def personas(self) -> tuple[str, ...]:
        """Persona ids in order of first appearance."""
        return tuple(dict.fromkeys(self.frame_persona))

    def frames_of(self, persona: str) -> Ints:
        """Row indices of a persona's frames.

        Raises:
            IncomparableEvidence: If the persona was not scored.
        """
        rows = np.flatnonzero([p == persona for p in self.frame_persona])
        if len(rows) == 0:
            raise IncomparableEvidence(f"the evidence holds no persona '{persona}'.")
        return rows

    def log_likelihood(self, persona: str) -> Floats:
        """Log-likelihood under the equal mixture of the persona's paraphrases, nats, shape (n_episodes,)."""
        return log_mean_exp(self.frame_log_likelihood[self.frames_of(persona)], axis=0)

    def matrix(self, personas: Sequence[str]) -> Floats:
        """Log-likelihoods, nats, shape (n_episodes, n_personas)."""
        return np.stack([self.log_likelihood(p) for p in personas], axis=1)

    def log_likelihood_ratio(self, positive: str, negative: str) -> Floats:
        """Mean over paraphrases of log p(y | positive) - log p(y | negative), nats, shape (n_episodes,).

        The mean of logarithms, not the logarithm of the mean: on held-out behaviours it separated better in
        every setting tried, since one lucky paraphrase cannot carry the sum (NOTES.md, 2026-11-21). Both poles
        are scored on the same tokens, so nothing is divided by length.
        """
        pos = self.frame_log_likelihood[self.frames_of(positive)].mean(axis=0)
        neg = self.frame_log_likelihood[self.frames_of(negative)].mean(axis=0)
        with np.errstate(invalid="ignore"):
            ratio = pos - neg
        # Impossible under both poles says nothing about which of them spoke.
        return np.where(np.isnan(ratio), 0.0, ratio)

    def take(self, index: Ints) -> Evidence:
        """The evidence of the episodes at `index`."""
        return Evidence(
            self.frame_persona,
            self.frame_log_likelihood[:, index].copy(),
            tuple(self.episodes[i] for i in index),
            self.n_tokens[index].copy(),
            self.weight[index].copy(),
            tuple(self.group[i] for i in index),
            self.line[index].copy(),
            self.provenance,
        )
