"""How good is a forecaster? Families left out, cells of other traits, signs, coverage, and nulls.

    for each family:  learn from the runs of all others, forecast its cells          (leave one family out)
    skill          =  rank correlation over cells, over cells of traits not trained, signs, coverage
    comparison     =  paired difference of a figure, families resampled

Runs of one family (severities, doses, seeds) are no independent evidence, so families are the unit throughout. A high
correlation alone shows little: where files move all traits together, directions that mean nothing correlate as well
(2507.21509 replicated with nulls: no trait direction beat them), so `random_direction_null` stands beside it. Not
here: scores, and the model that turns them into forecasts (`inference.common_mode`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from personae.errors import InvalidSettings
from personae.inference.common_mode import Z90, Cells, Prediction, fit_common_mode
from personae.tables.run_registry import FORM_FEATURES, PastRun

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Figure = Callable[["Held", NDArray[np.int64]], float]

_BEYOND = 2.0  # standard errors of the measured shift at which its sign is taken for known


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Cells with forecasts that were made without their family.

    Attributes:
        cells: With measured shifts.
        forecast: Aligned with `cells`.
        is_trained: Whether the file was about that trait, shape (n_cells,).
    """

    cells: Cells
    forecast: Prediction
    is_trained: Bools


@dataclass(frozen=True, slots=True)
class Value:
    """A figure with its 90% interval from resampling families; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Skill:
    """Figures of one forecaster.

    Attributes:
        n_runs, n_families, n_cells, n_other: Sizes.
        spearman: Rank correlation of forecast and measured shift over all cells.
        spearman_other: The same over cells of traits the file was not about.
        spearman_net: The same over all cells after the common mode is taken off both.
        sign: Share of right signs among cells whose measured shift is beyond two standard errors.
        n_sign: Number of those cells.
        coverage: Share of cells within the 90% interval, measurement error included.
        rmse: Root mean square error, nats.
        explained: 1 - squared error / squared shift.
    """

    n_runs: int
    n_families: int
    n_cells: int
    n_other: int
    spearman: Value
    spearman_other: Value
    spearman_net: Value
    sign: Value
    n_sign: int
    coverage: Value
    rmse: Value
    explained: Value


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference of a figure, first less second, with its interval and the share of resamples at or below 0."""

    first: str
    second: str
    figure: str
    difference: float
    low: float
    high: float
    p: float

    @property
    def is_better(self) -> bool:
        """Whether the interval of the difference lies above 0."""
        return self.low > 0


def leave_one_family_out(
    cells: Cells,
    *,
    uses_score: bool = True,
    uses_form: Sequence[str] = FORM_FEATURES,
    trained: Bools | None = None,
) -> Held:
    """Forecast the cells of each family from the runs of all others; nothing of a family is used for it.

    Args:
        cells: With measured shifts.
        uses_score: As `common_mode.fit_common_mode`.
        uses_form: As there.
        trained: Which cells are of a trait that the file was about; none where left out.

    Raises:
        InvalidSettings: If too few runs or families remain.
        NumericsError: If a fit breaks down.
    """
    families = np.array(cells.family)
    out = np.zeros((3, len(cells)))
    # Where the search begins, and nothing else; each fit is made from the other families alone.
    whole = fit_common_mode(cells, uses_score=uses_score, uses_form=uses_form, widen=False)
    for family in dict.fromkeys(cells.family):
        inside = families == family
        model = fit_common_mode(cells.take(~inside), uses_score=uses_score, uses_form=uses_form, start=whole)
        said = model.predict(cells.take(inside))
        out[:, inside] = said.mean, said.sd, said.common
    is_trained = np.zeros(len(cells), np.bool_) if trained is None else np.asarray(trained, np.bool_)
    return Held(cells, Prediction(*out), is_trained)


def trained_cells(cells: Cells, runs: Sequence[PastRun]) -> Bools:
    """Which cells are of a trait that their run's file was about, shape (n_cells,)."""
    about = {r.run: set(r.trained) for r in runs}
    return np.array([t in about[r] for r, t in zip(cells.run, cells.trait, strict=True)], np.bool_)


