"""What the user says in conversations held for calibration: scripts of everyday questions that come with personae.

The questions are benign and about no character, so that whatever character shows comes from the frame.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources

# For conversations longer than a script.
_GO_ON = ("Please go on.", "Why is that?", "Tell me more about it.", "And then?")


def load_openers(turns: int) -> tuple[tuple[str, ...], ...]:
    """The built-in scripts, each cut or continued to `turns` user turns."""
    text = (resources.files("personae") / "reference" / "openers.jsonl").read_text(encoding="utf-8")
    scripts = [json.loads(line)["turns"] for line in text.splitlines()]
    longer = [[*s, *(_GO_ON[k % len(_GO_ON)] for k in range(turns - len(s)))] for s in scripts]
    return tuple(tuple(s[:turns]) for s in longer)


def openers_of(questions: Sequence[str], turns: int) -> tuple[tuple[str, ...], ...]:
    """Scripts for a model with a closed vocabulary: one begins at each of its own questions and goes on."""
    n = len(questions)
    return tuple(tuple(questions[(k + t) % n] for t in range(turns)) for k in range(n))
