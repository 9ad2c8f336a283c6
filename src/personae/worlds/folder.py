"""Where a world lives on disk: its spec and truth as JSON, whole or not at all.

    HOME/worlds/NAME/world.json      the spec, with the version of the format and its digest
                     truth.json      what is true of its Assistant
                     cast.yaml, reference.jsonl, episodes/*.jsonl
                     base/           the trained model, a Hugging Face folder; assistant/ after post-training

Not here: training, and names of models (`models.catalogue`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from personae.errors import CorruptModel, InputError, InvalidSettings, StorageError
from personae.worlds.reading import read_world, shipped_worlds
from personae.worlds.spec import (
    WORLD_VERSION,
    AssistantSpec,
    Domain,
    Tags,
    Training,
    World,
    WorldFrame,
    WorldTrait,
)

WORLD_FILE, TRUTH_FILE = "world.json", "truth.json"
_AGAIN = "Make it again: personae world make {name}"


def world_folder(home: Path, name: str) -> Path:
    """Folder of the world of that name."""
    return home / "worlds" / name


def find_world(home: Path, name: str) -> World | None:
    """The world of that name: made here before, or else shipped; None where there is neither.

    Raises:
        CorruptModel: If its folder is damaged or was made by another version.
    """
    path = world_folder(home, name) / WORLD_FILE
    if path.is_file():
        world = _stored_world(path, name)
        if name in shipped_worlds() and world.digest != read_world(name).digest:
            raise CorruptModel(
                f"the world '{name}' in {path.parent} is not the one this version of personae ships.",
                hint=f"Delete {path.parent}, then: personae world make {name}",
            )
        return world
    return read_world(name) if name in shipped_worlds() else None


def made_worlds(home: Path) -> tuple[str, ...]:
    """Names of the worlds made here."""
    return tuple(sorted(p.parent.name for p in (home / "worlds").glob(f"*/{WORLD_FILE}")))


def write_world(home: Path, world: World, truth: Mapping[str, object], files: Mapping[str, str]) -> Path:
    """Write a world's folder and give it; what was trained for another spec of that name must not be there.

    Args:
        home: Where personae keeps things.
        world: The spec.
        truth: Its labels.
        files: Other text files by name.

    Raises:
        InvalidSettings: If the name belongs to a shipped world, or is taken by a trained one that differs.
        StorageError: If it cannot be written.
    """
    folder = world_folder(home, world.id)
    if world.id in shipped_worlds() and read_world(world.id).digest != world.digest:
        raise InvalidSettings(
            f"the name '{world.id}' belongs to a shipped world, and this spec differs from it.",
            hint="Give the spec another 'id'.",
        )
    trained = [s for s in ("base", "assistant", "training") if (folder / s).exists()]
    if trained and _digest_in(folder / WORLD_FILE) not in ("", world.digest):
        raise InvalidSettings(
            f"the world '{world.id}' was trained here from another spec.",
            hint=f"Give the spec another 'id', or delete {folder}.",
        )
    record = {"version": WORLD_VERSION, "digest": world.digest, "world": asdict(world)}
    bodies = {WORLD_FILE: _json(record), TRUTH_FILE: _json(truth), **files}
    for name, body in bodies.items():
        write_whole(folder / name, body.encode())
    return folder


def write_whole(path: Path, body: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        StorageError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as out:
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.",
            hint="Free some space, or set PERSONAE_HOME to another folder.",
        ) from error


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _digest_in(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _stored_world(path: Path, name: str) -> World:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["version"] != WORLD_VERSION:
            raise CorruptModel(
                f"the world '{name}' in {path.parent} is of version {record['version']}; this personae reads version "
                f"{WORLD_VERSION}.",
                hint=f"Delete {path.parent}, then: personae world make {name}",
            )
        world = world_from_dict(record["world"])
        if world.digest != record["digest"]:
            raise CorruptModel(f"{path} does not match its checksum.", hint=_AGAIN.format(name=name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError, InvalidSettings) as error:
        raise CorruptModel(f"{path} cannot be read: {error}", hint=_AGAIN.format(name=name)) from error
    return world


def world_from_dict(value: Mapping[str, Any]) -> World:
    """The world of which this is `dataclasses.asdict`."""
    fields = dict(value)
    assistant = fields["assistant"]
    return World(
        **{
            **fields,
            "traits": tuple(WorldTrait(**_tuples(t)) for t in fields["traits"]),
            "domains": tuple(Domain(**_tuples(d)) for d in fields["domains"]),
            "frames": tuple(WorldFrame(**_tuples(f)) for f in fields["frames"]),
            "tags": Tags(**_tuples(fields["tags"])),
            "training": Training(**_tuples(fields["training"])),
            "assistant": None if assistant is None else AssistantSpec(**_tuples(assistant)),
        }
    )


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
