"""The reference population: ordinary assistant replies that come with personae, and their shipped scores.

210 replies in 30 topics, written for this project, with no special character. A file is unusual only where
it differs from them. For the embedded default model their log-likelihoods under the built-in cast travel
with the package, so a first run need not make them; a test recomputes a sample. Users may bring their own.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from personae.domain.episode import Episode
from personae.errors import InputError
from personae.files.episodes import read_episodes

LEAST_EPISODES, LEAST_GROUPS = 40, 8


def reference_path() -> Path:
    """The built-in reference population."""
    return Path(str(resources.files("personae") / "reference" / "ordinary.jsonl"))


def load_reference(path: str | Path | None = None) -> tuple[Episode, ...]:
    """Episodes of the reference population; their `group` is the topic.

    Raises:
        InputError: If a file of the user's own is too small to show how ordinary topics differ.
    """
    chosen = reference_path() if path is None else Path(path)
    episodes = read_episodes(chosen).require_clean().episodes
    groups = len({e.group for e in episodes})
    if len(episodes) < LEAST_EPISODES or groups < LEAST_GROUPS:
        raise InputError(
            f"a reference population needs at least {LEAST_EPISODES} rows in {LEAST_GROUPS} groups; "
            f"this one has {len(episodes)} in {groups}",
            path=str(chosen),
            hint="Give rows a 'group' field that names their topic.",
        )
    return episodes


def shipped_rows(space: str) -> pa.Table | None:
    """Scores of the reference population that came with the package for this space, if any."""
    folder = Path(str(resources.files("personae") / "reference"))
    for path in sorted(folder.glob("*.parquet")):
        metadata = pq.read_schema(path).metadata or {}
        if metadata.get(b"personae_space") == space.encode():
            return pq.read_table(path)
    return None
