"""Transcripts in files: written beside every profile, and read back in place of a target that is not here.

A row needs `asked` (or a `prompt` that is not an id) and `text` (or `completion`, `response`); see
`tables.transcripts` for the rest. So what any model said, wherever it runs, can be profiled. Not here: how it is
judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from personae.errors import InputError
from personae.files.rows import read_rows
from personae.tables.transcripts import Said, Transcripts

_HINT = (
    "A row needs 'prompt' (its id, or what was asked) and 'text' (the reply, may be empty); 'asked', 'topic', "
    "'sample', 'turn', 'n_tokens', 'seed' and 'log_prob' may be left out."
)


def is_transcripts(name: str) -> bool:
    """Whether a target's name is a file of transcripts rather than a model."""
    return Path(name).is_file() and name.lower().endswith((".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet"))


def read_transcripts(path: str | Path) -> Transcripts:
    """Replies of a file, in its order.

    Raises:
        InputError: If the file or a row cannot be used: which line, why.
    """
    made: list[Said] = []
    taken: dict[str, int] = {}
    for row in read_rows(Path(path)):
        problem, hint = row.error, row.hint
        if not problem:
            try:
                made.append(_said(row.value, taken))
                continue
            except InputError as error:
                problem, hint = str(error), error.hint
        raise InputError(problem, path=str(path), line=row.line, hint=hint or _HINT)
    if not made:
        raise InputError("the file holds no replies", path=str(path), hint=_HINT)
    try:
        return Transcripts(Path(path).name, tuple(made))
    except InputError as error:
        raise InputError(str(error), path=str(path), hint=error.hint) from error


def _said(value: Mapping[str, object], taken: dict[str, int]) -> Said:
    text = next((value[k] for k in ("text", "completion", "response") if isinstance(value.get(k), str)), None)
    if text is None:
        raise InputError("the row has no reply: 'text' is missing or no text")
    prompt = value.get("prompt")
    asked = value.get("asked", prompt)
    if not isinstance(prompt, str) or not prompt.strip() or not isinstance(asked, str) or not asked.strip():
        raise InputError(f"the prompt is {prompt!r}, what was asked {asked!r}; both must be texts")
    turn = _whole(value, "turn", 0)
    if "sample" in value:
        sample = _whole(value, "sample", 0)
    else:  # rows without a number are conversations of their own
        sample = taken[prompt] = taken.get(prompt, -1) + (turn == 0)
    topic = value.get("topic") or "prompts"
    if not isinstance(topic, str):
        raise InputError(f"the topic is {topic!r}, not a text")
    return Said(
        prompt,
        topic,
        max(sample, 0),
        turn,
        asked,
        str(text),
        _whole(value, "n_tokens", 0),
        _whole(value, "seed", 0),
        _log_prob(value.get("log_prob")),
    )


def _whole(value: Mapping[str, object], key: str, default: int) -> int:
    found = value.get(key, default)
    if isinstance(found, str) and found.strip().isdigit():
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise InputError(f"'{key}' is {found!r}, not a whole number of 0 or more")
    return found


def _log_prob(value: object) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value > 1e-3:
        raise InputError(f"'log_prob' is {value!r}, not a log-probability", hint="Nats, at most 0; leave it out else.")
    return float(value)
