"""Distribution over personas of what a target said: weights with intervals, what is identified, what informs.

    weights        fit_mixture over conversations (EM, Gibbs), intervals widened where conversations that share a
                   prompt are alike beyond chance:  logit w  ->  mean + sqrt(design effect) (logit w - mean)
    information    I(prompt) = mean over its conversations of KL( responsibilities || weights ), nats

The widening keeps the sampler's interval where conversations are independent, since then the design effect is 1 in
expectation: responsibilities at the true weights average to the weights for every prompt. Not here: where
log-likelihoods come from (`instruments.judging`), topics (`inference.topics`), two targets (`inference.moved`).
Sources: A2 of the mixture (Xie et al. 2022, arXiv 2111.02080); design effect Kish 1965, chapter 8; expected information
of a question Lindley 1956.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, rel_entr

from personae.errors import InvalidSettings
from personae.inference.identifiability import identifiability, merge_classes
from personae.inference.mixture import MixtureFit, fit_mixture
from personae.numerics.clustered import cluster_index

Floats = NDArray[np.float64]

LEVEL = 0.9
LEAST_CONVERSATIONS = 4
ALIKE_NATS = 0.05  # root mean square difference of two components, nats a conversation after tempering
_EDGE = 1e-9
_LEAST_CLUSTERS = 5


@dataclass(frozen=True, slots=True, eq=False)
class PersonaMix:
    """Weights of components in a set of conversations.

    Attributes:
        fit: Mode, draws and responsibilities.
        weight, low, high: Posterior mean and interval of every component, shape (n_components,).
        design_effect: By how much variance the prompts multiply, by component; 1 where conversations are independent.
        condition: Condition number of the information about the weights on the simplex.
        rank: Directions of the simplex that the conversations see, at most n_components - 1.
        alike: Class of each component: those of one class said the same in these conversations, shape (n_components,).
    """

    fit: MixtureFit
    weight: Floats
    low: Floats
    high: Floats
    design_effect: Floats
    condition: float
    rank: int
    alike: NDArray[np.int64]
    _prompt: tuple[str, ...]

    @property
    def is_identified(self) -> bool:
        """Whether the conversations see every direction of the simplex."""
        return self.rank == len(self.weight) - 1

    def functional(self, values: Floats) -> tuple[float, float, float]:
        """Mean and widened interval of sum_k w_k v_k for values in [0, 1], such as the mass of a trait's pole."""
        drawn = self.fit.draws @ values
        effect = design_effects((self.fit.responsibilities @ values)[:, None], self._prompt)
        low, high = _widened(drawn[:, None], effect)
        return float(drawn.mean()), float(low[0]), float(high[0])


def persona_mix(
    log_likelihood: Floats, log_prior: Floats, *, prompt: Sequence[str], eta: float, seed: int = 0
) -> PersonaMix:
    """Fit the weights of components to conversations.

    Args:
        log_likelihood: Nats a conversation, the background last, shape (n_conversations, n_components).
        log_prior: Of the components, nats.
        prompt: Prompt of each conversation: those of one prompt may be alike.
        eta: Power on the likelihood.
        seed: Of the sampler.

    Raises:
        InvalidSettings: If there are fewer than four conversations.
        NumericsError: If a conversation is impossible under every component.
    """
    n, k = log_likelihood.shape
    if n < LEAST_CONVERSATIONS:
        raise InvalidSettings(
            f"there are only {n} conversations with a reply; a distribution over {k} components needs at least "
            f"{LEAST_CONVERSATIONS}.",
            hint="Ask more prompts, or raise --n.",
        )
    fit = fit_mixture(log_likelihood, log_prior, eta=eta, level=LEVEL, seed=seed)
    effect = design_effects(fit.responsibilities, prompt)
    low, high = _widened(fit.draws, effect)
    told = identifiability(eta * log_likelihood, fit.mode)
    return PersonaMix(
        fit,
        fit.weight,
        np.minimum(low, fit.weight),
        np.maximum(high, fit.weight),
        effect,
        told.condition,
        told.rank,
        alike_classes(eta * log_likelihood),
        tuple(prompt),
    )


def alike_classes(tempered: Floats, *, below: float = ALIKE_NATS) -> NDArray[np.int64]:
    """Components that say the same: single linkage of the root mean square difference of their columns.

    Args:
        tempered: Log-likelihoods times eta, shape (n_conversations, n_components).
        below: Nats a conversation under which two components are one.

    Returns:
        Class of each component, from 0 in order of first appearance.
    """
    finite = np.where(np.isfinite(tempered), tempered, -1e6)
    square = np.sqrt(np.maximum(((finite[:, :, None] - finite[:, None, :]) ** 2).mean(axis=0), 0.0))
    # `merge_classes` links what is below a threshold inside [0, 1].
    return merge_classes(np.minimum(square / (2 * below), 1.0), below=0.5)


def information(responsibilities: Floats, weights: Floats, prompt: Sequence[str]) -> dict[str, float]:
    """What each prompt told of who speaks: mean of KL(responsibilities || weights) over its conversations, nats.

    The mean over what the target says of how far one conversation moves the weights: the mutual information of speaker
    and answer if the components are the speakers. At most log n_components.
    """
    gain = rel_entr(responsibilities, np.maximum(weights, 1e-300)).sum(axis=1)
    told: dict[str, list[float]] = {}
    for name, value in zip(prompt, gain, strict=True):
        told.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in told.items()}


def design_effects(values: Floats, prompt: Sequence[str]) -> Floats:
    """Variance of each column's mean by prompt over that by conversation, at least 1; shape (n_columns,).

    1 where it cannot be estimated: every prompt has one conversation, or there are fewer than five prompts.
    """
    index, n_clusters = cluster_index(prompt)
    n = len(values)
    if n_clusters == n or n_clusters < _LEAST_CLUSTERS:
        return np.ones(values.shape[1])
    gap = values - values.mean(axis=0)
    sums = np.zeros((n_clusters, values.shape[1]))
    np.add.at(sums, index, gap)
    together = (sums**2).sum(axis=0) * n_clusters / (n_clusters - 1)
    alone = (gap**2).sum(axis=0) * n / (n - 1)
    return np.maximum(1.0, np.divide(together, alone, out=np.ones_like(together), where=alone > 0))


def _widened(draws: Floats, effect: Floats) -> tuple[Floats, Floats]:
    """Equal-tailed interval of draws in (0, 1), stretched on the logit scale by the root of the design effect."""
    odds = logit(np.clip(draws, _EDGE, 1 - _EDGE))
    centre = np.median(odds, axis=0)
    stretched = centre + np.sqrt(effect) * (odds - centre)
    low, high = np.quantile(stretched, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return expit(low), expit(high)
