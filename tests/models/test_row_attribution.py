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
from personae.protocols.attribution import Ranking, attribute, rank_rows
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


def planted_only(rows: Sequence[Episode], _name: str) -> tuple[float, float]:
    """A training whose shift is what planted rows are left."""
    return 0.5 * sum(e.id in PLANTED for e in rows), 0.05


def test_the_gradient_names_planted_rows_and_their_removal_undoes_the_shift(job: ForecastJob) -> None:
    rankings = [rank_rows(job, "rude", method=m) for m in ("gradient", "random")]
    assert rankings[0].separation(PLANTED) > 0.95
    found = attribute(job.episodes, rankings, planted_only, planted=PLANTED)
    named, chance = found.removals
    assert named.n_dropped == 4
    assert named.removed >= 0.7
    assert named.low > 0.5
    assert chance.removed <= 0.3
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


def test_no_shift_is_said_and_bad_requests_are_refused(job: ForecastJob) -> None:
    ranking = rank_rows(job, "rude", method="random")
    found = attribute(job.episodes, [ranking], lambda _rows, _name: (0.01, 0.1))
    assert "no clear shift" in found.notes[0]
    with pytest.raises(InvalidSettings, match="none out"):
        attribute(job.episodes, [ranking], planted_only, share=0.001)
    with pytest.raises(InvalidSettings, match="one trait and one side"):
        attribute(job.episodes, [ranking, Ranking("llr", "other", 1.0, (), np.zeros(0), 0.0)], planted_only)
    with pytest.raises(InvalidSettings, match="is called 'luck'"):
        rank_rows(job, "rude", method="luck")
    with pytest.raises(UnknownPersona, match="no trait 'calm'"):
        rank_rows(job, "calm", method="llr")
