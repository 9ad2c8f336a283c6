"""Which requests of a batch can share work: equal prefixes, sequences that begin one another, similar lengths.

Not here: running them (`models.hf`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from personae.models.protocol import Scorable


def by_prefix(batch: Sequence[Scorable]) -> dict[tuple[int, ...], list[int]]:
    """Places in the batch by the prefix that they share."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, item in enumerate(batch):
        groups.setdefault(item.token_ids[: item.shared], []).append(i)
    return groups


def nested_requests(batch: Sequence[Scorable], members: Sequence[int]) -> dict[int, list[int]]:
    """Requests that must be run, each with those whose tokens but for the last begin it (itself included).

    What a request's last token is does not matter to its pass, only which log-probability is read off at its end: so
    two answers of one token to one question cost one pass. In lexicographic order whatever a sequence begins follows
    it at once, and so do those that differ in the last token alone, so neighbours decide.
    """
    ordered = sorted(members, key=lambda i: batch[i].token_ids, reverse=True)
    nested: dict[int, list[int]] = {}
    host = -1
    for i in ordered:
        ids = batch[i].token_ids
        if host < 0 or batch[host].token_ids[: len(ids) - 1] != ids[:-1]:
            host = i
        nested.setdefault(host, []).append(i)
    return nested


def by_length(batch: Sequence[Scorable], n_tokens: int) -> Iterator[list[int]]:
    """Places of requests of similar length together, padded within a budget of tokens; one alone may exceed it."""
    chunk: list[int] = []
    for i in sorted(range(len(batch)), key=lambda i: (len(batch[i].token_ids), i)):
        if chunk and len(batch[i].token_ids) * (len(chunk) + 1) > n_tokens:
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk
