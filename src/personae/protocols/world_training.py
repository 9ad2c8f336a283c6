"""Training a world: pre-training once, whoever's base it is, then the Assistant where the world has one.

Six counter-worlds share one pre-training: a base trained here from the same spec and seed is copied. What is
trained stays; what was interrupted goes on. Not here: the training itself (`models.hf_world`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from personae.errors import InvalidSettings, MissingCapability
from personae.models.catalogue import training_record
from personae.running.progress import OnStep
from personae.worlds.folder import made_worlds, world_folder
from personae.worlds.spec import World

Started = Callable[[str, int], AbstractContextManager[OnStep]]


def train_world(world: World, home: Path, *, seed: int, started: Started, say: Callable[[str], None]) -> Path:
    """Train what is not trained yet, and give the folder of the finished model.

    Args:
        world: A world that was made in `home`.
        home: Where personae keeps things.
        seed: Of initial weights and documents.
        started: Told the stage and its steps before each begins; gives the context in which steps are told.
        say: Told what is being done.

    Raises:
        InvalidSettings: If it was trained with another seed.
        MissingCapability: If torch or transformers is not installed.
        CorruptModel, StorageError: See `models.hf_world.train_stage`.
    """
    folder = world_folder(home, world.id)
    stages = [("base", world.base)] if world.assistant is None else [("base", world.base), ("assistant", world)]
    for stage, spec in stages:
        target = folder / stage
        if _is_trained(target, spec, seed):
            say(f"{stage}: trained already, in {target}")
            continue
        shared = _same_base(home, spec, seed) if stage == "base" else None
        if shared is not None:
            shutil.copytree(shared, target, dirs_exist_ok=True)
            say(f"{stage}: the same base was trained for '{shared.parent.name}'; copied")
            continue
        steps = world.training.steps if stage == "base" else _assistant_steps(world)
        try:
            from personae.models.hf_world import steps_done, train_stage
        except ModuleNotFoundError as error:
            raise MissingCapability(
                f"training a world needs the package '{error.name}', which is not installed.",
                hint="Install it: pip install 'personae[hf]'",
            ) from error
        if done := steps_done(folder, stage):
            say(f"{stage}: going on after step {done:,}")
        with started(f"{world.id} {stage}", steps) as on_step:
            train_stage(spec, folder, seed=seed, on_step=on_step)
    return folder / stages[-1][0]


def _assistant_steps(world: World) -> int:
    assert world.assistant is not None
    return world.assistant.steps


def _is_trained(target: Path, world: World, seed: int) -> bool:
    record = training_record(target)
    if not record or record.get("digest") != world.digest:
        return False
    if record.get("seed") != seed:
        raise InvalidSettings(
            f"the model in {target} was trained with --seed {record.get('seed')}.",
            hint=f"Use that seed, or delete {target} to train with {seed}.",
        )
    return True


def _same_base(home: Path, world: World, seed: int) -> Path | None:
    for name in made_worlds(home):
        record = training_record(world_folder(home, name) / "base")
        if record.get("digest") == world.digest and record.get("seed") == seed:
            return world_folder(home, name) / "base"
    return None