def skill(held: Held, *, n_draws: int = 1000, seed: int = 0) -> Skill:
    """Figures of a forecaster with intervals."""
    draws = _resamples(held.cells.family, n_draws, seed)
    values = {name: _with_interval(figure, held, draws) for name, figure in FIGURES.items()}
    known = np.abs(held.cells.shift) > _BEYOND * held.cells.se
    return Skill(
        n_runs=len(set(held.cells.run)),
        n_families=len(set(held.cells.family)),
        n_cells=len(held.cells),
        n_other=int((~held.is_trained).sum()),
        n_sign=int(known.sum()),
        **values,
    )


def compare(
    first: tuple[str, Held], second: tuple[str, Held], *, figure: str = "spearman", n_draws: int = 2000, seed: int = 0
) -> Comparison:
    """Does the first forecaster beat the second? Families are resampled, both are judged on the same draw.

    Args:
        first: Name and forecasts.
        second: The same of the other, on the same cells.
        figure: Name in `FIGURES`; for "rmse" the sign is turned, so that above 0 is better throughout.
        n_draws: Resamples.
        seed: Of the resampling.

    Raises:
        InvalidSettings: If the cells differ or the figure is not known or not defined.
    """
    (name, a), (other, b) = first, second
    if (a.cells.run, a.cells.trait) != (b.cells.run, b.cells.trait):
        raise InvalidSettings(f"'{name}' and '{other}' were judged on different cells; they cannot be compared.")
    if figure not in FIGURES:
        raise InvalidSettings(f"no figure is called '{figure}'.", hint=f"Known: {', '.join(FIGURES)}.")
    turn = -1.0 if figure == "rmse" else 1.0
    everything = np.arange(len(a.cells))
    gap = turn * (FIGURES[figure](a, everything) - FIGURES[figure](b, everything))
    draws = _resamples(a.cells.family, n_draws, seed)
    gaps = turn * np.array([FIGURES[figure](a, at) - FIGURES[figure](b, at) for at in draws])
    gaps = gaps[np.isfinite(gaps)]
    if not np.isfinite(gap) or len(gaps) == 0:
        raise InvalidSettings(f"'{figure}' is not defined on these cells: a forecast is the same everywhere.")
    low, high = np.quantile(gaps, [0.05, 0.95])
    p = float((1 + (gaps <= 0).sum()) / (1 + len(gaps)))
    return Comparison(name, other, figure, float(gap), float(low), float(high), p)


@dataclass(frozen=True, slots=True, eq=False)
class DirectionNull:
    """Whether trait directions say more than directions drawn at random.

    Attributes:
        observed: Mean over traits of |rank correlation over runs|, at the best layer.
        null: The same of random directions, each draw at its own best layer, shape (n_draws,).
        p: Probability of so high a value.
        by_trait: Signed rank correlation of each trait at the observed best layer.
        layer: That layer.
    """

    observed: float
    null: Floats
    p: float
    by_trait: Floats
    layer: int


def random_direction_null(
    differences: Floats, vectors: Floats, shift: Floats, covariance: Floats, *, n_draws: int = 500, seed: int = 0
) -> DirectionNull:
    """Compare trait directions with random ones of the same covariance, layers chosen anew for each draw.

    Args:
        differences: Activation of a run's data less that of the model's own answers, shape (n_runs, n_layers, d_model).
        vectors: Trait directions, shape (n_traits, n_layers, d_model).
        shift: Measured shifts, shape (n_runs, n_traits).
        covariance: Of ordinary activations, shape (n_layers, d_model, d_model), or (n_layers, d_model) if diagonal.
        n_draws: Random sets of directions.
        seed: Of the draws.

    Raises:
        InvalidSettings: If there are fewer than four runs, or shapes do not fit.
    """
    n_runs, n_layers, d_model = differences.shape
    n_traits = shift.shape[1]
    if n_runs < 4 or vectors.shape != (n_traits, n_layers, d_model) or len(shift) != n_runs:
        raise InvalidSettings(
            f"{n_runs} runs, directions {vectors.shape} and shifts {shift.shape}: a null needs four runs or more and "
            "shapes that fit."
        )
    ranks = _standard_ranks(shift)
    rng = np.random.default_rng(seed)
    root = _roots(covariance)

    def correlations(directions: Floats) -> Floats:
        scores = np.einsum("rld,kld->lrk", differences, directions)
        return np.einsum("lrk,rk->lk", np.stack([_standard_ranks(s) for s in scores]), ranks)

    own = correlations(vectors)
    best = int(np.abs(own).mean(axis=1).argmax())
    null = np.empty(n_draws)
    for i in range(n_draws):
        noise = rng.normal(size=(n_traits, n_layers, d_model))
        drawn = noise * root if root.ndim == 2 else np.einsum("kld,lde->kle", noise, root)
        null[i] = np.abs(correlations(drawn)).mean(axis=1).max()
    observed = float(np.abs(own[best]).mean())
    return DirectionNull(observed, null, float((1 + (null >= observed).sum()) / (1 + n_draws)), own[best], best)


