"""A user's own prompts for an audit: one a line, or JSON lines with "prompt" and, if wanted, "topic"."""

from __future__ import annotations

import json
from pathlib import Path

from personae.errors import InputError

_HINT = 'A .txt file has one prompt a line; a .jsonl file has {"prompt": "...", "topic": "..."} on each.'


def read_prompts(path: str, *, limit: int | None = None) -> list[tuple[str, str]]:
    """Topic and text of every prompt; the topic is "prompts" where none is given.

    Raises:
        InputError: If the file cannot be read, a line is no prompt, or there is none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", path=path, hint=_HINT) from error
    found: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found.append(_row(line, path, number) if path.endswith((".jsonl", ".json")) else ("prompts", line.strip()))
        if limit is not None and len(found) == limit:
            break
    if not found:
        raise InputError("holds no prompt", path=path, hint=_HINT)
    return found


def _row(line: str, path: str, number: int) -> tuple[str, str]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"is no JSON: {error}", path=path, line=number, hint=_HINT) from error
    text = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise InputError('has no text under "prompt"', path=path, line=number, hint=_HINT)
    topic = value.get("topic", "prompts")
    return (topic if isinstance(topic, str) and topic.strip() else "prompts"), text
