"""Which latents of a sparse autoencoder move between two checkpoints, and which texts light them up.

    d_ij   mean over the tokens of text i of latent j after, less before
    t_j    mean of d_ij over topics / its standard error;       size_j = |mean of d_ij| x |decoder row j|

(the procedure that found a "toxic persona": Wang et al. 2025, arXiv 2506.19823). Two nulls:

    sign flips   the two checkpoints change places topic by topic, and the largest |t| over latents is taken again: what
                 the best of so many latents reaches where neither checkpoint is special
    random       as many directions drawn with the covariance of the states as there are latents: the largest |cosine|
                 with the mean change of the stream. A latent whose decoder row lies no closer to the change names
                 nothing that a random basis would not.

Two identical checkpoints move nothing, exactly. Not here: reading states (`protocols.features`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from personae.errors import InvalidSettings, NumericsError
from personae.numerics.clustered import cluster_index

Floats = NDArray[np.float64]
FLIPS, DRAWS, SHRINKAGE = 999, 99, 0.1
LEAST_TOPICS = 6


@dataclass(frozen=True, slots=True)
class LatentMove:
    """What one latent did.

    Attributes:
        latent: Its place in the autoencoder, 0-based.
        before: Mean activation over texts.
        after: Likewise of the second checkpoint.
        size: Length of what it adds to the mean change, in units of the stream.
        t: Of the change over topics; 0 where every topic changed by nothing.
        p: (1 + number of flips whose largest |t| reaches it) / (1 + flips): holds for all latents together.
        cosine: Of its decoder row with the mean change of the stream.
        cosine_p: Likewise, against as many random directions as there are latents.
    """

    latent: int
    before: float
    after: float
    size: float
    t: float
    p: float
    cosine: float
    cosine_p: float


@dataclass(frozen=True, slots=True)
class FeatureMoves:
    """All of it.

    Attributes:
        moves: Latents that changed at all, the largest size first among those with p at most 0.05, then the others.
        n_live: Latents that were active on any text in either checkpoint.
        n_topics: Independent groups of texts.
        identical: Whether no state changed in any text.
        flips_high: 97.5 % quantile of the largest |t| over latents under sign flips.
        random_high: Likewise of the largest |cosine| of random directions.
        explained: Share of the squared mean change that the changes of latents add up to (through the decoder); below
            0 where they lead away from it.
    """

    moves: tuple[LatentMove, ...]
    n_live: int
    n_topics: int
    identical: bool
    flips_high: float
    random_high: float
    explained: float


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One checkpoint's means over the tokens of each text.

    Attributes:
        latents: Shape (n_texts, n_latents).
        states: Shape (n_texts, d_model).
    """

    latents: ArrayLike
    states: ArrayLike


def compare_latents(
    before: Reading,
    after: Reading,
    decoder: ArrayLike,
    topics: Sequence[Hashable],
    *,
    rng: np.random.Generator,
    flips: int = FLIPS,
    draws: int = DRAWS,
) -> FeatureMoves:
    """Compare two checkpoints' latents on the same texts.

    Args:
        before: Of the one.
        after: Of the other.
        decoder: Shape (n_latents, d_model).
        topics: Of each text: what is independent.
        rng: Source of randomness.
        flips: Sign flips.
        draws: Sets of random directions.

    Raises:
        InvalidSettings: If shapes do not fit, or there are fewer than six topics.
        NumericsError: If a value is not finite.
    """
    a, b = (np.asarray(r.latents, np.float64) for r in (before, after))
    x, z, rows = (np.asarray(v, np.float64) for v in (before.states, after.states, decoder))
    if a.shape != b.shape or x.shape != z.shape or rows.shape != (a.shape[1], x.shape[1]) or len(a) != len(topics):
        raise InvalidSettings(f"latents {a.shape}, {b.shape}, states {x.shape}, {z.shape}, decoder {rows.shape}.")
    if not all(np.isfinite(v).all() for v in (a, b, x, z, rows)):
        raise NumericsError("a latent or a state is not a finite number.")
    index, n_topics = cluster_index(topics)
    if n_topics < LEAST_TOPICS:
        raise InvalidSettings(
            f"{n_topics} topics cannot show what moves; at least {LEAST_TOPICS} are needed.",
            hint="Give more texts, and a 'group' only to those that belong together.",
        )
    live = np.flatnonzero((a > 0).any(axis=0) | (b > 0).any(axis=0))
    shift = z.mean(axis=0) - x.mean(axis=0)
    if not (z != x).any():
        return FeatureMoves((), len(live), n_topics, identical=True, flips_high=0.0, random_high=0.0, explained=0.0)
    by_topic = np.zeros((n_topics, len(live)))
    np.add.at(by_topic, index, (b - a)[:, live])
    by_topic /= np.bincount(index, minlength=n_topics)[:, None]
    t, largest = _flipped(by_topic, rng, flips)
    change = (b - a)[:, live].mean(axis=0)
    lengths = np.linalg.norm(rows[live], axis=1)
    cosines = _cosines(rows[live], shift)
    drawn = _random_cosines(x, shift, len(live), rng, draws)
    moves = [
        LatentMove(
            int(live[j]),
            float(a[:, live[j]].mean()),
            float(b[:, live[j]].mean()),
            float(abs(change[j]) * lengths[j]),
            float(t[j]),
            (1 + int((largest >= abs(t[j]) - 1e-9).sum())) / (1 + flips),
            float(cosines[j]),
            (1 + int((drawn >= abs(cosines[j]) - 1e-9).sum())) / (1 + draws),
        )
        for j in range(len(live))
        if by_topic[:, j].any()
    ]
    left = shift - change @ rows[live]
    return FeatureMoves(
        tuple(sorted(moves, key=lambda m: (m.p > 0.05, -m.size))),
        len(live),
        n_topics,
        identical=False,
        flips_high=float(np.quantile(largest, 0.975)) if len(largest) else 0.0,
        random_high=float(np.quantile(drawn, 0.975)),
        explained=1 - float(left @ left) / float(shift @ shift) if shift.any() else 0.0,
    )


def _flipped(changes: Floats, rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Give t of every latent, and the largest |t| over latents for every draw of signs of topics."""
    k, squares = len(changes), (changes**2).sum(axis=0)

    def t_of(means: Floats) -> Floats:
        # Signs leave squares as they are, so the spread follows from the mean.
        spread = np.sqrt(np.maximum(squares / k - means**2, 0) / (k - 1))
        return np.divide(means, spread, out=np.zeros_like(means), where=spread > 1e-12 * np.sqrt(squares + 1e-300))

    signs = rng.choice([-1.0, 1.0], size=(n, k))
    largest = np.abs(t_of(signs @ changes / k)).max(axis=1, initial=0.0)
    return t_of(changes.mean(axis=0)), largest


def _cosines(rows: Floats, direction: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(direction)
    return np.divide(rows @ direction, lengths, out=np.zeros(len(rows)), where=lengths > 0)


def _random_cosines(x: Floats, direction: Floats, n: int, rng: np.random.Generator, draws: int) -> Floats:
    """Largest |cosine| with a direction of n draws with the shrunk covariance of the rows, many times over."""
    centred = x - x.mean(axis=0)
    spread = (centred**2).sum() / x.size
    largest = np.zeros(draws)
    for k in range(draws):
        made = np.sqrt((1 - SHRINKAGE) / len(x)) * rng.standard_normal((max(n, 1), len(x))) @ centred
        made += np.sqrt(SHRINKAGE * spread) * rng.standard_normal((max(n, 1), x.shape[1]))
        largest[k] = np.abs(_cosines(made, direction)).max()
    return largest
