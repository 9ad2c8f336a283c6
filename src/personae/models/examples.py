"""What one training step sees: token ids, which of them are trained and how much, and the order of batches.

    Episode --Renderer--> Scorable --> Example: the same ids, the scored span is the trained span
    turns of one conversation, each the beginning of the next --> one Example with several spans
    texts of both poles of a trait, under the frame of either --> one Contrast

Not here: rendering (`models.rendering`), the loss (`models.hf_loss`). What is trained at step t follows from the
examples, the settings and t only, so an interrupted training can go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from personae.models.protocol import Scorable

_MEGA_BATCH = 8  # batches whose members are sorted by length together


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens from `start` (at least 1) to `stop`, 0-based, whose loss counts `weight` times."""

    start: int
    stop: int
    weight: float


@dataclass(frozen=True, slots=True)
class Example:
    """A sequence that is trained on.

    Attributes:
        token_ids: All tokens, context first.
        spans: Trained tokens; disjoint, in order.
        group: Conversation; the unit that is held out.
    """

    token_ids: tuple[int, ...]
    spans: tuple[Span, ...]
    group: str

    @property
    def n_tokens(self) -> int:
        """Number of tokens to run."""
        return len(self.token_ids)

    @property
    def n_trained(self) -> int:
        """Number of trained tokens."""
        return sum(s.stop - s.start for s in self.spans)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to one context, of which the first is preferred; `weight` scales the pair's loss."""

    chosen: Example
    rejected: Example
    weight: float

    @property
    def group(self) -> str:
        """Conversation; the unit that is held out."""
        return self.chosen.group

    @property
    def n_tokens(self) -> int:
        """Number of tokens to run, of both sequences."""
        return self.chosen.n_tokens + self.rejected.n_tokens

    @property
    def n_trained(self) -> int:
        """Number of tokens in the loss, of both replies."""
        return self.chosen.n_trained + self.rejected.n_trained

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens of the longer reply's sequence: what a batch is sized by."""
        return max(self.chosen.token_ids, self.rejected.token_ids, key=len)


@dataclass(frozen=True, slots=True)
class Contrast:
    """Texts of both poles of a trait, under the frame of either: which frame makes a text likelier?

    Attributes:
        pos, neg: The same texts after the frame of the positive and of the negative pole, in one order.
        is_pos: Whether a text belongs to the positive pole, one entry a text.
        group: Trait; the unit that is held out.
    """

    pos: tuple[Scorable, ...]
    neg: tuple[Scorable, ...]
    is_pos: tuple[bool, ...]
    group: str

    def __post_init__(self) -> None:
        assert len(self.pos) == len(self.neg) == len(self.is_pos) > 0
        assert all(a.token_ids[a.start :] == b.token_ids[b.start :] for a, b in zip(self.pos, self.neg, strict=True))

    @property
    def n_tokens(self) -> int:
        """Number of tokens to run: a frame once, and what follows it once a text."""
        return sum(
            shared + sum(len(item.token_ids) - shared for item in side)
            for side in (self.pos, self.neg)
            for shared in (shared_length(side),)
        )

    @property
    def n_trained(self) -> int:
        """Number of tokens in the loss, under both frames."""
        return sum(item.n_scored for side in (self.pos, self.neg) for item in side)


def shared_length(items: Sequence[Scorable]) -> int:
    """Number of leading tokens that all sequences have in common, all before what any of them scores."""
    most = min(item.start for item in items) - 1
    first = items[0].token_ids
    return next((k for k in range(most) if any(item.token_ids[k] != first[k] for item in items)), most)


def example_of(item: Scorable, weight: float, group: str) -> Example:
    """The example that trains exactly the tokens that `item` scores."""
    return Example(item.token_ids, (Span(item.start, len(item.token_ids), weight),), group)


def merge_turns(examples: Sequence[Example]) -> list[Example]:
    """Turns of a conversation read off one sequence wherever an earlier one begins a later one, token for token.

    The loss is the same as with a sequence for every turn, since a token sees only what stands before it.
    """
    merged: list[Example] = []
    for example in examples:
        last = merged[-1] if merged else None
        if last is not None and last.group == example.group and _begins(last, example):
            merged[-1] = replace(example, spans=(*last.spans, *example.spans))
        else:
            merged.append(example)
    return merged


def _begins(first: Example, second: Example) -> bool:
    n = len(first.token_ids)
    return second.spans[0].start >= n and second.token_ids[:n] == first.token_ids


def plan_batches(
    lengths: Sequence[int], *, batch_size: int, seed: int, n_first: int | None = None, mix_ratio: float = 0.0
) -> Iterator[tuple[int, list[int]]]:
    """Epoch number (from 0) and places of one batch after another, without end.

    Args:
        lengths: Tokens of every example.
        batch_size: Examples in a batch; the last one of an epoch may hold fewer.
        seed: Of the order.
        n_first: How many leading examples belong to the first file, all of which are seen once an epoch.
        mix_ratio: Examples of the second file for one of the first; they are taken in turn, reshuffled each round.

    Returns:
        An endless iterator. Batches hold examples of similar length; their order is random.
    """
    n = len(lengths) if n_first is None else n_first
    second = _rounds(range(n, len(lengths)), seed)
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, 0, epoch])
        places = list(range(n)) + [next(second) for _ in range(round(mix_ratio * n) if n < len(lengths) else 0)]
        shuffled = [places[k] for k in rng.permutation(len(places))]
        batches: list[list[int]] = []
        for at in range(0, len(shuffled), batch_size * _MEGA_BATCH):
            mega = sorted(shuffled[at : at + batch_size * _MEGA_BATCH], key=lambda k: lengths[k])
            batches += [mega[k : k + batch_size] for k in range(0, len(mega), batch_size)]
        for k in rng.permutation(len(batches)):
            yield epoch, batches[k]
        epoch += 1


def _rounds(places: Sequence[int], seed: int) -> Iterator[int]:
    turn = 0
    while places:
        for k in np.random.default_rng([seed, 1, turn]).permutation(len(places)):
            yield places[k]
        turn += 1


def hold_out(groups: Sequence[str], share: float, seed: int) -> set[str]:
    """Groups that are not trained on: a random share of them, at least one and never all; none where share is 0."""
    distinct = sorted(set(groups))
    if share <= 0 or len(distinct) < 2:
        return set()
    n = min(len(distinct) - 1, max(1, round(share * len(distinct))))
    return {distinct[k] for k in np.random.default_rng([seed, 2]).permutation(len(distinct))[:n]}
