"""Which power eta a command uses for a model and a cast, and how it says so."""

from __future__ import annotations

from personae.domain.persona import Cast
from personae.inference.mixture import DEFAULT_ETA
from personae.models.catalogue import home
from personae.models.protocol import ModelCard
from personae.models.rendering import RENDERING_VERSION
from personae.running.calibrations import CalibrationShelf


def calibrations() -> CalibrationShelf:
    """The user's calibrations."""
    return CalibrationShelf(home() / "calibrations")


def model_digest(card: ModelCard) -> str:
    """What of a model a calibration holds for: weights, tokenizer and template."""
    return f"{card.digest}|{card.tokenizer_digest}"


def choose_power(card: ModelCard, whole: Cast, *, reading: str = "reply") -> tuple[float, str]:
    """The calibrated power of a model and a cast, else the default, with where it comes from in words.

    Args:
        card: The model.
        whole: The cast as it was loaded, before --only and --paraphrases: what was calibrated.
        reading: Direction in which evidence is read; calibrations are of "reply".

    Raises:
        StorageError: If there is a calibration and it cannot be read.
    """
    if reading != "reply":
        return DEFAULT_ETA, "a default: calibrations are made of replies alone"
    record = calibrations().find(model_digest(card), RENDERING_VERSION, whole)
    if record is None:
        return DEFAULT_ETA, "a default, not calibrated for this model and cast (`personae calibrate` does it)"
    eta = record["eta"]
    assert isinstance(eta, int | float)
    day = str(record.get("date", "an unknown day"))[:10]
    return float(eta), f"calibrated for this model and cast on {record.get('n_conversations')} conversations, {day}"
