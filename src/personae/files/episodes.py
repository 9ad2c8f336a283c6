"""Episodes from the files people bring.

    rows (files.rows)  ->  row_to_episodes  ->  EpisodeSet: episodes in file order, and what was refused

Four row shapes, told apart by their keys: `messages`; `prompt` + `completion` (or `response`); `prompt` +
`chosen` + `rejected`; `text`. Nothing is dropped silently: a row is read, or refused with its line and why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from personae.domain.episode import Episode, Turn
from personae.errors import InputError, InvalidSettings
from personae.files.ids import UsedIds
from personae.files.rows import Row, read_rows

_REPLY_KEYS = ("completion", "response")
TURNS = ("last", "all")
_TOLD = 10
_LIGHTEST, _HEAVIEST = 1e-6, 1e6  # beyond these, sums of squares of weights lose their meaning


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that could not be read: its 1-based line, why, and what to do."""

    line: int
    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class EpisodeSet:
    """What a file holds.

    Attributes:
        path: The file.
        episodes: In file order; ids unique.
        refused: Rows that could not be read.
        n_rows: Rows seen, blank lines not counted.
        shapes: How many rows had each shape.
    """

    path: str
    episodes: tuple[Episode, ...]
    refused: tuple[Refusal, ...]
    n_rows: int
    shapes: Mapping[str, int]

    def require_clean(self) -> EpisodeSet:
        """The set itself when every row was read.

        Raises:
            InputError: Naming the first refused row and how many there are.
        """
        _require_clean(self.path, self.refused, len(self.refused), self.n_rows)
        return self


@dataclass(frozen=True, slots=True)
class Census:
    """What a file holds, counted in one pass that keeps none of it.

    Attributes:
        path: The file.
        n_rows: Rows seen, blank lines not counted.
        n_episodes: Episodes in them.
        refused: The first rows that could not be read.
        n_refused: How many could not.
    """

    path: str
    n_rows: int
    n_episodes: int
    refused: tuple[Refusal, ...]
    n_refused: int

    def require_clean(self) -> Census:
        """The census itself when every row could be read; see `EpisodeSet.require_clean`."""
        _require_clean(self.path, self.refused, self.n_refused, self.n_rows)
        return self


def read_episodes(path: str | Path, *, turns: str = "last", limit: int | None = None) -> EpisodeSet:
    """Read a file of episodes.

    Args:
        path: `.jsonl`, `.jsonl.gz`, `.json`, `.csv`, `.parquet`, or a folder written by `datasets`.
        turns: "last" scores the last assistant turn of a conversation, "all" every one, grouped.
        limit: Read at most this many rows.

    Raises:
        InputError: If the file as a whole cannot be read, is empty, or two rows share an id.
        InvalidSettings: If `turns` is neither "last" nor "all".
    """
    episodes: list[Episode] = []
    refused: list[Refusal] = []
    shapes: dict[str, int] = {}
    n_rows = 0
    for outcome in _rows_of(path, turns, limit):
        n_rows += 1
        if isinstance(outcome, Refusal):
            refused.append(outcome)
            continue
        shape, found = outcome
        shapes[shape] = shapes.get(shape, 0) + 1
        episodes.extend(found)
    return EpisodeSet(str(path), tuple(episodes), tuple(refused), n_rows, shapes)


def take_census(path: str | Path, *, turns: str = "last", limit: int | None = None) -> Census:
    """Read a file to the end, keeping nothing; arguments and errors are those of `read_episodes`."""
    refused: list[Refusal] = []
    n_rows = n_episodes = n_refused = 0
    for outcome in _rows_of(path, turns, limit):
        n_rows += 1
        if isinstance(outcome, Refusal):
            n_refused += 1
            refused += [outcome] if len(refused) < _TOLD else []
        else:
            n_episodes += len(outcome[1])
    return Census(str(path), n_rows, n_episodes, tuple(refused), n_refused)


def stream_episodes(
    path: str | Path, *, part: int, turns: str = "last", limit: int | None = None
) -> Iterator[tuple[Episode, ...]]:
    """Episodes in file order, about `part` at a time; those of one row stay together. Bad rows are left out.

    For files that `take_census` has found good; memory does not grow with the file.
    """
    held: list[Episode] = []
    for outcome in _rows_of(path, turns, limit, check_ids=False):
        if not isinstance(outcome, Refusal):
            held.extend(outcome[1])
        if len(held) >= part:
            yield tuple(held)
            held = []
    if held:
        yield tuple(held)


