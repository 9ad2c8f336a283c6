"""The folder of a `personae train` run, read for `verify`: what was trained on what, and whether that still holds.

Not here: training (`cli.commands.train`), comparing (`protocols.verify`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from personae.domain.episode import Episode
from personae.errors import InputError
from personae.files.episodes import read_episodes
from personae.instruments.forecasting import TrainingPlan
from personae.instruments.training_rows import mean_rate, rows_for
from personae.instruments.training_settings import TrainingSettings
from personae.running.run import file_digest, read_run

_HINT = "Name the folder of a finished `personae train` run, made by this version."


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished training.

    Attributes:
        folder: Of the run.
        data: Its file.
        model: Name of the base model.
        use: Name of the trained model.
        base_digest: Of the weights that were trained on.
        method: "sft", "dpo" or "text".
        episodes: Rows that were trained on.
        plan: As forecasters need it.
        seed: Of the training.
        n_tokens: Tokens run over all steps.
        training: Settings as they were used, every default resolved, for training again in the same way.
        dtype: Of the base weights in training.
        is_mixed: Whether a second file was mixed in.
        is_steered: Whether directions were added while training.
        notes: What a reader must know.
    """

    folder: Path
    data: str
    model: str
    use: str
    base_digest: str
    method: str
    episodes: tuple[Episode, ...]
    plan: TrainingPlan
    seed: int
    n_tokens: int
    training: TrainingSettings
    dtype: str
    is_mixed: bool
    is_steered: bool
    notes: tuple[str, ...]


def read_trained_run(folder: str | Path) -> TrainedRun:
    """Read a training's folder and its file.

    Raises:
        InputError: If it is no finished training, was made by another version, or its file is gone or has changed.
        InvalidSettings: If the file's rows no longer go with the method.
    """
    place = Path(folder)
    run = read_run(place)
    path = str(place / "run.json")
    if run.get("command") != "train":
        raise InputError(f"run.json is of the command '{run.get('command')}', not of a training", path=path, hint=_HINT)
    settings, result = run["settings"], run.get("result")
    if not isinstance(settings, Mapping):
        raise InputError("the settings in run.json are no object", path=path, hint=_HINT)
    if not isinstance(result, Mapping):
        raise InputError(
            "this training has not finished", path=path, hint="Start the same `personae train` again: it goes on."
        )
    values = _required(settings, result, path)
    data = str(values["data"])
    _check_file(data, run.get("inputs"), path)
    read = read_episodes(data, turns=str(settings.get("turns", "last")), limit=settings.get("limit"))
    if not settings.get("skip_bad_rows"):
        read.require_clean()
    method, rows, _ = rows_for(read.episodes, str(values["method"]))
    notes = []
    if settings.get("mix") is not None:
        notes.append(f"The second file {settings['mix']} was mixed in; the forecast is of {data} alone.")
    if settings.get("system"):
        notes.append("The training had a system prompt; past runs, by which forecasts are sized, had none.")
    if settings.get("steer"):
        notes.append("The training was steered; the forecast is of an unsteered one.")
    if result.get("full"):
        notes.append("All weights were trained; past runs, by which forecasts are sized, trained adapters.")
    training = _training(result["settings"], path)
    use = str(values["use"]) if result.get("full") else f"{values['model']}+{place}"
    return TrainedRun(
        folder=place,
        data=data,
        model=str(values["model"]),
        use=use,
        base_digest=str(values["base_digest"]),
        method=method,
        episodes=tuple(rows),
        plan=TrainingPlan(
            method=method,
            steps=int(result["n_steps"]),
            batch_size=int(values["batch_size"]),
            learning_rate=mean_rate(training),
        ),
        seed=int(settings.get("seed", 0)),
        n_tokens=int(values["n_tokens"]),
        training=training,
        dtype=str(settings.get("dtype", "float32")),
        is_mixed=settings.get("mix") is not None,
        is_steered=bool(settings.get("steer")),
        notes=tuple(notes),
    )


def _required(settings: Any, result: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What is needed of a run, by the names of this version."""
    resolved = result.get("settings")
    sources = {
        "data": settings,
        "batch_size": resolved,
        "learning_rate": resolved,
        "model": result,
        "use": result,
        "base_digest": result,
        "method": result,
        "n_steps": result,
        "n_tokens": result,
    }
    missing = [name for name, source in sources.items() if not isinstance(source, Mapping) or source.get(name) is None]
    if missing:
        raise InputError(
            f"run.json holds no {', '.join(missing)}: it was written by another version of personae",
            path=path,
            hint=_HINT,
        )
    return {name: source[name] for name, source in sources.items()}


def _training(used: Mapping[str, Any], path: str) -> TrainingSettings:
    try:
        return TypeAdapter(TrainingSettings).validate_python({k: v for k, v in used.items() if k != "edits"})
    except ValidationError as error:
        raise InputError("the settings in run.json are those of another version", path=path, hint=_HINT) from error


def _check_file(data: str, inputs: object, path: str) -> None:
    if not Path(data).exists():
        raise InputError(
            f"the file that was trained on, {data}, is not there",
            path=path,
            hint="Put it back, or start from the folder in which it was named.",
        )
    known = inputs.get(data) if isinstance(inputs, Mapping) else None
    if known is not None and known != file_digest(Path(data)):
        raise InputError(
            f"{data} has changed since it was trained on, so a forecast of it would not be one of this training",
            path=path,
            hint="Put the old file back, or train on the new one.",
        )
