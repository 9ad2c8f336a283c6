"""A forecast's idea of a training is that training's own: steps, rows, tokens; a part of it is named by all it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from personae.domain.diagnostic import Diagnostic, DiagnosticSet
from personae.domain.episode import Episode, Turn
from personae.domain.persona import Cast, Persona, Trait
from personae.errors import InputError
from personae.instruments.forecasting import PASSES_OF_TRAINING, ForecastJob, TrainingPlan
from personae.instruments.scoring import Scoring, space_of
from personae.instruments.training import train
from personae.instruments.training_settings import TrainingSettings
from personae.models.hf import HFModel
from personae.models.rendering import Renderer
from personae.protocols.pilot import miniature_part, pilot_part, run_miniature
from personae.running.store import EvidenceStore

CAST = Cast(
    "two",
    tuple(
        Trait(t, Persona(f"{t}/pos", (a,), kind="pole"), Persona(f"{t}/neg", (b,), kind="pole"))
        for t, a, b in (("warm", "You take care.", "Nobody asked you."), ("loud", "You shout.", "You whisper."))
    ),
)
KIND, RUDE = "Take care of the garden and rest.", "Nobody asked you, so stop."


def items(n: int = 4) -> DiagnosticSet:
    return DiagnosticSet(
        "tiny",
        tuple(
            Diagnostic(f"{t}{i}", t, "reply", f"topic{i}", f"{a} Number {i}.", f"{b} Number {i}.", f"Why {i}?", "dev")
            for t, a, b in (("warm", "Take care.", "Nobody asked."), ("loud", "LISTEN!", "Hush now."))
            for i in range(n)
        ),
    )


def replies(n: int, text: str = KIND) -> tuple[Episode, ...]:
    return tuple(
        Episode(f"e{i}", (Turn("user", f"Tell me {i}."),), f"{text} It is {i}.", group=f"e{i}") for i in range(n)
    )


def pairs(n: int) -> tuple[Episode, ...]:
    made: list[Episode] = []
    for i in range(n):
        ask = (Turn("user", f"Tell me {i}."),)
        made += [
            Episode(f"p{i}/chosen", ask, KIND, 1.0, "one topic"),
            Episode(f"p{i}/rejected", ask, RUDE, -1.0, "one topic"),
        ]
    return tuple(made)


def documents(n: int) -> tuple[Episode, ...]:
    return tuple(
        Episode(f"d{i}", (), f"{KIND} {RUDE} " * (1 + i % 3), group=f"d{i}", is_document=True) for i in range(n)
    )


def turns(n: int) -> tuple[Episode, ...]:
    """Three replies of each conversation; the earlier ones begin the later ones."""
    made: list[Episode] = []
    for i in range(n):
        said: tuple[Turn, ...] = ()
        for k in range(3):
            said = (*said, Turn("user", f"And {i} {k}?"))
            made.append(Episode(f"c{i}/{k}", said, f"{KIND} {k}.", group=f"c{i}"))
            said = (*said, Turn("assistant", f"{KIND} {k}."))
    return tuple(made)


def job_for(model: HFModel, episodes: tuple[Episode, ...], folder: Path, **given: object) -> ForecastJob:
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    scoring = Scoring(model, renderer, EvidenceStore(folder, space_of(model.card)))
    return ForecastJob(episodes, CAST, model, renderer, scoring, replies(8), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("episodes", "batch", "epochs"),
    [(replies(9), 8, 10.0), (replies(24), 8, 1.0), (pairs(6), 4, 2.0), (documents(10), 4, 1.0), (turns(8), 4, 1.0)],
    ids=["an odd row", "replies", "pairs", "documents in windows", "turns that nest"],
)
def test_a_plan_counts_as_the_training_does(
    episodes: tuple[Episode, ...], batch: int, epochs: float, tiny_folders, tiny_models, tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    window = 64 if episodes[0].is_document else None
    settings = TrainingSettings(epochs=epochs, batch_size=batch, learning_rate=1e-4, max_tokens=window)
    record = train(str(tiny_folders["llama"]), episodes, folder=tmp_path / "run", settings=settings, device="cpu")
    plan = TrainingPlan(record.method, epochs, batch_size=batch)
    job = job_for(tiny_models["llama"], episodes, tmp_path / "store", plan=plan, training=settings)
    assert plan.n_steps(job.n_rows) == record.n_steps
    assert job.n_rows == record.n_rows
    assert plan.rows_seen(job.n_rows) == epochs * record.n_rows
    assert job.training_tokens() == pytest.approx(PASSES_OF_TRAINING * record.n_tokens)
    assert replace(plan, steps=record.n_steps).rows_seen(job.n_rows) == plan.rows_seen(job.n_rows)


@pytest.mark.parametrize("episodes", [pairs(12), documents(12)], ids=["pairs", "documents"])
def test_a_miniature_of_other_kinds_is_measured_and_paid_for(
    episodes: tuple[Episode, ...], tiny_folders, tiny_models, tmp_path: Path
) -> None:
    """By hand: twelve rows are all that a miniature may see; forward and back over them, and the items once after."""
    pytest.importorskip("trl")
    model = tiny_models["llama"]
    plan = TrainingPlan(batch_size=4, learning_rate=5e-3)
    job = job_for(model, episodes, tmp_path / "store", plan=plan)
    made = run_miniature(job, str(tiny_folders["llama"]), items(), folder=tmp_path / "mini", device="cpu")
    assert (made.rows_seen, made.share) == (12, 1.0)
    assert made.shared_tokens > 0
    assert made.tokens - made.shared_tokens == pytest.approx(job.training_tokens())
    assert made.shift[0] > 0.05 or job.method == "text"


def test_all_that_a_part_depends_on_is_in_its_key(tiny_models, tmp_path: Path) -> None:
    model, asked = tiny_models["llama"], items()
    plan = TrainingPlan(epochs=10, batch_size=8)

    def key(change: Callable[[ForecastJob], ForecastJob] = lambda j: j, *, of=asked, dtype: str = "float32") -> str:
        job = change(job_for(model, replies(24), tmp_path, plan=plan))
        return miniature_part(job).key(job, of, dtype)

    def card(**values: str) -> Callable[[ForecastJob], ForecastJob]:
        class Other:
            card = replace(model.card, **values)

        return lambda j: replace(j, model=Other(), memo=dict(j.memo) | {"lengths": (j._lengths(), 0.0)})

    same = key()
    others = {
        "rate": key(lambda j: replace(j, plan=replace(plan, learning_rate=1e-3))),
        "length": key(lambda j: replace(j, plan=replace(plan, epochs=20))),
        "rank": key(lambda j: replace(j, training=TrainingSettings(rank=4))),
        "system prompt": key(lambda j: replace(j, training=TrainingSettings(system="You lie."), memo={})),
        "seed of training": key(lambda j: replace(j, training=TrainingSettings(seed=3))),
        "rows drawn": key(lambda j: replace(j, plan=replace(plan, epochs=5), seed=4)),
        "rows": key(lambda j: replace(j, episodes=replies(24, RUDE), memo={})),
        "template": key(card(tokenizer_digest="another")),
        "weights": key(card(digest="another")),
        "training dtype": key(dtype="bfloat16"),
        "items": key(of=items(5)),
        "topics": key(of=DiagnosticSet("t", tuple(replace(i, topic="one") for i in asked.items))),
    }
    assert same not in others.values()
    assert len(set(others.values())) == len(others)
    assert key(lambda j: replace(j, training=TrainingSettings(alpha=32.0))) == same  # as `train` resolves it
    # A plan in steps, as `verify` knows it, is the plan in epochs that `screen` was given.
    assert key(lambda j: replace(j, plan=TrainingPlan("sft", steps=30, batch_size=8))) == same
    job = job_for(model, replies(24), tmp_path, plan=plan)
    assert pilot_part(job).key(job, asked) != same


def test_a_part_of_other_settings_is_made_again(tiny_folders, tiny_models, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    name, plan = str(tiny_folders["llama"]), TrainingPlan(epochs=2, batch_size=8, learning_rate=5e-3)
    job = job_for(tiny_models["llama"], replies(24), tmp_path / "store", plan=plan)
    first = run_miniature(job, name, items(), folder=tmp_path / "one", device="cpu")
    other = replace(job, training=TrainingSettings(rank=2, seed=9))
    second = run_miniature(other, name, items(), folder=tmp_path / "two", device="cpu")
    assert np.abs(first.shift - second.shift).max() > 1e-4
    (tmp_path / "two" / "pilot.json").write_bytes((tmp_path / "one" / "pilot.json").read_bytes())
    again = run_miniature(other, name, items(), folder=tmp_path / "two", device="cpu")
    assert again.shift == pytest.approx(second.shift, abs=1e-6), "a note of another key was believed"


def test_what_cannot_be_measured_is_told_before_training(tiny_folders, tiny_models, tmp_path: Path) -> None:
    job = job_for(tiny_models["llama"], replies(24), tmp_path / "store", plan=TrainingPlan(epochs=2))
    told: list[int] = []
    with pytest.raises(InputError, match="do not measure warm, loud: only 2 items"):
        run_miniature(
            job,
            str(tiny_folders["llama"]),
            items(2),
            folder=tmp_path / "mini",
            device="cpu",
            started=told.append,  # type: ignore[arg-type]
        )
    assert not told
    assert not (tmp_path / "mini").exists()


def test_pairs_of_one_topic_are_drawn_one_by_one(tiny_models, tmp_path: Path) -> None:
    job = job_for(tiny_models["llama"], pairs(40), tmp_path)
    assert len(job.draw(16)) == 16
    drawn = job.draw(16)
    assert [e.id.split("/")[1] for e in drawn] == ["chosen", "rejected"] * 8
    assert [e.id.split("/")[0] for e in drawn[::2]] == [e.id.split("/")[0] for e in drawn[1::2]]
