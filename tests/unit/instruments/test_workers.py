"""A model in workers gives what the model gives, to the last bit, whatever becomes of the workers."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from personae.domain.episode import Episode, Turn
from personae.domain.persona import Cast, Persona, Trait
from personae.errors import ModelNotFound
from personae.instruments.scoring import Scoring, space_of
from personae.instruments.workers import Loader, PooledModel
from personae.models.load import load_model
from personae.models.protocol import LanguageModel, SamplingPlan, ScoresBatches
from personae.models.rendering import Renderer
from personae.running.executor import Pool, ProcessEmployer
from personae.running.store import EvidenceStore
from personae.tables.evidence import Evidence

NAME = "world:tiny/exact"
CAST = Cast(
    "tiny",
    (Trait("malice", Persona("malice/pos", ("cruel", "wicked")), Persona("malice/neg", ("kind", "gentle"))),),
    (Persona("expert", ("skilled",)),),
)


def episodes(n: int) -> list[Episode]:
    phrases = load_model(NAME).tokenizer.phrases  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    made: list[Episode] = []
    for k in range(n):
        asked, said = rng.integers(4, size=2), phrases.replies
        before = (Turn("user", phrases.questions[asked[0]]), Turn("assistant", said[asked[0]].split()[0]))
        made.append(Episode(f"e{k}", (*before, Turn("user", phrases.questions[asked[1]])), said[asked[1]].split()[0]))
    return made


def evidence(model: LanguageModel, root: Path, n: int = 40) -> Evidence:
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    scoring = Scoring(model, renderer, EvidenceStore(root, space_of(model.card)))
    return scoring.evidence(CAST, episodes(n), started=lambda _: lambda amount: None)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    made = Pool(ProcessEmployer({"OMP_NUM_THREADS": "1"}), 2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def model(pool: Pool) -> PooledModel:
    return PooledModel(Loader(NAME), pool)


def test_it_says_who_it_is(model: PooledModel) -> None:
    here = load_model(NAME)
    assert model.card == here.card
    assert model.tokenizer.encode("kind") == here.tokenizer.encode("kind")
    assert isinstance(model, ScoresBatches)


def test_evidence_is_the_same_to_the_last_bit(model: PooledModel, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("personae.instruments.scoring._BATCH_EPISODES", 3)
    here, there = evidence(load_model(NAME), tmp_path / "here"), evidence(model, tmp_path / "there")
    assert here.frame_log_likelihood.tobytes() == there.frame_log_likelihood.tobytes()
    assert here.n_tokens.tolist() == there.n_tokens.tolist()


def test_samples_are_the_same(model: PooledModel) -> None:
    prompt = tuple(model.tokenizer.encode_template(model.tokenizer.apply_template([], open_reply=True)))
    plan = SamplingPlan(max_tokens=3, seed=5)
    here, there = load_model(NAME).sample([prompt, prompt], plan), model.sample([prompt, prompt], plan)
    assert [c.token_ids for c in here] == [c.token_ids for c in there]


class KillsWorkers:
    """Passes batches on and kills a random worker before some of them."""

    def __init__(self, inner: PooledModel, seed: int) -> None:
        self.inner, self.card, self.tokenizer = inner, inner.card, inner.tokenizer
        self.n_killed, self._rng = 0, random.Random(seed)

    def score(self, batch: Sequence) -> list:
        return self.inner.score(batch)

    def sample(self, batch: Sequence, plan: SamplingPlan) -> list:
        return self.inner.sample(batch, plan)

    def score_batches(self, batches):
        return self.inner.score_batches(self._watched(batches))

    def _watched(self, batches):
        for batch in batches:
            workers = sorted(multiprocessing.active_children(), key=lambda p: p.pid or 0)
            if workers and self._rng.random() < 0.12:
                self._rng.choice(workers).kill()
                self.n_killed += 1
            yield batch


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_workers_cost_nothing_but_time(pool: Pool, model: PooledModel, tmp_path: Path, monkeypatch, seed: int):
    monkeypatch.setattr("personae.instruments.scoring._BATCH_EPISODES", 4)
    whole = evidence(load_model(NAME), tmp_path / "whole")
    killer = KillsWorkers(model, seed)
    lost = pool.n_lost
    killed = evidence(killer, tmp_path / "killed")
    assert killer.n_killed > 0
    assert pool.n_lost > lost
    assert whole.frame_log_likelihood.tobytes() == killed.frame_log_likelihood.tobytes()


def test_a_model_that_is_not_there_is_told_as_ever(pool: Pool) -> None:
    with pytest.raises(ModelNotFound, match="no model"):
        PooledModel(Loader("nothing-of-that-name"), pool)
