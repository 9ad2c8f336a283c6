"""The state of an unfinished training: trained weights, optimiser, random numbers; safetensors with a checksum.

    RUN/training/state-000040.safetensors   written first, whole or not at all
                 state.json                 names it: key, step, losses, checksum

A training that was killed goes on from here to the same bits as one that was not. Nothing is unpickled. Not here:
checkpoints that users asked for (`models.hf_adapter`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from personae.errors import CorruptModel, InvalidSettings, StorageError
from personae.worlds.folder import write_whole

STATE_VERSION = 1
_NOTE = "state.json"


@dataclass(slots=True)
class Progress:
    """Where a training stands.

    Attributes:
        step: Steps done.
        seconds: Time spent on them.
        rows: One for each step: step, loss (nats), learning rate, tokens, trained tokens, seconds, held-out loss.
        best: Step and loss of the best held-out loss so far; step -1 where none was measured.
    """

    step: int = 0
    seconds: float = 0.0
    rows: list[tuple[int, float, float, int, int, float, float | None]] = field(default_factory=list)
    best: tuple[int, float] = (-1, float("inf"))
    worse: int = 0


class KeptState:
    """The kept state of one run.

    Args:
        folder: Of the run.
        key: Names data, model and settings; a state of another key is not taken up.
        parameters: What is trained, by name.
    """

    def __init__(self, folder: Path, key: str, parameters: Mapping[str, nn.Parameter]) -> None:
        self._folder, self._key, self._parameters = folder / "training", key, parameters
        self._random: dict[str, Tensor] = {}

    def save(self, at: Progress, optimizer: torch.optim.Optimizer, best: Mapping[str, Tensor]) -> None:
        """Write the state of now and drop the one before.

        Raises:
            StorageError: If it cannot be written; the one before stays.
        """
        tensors: dict[str, Tensor] = {"random.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        for name, p in self._parameters.items():
            tensors[f"model.{name}"] = p.detach().cpu().contiguous()
            for key, value in optimizer.state[p].items():
                tensors[f"optimizer.{key}.{name}"] = value.detach().cpu().contiguous()
        tensors |= {f"best.{name}": value for name, value in best.items()}
        name = f"state-{at.step:06d}.safetensors"
        try:
            body = save(tensors)
            write_whole(self._folder / name, body)
            note = {
                "version": STATE_VERSION,
                "key": self._key,
                "file": name,
                "sha256": hashlib.sha256(body).hexdigest(),
                "step": at.step,
                "seconds": at.seconds,
                "rows": at.rows,
                "best": at.best if at.best[0] >= 0 else None,
                "worse": at.worse,
            }
            write_whole(self._folder / _NOTE, json.dumps(note).encode())
        except (OSError, SafetensorError, StorageError) as error:
            (self._folder / f".{name}.writing").unlink(missing_ok=True)
            reason = getattr(error, "strerror", None) or error
            raise StorageError(
                f"the state of the training in {self._folder} cannot be kept: {reason}.",
                hint="Free some space and give the same command again: it goes on from the last kept state.",
            ) from error
        for old in self._folder.glob("state-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load(self, optimizer: torch.optim.Optimizer | None) -> tuple[Progress, dict[str, Tensor]]:
        """Take up the kept state into weights and optimiser; give where it stood and the best weights so far.

        Random numbers wait for `restore_random_numbers`.

        Raises:
            InvalidSettings: If it is of another run.
            CorruptModel: If it is damaged or of another version.
        """
        try:
            note = json.loads((self._folder / _NOTE).read_text(encoding="utf-8"))
            if note["version"] != STATE_VERSION:
                raise CorruptModel(
                    f"the kept state in {self._folder} is of version {note['version']}; this personae reads version "
                    f"{STATE_VERSION}.",
                    hint="Choose another folder with --out.",
                )
            if note["key"] != self._key:
                raise InvalidSettings(
                    f"{self._folder.parent} holds an unfinished training with other data, model or settings.",
                    hint="Give the command it was begun with, or choose another folder with --out.",
                )
            path = self._folder / str(note["file"])
            if hashlib.sha256(path.read_bytes()).hexdigest() != note["sha256"]:
                raise ValueError("it does not match its checksum")
            tensors = load_file(path)
            rows = [tuple(row) for row in note["rows"]]
            best = (-1, float("inf")) if note["best"] is None else (int(note["best"][0]), float(note["best"][1]))
            at = Progress(int(note["step"]), float(note["seconds"]), rows, best, int(note["worse"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CorruptModel(
                f"the kept state of the training in {self._folder} cannot be used: {error}.",
                hint=f"Delete {self._folder} to start again.",
            ) from error
        self._restore(tensors, optimizer)
        return at, {k[5:]: v for k, v in tensors.items() if k.startswith("best.")}

    def _restore(self, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        with torch.no_grad():
            for name, p in self._parameters.items():
                p.copy_(tensors[f"model.{name}"])
        if optimizer is None:
            return
        for name, p in self._parameters.items():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors[f"optimizer.{key}.{name}"]
                optimizer.state[p][key] = value if key == "step" and not _steps_move(optimizer) else value.to(p.device)
        self._random = {k: v for k, v in tensors.items() if k.startswith("random.")}

    def restore_random_numbers(self) -> None:
        """Set the generators to where they stood, once, after `load`."""
        if "random.cpu" in self._random:
            torch.set_rng_state(self._random["random.cpu"])
        if "random.cuda" in self._random and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._random["random.cuda"])
        self._random = {}

    def forget(self) -> None:
        """Remove it: the training is done."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _steps_move(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the count of steps lives on the device of the weights, as the fused kernel wants it."""
    return bool(optimizer.defaults.get("fused") or optimizer.defaults.get("capturable"))


def kept_key(folder: Path) -> tuple[str, int] | None:
    """Key and step of the state kept in a run's folder; None where there is none that can be read."""
    try:
        note = json.loads((folder / "training" / _NOTE).read_text(encoding="utf-8"))
        return str(note["key"]), int(note["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
