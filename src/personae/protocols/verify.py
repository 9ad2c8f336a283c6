"""Does the forecast come true? One training: forecast from file and base model, outcome from base and trained model.

    file, base model, past runs  ->  forecast            (nothing of the trained model enters)
    base and trained model, test items  ->  outcome      (items disjoint from those a forecaster reads)
    both  ->  trait by trait, intervals, agreement;  the run joins the past runs

Not here: files, the command line, the page; forecasts (`protocols.forecast`), measurements (`protocols.measure`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from scipy import stats

from personae.errors import InvalidSettings
from personae.inference.common_mode import Z90
from personae.protocols.measure import compare_profiles
from personae.tables.run_registry import PastRun, RunForm
from personae.tables.trait_forecast import ForecastReading, TraitForecast
from personae.tables.traits import TraitChange, TraitProfile
from personae.tables.verification import Agreement, Verification, VerifiedTrait

_BEYOND = 2.0


def verify(
    forecast: TraitForecast,
    form: RunForm,
    before: TraitProfile,
    after: TraitProfile,
    *,
    run: str,
    data: str,
    model: str,
    cast: str,
    notes: Sequence[str] = (),
) -> Verification:
    """Compare a forecast with what was measured.

    Args:
        forecast: Made without the trained model.
        form: Of the training.
        before: Profile of the base model on test items.
        after: Profile of the trained model on the same.
        run: Folder of the training, for the result.
        data: Its file, for the result.
        model: Its base model, for the result.
        cast: For the result.
        notes: Sentences to carry into the result.

    Returns:
        The comparison; traits largest measured shift first.

    Raises:
        InvalidSettings: If no forecast trait was measured.
        InputError: If the profiles share no trait.
    """
    changes = {c.trait: c for c in compare_profiles(before, after)}
    rows = [
        _row(forecast, k, changes[t]) for k, t in enumerate(forecast.traits) if t in changes and changes[t].measurable
    ]
    unmeasured = {
        t: changes[t].reason if t in changes else "no diagnostic items"
        for t in forecast.traits
        if t not in changes or not changes[t].measurable
    }
    if not rows:
        raise InvalidSettings(
            "none of the forecast traits could be measured: "
            + "; ".join(f"{t} ({why})" for t, why in list(unmeasured.items())[:3])
            + ".",
            hint="Give items for these traits with --items FILE.",
        )
    rows.sort(key=lambda r: -abs(r.measured))
    return Verification(
        run=run,
        data=data,
        model=model,
        cast=cast,
        forecaster=forecast.forecaster,
        unit=forecast.unit,
        calibrated=forecast.is_calibrated,
        traits=tuple(rows),
        agreement=agreement(rows, calibrated=forecast.is_calibrated),
        form=form,
        cost=asdict(forecast.cost),
        calibration=dict(forecast.calibration),
        unmeasured=unmeasured,
        notes=(*notes, *forecast.notes),
    )


def _row(forecast: TraitForecast, k: int, change: TraitChange) -> VerifiedTrait:
    mean, sd, common = float(forecast.mean[k]), float(forecast.sd[k]), float(forecast.shared[k])
    known = abs(change.change) > _BEYOND * change.se
    joint = float(np.hypot(sd, change.se))
    calibrated = forecast.is_calibrated and joint > 0
    z = (change.change - mean) / joint if calibrated else None
    wide = Z90 * joint if calibrated else Z90 * sd
    return VerifiedTrait(
        trait=change.trait,
        measured=change.change,
        measured_se=change.se,
        measured_low=change.change - Z90 * change.se,
        measured_high=change.change + Z90 * change.se,
        forecast=mean,
        forecast_sd=sd,
        forecast_low=mean - wide,
        forecast_high=mean + wide,
        common=common,
        net_measured=change.change - common,
        z=z,
        inside=None if z is None else abs(z) <= Z90,
        sign_right=bool(np.sign(mean) == np.sign(change.change)) if known else None,
        n_items=change.n_items,
    )


def agreement(rows: Sequence[VerifiedTrait], *, calibrated: bool) -> Agreement:
    """Figures over the traits of one run."""
    said, seen = np.array([r.forecast for r in rows]), np.array([r.measured for r in rows])
    signs = [r.sign_right for r in rows if r.sign_right is not None]
    inside = [r.inside for r in rows if r.inside is not None]
    ranks = [stats.rankdata(v) for v in (said, seen)]
    varied = len(rows) > 2 and said.std() > 0 and seen.std() > 0
    rank = float(np.corrcoef(*ranks)[0, 1]) if varied else None
    return Agreement(
        n=len(rows),
        spearman=rank,
        inside=float(np.mean(inside)) if inside else None,
        inside_p=float(stats.binomtest(sum(inside), len(inside), 0.9).pvalue) if inside else None,
        signs=float(np.mean(signs)) if signs else None,
        n_signs=len(signs),
        rmse=float(np.sqrt(np.mean((said - seen) ** 2))) if calibrated else None,
        rmse_nothing=float(np.sqrt(np.mean(seen**2))),
    )


def past_run(
    verification: Verification,
    readings: Mapping[str, ForecastReading],
    *,
    run: str,
    family: str,
    model_digest: str,
    items: str,
    trained: Sequence[str] = (),
    seed: int = 0,
    source: str = "",
) -> PastRun:
    """The record of a verified training for the registry; of readings (and their parts) those of measured traits."""
    measured = {r.trait: r for r in verification.traits}
    scores = {name: part for r in readings.values() for name, part in r.parts.items()}
    scores |= {name: r.score for name, r in readings.items()}
    read = next(iter(readings.values())).traits
    return PastRun(
        run=run,
        family=family,
        model=verification.model,
        model_digest=model_digest,
        form=verification.form,
        shift={t: r.measured for t, r in measured.items()},
        se={t: r.measured_se for t, r in measured.items()},
        readings={
            name: {t: float(score[k]) for k, t in enumerate(read) if t in measured} for name, score in scores.items()
        },
        trained=tuple(trained),
        items=items,
        seed=seed,
        source=source,
    )
