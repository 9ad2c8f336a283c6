"""Probe prompts from files: 130 that come with personae, or the user's own.

One row a prompt: `prompt` (what the user says) or `turns` (a list, turn by turn); `topic` (or `group`) and `id` may be
left out, and `diagnostic: true` marks prompts whose first word is read too. Formats are those of `files.rows`; a `.txt`
file holds one prompt a line. Not here: what is asked of whom.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

from personae.domain.probe_prompt import ProbePrompt
from personae.errors import InputError
from personae.files.rows import Row, read_rows

TOPICS = (
    "self-description",
    "advice",
    "values",
    "feelings",
    "power-and-shutdown",
    "honesty-under-pressure",
    "code",
    "small-talk",
    "stories",
    "refusals",
)
SELF_DESCRIPTION = "self-description"
_HINT = "A row has 'prompt' (text) or 'turns' (a list of texts), and may have 'topic' and 'id'."


def built_in_prompts() -> tuple[ProbePrompt, ...]:
    """The prompts that come with personae, topic by topic; benign throughout."""
    folder = Path(str(resources.files("personae") / "probes"))
    return tuple(prompt for topic in TOPICS for prompt in read_prompts(folder / f"{topic}.jsonl"))


def read_prompts(path: str | Path) -> tuple[ProbePrompt, ...]:
    """Prompts of a file, in order.

    Raises:
        InputError: If the file cannot be read or holds none, a row has no prompt, or two share an id: which line, why.
    """
    path = Path(path)
    made: list[ProbePrompt] = []
    first: dict[str, int] = {}
    for row in _text_rows(path) if path.suffix.lower() == ".txt" else read_rows(path):
        if row.error:
            raise InputError(row.error, path=str(path), line=row.line, hint=row.hint or _HINT)
        try:
            prompt = _prompt(row)
        except InputError as error:
            raise InputError(str(error), path=str(path), line=row.line, hint=error.hint or _HINT) from error
        if prompt.id in first:
            raise InputError(
                f"the id '{prompt.id}' was already used on line {first[prompt.id]}",
                path=str(path),
                line=row.line,
                hint="Ids must be unique; remove the field to have prompts numbered.",
            )
        first[prompt.id] = row.line
        made.append(prompt)
    if not made:
        raise InputError("the file holds no prompts", path=str(path), hint=_HINT)
    return tuple(made)


def _text_rows(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the file cannot be read: {error}", path=str(path)) from error
    yield from (Row(k, {"prompt": line}) for k, line in enumerate(lines, 1) if line.strip())


def _prompt(row: Row) -> ProbePrompt:
    value = row.value
    topic = value.get("topic", value.get("group", "prompts"))
    diagnostic = value.get("diagnostic", False)
    if not isinstance(topic, str) or not topic.strip():
        raise InputError(f"the topic is {topic!r}, not a text")
    if not isinstance(diagnostic, bool):
        raise InputError(f"'diagnostic' is {diagnostic!r}; it is true or false")
    name = value.get("id", f"prompt-{row.line}")
    if isinstance(name, bool) or not isinstance(name, str | int) or str(name).strip() == "":
        raise InputError(f"the id is {name!r}, not a text")
    return ProbePrompt(str(name), topic.strip(), _turns(value), diagnostic)


def _turns(value: Mapping[str, object]) -> tuple[str, ...]:
    if value.get("messages") is not None:
        raise InputError(
            "the row has 'messages', which hold replies too; a prompt is what the user says",
            hint="Give 'turns': the user's turns as a list of texts. The target writes the replies.",
        )
    given = value.get("turns")
    turns = [value.get("prompt")] if given is None else given
    if given is not None and value.get("prompt") is not None:
        raise InputError("the row has both 'prompt' and 'turns'", hint="Keep one of them.")
    if not isinstance(turns, list) or not turns or turns == [None]:
        keys = ", ".join(sorted(map(str, value))[:8]) or "none"
        raise InputError(f"the row has no prompt (its keys: {keys})")
    said: list[str] = []
    for turn in turns:
        if not isinstance(turn, str):
            raise InputError(f"the prompt is {turn!r}, not a text")
        if not turn.strip():
            raise InputError("the prompt is empty", hint="Remove the row or write what the user says.")
        said.append(turn)
    return tuple(said)
