"""What a forecaster says of a training before it happens: scores of traits, and a distribution over their shifts.

    reading   one number a trait, in the forecaster's own unit, and what it cost        (needs the file and a model)
    forecast  mean, sd and 90% interval of each trait's shift in log-odds, nats          (needs past runs as well)

A trait's shift is its log-odds after training less before, on held-out diagnostic items, towards the positive pole
(`tables.traits`). Not here: how readings are made (`instruments.forecasters`) or turned into forecasts
(`inference.common_mode`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from personae.errors import InvalidSettings, NumericsError

Floats = NDArray[np.float64]

CALIBRATED_UNIT = "change of the trait's log-odds on held-out items, nats"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a reading cost.

    Attributes:
        seconds: Wall time.
        tokens: Tokens passed through the model, forward and back counted apart.
        of_training: `tokens` as a share of the training's own (two passes a token seen); None if that is unknown.
        shared_tokens: Of a part that is done once a model and cast, not once a file (gradients of traits, persona
            vectors); not in `tokens`.
    """

    seconds: float = 0.0
    tokens: int = 0
    of_training: float | None = None
    shared_tokens: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ForecastReading:
    """A forecaster's raw numbers for one file.

    Attributes:
        forecaster: Which.
        traits: Trait ids.
        score: One a trait, in `unit`, shape (n_traits,); higher points to the positive pole. Zero where a forecaster
            says the same of every trait.
        unit: Of `score`, in words.
        se: Standard error of `score` from sampling rows, same shape; zeros where rows were not sampled.
        cost: What it took.
        notes: What a reader must know.
        parts: Scores of the readers it was made of, by name; empty where it is one reader's.
    """

    forecaster: str
    traits: tuple[str, ...]
    score: Floats
    unit: str
    se: Floats
    cost: Cost = field(default_factory=Cost)
    notes: tuple[str, ...] = ()
    parts: Mapping[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.score.shape != (len(self.traits),) or self.se.shape != self.score.shape:
            raise InvalidSettings(f"{self.forecaster}: {len(self.traits)} traits and scores of {self.score.shape}.")
        if not (np.isfinite(self.score).all() and np.isfinite(self.se).all()):
            raise NumericsError(f"the forecaster '{self.forecaster}' gave a score that is not a finite number.")
        self.score.setflags(write=False)
        self.se.setflags(write=False)


@dataclass(frozen=True, slots=True, eq=False)
class TraitForecast:
    """Distribution over the shift of every trait; arrays have shape (n_traits,).

    Attributes:
        forecaster: Which.
        traits: Trait ids.
        mean, sd: Of the shift, in `unit`.
        low, high: 90% interval.
        unit: `CALIBRATED_UNIT`, or what the numbers are where no past runs could calibrate them.
        cost_seconds: Wall time.
        notes: What a reader must know.
        common: The part of `mean` that any file of this form would move (format, length, domain); `mean - common` is
            the shift net of the common mode.
        cost: What the reading took.
        calibration: The past runs behind it (number of runs, families, model), empty where there are none.
    """

    forecaster: str
    traits: tuple[str, ...]
    mean: Floats
    sd: Floats
    low: Floats
    high: Floats
    unit: str
    cost_seconds: float
    notes: tuple[str, ...] = ()
    common: Floats | None = None
    cost: Cost = field(default_factory=Cost)
    calibration: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = (len(self.traits),)
        arrays = {"mean": self.mean, "sd": self.sd, "low": self.low, "high": self.high, "common": self.shared}
        for name, values in arrays.items():
            if values.shape != wanted:
                raise InvalidSettings(f"{self.forecaster}: '{name}' has the shape {values.shape}, wanted {wanted}.")
            if not np.isfinite(values).all():
                raise NumericsError(f"the forecast of '{self.forecaster}' holds a '{name}' that is not finite.")
        if (self.sd < 0).any() or (self.low > self.high).any():
            raise NumericsError(f"the forecast of '{self.forecaster}' has a negative width.")

    @property
    def shared(self) -> Floats:
        """The common mode; zeros where none was told."""
        return np.zeros(len(self.traits)) if self.common is None else self.common

    @property
    def net(self) -> Floats:
        """Forecast shift less the common mode, shape (n_traits,)."""
        return self.mean - self.shared

    @property
    def is_calibrated(self) -> bool:
        """Whether numbers are nats of log-odds, fitted on past runs."""
        return self.unit == CALIBRATED_UNIT

    def to_dict(self) -> dict[str, object]:
        """Plain values: what JSON and the registry hold."""
        return {
            "forecaster": self.forecaster,
            "unit": self.unit,
            "calibrated": self.is_calibrated,
            "traits": [
                {
                    "id": trait,
                    "shift": float(self.mean[k]),
                    "sd": float(self.sd[k]),
                    "ci": [float(self.low[k]), float(self.high[k])],
                    "common": float(self.shared[k]),
                    "net": float(self.net[k]),
                }
                for k, trait in enumerate(self.traits)
            ],
            "cost": {
                "seconds": self.cost.seconds,
                "tokens": self.cost.tokens,
                "of_training": self.cost.of_training,
                "shared_tokens": self.cost.shared_tokens,
            },
            "calibration": dict(self.calibration),
            "notes": list(self.notes),
        }