def _standard_ranks(values: Floats) -> Floats:
    """Ranks down the rows, centred, of norm 1: their product is Spearman's correlation."""
    ranks = stats.rankdata(values, axis=0)
    ranks = ranks - ranks.mean(axis=0)
    norm = np.sqrt((ranks**2).sum(axis=0))
    return ranks / np.where(norm > 0, norm, 1.0)


def _roots(covariance: Floats) -> Floats:
    """Factors R with R'R = covariance, by layer."""
    if covariance.ndim == 2:
        return np.sqrt(covariance)
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(values, 0))[..., None] * np.swapaxes(vectors, -1, -2)


def _spearman(x: Floats, y: Floats) -> float:
    if len(x) < 3:
        return float("nan")
    a, b = stats.rankdata(x), stats.rankdata(y)
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _all(held: Held, at: NDArray[np.int64]) -> float:
    return _spearman(held.forecast.mean[at], held.cells.shift[at])


def _other(held: Held, at: NDArray[np.int64]) -> float:
    return _all(held, at[~held.is_trained[at]])


def _net(held: Held, at: NDArray[np.int64]) -> float:
    common = held.forecast.common[at]
    return _spearman(held.forecast.mean[at] - common, held.cells.shift[at] - common)


def _sign(held: Held, at: NDArray[np.int64]) -> float:
    known = at[np.abs(held.cells.shift[at]) > _BEYOND * held.cells.se[at]]
    right = np.sign(held.forecast.mean[known]) == np.sign(held.cells.shift[known])
    return float(right.mean()) if len(known) else float("nan")


def _coverage(held: Held, at: NDArray[np.int64]) -> float:
    sd = np.hypot(held.forecast.sd[at], held.cells.se[at])
    return float((np.abs(held.cells.shift[at] - held.forecast.mean[at]) <= Z90 * sd).mean())


def _rmse(held: Held, at: NDArray[np.int64]) -> float:
    return float(np.sqrt(np.mean((held.cells.shift[at] - held.forecast.mean[at]) ** 2)))


def _explained(held: Held, at: NDArray[np.int64]) -> float:
    total = float((held.cells.shift[at] ** 2).sum())
    error = float(((held.cells.shift[at] - held.forecast.mean[at]) ** 2).sum())
    return 1 - error / total if total > 0 else float("nan")


FIGURES: dict[str, Figure] = {
    "spearman": _all,
    "spearman_other": _other,
    "spearman_net": _net,
    "sign": _sign,
    "coverage": _coverage,
    "rmse": _rmse,
    "explained": _explained,
}


def _resamples(family: Sequence[str], n_draws: int, seed: int) -> list[NDArray[np.int64]]:
    """Cells of families drawn with replacement."""
    labels = np.array(family)
    members = [np.flatnonzero(labels == f) for f in dict.fromkeys(family)]
    rng = np.random.default_rng(seed)
    return [np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]) for _ in range(n_draws)]


def _with_interval(figure: Figure, held: Held, draws: Sequence[NDArray[np.int64]]) -> Value:
    value = figure(held, np.arange(len(held.cells)))
    if not np.isfinite(value):
        return Value(None, None, None)
    drawn = np.array([figure(held, at) for at in draws])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) == 0:
        return Value(value, None, None)
    low, high = np.quantile(drawn, [0.05, 0.95])
    return Value(value, float(low), float(high))
