"""A model that lives in an executor's workers, each of which holds a copy.

    driver: rendering, store, tables     token ids ▶▶▶      workers: the model
                                         ◀◀◀ log-probabilities

What a worker is sent is a whole batch, the same whatever the number of workers, and a model's answer to a batch
depends on the batch alone: so the evidence is the same to the last bit (at equal threads a worker: matrix
kernels may add in another order with more of them). Not here: how work is spread (`running.executor`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from personae.models.load import load_model
from personae.models.protocol import (
    Completion,
    LanguageModel,
    ModelCard,
    SamplingPlan,
    Scorable,
    Tokenizer,
    TokenLogprobs,
)
from personae.running.executor import Executor


@dataclass(frozen=True, slots=True)
class Describe:
    """Ask who the model is."""


@dataclass(frozen=True, slots=True)
class ScoreBatch:
    """Ask for log-probabilities."""

    batch: tuple[Scorable, ...]


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Ask for completions."""

    batch: tuple[tuple[int, ...], ...]
    plan: SamplingPlan


Request = Describe | ScoreBatch | SampleBatch
Answer = tuple[ModelCard, Tokenizer] | list[TokenLogprobs] | list[Completion]


@dataclass(frozen=True, slots=True)
class Loader:
    """What a worker needs to load the model; called with a request it answers it."""

    name: str
    device: str = "auto"
    dtype: str = "float32"

    def __call__(self, request: Request) -> Answer:
        """Answer a request, loading the model if this process has not done so."""
        model = _loaded(self)
        match request:
            case Describe():
                return model.card, model.tokenizer
            case ScoreBatch(batch):
                return model.score(batch)
            case SampleBatch(batch, plan):
                return model.sample(batch, plan)


@lru_cache(maxsize=1)
def _loaded(loader: Loader) -> LanguageModel:
    return load_model(loader.name, device=loader.device, dtype=loader.dtype)


class PooledModel:
    """A `LanguageModel` whose work is done by workers. The driver holds its tokenizer and no weights.

    Args:
        loader: What the workers load.
        executor: Where they are.

    Raises:
        PersonaeError: If the model cannot be loaded there.
    """

    def __init__(self, loader: Loader, executor: Executor) -> None:
        self._loader, self._executor = loader, executor
        described = self._ask(Describe())
        assert isinstance(described, tuple)
        self._card, self._tokenizer = described

    @property
    def card(self) -> ModelCard:
        """Who the model is."""
        return self._card

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self._tokenizer

    def score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
        """Log-probabilities of every span; one worker does the whole batch."""
        return next(self.score_batches([batch]))

    def score_batches(self, batches: Iterable[Sequence[Scorable]]) -> Iterator[list[TokenLogprobs]]:
        """Log-probabilities of every batch, in order; batches are taken as workers become free."""
        for answer in self._executor.map(self._loader, (ScoreBatch(tuple(b)) for b in batches)):
            assert isinstance(answer, list)
            yield [a for a in answer if isinstance(a, TokenLogprobs)]

    def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan) -> list[Completion]:
        """One completion for each prompt; one worker does the whole batch, since places seed it."""
        answer = self._ask(SampleBatch(tuple(batch), plan))
        assert isinstance(answer, list)
        return [a for a in answer if isinstance(a, Completion)]

    def _ask(self, request: Request) -> Answer:
        requests: list[Request] = [request]
        return next(self._executor.map(self._loader, requests))