def _rows_of(
    path: str | Path, turns: str, limit: int | None, *, check_ids: bool = True
) -> Iterator[Refusal | tuple[str, list[Episode]]]:
    """What each row is: refused, or its shape and episodes."""
    if turns not in TURNS:
        raise InvalidSettings(f"--turns is '{turns}'; it can be 'last' or 'all'.")
    used = UsedIds()
    n_rows = 0
    for row in read_rows(Path(path)):
        if limit is not None and n_rows >= limit:
            break
        n_rows += 1
        if row.error:
            yield Refusal(row.line, row.error, row.hint)
            continue
        try:
            shape, found = row_to_episodes(row, turns=turns)
        except InputError as error:
            yield Refusal(row.line, str(error), error.hint)
            continue
        for episode in found if check_ids else ():
            earlier = used.add(episode.id, row.line)
            if earlier is not None:
                raise InputError(
                    f"the id '{episode.id}' was already used on line {earlier}",
                    path=str(path),
                    line=row.line,
                    hint="Ids must be unique; remove the field to have rows numbered.",
                )
        yield shape, found
    if n_rows == 0:
        raise InputError("the file holds no rows", path=str(path), hint="Check that this is the file you meant.")


def _require_clean(path: str, refused: Sequence[Refusal], n_refused: int, n_rows: int) -> None:
    if refused:
        first = refused[0]
        more = "" if n_refused == 1 else f" ({n_refused} rows of {n_rows} cannot be read)"
        raise InputError(
            first.reason + more,
            path=path,
            line=first.line,
            hint=(first.hint + " " if first.hint else "")
            + "`personae validate` lists every refused row; --skip-bad-rows goes on without them.",
        )


def row_to_episodes(row: Row, *, turns: str = "last") -> tuple[str, list[Episode]]:
    """The shape of a row and its episodes.

    Raises:
        InputError: If the row has no known shape or breaks a rule of `domain.episode`; no place in the
            message, since the caller knows the line.
    """
    value = row.value
    row_id = _identifier(value.get("id"), row.line)
    weight = _weight(value.get("weight"))
    group = "" if value.get("group") is None else str(value["group"])
    system = _optional_text(value.get("system"), "system")
    paired = [k for k in ("chosen", "rejected") if value.get(k) is not None]
    if value.get("messages") is not None:
        if paired:
            raise InputError(
                f"the row has both 'messages' and '{paired[0]}'",
                hint="Keep one: 'messages' for a dialogue, or 'prompt', 'chosen' and 'rejected' for a pair.",
            )
        dialogue = _with_system(system, _turns(value["messages"], "messages"))
        return "messages", _from_dialogue(dialogue, row_id, row.line, weight, group, turns)
    if paired:
        return "preference", _preference(value, row_id, row.line, weight, group, system)
    reply_key = next((k for k in _REPLY_KEYS if value.get(k) is not None), None)
    if reply_key and value.get("prompt") is not None:
        context = _with_system(system, _prompt(value["prompt"]))
        reply = _reply(value[reply_key], reply_key)
        return "completion", [Episode(row_id, context, reply, weight, group, row.line)]
    if value.get("text") is not None:
        text = _text(value["text"], "'text'")
        return "document", [Episode(row_id, (), text, weight, group, row.line, is_document=True)]
    raise _shapeless(value)


def _shapeless(value: Mapping[str, object]) -> InputError:
    if "prompt" in value:
        return InputError(
            "the row has a prompt and no completion",
            hint="Add 'completion' (or 'response', or 'chosen' and 'rejected').",
        )
    keys = ", ".join(sorted(map(str, value))[:8]) or "none"
    return InputError(
        f"the row has none of the known shapes (its keys: {keys})",
        hint="Use 'messages', or 'prompt' with 'completion', or 'prompt' with 'chosen' and 'rejected', or 'text'.",
    )


