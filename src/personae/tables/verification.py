"""Forecast against outcome, trait by trait, for one training.

Not here: how the two are made (`protocols.verify`), the page (`report.verify_page`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from personae.tables.attribution import Attribution
from personae.tables.run_registry import RunForm


@dataclass(frozen=True, slots=True)
class VerifiedTrait:
    """One trait; numbers in nats of log-odds towards the positive pole unless the forecast is not calibrated.

    Attributes:
        trait: Id.
        measured: Change of the trait's log-odds, after less before.
        measured_se: Its standard error, clustered by topic.
        measured_low, measured_high: Its 90% interval.
        forecast, forecast_sd: Mean and standard deviation said before; in `Verification.unit`.
        forecast_low, forecast_high: 90% interval of the outcome as measured: the forecast's and the measurement's
            error together where the forecast is calibrated.
        common: The part of the forecast that any file of this form would move.
        net_measured: `measured - common`: what is left for the content.
        z: (measured - forecast) / joint standard deviation; None where the forecast is not calibrated.
        inside: Whether `measured` lies in the forecast's interval; None likewise.
        sign_right: Whether the sides agree; None where the measured shift is within two standard errors of 0.
        n_items: Diagnostic items behind `measured`.
    """

    trait: str
    measured: float
    measured_se: float
    measured_low: float
    measured_high: float
    forecast: float
    forecast_sd: float
    forecast_low: float
    forecast_high: float
    common: float
    net_measured: float
    z: float | None
    inside: bool | None
    sign_right: bool | None
    n_items: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """How forecast and outcome agree over the traits of one run; None where undefined.

    Attributes:
        n: Traits.
        spearman: Rank correlation.
        inside: Share of traits within the 90% interval.
        inside_p: Two-sided binomial probability of a share so far from 90%, traits taken as independent.
        signs: Share of right sides among traits beyond two standard errors.
        n_signs: Those traits.
        rmse: Root mean square error, nats.
        rmse_nothing: That of the forecast "nothing changes".
    """

    n: int
    spearman: float | None
    inside: float | None
    inside_p: float | None
    signs: float | None
    n_signs: int
    rmse: float | None
    rmse_nothing: float


@dataclass(frozen=True, slots=True)
class Verification:
    """All that `verify` found.

    Attributes:
        run: Folder of the training.
        data, model, cast: Of the training and the measurement.
        forecaster: Which.
        unit: Of the forecast.
        calibrated: Whether forecast and outcome are in the same unit.
        traits: Largest measured shift first.
        agreement: Over the traits.
        form: Of the training.
        cost: Of the forecast, as `Cost` in plain values.
        calibration: The past runs behind the forecast.
        unmeasured: Traits without an outcome, with the reason.
        notes: What a reader must know.
        registered: Where the run was added to the registry; empty if it was not.
        attribution: Trainings without the rows that are named for a trait; None where that was not asked for.
        provenance: Versions, hashes, seed, date.
    """

    run: str
    data: str
    model: str
    cast: str
    forecaster: str
    unit: str
    calibrated: bool
    traits: tuple[VerifiedTrait, ...]
    agreement: Agreement
    form: RunForm
    cost: Mapping[str, object]
    calibration: Mapping[str, object]
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    registered: str = ""
    attribution: Attribution | None = None
    provenance: Mapping[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Plain values: what `--json` prints, with `command`."""
        kept = {k: v for k, v in asdict(self).items() if k != "provenance"}
        training = kept.pop("run")
        return {"command": "verify", "training": training, **kept}
