"""Forecast against outcome: numbers by hand, coverage of calibrated forecasts, what cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest

from past_runs import make_runs
from personae.errors import InvalidSettings
from personae.protocols.verify import past_run, verify
from personae.report.verify_page import render_verification
from personae.tables.items import item_table
from personae.tables.run_registry import RunForm
from personae.tables.trait_forecast import CALIBRATED_UNIT, Cost, ForecastReading, TraitForecast
from personae.tables.traits import TraitProfile, TraitReading
from personae.tables.verification import Verification

FORM = RunForm("sft", 100, 20.0, 2.5, 0.3, 300, 2e-4, 40)
N_ITEMS = 12


def profile(name: str, scores: dict[str, np.ndarray]) -> TraitProfile:
    """A profile whose item scores are given."""
    rows = [(t, i, v) for t, values in scores.items() for i, v in enumerate(values)]
    table = item_table(
        [v for *_, v in rows],
        item=[f"{t}/{i}" for t, i, _ in rows],
        arm=[name] * len(rows),
        cluster=[f"{t}{i}" for t, i, _ in rows],
    )
    readings = tuple(TraitReading(t, float(v.mean()), 0, 0, 0.1, len(v), True, "") for t, v in scores.items())
    return TraitProfile(
        name, "c", readings, {"replies": readings}, table, tuple(t for t, *_ in rows), ("replies",) * len(rows)
    )


def forecast(mean: dict[str, float], sd: float = 0.5, *, unit: str = CALIBRATED_UNIT) -> TraitForecast:
    m = np.array(list(mean.values()))
    s = np.full(len(m), sd)
    return TraitForecast(
        "good", tuple(mean), m, s, m - 1.645 * s, m + 1.645 * s, unit, 1.0, common=np.full(len(m), 0.2)
    )


def outcome(
    shifts: dict[str, float], mean: dict[str, float], *, seed: int = 0, sd: float = 0.5, unit: str = CALIBRATED_UNIT
) -> Verification:
    rng = np.random.default_rng(seed)
    first = {t: rng.normal(0, 1, N_ITEMS) for t in shifts}
    second = {t: first[t] + d + rng.normal(0, 0.3, N_ITEMS) for t, d in shifts.items()}
    said, before, after = forecast(mean, sd, unit=unit), profile("a", first), profile("b", second)
    return verify(said, FORM, before, after, run="r", data="d.jsonl", model="m", cast="c")


def test_numbers_by_hand() -> None:
    found = outcome({"kind": 2.0, "blunt": -1.0, "proud": 0.0}, {"kind": 1.8, "blunt": 1.0, "proud": 0.1})
    by_trait = {r.trait: r for r in found.traits}
    assert [r.trait for r in found.traits] == ["kind", "blunt", "proud"]
    kind, blunt, proud = by_trait["kind"], by_trait["blunt"], by_trait["proud"]
    assert kind.measured == pytest.approx(2.0, abs=0.25)
    assert kind.inside
    assert kind.sign_right
    assert kind.net_measured == pytest.approx(kind.measured - 0.2)
    assert kind.z == pytest.approx((kind.measured - 1.8) / np.hypot(0.5, kind.measured_se))
    assert blunt.inside is False
    assert blunt.sign_right is False
    assert proud.sign_right is None
    assert found.agreement.signs == pytest.approx(0.5)
    assert found.agreement.inside == pytest.approx(2 / 3)
    assert found.agreement.spearman == pytest.approx(1.0 if proud.measured < blunt.measured else 0.5, abs=0.51)


def test_calibrated_forecasts_are_inside_nine_times_in_ten() -> None:
    inside, rng = [], np.random.default_rng(1)
    for seed in range(40):
        mean = {t: float(rng.normal()) for t in ("kind", "blunt", "proud")}
        shifts = {t: m + float(rng.normal(0, 0.5)) for t, m in mean.items()}
        inside += [r.inside for r in outcome(shifts, mean, seed=seed).traits]
    assert 0.83 <= np.mean(inside) <= 0.96  # 120 cells: two standard errors are 0.055


def test_without_a_scale_only_the_ranking_is_judged() -> None:
    small = {"kind": 9e-3, "blunt": -4e-3, "proud": 0.0}
    found = outcome({"kind": 2.0, "blunt": -1.0, "proud": 0.0}, small, sd=1e-3, unit="nats a token")
    assert not found.calibrated
    assert all(r.z is None and r.inside is None for r in found.traits)
    assert found.agreement.spearman == pytest.approx(1.0)
    assert found.agreement.rmse is None
    page = render_verification(found)
    assert "no scale" in page
    assert "script-src 'sha256-" in page


def test_traits_without_an_outcome_are_named() -> None:
    found = outcome({"kind": 1.0, "blunt": 0.5}, {"kind": 1.0, "blunt": 0.4, "lost": 2.0})
    assert found.unmeasured == {"lost": "no diagnostic items"}
    with pytest.raises(InvalidSettings, match="none of the forecast traits could be measured: lost"):
        outcome({"kind": 1.0, "blunt": 0.5}, {"lost": 2.0})


def test_a_verified_run_becomes_a_past_run() -> None:
    found = outcome({"kind": 1.0, "blunt": 0.5}, {"kind": 1.0, "blunt": 0.4})
    reading = ForecastReading("good", ("blunt", "kind", "lost"), np.array([1.0, 2.0, 3.0]), "u", np.zeros(3), Cost())
    run = past_run(found, {"good": reading}, run="x", family="f", model_digest="d", items="i", trained=("kind",))
    assert run.readings == {"good": {"blunt": 1.0, "kind": 2.0}}
    assert run.shift["kind"] == found.traits[0].measured
    assert type(run).from_dict(run.to_dict()) == run
    assert set(make_runs()[0].to_dict()) == set(run.to_dict())


def test_hostile_names_are_escaped() -> None:
    found = outcome({"<script>x</script>": 1.0, "b": 0.5}, {"<script>x</script>": 1.0, "b": 0.4})
    assert "<script>x" not in render_verification(found)
