"""A target's own answers as episodes: the model under study speaks, another one scores what it said.

    contexts of a file  ->  target.reply (kept, seeded, counted)  ->  the same rows with the target's replies

Replies are asked for in chunks fixed beforehand, each written when it is complete, so an interrupted run goes on and
ends with the same text, and asking again costs nothing. Not here: how a target is reached (`models`), what is made of
its answers (`protocols.screen`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from personae.domain.episode import Episode, Turn
from personae.errors import BackendError, InvalidSettings
from personae.models.protocol import GivesText, Reply, SamplingPlan
from personae.running.run import write_json

_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Answers:
    """What a target said.

    Attributes:
        episodes: The rows with its replies in place of theirs; rows to which it said nothing are left out.
        n_asked: Rows.
        n_sampled: Replies sampled now; the others were kept from before.
        n_silent: Rows to which it said nothing, asked twice.
        n_tokens: Tokens of the replies, as far as the target counts them.
    """

    episodes: tuple[Episode, ...]
    n_asked: int
    n_sampled: int
    n_silent: int
    n_tokens: int

    def note(self, name: str) -> str:
        """A sentence on where the replies come from."""
        silent = f"; to {self.n_silent} rows it said nothing and they were left out" if self.n_silent else ""
        return (
            f"The replies are {name}'s own answers to the file's {self.n_asked} prompts ({self.n_sampled} sampled now, "
            f"{self.n_asked - self.n_sampled} kept from before{silent}); the replies in the file were not used."
        )


def ask_target(
    target: GivesText,
    episodes: Sequence[Episode],
    plan: SamplingPlan,
    *,
    root: Path,
    started: Callable[[int], Callable[[int], None]],
) -> Answers:
    """Have a target answer the context of every episode.

    Args:
        target: Who is asked.
        episodes: Whose contexts are asked; documents cannot be.
        plan: Most tokens of a reply, temperature, seed.
        root: Folder in which replies are kept.
        started: Called with the number of replies to sample; gives a function told of replies done.

    Raises:
        InvalidSettings: If an episode has no question.
        BackendError: If the target said nothing at all, or fails.
        StorageError: If replies cannot be kept.
    """
    for episode in episodes:
        if not episode.context or episode.context[-1].speaker != "user":
            raise InvalidSettings(
                f"--target needs prompts, and episode '{episode.id}' (line {episode.line}) is a document.",
                hint="Remove the rows of the shape 'text'.",
            )
    chunks = [episodes[at : at + _CHUNK] for at in range(0, len(episodes), _CHUNK)]
    paths = [_path(root, target, chunk, plan, k) for k, chunk in enumerate(chunks)]
    kept = [_read(path, len(chunk)) for path, chunk in zip(paths, chunks, strict=True)]
    advance = started(sum(len(c) for c, old in zip(chunks, kept, strict=True) if old is None))
    replies: list[Reply] = []
    n_sampled = 0
    for k, (path, chunk, old) in enumerate(zip(paths, chunks, kept, strict=True)):
        if old is None:
            old = _ask(target, [e.context for e in chunk], plan, k)
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [asdict(r) for r in old]
            write_json(path, {"checksum": checksum(rows), "replies": rows})
            n_sampled += len(chunk)
            advance(len(chunk))
        replies += old
    said = [replace(e, completion=r.text) for e, r in zip(episodes, replies, strict=True) if r.text.strip()]
    if not said:
        raise BackendError(
            f"{target.name} answered all {len(episodes)} prompts with nothing.",
            hint="A larger --max-tokens may help; reasoning models can spend all of it before they answer.",
        )
    tokens = sum(r.n_tokens for r in replies)
    return Answers(tuple(said), len(episodes), n_sampled, len(episodes) - len(said), tokens)


def _ask(target: GivesText, dialogues: Sequence[tuple[Turn, ...]], plan: SamplingPlan, k: int) -> list[Reply]:
    """Replies of a chunk; where nothing was said, once more with other random numbers."""
    replies = target.reply(dialogues, _seeded(plan, k, 0))
    silent = [j for j, r in enumerate(replies) if not r.text.strip()]
    again = target.reply([dialogues[j] for j in silent], _seeded(plan, k, 1)) if silent else []
    for j, reply in zip(silent, again, strict=True):
        replies[j] = reply
    return replies


def _seeded(plan: SamplingPlan, *place: int) -> SamplingPlan:
    return replace(plan, seed=int(np.random.SeedSequence([plan.seed, *place]).generate_state(1)[0]))


def _path(root: Path, target: GivesText, chunk: Sequence[Episode], plan: SamplingPlan, k: int) -> Path:
    asked = [[[t.speaker, t.text] for t in e.context] for e in chunk]
    body = json.dumps([target.digest, asdict(plan), k, asked], sort_keys=True)
    name = hashlib.blake2b(body.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return root / name[:2] / f"{name}.json"


def _read(path: Path, n: int) -> list[Reply] | None:
    """A chunk from disk; None where it is missing or damaged, and then it is asked again."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        whole = kept["checksum"] == checksum(kept["replies"]) and len(kept["replies"]) == n
        return [Reply(**r) for r in kept["replies"]] if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def checksum(rows: list[dict[str, object]]) -> str:
    """Digest of rows of plain values, kept beside them so that damage is noticed."""
    body = json.dumps(rows, sort_keys=True).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(body, digest_size=12).hexdigest()
