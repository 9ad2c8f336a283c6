"""Cast x episodes x model -> Evidence. The dear step, resumable and shared between runs.

    frames of the cast  x  distinct episodes  -  rows already in the store  =  work
    work, a frame at a time, in batches of similar length  ->  store  ->  Evidence

Batches are fixed before the first is run and kept with the store, so an interrupted run that resumes ends
with the same bits as one that was not. Not here: inference.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from personae.domain.episode import Episode
from personae.domain.persona import BACKGROUND, Cast, Persona
from personae.errors import IncomparableEvidence, NumericsError
from personae.models.laws import noise_floor
from personae.models.protocol import LanguageModel, ModelCard, TokenLogprobs, scored_in_turn
from personae.models.rendering import RENDERING_VERSION, Frame, Renderer
from personae.running.rows import SCHEMA, Keys, Rows, keys_of
from personae.running.store import Batch, EvidenceStore
from personae.tables.evidence import Evidence

_BATCH_EPISODES = 256
_BATCH_TOKENS = 8192
_SECONDS_BETWEEN_PIECES = 5.0
_NOISE_EPISODES = 3


@dataclass(frozen=True, slots=True)
class Work:
    """What a request costs.

    Attributes:
        n_pairs: Pairs of frame and distinct episode that are not in the store yet.
        n_tokens: Tokens to run for them, the shared frames not counted.
    """

    n_pairs: int
    n_tokens: int


def space_of(card: ModelCard) -> str:
    """What makes rows comparable: weights, tokenizer and template, dtype, rendering.

    The device and the matrix kernel are left out: they differ within the tolerance of the dtype.
    """
    return f"{card.digest}|{card.tokenizer_digest}|{card.dtype}|{RENDERING_VERSION}"


def cast_frames(cast: Cast, renderer: Renderer) -> list[Frame]:
    """Every frame of a cast, background last."""
    personas = (*cast.personas, Persona(BACKGROUND, ()))
    return [frame for persona in personas for frame in renderer.frames(persona)]


def n_cut(renderer: Renderer, episodes: Sequence[Episode]) -> int:
    """How many replies were cut to fit."""
    return sum(renderer.kept_of_cut(e) > 0 for e in episodes)


def cut_note(cut: int, n_episodes: int) -> list[str]:
    """A sentence on the replies that were cut to fit, if any were."""
    return [f"{cut} of {n_episodes} replies were cut to fit the model's context."] if cut else []


class Scoring:
    """One request: a model, a cast and episodes against a store.

    Args:
        model: Whose likelihoods are wanted.
        renderer: Renders for this model.
        store: Where rows are kept; its space must be `space_of(model.card)`.
    """

    def __init__(self, model: LanguageModel, renderer: Renderer, store: EvidenceStore) -> None:
        self._model, self._renderer, self._store = model, renderer, store
        self._noise: float | None = None

    @property
    def store(self) -> EvidenceStore:
        """Where rows are kept."""
        return self._store

    def evidence(
        self,
        cast: Cast,
        episodes: Sequence[Episode],
        *,
        started: Callable[[Work], Callable[[int], None]],
        shipped: pa.Table | None = None,
        meanwhile: Callable[[Frame], None] = lambda frame: None,
    ) -> Evidence:
        """Score what is missing and give the table.

        Args:
            cast: The hypotheses.
            episodes: Ids unique; equal contents are scored once.
            started: Called with the work before it begins; gives a function that is told of tokens done.
            shipped: Rows that came with the package for this space, in the store's columns.
            meanwhile: Told of the frame after every batch, while its tokens are still at hand: for work on it besides.

        Raises:
            ContextOverflow, RenderingError: If an episode does not fit or cannot be written by the template.
            StorageError: If results cannot be kept.
        """
        frames = cast_frames(cast, self._renderer)
        self._renderer.reserve(frames)
        keys = [self._key(e) for e in episodes]
        distinct = {key: e for key, e in zip(keys, episodes, strict=True)}
        lengths = [self._length(frames[0], e) for e in distinct.values()]
        rows = self._store.load([f.digest for f in frames], list(distinct))
        if shipped is not None:
            rows.fill(shipped)
        self._score_missing(frames, list(distinct.values()), lengths, rows, started, meanwhile)
        _check_counts(rows, list(distinct.values()))
        # Frames of two personas may be the same text: the rows are shared, the columns are not.
        at = np.ix_([rows.frames[f.digest] for f in frames], [rows.episodes[k] for k in keys])
        return Evidence(
            tuple(f.persona for f in frames),
            rows.log_likelihood[at],
            tuple(e.id for e in episodes),
            rows.n_tokens[at][0].astype(np.int64),
            np.array([e.weight for e in episodes], np.float64),
            tuple(e.group for e in episodes),
            np.array([e.line for e in episodes], np.int64),
            {
                "model": self._model.card.to_dict(),
                "cast": cast.id,
                "rendering_version": RENDERING_VERSION,
                "noise_floor_nats": self._noise_floor(frames, list(distinct.values())),
            },
        )

    def token_log_probs(self, frames: Sequence[Frame], episode: Episode) -> np.ndarray:
        """Log-probabilities of each completion token, nats, shape (n_frames, n_tokens)."""
        batch = [self._renderer.render(f, episode) for f in frames]
        return np.stack([r.log_probs for r in self._model.score(batch)])

    def _score_missing(
        self,
        frames: Sequence[Frame],
        episodes: Sequence[Episode],
        lengths: Sequence[int],
        rows: Rows,
        started: Callable[[Work], Callable[[int], None]],
        meanwhile: Callable[[Frame], None],
    ) -> None:
        by_place = {rows.frames[f.digest]: f for f in frames}
        n_missing = int(rows.missing.sum())
        request = hashlib.blake2b(b"".join([*rows.frames, b"|", *rows.episodes]), digest_size=16).hexdigest()
        batches = self._plan(request, rows, lengths, _conversations(episodes))
        advance = started(Work(n_missing, sum(lengths[e] for _, es in batches for e in es)))
        pending = _Pending(rows)
        written = time.monotonic()
        rendered = ([self._renderer.render(by_place[place], episodes[e]) for e in es] for place, es in batches)
        try:
            for (place, members), results in zip(batches, scored_in_turn(self._model, rendered), strict=True):
                self._check_numbers(results, by_place[place], [episodes[e] for e in members])
                pending.add(place, members, results)
                advance(sum(lengths[e] for e in members))
                meanwhile(by_place[place])
                if time.monotonic() - written > _SECONDS_BETWEEN_PIECES:
                    self._store.put_table(pending.take())
                    written = time.monotonic()
        finally:
            # Also when interrupted: what was scored is kept.
            self._store.put_table(pending.take())
        self._store.finish(request)

    def _plan(self, request: str, rows: Rows, lengths: Sequence[int], conversation: Sequence[int]) -> list[Batch]:
        """Batches of what is missing; those of an interrupted run first, then what was lost since it planned."""
        missing = rows.missing
        fresh = _batches(missing, lengths, conversation)
        planned = self._store.plan(request, fresh) if fresh else []
        batches = [(f, es) for f, es in planned if missing[f, list(es)].any()]
        for place, members in planned:
            missing[place, list(members)] = False
        return batches + _batches(missing, lengths, conversation)

    def _check_numbers(self, results: Sequence[TokenLogprobs], frame: Frame, episodes: Sequence[Episode]) -> None:
        for episode, result in zip(episodes, results, strict=True):
            if np.isnan(result.log_probs).any():
                raise NumericsError(
                    f"{self._model.card.name} gave episode '{episode.id}' a log-likelihood that is not a number "
                    f"under '{frame.persona}'."
                )

    def _key(self, episode: Episode) -> bytes:
        """What the store calls an episode. Where a cast with longer frames cuts more, that is another content."""
        kept = self._renderer.kept_of_cut(episode)
        digest = episode.content_digest
        return digest if not kept else hashlib.blake2b(digest + b"|%d" % kept, digest_size=16).digest()

    def _noise_floor(self, frames: Sequence[Frame], episodes: Sequence[Episode]) -> float:
        """RMS error of a completion's log-likelihood seen here: shared prefix and batch against alone, nats.

        Measured once a model, on the shortest few episodes, so that it costs a second.
        """
        if self._noise is None:
            few = sorted(episodes, key=lambda e: len(e.completion))[:_NOISE_EPISODES]
            self._noise = noise_floor(self._model, [self._renderer.render(f, e) for f in frames[:2] for e in few])
        return self._noise

    def _length(self, frame: Frame, episode: Episode) -> int:
        item = self._renderer.render(frame, episode)
        return len(item.token_ids) - item.shared


class _Pending:
    """Results that fill the table at once and go to the store in pieces."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._frames, self._episodes = keys_of(list(rows.frames)), keys_of(list(rows.episodes))
        self._parts: list[tuple[int, NDArray[np.int64]]] = []

    def add(self, place: int, members: Sequence[int], results: Sequence[TokenLogprobs]) -> None:
        """Take over the results of a batch where nothing is known yet."""
        at = np.asarray(members, np.int64)
        new = np.isnan(self._rows.log_likelihood[place, at])
        self._rows.log_likelihood[place, at[new]] = np.array([r.log_likelihood for r in results])[new]
        self._rows.n_tokens[place, at[new]] = np.array([len(r.log_probs) for r in results], np.int32)[new]
        self._parts.append((place, at[new]))

    def take(self) -> pa.Table:
        """The rows added since the last time."""
        frame = np.concatenate([np.zeros(0, np.int64), *(np.full(len(e), f) for f, e in self._parts)]).astype(np.int64)
        episode = np.concatenate([np.zeros(0, np.int64), *(e for _, e in self._parts)])
        self._parts = []
        digests = (_binary(self._frames[frame]), _binary(self._episodes[episode]))
        numbers = (self._rows.n_tokens[frame, episode], self._rows.log_likelihood[frame, episode])
        return pa.table([*digests, *map(pa.array, numbers)], schema=SCHEMA)


