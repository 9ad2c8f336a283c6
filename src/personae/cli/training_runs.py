"""Where a training lives: a new folder, or that of the same command when it was interrupted before.

    $PERSONAE_HOME/training/KEY.json   names the folder of an unfinished training; KEY is of settings and inputs

Not here: training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from personae.errors import InputError, InvalidSettings, PersonaeError
from personae.models.catalogue import home
from personae.running.held import is_held
from personae.running.run import make_run_folder, read_run, write_json

_PRESENTATION = ("out", "json", "quiet")


def training_key(settings: Mapping[str, object], inputs: object) -> str:
    """Names what a training depends on, by the command line and the contents of its files."""
    about = {k: v for k, v in settings.items() if k not in _PRESENTATION}
    return hashlib.blake2b(json.dumps([about, inputs], sort_keys=True).encode(), digest_size=16).hexdigest()


def run_folder_for(key: str, out: str | None, command: str = "train") -> tuple[Path, dict[str, object] | None]:
    """The folder to train in, and the `run.json` of what is there of the same training.

    Args:
        key: From `training_key`.
        out: As the user named it; None: the folder where this training was interrupted, or a new one.
        command: What a new folder is named after.

    Returns:
        The folder, and None where nothing of this training is there.

    Raises:
        InvalidSettings: If `out` holds another run.
        StorageError: If it cannot be written.
    """
    if out is None:
        try:
            found = Path(json.loads((_note(key)).read_text(encoding="utf-8"))["folder"])
            kept = read_run(found)
        except (OSError, ValueError, KeyError, TypeError, InputError):
            return make_run_folder(None, command), None
        if kept.get("key") != key or "result" in kept or is_held(found):
            return make_run_folder(None, command), None
        return make_run_folder(str(found), command), kept
    folder = Path(out)
    if not (folder / "run.json").exists():
        return make_run_folder(out, command), None
    kept = read_run(folder)
    if kept.get("key") != key and "result" not in kept and not _has_something(folder):
        return make_run_folder(out, command), None
    if kept.get("key") != key:
        raise InvalidSettings(
            f"{folder} holds another run (its command was '{kept.get('command')}').",
            hint="Choose another folder with --out. An interrupted training goes on with the command it began with.",
        )
    return make_run_folder(out, command), kept


@contextmanager
def remember(key: str, folder: Path) -> Iterator[None]:
    """Note where a training is until it is done, so that the same command finds it."""
    note = _note(key)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, {"folder": str(folder.resolve())})
    try:
        yield
    except PersonaeError:
        if not _has_something(folder):
            note.unlink(missing_ok=True)
        raise
    note.unlink(missing_ok=True)


def _has_something(folder: Path) -> bool:
    """Whether an unfinished training left anything to go on with."""
    return (folder / "training" / "state.json").is_file() or (folder / "checkpoints").is_dir()


def _note(key: str) -> Path:
    return home() / "training" / f"{key}.json"
