"""Texts x two checkpoints x an autoencoder -> latents of every token, means of texts, and where each latent peaks.

Replies are read without any instruction, token by token, at the block that the autoencoder was trained on. Not here:
what moved (`inference.features`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.domain.episode import Episode
from personae.domain.persona import PLAIN, Persona
from personae.inference.features import Reading
from personae.models.activations import EditableModel
from personae.models.protocol import Tokenizer
from personae.models.rendering import Renderer
from personae.models.sae import SparseAutoencoder

_TOGETHER = 32


@dataclass(frozen=True, slots=True, eq=False)
class TextLatents:
    """Latents of texts under one checkpoint.

    Attributes:
        reading: Means over the tokens of each text.
        peaks: Largest activation of each latent in each text, shape (n_texts, n_latents).
        places: Token where that is, counted from the first of the reply, same shape.
    """

    reading: Reading
    peaks: NDArray[np.float32]
    places: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Lit:
    """A text that lights a latent up.

    Attributes:
        episode: Its id.
        line: Line in its file, 0 where there is none.
        activation: Largest of the latent in it.
        before: What stands before that token, at most forty characters.
        token: The token.
        after: What follows, at most forty characters.
    """

    episode: str
    line: int
    activation: float
    before: str
    token: str
    after: str


def read_latents(
    model: EditableModel,
    renderer: Renderer,
    autoencoder: SparseAutoencoder,
    episodes: Sequence[Episode],
    *,
    advance: Callable[[int], None] = lambda _n: None,
) -> TextLatents:
    """Latents of the replies of episodes.

    Args:
        model: Read from.
        renderer: Renders for it.
        autoencoder: Of one of its blocks.
        episodes: Texts.
        advance: Told of texts read.

    Raises:
        IncomparableEvidence: If the autoencoder is of a model of another shape.
        ContextOverflow, RenderingError: If a text does not fit or cannot be written by the template.
    """
    card = autoencoder.card
    card.require_fit(model.n_layers, model.d_model, model.card.name)
    frame = renderer.frames(Persona(PLAIN, ()))[0]
    latents, states, peaks, places = [], [], [], []
    for at in range(0, len(episodes), _TOGETHER):
        chunk = [renderer.render(frame, e) for e in episodes[at : at + _TOGETHER]]
        for found in model.read(chunk, layers=[card.layer], reduce="tokens"):
            active = autoencoder.encode(found[0])
            latents.append(active.mean(axis=0))
            states.append(found[0].mean(axis=0))
            peaks.append(active.max(axis=0))
            places.append(active.argmax(axis=0).astype(np.int32))
        advance(len(chunk))
    return TextLatents(Reading(np.stack(latents), np.stack(states)), np.stack(peaks), np.stack(places))


def lit_by(
    found: TextLatents,
    renderer: Renderer,
    tokenizer: Tokenizer,
    episodes: Sequence[Episode],
    latent: int,
    *,
    n: int = 3,
) -> tuple[Lit, ...]:
    """The texts in which a latent is most active, with the token where; those where it is silent are left out."""
    frame = renderer.frames(Persona(PLAIN, ()))[0]
    made: list[Lit] = []
    for i in np.argsort(-found.peaks[:, latent], kind="stable")[:n]:
        if found.peaks[i, latent] <= 0:
            break
        item = renderer.render(frame, episodes[i])
        said, place = item.token_ids[item.start :], int(found.places[i, latent])
        before, token, after = (
            tokenizer.decode(list(part)) for part in (said[:place], said[place : place + 1], said[place + 1 :])
        )
        made.append(
            Lit(episodes[i].id, episodes[i].line, float(found.peaks[i, latent]), before[-40:], token, after[:40])
        )
    return tuple(made)
