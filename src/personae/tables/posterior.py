"""Posterior over personas: log weights with what they were before, summaries and odds.

One shape rule: the last axis is the persona; before it may come steps (after each episode) and, first of all, draws.

    log_weights    (persona,) | (step, persona) | (draw, persona) | (draw, step, persona)

Nats. -inf is a persona that is ruled out; NaN never occurs. Not here: how it was inferred (`inference.update`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from personae.errors import InvalidSettings, NumericsError, UnknownPersona

Floats = NDArray[np.float64]

_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """Normalised log weights over the personas of a cast.

    Attributes:
        personas: Ids, unique, in the order of the last axis.
        log_prior: Before the evidence, nats, shape (n_personas,), log-sum-exp 0.
        log_weights: After it, nats, log-sum-exp 0 along the last axis.
        log_marginal_likelihood: log of the prior-weighted mean likelihood, nats, of the last step; None where it has
            no meaning (a likelihood raised to a power, draws).
        has_steps: Whether the axis before the personas is the step.
        has_draws: Whether the first axis is the draw.

    Raises:
        InvalidSettings: On construction, for shapes that do not fit or ids that repeat.
        NumericsError: For NaN, or weights that do not sum to 1.
    """

    personas: tuple[str, ...]
    log_prior: Floats
    log_weights: Floats
    log_marginal_likelihood: float | None = None
    has_steps: bool = False
    has_draws: bool = False

    def __post_init__(self) -> None:
        n = len(self.personas)
        if n == 0 or len(set(self.personas)) != n:
            raise InvalidSettings(f"a posterior needs personas with unique ids, not {self.personas}.")
        axes = 1 + self.has_steps + self.has_draws
        if self.log_prior.shape != (n,) or self.log_weights.ndim != axes or self.log_weights.shape[-1] != n:
            raise InvalidSettings(
                f"log weights of shape {self.log_weights.shape} and a prior of {self.log_prior.shape} do not fit "
                f"{n} personas with {axes - 1} axes before them."
            )
        for name, array in (("prior", self.log_prior), ("posterior", self.log_weights)):
            total = np.asarray(logsumexp(array, axis=-1))
            if np.isnan(array).any() or not (np.abs(total) < _TOLERANCE).all():
                raise NumericsError(f"the weights of the {name} are not numbers that sum to 1.")
            array.setflags(write=False)

    @property
    def weights(self) -> Floats:
        """exp(log_weights), same shape."""
        return np.exp(self.log_weights)

    @property
    def final(self) -> Posterior:
        """The posterior after the last step; itself where there are no steps."""
        if not self.has_steps:
            return self
        last = self.log_weights[..., -1, :].copy()
        return Posterior(self.personas, self.log_prior, last, self.log_marginal_likelihood, False, self.has_draws)

    def weight(self, persona: str) -> float:
        """Final weight of a persona; the mean over draws where there are draws.

        Raises:
            UnknownPersona: If the cast has none of that id.
        """
        return float(np.exp(self.final.log_weights[..., self._place([persona])]).mean())

    def log_odds(self, positive: Sequence[str], negative: Sequence[str] = ()) -> Floats:
        """Log of the weight of `positive` over that of `negative`, nats; shape of log_weights without its last axis.

        Args:
            positive: Persona ids.
            negative: Persona ids; left out, all others.

        Raises:
            UnknownPersona: If the cast has none of such an id.
            InvalidSettings: If a side is empty or the two overlap.
            NumericsError: If both sides are ruled out: then the odds have no value.
        """
        places = self._place(positive)
        others = self._place(negative) if negative else [k for k in range(len(self.personas)) if k not in places]
        if not places or not others or set(places) & set(others):
            raise InvalidSettings("log-odds need two sets of personas, not empty and without a common member.")
        above, below = (np.asarray(logsumexp(self.log_weights[..., p], axis=-1)) for p in (places, others))
        if (np.isneginf(above) & np.isneginf(below)).any():
            raise NumericsError("the evidence rules out both sides of the odds: they have no value.")
        return above - below

    def shift_in_log_odds(self, positive: Sequence[str], negative: Sequence[str] = ()) -> Floats:
        """What the evidence added to `log_odds`, nats; arguments and errors as there."""
        prior = Posterior(self.personas, self.log_prior.copy(), self.log_prior.copy())
        return self.log_odds(positive, negative) - prior.log_odds(positive, negative)

    def entropy(self) -> Floats:
        """How undecided the weights are, nats: 0 for one persona, log n for n equal ones."""
        w = self.weights
        return -np.sum(w * np.where(w > 0, self.log_weights, 0.0), axis=-1)

    def interval(self, *, level: float = 0.9) -> tuple[Floats, Floats]:
        """Equal-tailed interval of the weights over draws, each of shape (..., n_personas).

        Raises:
            InvalidSettings: If there are no draws, or the level is outside (0, 1).
        """
        if not self.has_draws or not 0 < level < 1:
            raise InvalidSettings(f"an interval of level {level} needs draws and a level between 0 and 1.")
        tail = (1 - level) / 2
        low, high = np.quantile(self.weights, [tail, 1 - tail], axis=0)
        return low, high

    def _place(self, personas: Sequence[str]) -> list[int]:
        for persona in personas:
            if persona not in self.personas:
                raise UnknownPersona(
                    f"the posterior has no persona '{persona}'.", hint=f"It has {', '.join(self.personas)}."
                )
        return [self.personas.index(p) for p in personas]
