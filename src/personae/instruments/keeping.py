"""A model whose answers are kept, so that a killed run goes on where it was and ends with the same bits.

    requests -> pieces fixed beforehand -> a file each, named by the model and every token id in it

Pieces are cut before anything is run and each is run by itself, so neighbours, and with them rounding, are the same
in a run that was killed. What was sampled or scored stays. The states behind whole distributions are large and of
use only to the run that asked for them: they may go once it is complete (`Shelf.clear`). A world's closed form is
not kept: reading it from disk would take longer than computing it. Not here: what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from personae.instruments.scoring import space_of
from personae.models.protocol import (
    Completion,
    GivesDistributions,
    LanguageModel,
    ModelCard,
    RestoresDistributions,
    SamplingPlan,
    Scorable,
    TokenDistributions,
    Tokenizer,
    TokenLogprobs,
)
from personae.running.pieces import Arrays, Pieces, name_of

KEEPING_VERSION = 1
_PIECE_TOKENS = 4096  # about ten seconds of a small model: what a kill can cost
_SAMPLED_TOKENS = 2048


class _Whole(LanguageModel, GivesDistributions, RestoresDistributions, Protocol):
    """What `KeptDistributions` needs of a model."""


class Shelf:
    """Where pieces of one run lie: those that stay, and those that go once the run is complete.

    Args:
        root: Folder of pieces.
    """

    def __init__(self, root: Path) -> None:
        self._pieces = Pieces(root)
        self._passing: set[str] = set()

    def kept(self, parts: Sequence[object], make: Callable[[], Mapping[str, NDArray[Any]]]) -> Arrays:
        """Arrays that stay.

        Raises:
            StorageError: If they cannot be written.
        """
        return self._pieces.kept(name_of(KEEPING_VERSION, *parts), make)

    def passing(self, parts: Sequence[object], make: Callable[[], Mapping[str, NDArray[Any]]]) -> Arrays:
        """Arrays that are kept until `clear`.

        Raises:
            StorageError: If they cannot be written.
        """
        name = name_of(KEEPING_VERSION, *parts)
        self._passing.add(name)
        return self._pieces.kept(name, make)

    def clear(self) -> None:
        """Remove what was kept for this run alone, once it is complete."""
        self._pieces.forget(self._passing)
        self._passing.clear()


class KeptModel:
    """A model that samples and scores through a shelf.

    Args:
        model: Who answers.
        shelf: Where answers are kept.
    """

    def __init__(self, model: LanguageModel, shelf: Shelf) -> None:
        self.inner, self._shelf = model, shelf
        self._space = space_of(model.card)

    @property
    def card(self) -> ModelCard:
        """Who the model is."""
        return self.inner.card

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self.inner.tokenizer

    def score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
        """Log-probabilities of every span, in the order given."""
        results: dict[int, NDArray[Any]] = {}
        for members in request_pieces(batch):
            items = [batch[i] for i in members]
            made = self._shelf.kept(
                self._names("score", items), lambda items=items: _joined([r.log_probs for r in self.inner.score(items)])
            )
            results.update(zip(members, _split(made), strict=True))
        return [TokenLogprobs(results[i]) for i in range(len(batch))]

    def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan) -> list[Completion]:
        """One completion for each prompt; pieces have streams of random numbers of their own."""
        results: dict[int, Completion] = {}
        for k, members in enumerate(_pieces([len(p) + plan.max_tokens for p in batch], _SAMPLED_TOKENS)):
            prompts = [batch[i] for i in members]
            seed = int(np.random.SeedSequence([plan.seed, k]).generate_state(1)[0])
            own = SamplingPlan(plan.max_tokens, plan.temperature, seed)

            def made(prompts: list[tuple[int, ...]] = prompts, own: SamplingPlan = own) -> Arrays:
                said = self.inner.sample(prompts, own)
                ids = _joined([np.array(c.token_ids, np.int64) for c in said])
                return {**ids, "log_probs": _joined([c.log_probs for c in said])["values"]}

            found = self._shelf.kept(
                (self._space, "sample", asdict(own), [len(p) for p in prompts], _ids(prompts)), made
            )
            log_probs = np.split(found["log_probs"], np.cumsum(found["lengths"])[:-1])
            for i, ids, log_p in zip(members, _split(found), log_probs, strict=True):
                results[i] = Completion(tuple(ids.tolist()), log_p)
        return [results[i] for i in range(len(batch))]

    def _names(self, what: str, items: Sequence[Scorable]) -> tuple[object, ...]:
        shape = [(len(item.token_ids), item.start) for item in items]
        return (self._space, what, shape, _ids([item.token_ids for item in items]))


class KeptDistributions(KeptModel):
    """A model that also gives whole distributions, whose states are kept until the run is complete."""

    inner: _Whole

    def distributions(self, batch: Sequence[Scorable]) -> list[TokenDistributions]:
        """The distribution at every scored place, in the order given."""
        results: dict[int, TokenDistributions] = {}
        for members in request_pieces(batch):
            items = [batch[i] for i in members]

            def made(items: list[Scorable] = items) -> Arrays:
                return _joined([self.inner.states_of(d) for d in self.inner.distributions(items)])

            found = self._shelf.passing(self._names("states", items), made)
            results.update((i, self.inner.from_states(s)) for i, s in zip(members, _split(found), strict=True))
        return [results[i] for i in range(len(batch))]


def keep(model: LanguageModel, shelf: Shelf) -> LanguageModel:
    """The model with its answers kept, as far as that pays."""
    if model.card.n_parameters == 0:
        return model
    if isinstance(model, GivesDistributions) and isinstance(model, RestoresDistributions):
        return KeptDistributions(model, shelf)
    return KeptModel(model, shelf)


def bare(model: LanguageModel) -> LanguageModel:
    """The model behind its keeper, or itself."""
    return model.inner if isinstance(model, KeptModel) else model


def request_pieces(batch: Sequence[Scorable]) -> Iterator[list[int]]:
    """Places of requests that are run together: equal openings side by side, a budget of tokens a piece."""
    order = sorted(range(len(batch)), key=lambda i: (batch[i].token_ids[: batch[i].shared], batch[i].token_ids))
    lengths = [len(batch[i].token_ids) - batch[i].shared for i in order]
    for members in _pieces(lengths, _PIECE_TOKENS):
        yield [order[k] for k in members]


def _pieces(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    piece: list[int] = []
    total = 0
    for i, length in enumerate(lengths):
        if piece and total + length > budget:
            yield piece
            piece, total = [], 0
        piece.append(i)
        total += length
    if piece:
        yield piece


def _ids(rows: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
    return np.array([i for row in rows for i in row], np.int64)


def _joined(rows: Sequence[NDArray[Any]]) -> Arrays:
    return {"lengths": np.array([len(r) for r in rows], np.int64), "values": np.concatenate(rows)}


def _split(made: Arrays) -> list[NDArray[Any]]:
    return np.split(made["values"], np.cumsum(made["lengths"])[:-1])