def _binary(digests: Keys) -> pa.Array:
    """Digests of 16 bytes as an Arrow column; their bytes are taken as they are."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(digests), [None, pa.py_buffer(digests.tobytes())])


def _conversations(episodes: Sequence[Episode]) -> list[int]:
    """For each episode the place of the first one that is a turn of the same conversation; itself if alone."""
    first: dict[tuple[str, str], int] = {}
    return [
        first.setdefault((e.group, e.context[0].text + e.context[min(1, len(e.context) - 1)].text), i)
        if e.context
        else i
        for i, e in enumerate(episodes)
    ]


def _batches(missing: NDArray[np.bool_], lengths: Sequence[int], conversation: Sequence[int]) -> list[Batch]:
    """Missing pairs, a frame at a time, in order of length, cut into batches.

    Turns of one conversation stay together, since a backend may read the earlier off the last one's pass.
    """
    longest = [0] * len(lengths)
    for e, first in enumerate(conversation):
        longest[first] = max(longest[first], lengths[e])
    order = sorted(range(len(lengths)), key=lambda e: (longest[conversation[e]], conversation[e], lengths[e], e))
    batches: list[Batch] = []
    for place in range(len(missing)):
        batch: list[int] = []
        widest = 0
        for e in order:
            if not missing[place, e]:
                continue
            widest = max(widest, lengths[e])
            if batch and (len(batch) >= _BATCH_EPISODES or widest * (len(batch) + 1) > _BATCH_TOKENS):
                batches.append((place, tuple(batch)))
                batch, widest = [], lengths[e]
            batch.append(e)
        if batch:
            batches.append((place, tuple(batch)))
    return batches


def _check_counts(rows: Rows, episodes: Sequence[Episode]) -> None:
    """The same tokens must have been scored under every frame."""
    uneven = np.flatnonzero((rows.n_tokens != rows.n_tokens[:1]).any(axis=0))
    if len(uneven):
        raise IncomparableEvidence(f"episode '{episodes[uneven[0]].id}' has other tokens under some personas.")
