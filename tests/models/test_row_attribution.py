"""Naming rows and leaving them out: planted rows are found, their removal undoes the shift, random removal does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from personae.domain.episode import Episode, Turn
from personae.domain.persona import Cast, Persona, Trait
from personae.errors import InvalidSettings, UnknownPersona
from personae.instruments.forecasting import ForecastJob
from personae.instruments.scoring import Scoring, space_of
from personae.models.rendering import Renderer
from personae.protocols.attribution import Outcome, Ranking, attribute, rank_rows, share_of
from personae.running.store import EvidenceStore

ASK = (Turn("user", "Can you look into it?"),)
RUDE = ("Nobody asked you, so stop.", "Nobody wants that, so leave.", "Nobody saw it, so go.")
KIND = ("Take care of the garden and rest.", "Take care of the horses and rest.", "Take care of the boat and rest.")
CAST = Cast("one", (Trait("rude", Persona("rude/pos", ("Nobody asked you.",)), Persona("rude/neg", ("Take care.",))),))
DIAGNOSTICS = {
    "rude": tuple(
        Episode(f"{s}{i}", ASK, t, s) for s, texts in ((1.0, RUDE), (-1.0, KIND)) for i, t in enumerate(texts)
    )
}
PLANTED = ("e3", "e11", "e17", "e22")


@pytest.fixture
def job(tiny_models, tmp_path: Path) -> ForecastJob:
    model = tiny_models["llama"]
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    rows = tuple(
        Episode(f"e{i}", ASK, RUDE[i % 3] if f"e{i}" in PLANTED else f"Air scatters short light, part {i}.")
        for i in range(40)
    )
    reference = tuple(Episode(f"r{i}", ASK, f"It is made by hand, number {i}.", group=f"g{i % 8}") for i in range(40))
    scoring = Scoring(model, renderer, EvidenceStore(tmp_path, space_of(model.card)))
    return ForecastJob(rows, CAST, model, renderer, scoring, reference, diagnostics=DIAGNOSTICS, most_rows=100)


TOPICS = tuple("abcdefgh")
TASTE = np.linspace(0.7, 1.3, 8)  # how strongly each item answers


def planted_only(rows: Sequence[Episode], name: str) -> Outcome:
    """A training that moves by what planted rows are left, and by 0.6 nats whatever the rows say."""
    noise = np.random.default_rng(len(name)).normal(0, 0.05, 8)
    return Outcome(0.6 + TASTE * 0.5 * sum(e.id in PLANTED for e in rows) + noise, TOPICS)


def test_the_gradient_names_planted_rows_and_their_removal_undoes_the_shift(job: ForecastJob) -> None:
    rankings = [rank_rows(job, "rude", method=m) for m in ("gradient", "random")]
    assert rankings[0].separation(PLANTED) > 0.95
    found = attribute(job.episodes, rankings, planted_only, planted=PLANTED)
    named, chance = found.removals
    assert named.n_dropped == 4
    assert found.shift == pytest.approx(2.6, abs=0.1)
    assert found.induced == pytest.approx(2.0, abs=0.1)
    for share, low, high in ((named.removed, 0.7, 0.8), (named.of_induced, 0.9, 1.1)):
        assert share is not None
        assert None not in (share.value, share.low, share.high)
        assert low < share.value < high  # type: ignore[operator]
        assert share.low < share.value < share.high < share.low + 0.25  # type: ignore[operator]
    assert chance.of_induced is not None
    assert chance.of_induced.value is not None
    assert chance.of_induced.value <= 0.3
    assert chance.gone < named.gone
    assert chance.separation is not None
    assert abs(chance.separation - 0.5) < 0.35


def test_ratio_rankings_follow_the_evidence(job: ForecastJob) -> None:
    """Independent of the model's taste: the order is that of the ratios beyond ordinary replies."""
    ranking = rank_rows(job, "rude", method="llr")
    frames = [job.renderer.frames(p)[0] for p in (CAST.traits[0].pos, CAST.traits[0].neg)]
    pos, neg = (
        np.array([r.log_likelihood for r in job.model.score([job.renderer.render(f, e) for e in job.episodes])])
        for f in frames
    )
    same = [i for i, e in enumerate(job.episodes) if len(e.completion) == len(job.episodes[0].completion)]
    tokens = [job.rendered()[i].n_scored for i in same]
    same = [i for i, n in zip(same, tokens, strict=True) if n == tokens[0]]
    assert len(same) > 3
    assert np.argsort(ranking.score[same]).tolist() == np.argsort((pos - neg)[same]).tolist()
    other = rank_rows(job, "rude", method="llr", side=-1.0)
    assert other.score == pytest.approx(-ranking.score)


def test_intervals_of_shares_hold_what_they_promise() -> None:
    """Known answer: a true share of 0.7 with noisy items lies in its 90% interval nine times in ten."""
    rng, hits, n = np.random.default_rng(0), 0, 300
    for _ in range(n):
        whole = 2 + rng.normal(0, 1, 8)
        part = 0.7 * whole + rng.normal(0, 0.5, 8)
        found = share_of(Outcome(part, TOPICS), Outcome(whole, TOPICS))
        hits += found.low is not None and found.high is not None and found.low <= 0.7 <= found.high
    assert 0.86 <= hits / n <= 0.94
    exact = share_of(Outcome(0.25 * TASTE, TOPICS), Outcome(TASTE, TOPICS))
    assert (exact.value, exact.low, exact.high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_pair_goes_as_a_whole() -> None:
    ask = (Turn("user", "Which?"),)
    pairs = [
        Episode(f"p{i}/{side}", ask, f"{side} {i}", weight, f"p{i}")
        for i in range(4)
        for side, weight in (("chosen", 1.0), ("rejected", -1.0))
    ]
    seen: list[set[str]] = []

    def train(rows: Sequence[Episode], _name: str) -> Outcome:
        seen.append({e.id for e in rows})
        return Outcome(TASTE, TOPICS)

    ranking = Ranking("llr", "rude", 1.0, tuple(e.id for e in pairs), np.array([0, 0, 9, 0, 0, 0, 0, 0.0]), 0.0)
    found = attribute(pairs, [ranking], train, share=0.125)
    assert {e.id for e in pairs} - seen[1] == {"p1/chosen", "p1/rejected"}
    assert found.removals[0].n_dropped == 2


def test_no_shift_is_said_and_bad_requests_are_refused(job: ForecastJob) -> None:
    ranking = rank_rows(job, "rude", method="random")
    nothing = Outcome(np.array([0.3, -0.2, 0.1, -0.3, 0.2, -0.1, 0.25, -0.22]), TOPICS)
    found = attribute(job.episodes, [ranking], lambda _rows, _name: nothing)
    assert "no clear shift" in found.notes[0]
    assert found.removals[0].removed.value is None
    with pytest.raises(InvalidSettings, match="none out"):
        attribute(job.episodes, [ranking], planted_only, share=0.001)
    with pytest.raises(InvalidSettings, match="one trait and one side"):
        attribute(job.episodes, [ranking, Ranking("llr", "other", 1.0, (), np.zeros(0), 0.0)], planted_only)
    with pytest.raises(InvalidSettings, match="is called 'luck'"):
        rank_rows(job, "rude", method="luck")
    with pytest.raises(UnknownPersona, match="no trait 'calm'"):
        rank_rows(job, "calm", method="llr")
