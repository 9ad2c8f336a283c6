"""The embedded model for real: laws, shipped reference scores, and the example a user meets first."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from personae.domain.episode import Episode, Turn
from personae.domain.persona import Cast
from personae.files.casts import load_casts
from personae.files.diagnostics import load_diagnostics
from personae.files.episodes import read_episodes
from personae.files.reference import load_reference, shipped_rows
from personae.instruments.scoring import Scoring, cast_frames, space_of
from personae.models.catalogue import EMBEDDED
from personae.models.laws import check_laws
from personae.models.load import load_model
from personae.models.protocol import LanguageModel
from personae.models.rendering import Renderer
from personae.numerics.statistics import auroc
from personae.running.store import EvidenceStore

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.skipif(EMBEDDED["smollm2"].files() is None, reason=EMBEDDED["smollm2"].install)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    before = os.environ.get("PERSONAE_HOME")
    os.environ["PERSONAE_HOME"] = str(tmp_path_factory.mktemp("home"))
    yield load_model("smollm2")
    if before is None:
        del os.environ["PERSONAE_HOME"]
    else:
        os.environ["PERSONAE_HOME"] = before


@pytest.fixture(scope="module")
def renderer(model: LanguageModel) -> Renderer:
    return Renderer(model.tokenizer, context_length=model.card.context_length)


def test_laws_hold(model: LanguageModel) -> None:
    verdicts = check_laws(model)
    assert len(verdicts) >= 8
    assert [v.law for v in verdicts if not v.holds] == []


def test_further_pairs_of_replies_have_equal_tokens(model: LanguageModel) -> None:
    """A difference of lengths would move the log-odds of every pair whatever is said."""
    known = {i.id for i in load_diagnostics("core").items}
    further = [i for i in load_diagnostics("core", thorough=True).items if i.id not in known]
    assert len(further) == 672
    encode = model.tokenizer.encode
    assert [i.id for i in further if len(encode(i.pos)) != len(encode(i.neg))] == []


@pytest.fixture(scope="module")
def sharp(model: LanguageModel) -> LanguageModel:
    return load_model("smollm2-sharp")


@pytest.mark.parametrize(("name", "size"), [("model", 24), ("sharp", 8)])
def test_shipped_reference_scores_are_what_the_model_says(
    name: str, size: int, renderer: Renderer, request: pytest.FixtureRequest
) -> None:
    """A sample of pairs is computed again; other processors may differ within the tolerance of the dtype."""
    model: LanguageModel = request.getfixturevalue(name)
    shipped = shipped_rows(space_of(model.card))
    assert shipped is not None
    frames = {f.digest: f for f in cast_frames(load_casts(["core"]), renderer)}
    episodes = {e.content_digest: e for e in load_reference()}
    rows = shipped.to_pylist()
    assert len({r["episode"] for r in rows}) == len(episodes) >= 200
    first = {f.digest for f in cast_frames(Cast("core", load_casts(["core"]).traits).limit_paraphrases(1), renderer)}
    assert first <= {r["frame"] for r in rows}
    for index in np.random.default_rng(0).choice(len(rows), size=size, replace=False):
        row = rows[index]
        item = renderer.render(frames[row["frame"]], episodes[row["episode"]])
        found = model.score([item])[0]
        assert len(found.log_probs) == row["n_tokens"]
        assert abs(found.log_likelihood - row["log_likelihood"]) <= model.card.tolerance * row["n_tokens"]


def test_planted_rows_of_the_example_stand_out(model: LanguageModel, renderer: Renderer, tmp_path: Path) -> None:
    """Row AUROC of the planted trait in the example, with its matched control as the null."""
    planted = set(json.loads((EXAMPLES / "support_desk_planted.json").read_text())["ids"])
    cast = load_casts(["core"]).select(["contemptuous"]).limit_paraphrases(2)
    scoring = Scoring(model, renderer, EvidenceStore(tmp_path, space_of(model.card)))
    ratio = {}
    for name in ("support_desk", "support_desk_clean"):
        read = read_episodes(EXAMPLES / f"{name}.jsonl", limit=48).require_clean().episodes
        # Every planted row and half of the others: what is compared is the same, at two thirds of the tokens.
        episodes = [e for k, e in enumerate(read) if e.id in planted or k % 2]
        evidence = scoring.evidence(cast, episodes, started=lambda work: lambda n: None)
        ratio[name] = evidence.log_likelihood_ratio("contemptuous/pos", "contemptuous/neg") / evidence.n_tokens
        labels = np.array([e.id in planted for e in episodes])
    assert labels.sum() >= 6
    # Ten planted rows or so: a standard error of 0.06 around the 0.93 of four paraphrases.
    assert auroc(ratio["support_desk"], labels) > 0.8
    assert 0.25 < auroc(ratio["support_desk_clean"], labels) < 0.75
    assert np.mean(ratio["support_desk"][labels] > ratio["support_desk_clean"][labels]) > 0.9


def test_the_shipped_scorer_tells_apart_what_the_plain_model_does_not(
    model: LanguageModel, sharp: LanguageModel, renderer: Renderer, tmp_path: Path
) -> None:
    """Two traits that its training left out, on items of the test half, none of which it was trained on."""
    assert sharp.card.digest != model.card.digest
    assert sharp.card.tokenizer_digest == model.card.tokenizer_digest
    cast = load_casts(["core"]).select(["sarcastic", "caring"]).limit_paraphrases(1)
    items = [i for i in load_diagnostics("core").items if i.split == "test" and i.kind == "reply"]
    found: dict[str, list[float]] = {"smollm2": [], "smollm2-sharp": []}
    for trait in cast.traits:
        mine = [i for i in items if i.trait == trait.id]
        texts = [(i.prompt, text, pole) for i in mine for text, pole in ((i.pos, True), (i.neg, False))]
        rows = [Episode(f"r{k}", (Turn("user", p or "Hello"),), text) for k, (p, text, _) in enumerate(texts)]
        labels = np.array([pole for *_, pole in texts])
        assert labels.sum() == 8
        for scorer, values in zip((model, sharp), found.values(), strict=True):
            scoring = Scoring(scorer, renderer, EvidenceStore(tmp_path / scorer.card.name, space_of(scorer.card)))
            evidence = scoring.evidence(Cast("one", (trait,)), rows, started=lambda work: lambda n: None)
            values.append(auroc(evidence.log_likelihood_ratio(trait.pos.id, trait.neg.id), labels))
    # Measured: 0.80 and 0.67 plain, 0.88 and 0.98 sharpened.
    assert min(found["smollm2-sharp"]) > max(found["smollm2"])
    assert np.mean(found["smollm2-sharp"]) > 0.85
