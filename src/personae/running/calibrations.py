"""Calibrations that were made, kept by model, cast and rendering.

    $PERSONAE_HOME/calibrations/<key>.json     key = hash of model, tokenizer, cast and rendering version

A calibration holds for the texts of a cast, not for its name: the key hashes every instruction. Those that came
with the package are looked at after the user's own. Not here: what is in them (`tables.calibration`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from personae.domain.persona import Cast
from personae.errors import StorageError
from personae.running.run import write_json


def cast_digest(cast: Cast) -> str:
    """Hash of the ids and instructions of a cast, in order; its name, labels and prior do not matter."""
    body = json.dumps([[p.id, list(p.instructions)] for p in cast.personas])
    return hashlib.blake2b(body.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class CalibrationShelf:
    """Where calibrations are kept.

    Args:
        root: Folder of the user's calibrations; need not exist.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, model_digest: str, rendering_version: int, cast: Cast, record: Mapping[str, object]) -> Path:
        """Keep a calibration, replacing the one before it; gives its path.

        Raises:
            StorageError: If it cannot be written; the one before it is kept.
        """
        path = self._root / self._name(model_digest, rendering_version, cast)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"the folder {path.parent} cannot be written: {error.strerror or error}.",
                hint="Set PERSONAE_HOME to another folder; what was scored is kept.",
            ) from error
        write_json(path, record)
        return path

    def find(self, model_digest: str, rendering_version: int, cast: Cast) -> dict[str, object] | None:
        """The calibration of a model and a cast: the user's own, else one that came with the package, else None.

        Raises:
            StorageError: If it is there and cannot be read.
        """
        name = self._name(model_digest, rendering_version, cast)
        for folder in (self._root, Path(str(resources.files("personae") / "reference" / "calibrations"))):
            path = folder / name
            if path.is_file():
                return _read(path)
        return None

    def _name(self, model_digest: str, rendering_version: int, cast: Cast) -> str:
        body = f"{model_digest}\0{rendering_version}\0{cast_digest(cast)}"
        return f"{hashlib.blake2b(body.encode(), digest_size=12).hexdigest()}.json"


def _read(path: Path) -> dict[str, object]:
    problem = "it holds no positive 'eta'"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        eta = record.get("eta") if isinstance(record, dict) else None
        if isinstance(eta, int | float) and not isinstance(eta, bool) and math.isfinite(eta) and 0 < eta <= 10:
            return record
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    raise StorageError(
        f"the calibration {path} is damaged: {problem}.",
        hint="Run `personae calibrate` again, or delete the file to use the default, or pass --eta.",
    )
