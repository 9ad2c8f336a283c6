"""What a model is to the rest of personae: scored token ids, and who it is.

Not here: how text becomes token ids (`models.rendering`) and any concrete model. A backend takes token ids
with a span and gives back log p(token | everything before it), in nats, for the tokens of the span.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from personae.domain.episode import Turn


@dataclass(frozen=True, slots=True)
class Scorable:
    """Token ids, and which of them are scored.

    Attributes:
        token_ids: All tokens, context first.
        start: Index of the first scored token; the span runs to the end. At least 1, since the first token
            of a sequence has nothing before it.
        shared: How many leading tokens other requests are likely to share (a persona's frame). Only a hint:
            it changes the speed and never the result. Less than `start`.
    """

    token_ids: tuple[int, ...]
    start: int
    shared: int = 0

    def __post_init__(self) -> None:
        assert 1 <= self.start < len(self.token_ids), "a span needs a token before it and one inside"
        assert 0 <= self.shared < self.start, "the shared prefix ends before the span"

    @property
    def n_scored(self) -> int:
        """Number of scored tokens."""
        return len(self.token_ids) - self.start


@dataclass(frozen=True, slots=True, eq=False)
class TokenLogprobs:
    """Log-probabilities of the scored tokens of one `Scorable`, nats, float32, shape (n_scored,)."""

    log_probs: NDArray[np.float32]

    @property
    def log_likelihood(self) -> float:
        """Sum over the span in float64, nats. Never divided by its length."""
        return float(self.log_probs.astype(np.float64).sum())


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Who the model is: enough to tell whether two tables may be compared.

    Attributes:
        name: What the user called it.
        digest: Hash of weights and configuration; part of every store key.
        tokenizer_digest: Hash of the tokenizer and its chat template.
        is_chat: Whether it has a chat template.
        n_parameters: Number of parameters.
        context_length: Most tokens in one sequence.
        vocab_size: Size of the vocabulary.
        dtype: Arithmetic of the forward pass.
        device: Where it runs.
        kernel: Which matrix kernel the forward pass uses.
        tolerance: Bound on the error of one token's log-probability in this arithmetic, nats; the laws
            hold the backend to it.
        licence: Licence of the weights where known.
        noise_floor: RMS error of a summed log-likelihood, measured when the model was loaded, nats; None where it was
            not.
        note: What was decided when it was loaded, in words.
    """

    name: str
    digest: str
    tokenizer_digest: str
    is_chat: bool
    n_parameters: int
    context_length: int
    vocab_size: int
    dtype: str
    device: str
    kernel: str
    tolerance: float
    licence: str = "unknown"
    noise_floor: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, object]:
        """The card as plain values, for `run.json` and the report."""
        return asdict(self)


class Tokenizer(Protocol):
    """The part of a tokenizer that rendering needs."""

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        ...

    @property
    def bos_ids(self) -> tuple[int, ...]:
        """Tokens that open every sequence written without the chat template."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, no special tokens added; text that looks like one is not one."""
        ...

    def encode_template(self, text: str) -> list[int]:
        """Token ids of text written by the template itself, whose special tokens count."""
        ...

    def apply_template(self, messages: Sequence[dict[str, str]], *, open_reply: bool) -> str:
        """The chat template's text for `messages`, ending where a reply begins if `open_reply`."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids."""
        ...


@dataclass(frozen=True, slots=True)
class Phrases:
    """Text that suits a model: instructions, and questions with a reply each (of two tokens or more)."""

    instructions: tuple[str, ...]
    questions: tuple[str, ...]
    replies: tuple[str, ...]


