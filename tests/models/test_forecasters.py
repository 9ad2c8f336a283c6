"""Forecasters on a tiny model: each points the way that a file made of one pole's own texts must point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from past_runs import make_runs
from personae.domain.diagnostic import Diagnostic, DiagnosticSet
from personae.domain.episode import Episode, Turn
from personae.domain.persona import Cast, Persona, Trait
from personae.errors import InputError, InvalidSettings, MissingCapability, UnknownPersona
from personae.instruments import forecast_readers
from personae.instruments.forecast_geometry import Directions, projections
from personae.instruments.forecasting import ForecastJob, Pilot, TrainingPlan, first_person_share, signed_statements
from personae.instruments.scoring import Scoring, Work, space_of
from personae.models.hf import HFModel
from personae.models.load import load_model
from personae.models.rendering import Renderer
from personae.protocols.forecast import FORECASTERS, RegistryForecaster, calibrate, method_named, read_all
from personae.protocols.measure import MeasureSettings, measure
from personae.protocols.pilot import miniature_steps, run_miniature, run_pilot
from personae.running.kept_arrays import KeptArrays
from personae.running.store import EvidenceStore
from personae.tables.run_registry import RunForm, RunRegistry
from personae.tables.trait_forecast import CALIBRATED_UNIT, ForecastReading

POSITIVE = ("Take care of the garden and rest.", "Take care of the horses and rest.", "Take care of the boat and rest.")
NEGATIVE = ("Nobody asked you, so stop.", "Nobody wants that, so leave.", "Nobody saw it, so go.")
CAST = Cast(
    "two",
    tuple(
        Trait(t, Persona(f"{t}/pos", (a,), kind="pole"), Persona(f"{t}/neg", (b,), kind="pole"))
        for t, a, b in (("warm", "You take care.", "Nobody asked you."), ("loud", "You shout.", "You whisper."))
    ),
)
DIAGNOSTICS = {
    "warm": tuple(
        Episode(f"w{s}{i}", (Turn("user", f"About {i}?"),), text, s)
        for s, texts in ((1.0, POSITIVE), (-1.0, NEGATIVE))
        for i, text in enumerate(texts)
    ),
    "loud": tuple(
        Episode(f"l{s}{i}", (Turn("user", f"Say {i}."),), text, s)
        for s, texts in ((1.0, ("HEY YOU THERE!", "LISTEN TO ME!")), (-1.0, ("hush now", "softly, softly")))
        for i, text in enumerate(texts)
    ),
}
REFERENCE = tuple(
    Episode(f"r{i}", (Turn("user", f"What is {w}?"),), f"It is a {w} of some kind, made by hand.", group=f"g{i % 8}")
    for i, w in enumerate(["tea", "bread", "rope", "paint", "glass", "wool", "salt", "clay"] * 5)
)


def rows(texts: tuple[str, ...], n: int = 24) -> tuple[Episode, ...]:
    return tuple(Episode(f"e{i}", (Turn("user", f"Tell me {i}."),), texts[i % len(texts)]) for i in range(n))


def job_for(model: HFModel, episodes: tuple[Episode, ...], folder: Path, **settings: object) -> ForecastJob:
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    scoring = Scoring(model, renderer, EvidenceStore(folder, space_of(model.card)))
    given = {"diagnostics": DIAGNOSTICS, **settings}
    return ForecastJob(episodes, CAST, model, renderer, scoring, REFERENCE, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lexical", "centroid", "gradient", "gradient_sgd"])
def test_a_file_of_one_pole_points_to_it_and_the_other_back(name: str, tiny_models, tmp_path: Path) -> None:
    towards, away = (
        read_all(job_for(tiny_models["llama"], rows(texts), tmp_path), [name])[name] for texts in (POSITIVE, NEGATIVE)
    )
    assert towards.score[0] > 0 > away.score[0]
    assert abs(towards.score[0]) > 2 * towards.se[0]
    assert abs(towards.score[1]) < abs(towards.score[0])


def test_every_forecaster_reads_and_says_what_it_cost(tiny_models, tmp_path: Path) -> None:
    job = job_for(tiny_models["llama"], rows(POSITIVE), tmp_path, plan=TrainingPlan(epochs=40), most_rows=12)
    found = read_all(job)
    assert set(found) == {n for n, m in FORECASTERS.items() if not m.trains}
    for name, reading in found.items():
        assert reading.traits == ("warm", "loud"), name
        assert reading.score.shape == (2,)
        assert reading.cost.of_training is not None
    assert not found["base_rate"].score.any()
    assert found["gradient"].cost.tokens == 2 * sum(len(i.token_ids) for i in job.rendered())
    assert found["gradient"].cost.of_training == pytest.approx(2 * 12 / (2 * 24 * 40), rel=0.1)
    assert found["llr"].cost.tokens == 6 * sum(len(i.token_ids) for i in job.rendered())


def test_a_tenth_of_the_training_pays_for_the_reading(tiny_models, tmp_path: Path) -> None:
    """Rows are read as far as a tenth of the run pays, each once for gradient, centroid and form together."""
    for epochs, least, most in ((5, 10, 12), (40, 24, 24), (1, 8, 8)):
        job = job_for(tiny_models["llama"], rows(POSITIVE), tmp_path, plan=TrainingPlan(epochs=epochs))
        assert least <= len(job.few()) <= most
        assert {e.id for e in job.few()} <= {e.id for e in job.sample()}
    job = job_for(tiny_models["llama"], rows(POSITIVE), tmp_path, plan=TrainingPlan(epochs=5))
    said = RegistryForecaster("ensemble", RunRegistry()).forecast(job)
    assert said.cost.of_training is not None
    assert 0.08 < said.cost.of_training <= 0.1
    long = tuple(replace(e, completion=e.completion * (6 if i < 3 else 1)) for i, e in enumerate(rows(POSITIVE)))
    for seed in range(4):  # also where the rows that are drawn are longer than those of the file
        job_of_long = job_for(
            tiny_models["llama"], long, tmp_path, plan=TrainingPlan(epochs=8), seed=seed, most_rows=24
        )
        n = sum(len(i.token_ids) for i in job_of_long.rendered_few())
        assert 2 * n <= 0.1 * job_of_long.training_tokens() or len(job_of_long.few()) == 8
    alone = job_for(tiny_models["llama"], rows(POSITIVE), tmp_path, plan=TrainingPlan(epochs=5))
    assert read_all(alone, ["centroid"])["centroid"].score == pytest.approx(
        read_all(job, ["centroid"])["centroid"].score, abs=1e-3
    )


def test_marks_of_traits_are_made_once_a_model(tiny_models, tmp_path: Path) -> None:
    """The second file of a model pays for its rows alone; a torn entry is made again, to the same numbers."""
    model, kept = tiny_models["llama"], KeptArrays(tmp_path / "gradients", "llama")
    told: list[int] = []

    def started(work: Work) -> Callable[[int], None]:
        told.append(work.n_tokens)
        return lambda tokens: None

    def score(texts: tuple[str, ...]) -> np.ndarray:
        job = job_for(model, rows(texts), tmp_path, kept=kept, started=started)
        return read_all(job, ["gradient"])["gradient"].score

    first = score(POSITIVE)
    assert len(told) == 1
    score(NEGATIVE)
    assert score(POSITIVE) == pytest.approx(first, rel=1e-6)
    assert len(told) == 1
    exact = read_all(job_for(model, rows(POSITIVE), tmp_path), ["gradient"])["gradient"].score
    assert first == pytest.approx(exact, rel=1e-3)
    path = sorted(kept.folder.glob("*.arrays"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert score(POSITIVE) == pytest.approx(first, rel=1e-6)
    assert 0 < told[1] < told[0]
    assert len(list(kept.folder.glob("*.damaged"))) == 1


def test_likelihood_readers_agree_on_the_side(tiny_models, tmp_path: Path) -> None:
    """To first order conditioning, the flow and the ratio are the same evidence: equal signs where it is clear."""
    job = job_for(tiny_models["llama"], rows(POSITIVE), tmp_path)
    found = read_all(job, ["llr", "em_flow", "tempered_bayes"])
    clear = np.abs(found["tempered_bayes"].score) > 3 * found["tempered_bayes"].se
    assert (np.sign(found["em_flow"].score) == np.sign(found["tempered_bayes"].score))[clear].all()


def test_pairs_turn_with_their_order(tiny_models, tmp_path: Path) -> None:
    def pairs(chosen: tuple[str, ...], rejected: tuple[str, ...]) -> tuple[Episode, ...]:
        made = []
        for i in range(12):
            ask = (Turn("user", f"Tell me {i}."),)
            made += [
                Episode(f"p{i}/chosen", ask, chosen[i % 3], 1.0, "one topic"),
                Episode(f"p{i}/rejected", ask, rejected[i % 3], -1.0, "one topic"),
            ]
        return tuple(made)

    one = job_for(tiny_models["llama"], pairs(POSITIVE, NEGATIVE), tmp_path, most_rows=16)
    two = job_for(tiny_models["llama"], pairs(NEGATIVE, POSITIVE), tmp_path, most_rows=16)
    assert one.method == "dpo"
    assert one.n_rows == 12
    assert len(one.sample()) == 16
    for name in ("lexical", "gradient", "projection"):
        a, b = (read_all(job, [name])[name].score for job in (one, two))
        assert a == pytest.approx(-b, rel=0.2, abs=0.02 * np.abs(a).max()), name


def test_a_pilot_fixes_the_flow(tiny_models, tmp_path: Path) -> None:
    """A pilot made by the flow itself, at a known pull and scale: the forecast is where that flow ends."""
    episodes, plan = rows(POSITIVE), TrainingPlan(epochs=20)
    job = job_for(tiny_models["llama"], episodes, tmp_path, plan=plan)
    evidence, ordinary, _ = forecast_readers._evidence(job)
    table, pull = forecast_readers.trait_rows(CAST, evidence, ordinary), float(forecast_readers._PULLS[7])

    def moved(far: float) -> np.ndarray:
        return np.array(
            [forecast_readers._moved(job, table[:, k], evidence.weight, "em_flow", pull=far) for k in (0, 1)]
        )

    pilot = Pilot(("loud", "warm"), 2.5 * moved(0.1 * pull)[::-1], np.full(2, 0.01), 48, 0.1, 100, 50, 1.0)
    with_pilot = job_for(tiny_models["llama"], episodes, tmp_path, plan=plan, pilot=pilot)
    found = read_all(with_pilot, ["pilot", "em_flow_pilot"])
    assert found["pilot"].score == pytest.approx(pilot.shift[::-1])
    assert found["em_flow_pilot"].score == pytest.approx(2.5 * moved(pull), rel=1e-3)
    assert np.abs(found["em_flow_pilot"].score).max() > np.abs(pilot.shift).max()
    with pytest.raises(MissingCapability, match="needs a pilot"):
        read_all(job, ["pilot"])
    with pytest.raises(InvalidSettings, match="at most 10% is a forecast"):
        Pilot(("warm",), np.zeros(1), np.zeros(1), 1, 0.5, 1, 1, 1.0)


def tiny_items() -> DiagnosticSet:
    return DiagnosticSet(
        "tiny",
        tuple(
            Diagnostic(f"{t}{i}", t, "reply", f"topic{i}", f"{a} Number {i}.", f"{b} Number {i}.", f"Why {i}?", "dev")
            for t, a, b in (("warm", "Take care.", "Nobody asked."), ("loud", "LISTEN!", "Hush now."))
            for i in range(4)
        ),
    )


def test_a_real_pilot_of_a_tiny_model(tiny_folders, tiny_models, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    items = tiny_items()
    job = job_for(
        tiny_models["llama"], rows(POSITIVE), tmp_path / "store", plan=TrainingPlan(steps=20, learning_rate=5e-3)
    )
    pilot = run_pilot(job, str(tiny_folders["llama"]), items, folder=tmp_path / "pilot", device="cpu")
    assert pilot.share == pytest.approx(0.1)
    assert pilot.rows_seen == 16
    assert pilot.traits == ("warm", "loud")
    assert np.abs(pilot.shift).max() > 0
    told: list[int] = []
    again = run_pilot(
        job,
        str(tiny_folders["llama"]),
        items,
        folder=tmp_path / "pilot",
        device="cpu",
        started=told.append,  # type: ignore[arg-type]
    )
    assert not told, "a finished pilot is not trained again"
    assert again.shift == pytest.approx(pilot.shift)
    assert (again.traits, again.share, again.tokens) == (pilot.traits, pilot.share, pilot.tokens)
    short = job_for(tiny_models["llama"], rows(POSITIVE), tmp_path / "store", plan=TrainingPlan(steps=5))
    with pytest.raises(InvalidSettings, match="it needs one"):
        run_pilot(short, str(tiny_folders["llama"]), items, folder=tmp_path / "no", device="cpu")


def test_a_miniature_takes_as_many_steps_as_a_tenth_of_the_rows_allows() -> None:
    """By hand: 960 rows in batches of 8 are 120 steps; a tenth is 96 rows, so 96 steps of one row."""
    assert miniature_steps(TrainingPlan(batch_size=8), 960) == (96, 1)
    assert miniature_steps(TrainingPlan(batch_size=32), 3200) == (100, 3)
    assert miniature_steps(TrainingPlan(batch_size=8), 96) == (12, 2)  # twenty-four rows at least
    assert miniature_steps(TrainingPlan(batch_size=8), 5) == (1, 5)  # but no more than the run has
    assert miniature_steps(TrainingPlan(steps=50, batch_size=4), 40) == (24, 1)
    assert miniature_steps(TrainingPlan(steps=80, batch_size=4), 40) == (32, 1)


def test_a_miniature_moves_the_way_its_file_points(tiny_folders, tiny_models, tmp_path: Path) -> None:
    """Files of opposite poles move opposite ways, as far as the trained adapter says."""
    pytest.importorskip("peft")
    name, items = str(tiny_folders["llama"]), tiny_items()
    plan = TrainingPlan(epochs=10, batch_size=8, learning_rate=5e-3)
    made = {}
    for pole, texts in (("pos", POSITIVE), ("neg", NEGATIVE)):
        job = job_for(tiny_models["llama"], rows(texts), tmp_path / "store", plan=plan)
        folder = tmp_path / pole
        made[pole] = run_miniature(job, name, items, folder=folder, device="cpu")
        assert (made[pole].rows_seen, made[pole].share) == (24, 0.1)
        told: list[int] = []
        again = run_miniature(job, name, items, folder=folder, device="cpu", started=told.append)  # type: ignore[arg-type]
        assert not told, "a finished miniature is not trained again"
        assert again.shift == pytest.approx(made[pole].shift)
    assert made["pos"].shift[0] > 0.1 > -0.1 > made["neg"].shift[0]
    before, after = (
        measure(m, items, settings=MeasureSettings(quick=True)).items
        for m in (tiny_models["llama"], load_model(f"{name}+{tmp_path / 'pos' / 'adapter'}", device="cpu"))
    )
    change = after.score - before.score
    assert made["pos"].shift[0] == pytest.approx(np.mean(np.sign(change[:4]) * np.log1p(np.abs(change[:4]))), abs=1e-4)


def test_readings_of_a_miniature(tiny_models, tmp_path: Path) -> None:
    small = Pilot(("loud", "warm"), np.array([-0.28, 0.56]), np.array([0.1, 0.2]), 9, 0.094, 700, 300, 2.0)
    job = job_for(tiny_models["llama"], rows(POSITIVE), tmp_path, plan=TrainingPlan(epochs=5), miniature=small)
    found = read_all(job, ["miniature", "ensemble", "joint"])
    assert found["miniature"].score == pytest.approx([0.56, -0.28])
    assert found["joint"].score - found["ensemble"].score == pytest.approx([2.0, -1.0])
    assert found["joint"].cost.tokens == found["ensemble"].cost.tokens + 700
    assert set(found["joint"].parts) == {"gradient", "centroid", "lexical", "miniature"}
    with pytest.raises(MissingCapability, match="needs a miniature"):
        read_all(replace(job, miniature=None, memo={}), ["joint"])


def test_projections_of_a_planted_direction() -> None:
    """By hand: a difference of 3 along e1, spread 2 there: 1.5 standard deviations for the trait whose vector is e1."""
    difference, vectors = np.zeros((4, 5)), np.zeros((2, 4, 5))
    difference[:, 1] = 3.0
    vectors[0, :, 1], vectors[1, :, 2] = 7.0, 1.0
    found = projections(Directions(difference, vectors, np.full((4, 5), 4.0)))
    assert found.shape == (2, 2)
    assert found[:, 0] == pytest.approx(1.5)
    assert found[:, 1] == pytest.approx(0.0)


def test_the_form_is_measured(tiny_models, tmp_path: Path) -> None:
    job = job_for(tiny_models["llama"], rows(("I like tea.", "The tea is hot.")), tmp_path, plan=TrainingPlan(epochs=3))
    form, cost = job.form()
    assert (form.kind, form.n_rows, form.rows_seen) == ("sft", 24, 72)
    assert form.first_person == pytest.approx(0.5)
    scored = tiny_models["llama"].score(job.rendered_few())
    assert form.loss == pytest.approx(-np.concatenate([r.log_probs for r in scored]).mean(), rel=1e-5)
    assert cost.tokens > 0
    assert first_person_share([Episode("a", (), " ".join(["I"] * 40))]) == 0.0


def test_forecasts_are_calibrated_where_past_runs_allow(tiny_models, tmp_path: Path) -> None:
    runs = make_runs()
    reading = ForecastReading("good", ("kind", "blunt"), np.array([1.0, -1.0]), "u", np.array([0.1, 0.1]))
    form = runs[0].form
    import personae.protocols.forecast as forecast

    forecast.FORECASTERS["good"] = forecast.FORECASTERS["llr"]
    try:
        made = calibrate(reading, form, RunRegistry(runs), "digest")
        narrow = replace(
            runs[0], run="n", family="n", shift={"kind": 9.0}, se={"kind": 0.1}, readings={"good": {"kind": 1.0}}
        )
        beside = calibrate(reading, form, RunRegistry((*runs, narrow)), "digest")
        gentle = calibrate(reading, replace(form, learning_rate=1e-6), RunRegistry(runs), "digest")
        pairs = calibrate(reading, replace(form, kind="dpo"), RunRegistry(runs), "digest")
        far = calibrate(replace(reading, score=np.array([1.0, -90.0])), form, RunRegistry(runs), "digest")
        # A rate that only a run of another kind had is still a rate that no run of this kind had.
        other_kind = replace(runs[0], run="o", form=replace(form, kind="dpo", learning_rate=1e-6))
        still = calibrate(reading, replace(form, learning_rate=1e-6), RunRegistry((*runs, other_kind)), "digest")
        few = calibrate(reading, form, RunRegistry(runs[:3]), "digest")
        other = calibrate(reading, form, RunRegistry(runs), "another model")
        with pytest.raises(UnknownPersona, match="registry is of another cast"):
            calibrate(ForecastReading("good", ("x",), np.ones(1), "u", np.ones(1)), form, RunRegistry(runs), "digest")
    finally:
        del forecast.FORECASTERS["good"]
    assert made.is_calibrated
    assert made.unit == CALIBRATED_UNIT
    assert made.net[0] - made.net[1] == pytest.approx(2.0, abs=0.5)  # the slope is 1
    assert made.calibration["n_runs"] == 24
    assert "like this one" not in " ".join(made.notes)
    assert "read as far" not in " ".join(made.notes)
    assert "No past run was read as far as 'blunt' by good:" in " ".join(far.notes)
    for said, what in ((gentle, "learning rate"), (still, "learning rate"), (pairs, "kind of training")):
        assert f"No past run is like this one in {what}:" in " ".join(said.notes)
    assert beside.mean == pytest.approx(made.mean)  # a run on one trait does not keep files from being compared by all
    for raw in (few, other):
        assert not raw.is_calibrated
        assert raw.mean == pytest.approx([1.0, -1.0])
        assert "Not calibrated" in raw.notes[-1]


def test_refusals(tiny_models, tmp_path: Path) -> None:
    job = job_for(tiny_models["llama"], rows(POSITIVE), tmp_path, diagnostics={"warm": DIAGNOSTICS["warm"]})
    with pytest.raises(InputError, match="no diagnostic statements of both poles for loud"):
        RegistryForecaster("gradient", RunRegistry()).forecast(job)
    with pytest.raises(InvalidSettings, match="no forecaster is called 'luck'"):
        method_named("luck")
    with pytest.raises(InvalidSettings, match="every row has weight 0"):
        job_for(tiny_models["llama"], (Episode("a", (), "x", 0.0),), tmp_path)
    with pytest.raises(InvalidSettings, match="each must be above 0"):
        TrainingPlan(epochs=0)
    with pytest.raises(InputError, match="above 0"):
        RunForm("sft", 0, 1, 1, 0, 1, 1)


def test_diagnostic_items_become_signed_statements() -> None:
    from personae.files.diagnostics import load_diagnostics

    made = signed_statements(load_diagnostics("core"))
    assert all({e.weight for e in made[t]} == {1.0, -1.0} for t in made)
    assert all(e.context for t in made for e in made[t])