def _from_dialogue(
    dialogue: tuple[Turn, ...], row_id: str, line: int, weight: float, group: str, turns: str
) -> list[Episode]:
    if not dialogue:
        raise InputError("'messages' is empty")
    if dialogue[-1].speaker not in ("system", "user", "assistant"):
        raise InputError(f"unknown role '{dialogue[-1].speaker}'", hint="Roles are system, user and assistant.")
    if dialogue[-1].speaker != "assistant":
        raise InputError(
            "the conversation has no completion: it does not end with an assistant turn",
            hint="Remove the last turn, or add the reply.",
        )
    ends = [i for i, t in enumerate(dialogue) if t.speaker == "assistant"]
    if turns == "last":
        return [Episode(row_id, dialogue[:-1], dialogue[-1].text, weight, group, line)]
    return [
        Episode(f"{row_id}#{k}", dialogue[:end], dialogue[end].text, weight, group or row_id, line)
        for k, end in enumerate(ends, start=1)
    ]


def _preference(
    value: Mapping[str, object], row_id: str, line: int, weight: float, group: str, system: str
) -> list[Episode]:
    """Two episodes of one group, weights +w and -w."""
    if weight < 0:
        raise InputError(
            f"a preference row has the weight {weight:g}; the sign is set by 'chosen' and 'rejected'",
            hint="Use a weight of 0 or more.",
        )
    found: list[Episode] = []
    for key, sign in (("chosen", 1.0), ("rejected", -1.0)):
        if value.get(key) is None:
            raise InputError(f"a preference row has no '{key}'", hint="It needs 'prompt', 'chosen' and 'rejected'.")
        reply = value[key]
        if value.get("prompt") is not None:
            context, text = _with_system(system, _prompt(value["prompt"])), _reply(reply, key)
        else:  # the older habit: whole conversations that differ in the last turn
            dialogue = _with_system(system, _turns(reply, key))
            if not dialogue or dialogue[-1].speaker != "assistant":
                raise InputError(f"'{key}' does not end with an assistant turn and there is no 'prompt'")
            context, text = dialogue[:-1], dialogue[-1].text
        found.append(Episode(f"{row_id}/{key}", context, text, sign * weight, group or row_id, line))
    return found


def _prompt(value: object) -> tuple[Turn, ...]:
    if isinstance(value, str):
        return (Turn("user", value),)
    return _turns(value, "prompt")


def _reply(value: object, key: str) -> str:
    if isinstance(value, str):
        return value
    turns = _turns(value, key)
    if len(turns) != 1 or turns[0].speaker != "assistant":
        raise InputError(f"'{key}' must be a string or one assistant message")
    return turns[0].text


def _turns(value: object, key: str) -> tuple[Turn, ...]:
    if not isinstance(value, list):
        raise InputError(f"'{key}' must be a list of messages with 'role' and 'content'")
    found: list[Turn] = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise InputError(f"message {number} of '{key}' needs 'role' and 'content'")
        found.append(Turn(str(message["role"]), _content(message["content"], f"message {number} of '{key}'")))
    return tuple(found)


def _content(value: object, where: str) -> str:
    """Text of a message; the list-of-parts form is joined when every part is text."""
    if isinstance(value, list) and all(
        isinstance(p, Mapping) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in value
    ):
        return "".join(str(p["text"]) for p in value)
    return _text(value, where)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} must be text, not {type(value).__name__}")
    return value


def _optional_text(value: object, key: str) -> str:
    return "" if value is None else _text(value, f"'{key}'")


def _with_system(system: str, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    if not system:
        return turns
    if turns and turns[0].speaker == "system":
        raise InputError("the row has both 'system' and a system message", hint="Keep one of them.")
    return (Turn("system", system), *turns)


def _identifier(value: object, line: int) -> str:
    if value is None or value == "":
        return f"row-{line}"
    if isinstance(value, bool | list | dict):
        raise InputError(f"'id' must be a string or a number, not {type(value).__name__}")
    return str(value)


def _weight(value: object) -> float:
    if value is None or value == "":
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError(f"'weight' must be a number, not {type(value).__name__}")
    try:
        weight = float(value)
    except OverflowError:
        weight = math.inf
    except ValueError as error:
        raise InputError(f"'weight' is {value!r}, not a number") from error
    if not math.isfinite(weight):
        raise InputError(f"'weight' is {weight}, not a finite number")
    if weight and not _LIGHTEST <= abs(weight) <= _HEAVIEST:
        raise InputError(
            f"'weight' is {weight:g}; its size must be 0 or lie between {_LIGHTEST:g} and {_HEAVIEST:g}",
            hint="Only the ratios of weights matter: rescale them.",
        )
    return weight