@runtime_checkable
class KnowsPhrases(Protocol):
    """A tokenizer with a closed vocabulary can say what may be said in it; None where any text may be."""

    @property
    def phrases(self) -> Phrases | None:
        """Text that it can encode."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """How to sample: at most `max_tokens` per prompt at `temperature`, from `seed`."""

    max_tokens: int = 64
    temperature: float = 1.0
    seed: int = 0


def seed_of(plan: SamplingPlan, place: int) -> int:
    """The seed of one prompt, of the plan's seed and its place; within what servers and engines take."""
    return int(np.random.SeedSequence([plan.seed, place]).generate_state(1)[0]) & 0x7FFFFFFF


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """Sampled token ids and their log-probabilities at temperature 1, nats, shape (n_tokens,)."""

    token_ids: tuple[int, ...]
    log_probs: NDArray[np.float32]


@runtime_checkable
class LanguageModel(Protocol):
    """A model that scores given tokens and samples new ones."""

    @property
    def card(self) -> ModelCard:
        """Who the model is."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        ...

    def score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
        """Log-probabilities of every span, in the order given."""
        ...

    def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan) -> list[Completion]:
        """One completion for each prompt of token ids, in the order given."""
        ...


@runtime_checkable
class GivesFullDistribution(Protocol):
    """A model that can say the whole next-token distribution."""

    def next_token_log_probs(self, prompt: tuple[int, ...]) -> NDArray[np.float32]:
        """Log-probabilities of every next token, nats, shape (vocab_size,)."""
        ...


class TokenDistributions(Protocol):
    """Next-token distributions at the scored places of one request, made when asked for and not kept."""

    @property
    def n_places(self) -> int:
        """Number of scored tokens."""
        ...

    def log_probs(self, start: int, stop: int) -> NDArray[np.floating]:
        """Log-probabilities of every token at places start..stop-1, nats, shape (stop - start, vocab_size)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class DenseDistributions:
    """Distributions over a vocabulary so small that they are kept; shape (n_places, vocab_size), nats."""

    values: NDArray[np.float64]

    @property
    def n_places(self) -> int:
        """Number of scored tokens."""
        return len(self.values)

    def log_probs(self, start: int, stop: int) -> NDArray[np.float64]:
        """Places start..stop-1."""
        return self.values[start:stop]


@runtime_checkable
class GivesDistributions(Protocol):
    """A model that can say the whole distribution at every scored place of many requests."""

    def distributions(self, batch: Sequence[Scorable]) -> Sequence[TokenDistributions]:
        """One for each request, in the order given."""
        ...


@runtime_checkable
class RestoresDistributions(Protocol):
    """A model whose distributions can be put away as arrays and had again from them, to the last bit."""

    def states_of(self, made: TokenDistributions) -> NDArray[np.float32]:
        """What one of this model's distributions is made from, shape (n_places, d)."""
        ...

    def from_states(self, states: NDArray[np.float32]) -> TokenDistributions:
        """The distributions again."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """What was said: the text, its tokens (0 unknown) and its log-probability at temperature 1, nats (None unknown)."""

    text: str
    n_tokens: int = 0
    log_prob: float | None = None


class GivesText(Protocol):
    """A target: something that answers dialogues with text. It need not score, and need not be here."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def digest(self) -> str:
        """What makes its texts repeatable: part of the key under which they are kept."""
        ...

    def reply(self, dialogues: Sequence[tuple[Turn, ...]], plan: SamplingPlan) -> list[Reply]:
        """One reply for each dialogue, in the order given; an empty text where it said nothing."""
        ...


@runtime_checkable
class ScoresBatches(Protocol):
    """A model that works on several batches at once (workers, a server)."""

    def score_batches(self, batches: Iterable[Sequence[Scorable]]) -> Iterator[list[TokenLogprobs]]:
        """Log-probabilities of every batch, in order; batches are taken a few ahead of the results."""
        ...


def scored_in_turn(model: LanguageModel, batches: Iterable[Sequence[Scorable]]) -> Iterator[list[TokenLogprobs]]:
    """Log-probabilities of every batch, in order, by whatever way the model has."""
    return model.score_batches(batches) if isinstance(model, ScoresBatches) else map(model.score, batches)
