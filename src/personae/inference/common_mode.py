"""From a score to a forecast: what past runs say of slope, trait, form and error.

    shift_rk = (a + a_k) + (b + b_k)(1, p_r) score_rk + (c + c_k) . form_r + d_k . readings_r
               + u_run + v_family,k + error

Every fine-tune shares a large movement that comes from the form of its file (length, format, type of training)
whatever is said in it: the common mode, (a + a_k) + (c + c_k) . form. The rest follows from the score, how hard the
run trains (p, log of rows seen, standardised), and what files alike did: `readings` is all that readers say of the
file, over every trait, so a file whose readings resemble those of past files is expected to move each trait as they
did, also where the trait's own score is silent. All coefficients have normal priors around 0 whose variances are
fitted by marginal likelihood, so traits borrow from each other as far as the data allow (partial pooling; Gelman &
Hill 2007, chapter 13). Written as a Gaussian process: each term is a kernel, families and runs are variances, and a
new run belongs to a new family. Widths are then scaled so that 90% intervals hold for families left out.

Not here: scores (`instruments.forecasters`), judging forecasts (`inference.forecast_skill`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

from personae.errors import InvalidSettings, NumericsError
from personae.tables.run_registry import FORM_FEATURES, PastRun

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Z90 = 1.6448536269514722
LEAST_RUNS, LEAST_FAMILIES = 6, 3
_PRESSURE = FORM_FEATURES.index("log_rows_seen")
_NAMES = ("trait", "score", "score_by_trait", "form", "form_by_trait", "run", "family_by_trait", "error", "intercept",
          "alike_by_trait")  # fmt: skip
# Centres and widths of the log standard deviations, in units of the shifts' own root mean square.
_CENTRE = np.log([0.5, 0.7, 0.2, 0.3, 0.2, 0.2, 0.2, 0.4, 0.5, 0.2])
_WIDTH = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """One entry for each run and trait.

    Attributes:
        run, family, trait: Labels, n_cells each.
        shift: Measured, nats; NaN where it is to be forecast.
        se: Its standard error, nats.
        score: The forecaster's reading.
        form: Shape (n_cells, n_features), `FORM_FEATURES`.
        readings: What the readers say of the cell's run over every trait, in one unit, shape (n_cells, n_readings); no
            columns where files are not compared.
    """

    run: tuple[str, ...]
    family: tuple[str, ...]
    trait: tuple[str, ...]
    shift: Floats
    se: Floats
    score: Floats
    form: Floats
    readings: Floats

    def __len__(self) -> int:
        return len(self.run)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Cells:
        """Some of the cells."""
        at = np.arange(len(self))[index]
        run, family, trait = (tuple(names[i] for i in at) for names in (self.run, self.family, self.trait))
        columns = (self.shift, self.se, self.score, self.form, self.readings)
        return Cells(run, family, trait, *(c[at] for c in columns))


def cells_of(runs: Sequence[PastRun], forecaster: str | None, readings: Floats | None = None) -> Cells:
    """Cells of past runs with one forecaster's readings; None for a forecaster without any (scores are 0).

    Args:
        runs: Past runs.
        forecaster: Whose score.
        readings: Of each run by all readers over every trait, shape (n_runs, n_readings); None: files are not compared.

    Raises:
        InvalidSettings: If a run has no reading of it for a trait that was measured.
    """
    rows: list[tuple[str, str, str, float, float, float]] = []
    forms: list[Floats] = []
    at: list[int] = []
    for place, run in enumerate(runs):
        own = {} if forecaster is None else run.readings.get(forecaster)
        if own is None or (forecaster is not None and not set(run.shift) <= set(own)):
            raise InvalidSettings(
                f"run '{run.run}' has no reading of '{forecaster}' for every trait that was measured.",
                hint="Leave the run out, or read its file with that forecaster.",
            )
        for trait, shift in run.shift.items():
            rows.append((run.run, run.family, trait, shift, run.se[trait], own.get(trait, 0.0)))
            forms.append(run.form.features())
            at.append(place)
    if not rows:
        raise InvalidSettings("there are no past runs to learn from.")
    names, families, traits, shift, se, score = zip(*rows, strict=True)
    beside = np.zeros((len(rows), 0)) if readings is None else np.asarray(readings, np.float64)[at]
    return Cells(names, families, traits, np.array(shift), np.array(se), np.array(score), np.stack(forms), beside)


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Forecast of some cells; arrays have shape (n_cells,), nats.

    Attributes:
        mean: Of the shift.
        sd: Of the true shift of such a run, measurement error not included.
        common: The part of `mean` that the form explains, whatever is said.
    """

    mean: Floats
    sd: Floats
    common: Floats


