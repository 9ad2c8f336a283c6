"""What a target said: one row a reply, from which everything else is computed again.

    prompt, topic, sample, turn, asked, text, n_tokens, seed, log_prob

A conversation is a prompt with the number of its sample; replies of one conversation have one speaker. Not here: how
they were sampled (`instruments.speaking`), files (`files.transcripts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from personae.domain.episode import Episode, Turn
from personae.errors import InputError

COLUMNS = ("prompt", "topic", "sample", "turn", "asked", "text", "n_tokens", "seed", "log_prob")


@dataclass(frozen=True, slots=True)
class Said:
    """One reply.

    Attributes:
        prompt: Id of the prompt.
        topic: Its topic.
        sample: Number of the conversation held from this prompt, from 0.
        turn: Turn of the conversation, from 0.
        asked: What the user said in this turn.
        text: The reply; empty where the target said nothing.
        n_tokens: Its tokens, in the target's own count; 0 where unknown.
        seed: Seed of the call that sampled it.
        log_prob: Its log-probability at temperature 1 under the target, nats; None where unknown.
    """

    prompt: str
    topic: str
    sample: int
    turn: int
    asked: str
    text: str
    n_tokens: int = 0
    seed: int = 0
    log_prob: float | None = None

    @property
    def conversation(self) -> str:
        """Id of the conversation: prompt and sample."""
        return f"{self.prompt}#{self.sample}"


@dataclass(frozen=True, slots=True)
class Transcripts:
    """Replies of one target, in order of conversation and turn.

    Attributes:
        target: Whose they are.
        replies: One a row; a conversation's turns stand together and count from 0.

    Raises:
        InputError: On construction, if turns of a conversation are missing, out of order or repeated.
    """

    target: str
    replies: tuple[Said, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for name, turns in groupby(self.replies, key=lambda r: r.conversation):
            held = list(turns)
            if name in seen or [r.turn for r in held] != list(range(len(held))):
                raise InputError(
                    f"the turns of conversation '{name}' are {[r.turn for r in held]}"
                    + (", and it appears twice" if name in seen else "")
                    + "; they must stand together and count from 0.",
                    hint="Give every conversation of a prompt its own 'sample' number.",
                )
            seen.add(name)

    @property
    def spoken(self) -> tuple[Said, ...]:
        """Replies that are not empty, up to the first empty one of their conversation."""
        kept: list[Said] = []
        for _, turns in groupby(self.replies, key=lambda r: r.conversation):
            for reply in turns:
                if not reply.text.strip():
                    break
                kept.append(reply)
        return tuple(kept)

    @property
    def n_empty(self) -> int:
        """Replies in which nothing was said."""
        return sum(not r.text.strip() for r in self.replies)

    def episodes(self) -> tuple[Episode, ...]:
        """Every reply that is not empty with what came before it; the group is the conversation.

        A system turn of the target is not part of it: it is what is to be found out.
        """
        made: list[Episode] = []
        for name, turns in groupby(self.spoken, key=lambda r: r.conversation):
            context: list[Turn] = []
            for reply in turns:
                context.append(Turn("user", reply.asked))
                made.append(Episode(f"{name}/{reply.turn}", tuple(context), reply.text, group=name))
                context.append(Turn("assistant", reply.text))
        return tuple(made)

    def to_rows(self) -> list[dict[str, object]]:
        """Plain values, one dictionary a reply, in the order of `COLUMNS`."""
        return [{name: getattr(r, name) for name in COLUMNS} for r in self.replies]