@dataclass(frozen=True, slots=True, eq=False)
class CommonMode:
    """The model, fitted.

    Attributes:
        cells: What it learnt from.
        sds: Standard deviation of each term by name, in units of `unit` nats.
        unit: Root mean square of the shifts, nats.
        width: Factor on standard deviations, from families left out.
        uses_score, uses_form: Which terms it has.
    """

    cells: Cells
    sds: dict[str, float]
    unit: float
    width: float
    uses_score: bool
    uses_form: tuple[str, ...]
    _scales: _Scales
    _alpha: Floats
    _factor: tuple[Floats, bool]

    def predict(self, cells: Cells) -> Prediction:
        """Forecast cells of new runs, each of a family not seen before."""
        h = np.log([self.sds[name] for name in _NAMES])
        here, there = self._scales.design(cells), self._scales.design(self.cells)
        parts = _kernels(here, there, h)
        known = parts["common"] + parts["score"]
        solved = linalg.cho_solve(self._factor, known.T)
        own = _kernels(here, here, h)
        variance = np.diag(own["common"] + own["score"]) - np.einsum("ij,ji->i", known, solved)
        variance = variance + np.exp(2 * h[5]) + np.exp(2 * h[6]) + np.exp(2 * h[7])
        return Prediction(
            self.unit * known @ self._alpha,
            self.unit * self.width * np.sqrt(np.maximum(variance, 0)),
            self.unit * parts["common"] @ self._alpha,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Scales:
    """What brings numbers to one size, learnt from the training cells."""

    traits: tuple[str, ...]
    score: float
    centre: Floats
    spread: Floats
    form: Ints
    uses_score: bool
    usual: Floats
    reach: float

    def design(self, cells: Cells) -> _Design:
        features = (cells.form - self.centre) / self.spread
        drive = (cells.score / self.score)[:, None] * np.stack([np.ones(len(cells)), features[:, _PRESSURE]], axis=1)
        index = {t: i for i, t in enumerate(self.traits)}
        trait = np.array([index.get(t, -1 - i) for i, t in enumerate(cells.trait)])
        return _Design(
            trait, _codes(cells.run), _codes([f"{f}\0{t}" for f, t in zip(cells.family, cells.trait, strict=True)]),
            drive if self.uses_score else drive * 0, features[:, self.form], (cells.readings - self.usual) / self.reach,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Design:
    trait: Ints
    run: Ints
    family: Ints
    drive: Floats
    form: Floats
    alike: Floats


def fit_common_mode(
    cells: Cells,
    *,
    uses_score: bool = True,
    uses_form: Sequence[str] = FORM_FEATURES,
    widen: bool = True,
    start: CommonMode | None = None,
) -> CommonMode:
    """Fit the model to past runs.

    Args:
        cells: With measured shifts.
        uses_score: Whether the forecaster's score enters.
        uses_form: Which features of the form enter; none for a base rate.
        widen: Whether intervals are scaled by families left out.
        start: A fit of similar cells, where the search begins: it then ends sooner, at the same place.

    Raises:
        InvalidSettings: If there are fewer than `LEAST_RUNS` runs or `LEAST_FAMILIES` families, or an unknown feature.
        NumericsError: If the fit breaks down.
    """
    n_runs, n_families = len(set(cells.run)), len(set(cells.family))
    if n_runs < LEAST_RUNS or n_families < LEAST_FAMILIES:
        raise InvalidSettings(
            f"{n_runs} past runs of {n_families} families are too few to learn rates from: {LEAST_RUNS} runs of "
            f"{LEAST_FAMILIES} families are needed.",
            hint="`personae verify RUN` adds a run to the registry.",
        )
    unknown = sorted(set(uses_form) - set(FORM_FEATURES))
    if unknown:
        raise InvalidSettings(f"no feature of the form is called {', '.join(unknown)}.")
    unit = float(np.sqrt(np.mean(cells.shift**2))) or 1.0
    scales = _scales(cells, uses_score, tuple(uses_form))
    design, y, noise = scales.design(cells), cells.shift / unit, (cells.se / unit) ** 2
    grams = _grams(design)
    begin = _CENTRE if start is None else np.log([start.sds[name] for name in _NAMES])
    found = optimize.minimize(
        _loss, begin, args=(grams, y, noise), jac=True, method="L-BFGS-B", bounds=[(-7, 3)] * len(_CENTRE)
    )
    if not np.isfinite(found.fun):
        raise NumericsError("the fit of past runs broke down; a shift or score may be far out of range.")
    covariance = _covariance(found.x, grams) + np.diag(noise)
    factor = linalg.cho_factor(covariance, lower=True)
    alpha = linalg.cho_solve(factor, y)
    sds = {name: float(np.exp(v)) for name, v in zip(_NAMES, found.x, strict=True)}
    model = CommonMode(cells, sds, unit, 1.0, uses_score, tuple(uses_form), scales, alpha, factor)
    return replace(model, width=_width(cells, covariance, alpha)) if widen else model


def _scales(cells: Cells, uses_score: bool, uses_form: tuple[str, ...]) -> _Scales:
    each = np.unique(_codes(cells.run), return_index=True)[1]
    by_run, read = cells.form[each], cells.readings[each]
    spread, usual = by_run.std(axis=0), read.mean(axis=0)
    # One unit for all readings: a run at the usual distance from the mean run has the square length 1.
    reach = float(np.sqrt(((read - usual) ** 2).sum(axis=1).mean()))
    score = float(np.sqrt(np.mean(cells.score**2)))
    return _Scales(
        tuple(dict.fromkeys(cells.trait)),
        score if score > 0 else 1.0,
        by_run.mean(axis=0),
        np.where(spread > 1e-9, spread, 1.0),
        np.array([FORM_FEATURES.index(f) for f in uses_form], np.int64),
        uses_score,
        usual,
        reach if reach > 0 else 1.0,
    )


def _codes(labels: Sequence[str]) -> Ints:
    index: dict[str, int] = {}
    return np.array([index.setdefault(label, len(index)) for label in labels], np.int64)


def _kernels(a: _Design, b: _Design, h: Floats) -> dict[str, Floats]:
    """Covariance of new cells with others: of the common mode and of what follows from the score."""
    v = dict(zip(_NAMES, np.exp(2 * h), strict=True))
    same = (a.trait[:, None] == b.trait[None]).astype(np.float64)
    form, drive = a.form @ b.form.T, a.drive @ b.drive.T
    return {
        "common": v["intercept"] + v["trait"] * same + (v["form"] + v["form_by_trait"] * same) * form,
        "score": (v["score"] + v["score_by_trait"] * same) * drive + v["alike_by_trait"] * same * (a.alike @ b.alike.T),
    }


def _grams(d: _Design) -> list[Floats]:
    """One matrix a variance, in the order of `_NAMES`."""
    same = (d.trait[:, None] == d.trait[None]).astype(np.float64)
    form, drive = d.form @ d.form.T, d.drive @ d.drive.T
    run = (d.run[:, None] == d.run[None]).astype(np.float64)
    family = (d.family[:, None] == d.family[None]).astype(np.float64)
    return [same, drive, drive * same, form, form * same, run, family, np.eye(len(same)), np.ones_like(same),
            d.alike @ d.alike.T * same]  # fmt: skip


def _covariance(h: Floats, grams: Sequence[Floats]) -> Floats:
    return sum((np.exp(2 * v) * g for v, g in zip(h, grams, strict=True)), np.zeros_like(grams[0]))


def _loss(h: Floats, grams: Sequence[Floats], y: Floats, noise: Floats) -> tuple[float, Floats]:
    """Negative log posterior of the log standard deviations, and its gradient."""
    try:
        factor = linalg.cho_factor(_covariance(h, grams) + np.diag(noise + 1e-9), lower=True)
    except linalg.LinAlgError:
        return 1e12, np.zeros_like(h)
    (potri,) = linalg.get_lapack_funcs(("potri",), (factor[0],))  # a third of the work of solving for the unit matrix
    lower, _ = potri(factor[0], lower=1)
    inverse = np.tril(lower) + np.tril(lower, -1).T
    alpha = inverse @ y
    log_det = 2 * np.log(np.diag(factor[0])).sum()
    off = (h - _CENTRE) / _WIDTH
    outer = (inverse - np.outer(alpha, alpha)).ravel()
    gradient = np.array([np.exp(2 * v) * (outer @ g.ravel()) for v, g in zip(h, grams, strict=True)])
    return float(0.5 * (log_det + y @ alpha) + 0.5 * off @ off), gradient + off / _WIDTH


def _width(cells: Cells, covariance: Floats, alpha: Floats) -> float:
    """Factor that makes 90% intervals hold for families left out (Rasmussen & Williams 2006, section 5.4.2)."""
    inverse = linalg.inv(covariance)
    families = np.array(_codes(cells.family))
    z: list[Floats] = []
    for family in np.unique(families):
        at = np.flatnonzero(families == family)
        block = linalg.inv(inverse[np.ix_(at, at)])
        z.append(np.abs(block @ alpha[at]) / np.sqrt(np.maximum(np.diag(block), 1e-12)))
    return float(np.clip(np.quantile(np.concatenate(z), 0.9) / Z90, 0.7, 3.0))
