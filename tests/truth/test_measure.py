"""Trait profiles where the answer is planted: read right, biases removed, intervals that hold what they say."""

from __future__ import annotations

import numpy as np
import pytest

from personae.domain.diagnostic import Diagnostic, DiagnosticSet
from personae.errors import InvalidSettings, NumericsError
from personae.files.diagnostics import load_diagnostics
from personae.inference.traits import choice_scores, reply_scores, template_coverage
from personae.models.exact import ExactModel
from personae.protocols.measure import MeasureSettings, compare_profiles, measure, profile_of
from personae.tables.traits import Answers
from personae.worlds.diagnostics import world_diagnostics
from personae.worlds.exact import ExactWorld
from personae.worlds.reading import read_world

N_TOPICS = 16


def answers_of(
    preference: float = 0.0,
    *,
    yes_bias: float = 0.0,
    order_bias: float = 0.0,
    coverage: float = 0.9,
    spread: float = 0.0,
    topic_spread: float = 0.0,
    seed: int = 0,
    n_topics: int = N_TOPICS,
    per_topic: int = 2,
) -> Answers:
    """What a model with a planted preference (nats towards pos) and planted biases would say."""
    rng = np.random.default_rng(seed)
    n = n_topics * per_topic
    topic = np.repeat(np.arange(n_topics), per_topic)
    own = preference + topic_spread * rng.standard_normal(n_topics)[topic] + spread * rng.standard_normal(n)
    is_reply = np.arange(n) % 2 == 0
    replies = np.stack([-20 + own / 2, -20 - own / 2], axis=1)
    letters = odds(np.stack([own + order_bias, -own + order_bias], axis=1), coverage)
    agreement = odds(np.stack([own + yes_bias, -own + yes_bias], axis=1), coverage)
    replies[~is_reply], letters[is_reply], agreement[is_reply] = np.nan, np.nan, np.nan
    return Answers(
        tuple(f"i{k}" for k in range(n)),
        ("kind",) * n,
        tuple(f"t{k}" for k in topic),
        tuple("reply" if r else "statement" for r in is_reply),
        replies,
        np.where(is_reply[:, None], 10, 0) * np.ones((n, 2), np.int64),
        {"letters": letters, "agreement": agreement},
    )


def odds(log_odds: np.ndarray, coverage: float) -> np.ndarray:
    """Log-probabilities of two options with the given log-odds that make up `coverage` together."""
    first = coverage / (1 + np.exp(-log_odds))
    return np.log(np.stack([first, coverage - first], axis=-1))


@pytest.mark.parametrize("preference", [-1.5, 0.0, 0.7])
def test_a_planted_preference_is_read_exactly_whatever_the_biases(preference: float) -> None:
    profile = profile_of(answers_of(preference, yes_bias=2.0, order_bias=-3.0), model="m", cast="c")
    for part in ("replies", "statements"):
        assert profile.parts[part][0].log_odds == pytest.approx(preference, abs=1e-9)
    assert {c.template: round(c.order_bias, 6) for c in profile.coverage} == {"letters": -3.0, "agreement": 2.0}
    assert profile.of("kind").part == "replies"


def test_single_statements_are_balanced_against_each_other() -> None:
    """Yes is liked by 2 nats; statements of pos are believed by 0.6, of neg denied by 0.6."""
    asked = np.full((10, 2, 2), np.nan)
    asked[:6, 0] = odds(np.full(6, 2.6), 0.9)
    asked[6:, 1] = odds(np.full(4, 1.4), 0.9)
    assert choice_scores(asked) == pytest.approx(np.full(10, 0.6))


def test_only_one_pole_of_single_statements_is_no_measurement() -> None:
    asked = np.full((4, 2, 2), np.nan)
    asked[:, 0] = odds(np.full(4, 2.6), 0.9)
    assert np.isnan(choice_scores(asked)).all()


def test_a_reply_gains_nothing_by_its_length() -> None:
    """Both replies cost 2 nats a token; one has two tokens more."""
    tokens = np.array([[10, 12], [12, 10], [10, 10]])
    assert reply_scores(-2.0 * tokens, tokens) == pytest.approx(np.zeros(3))
    equal = reply_scores(np.array([[-20.0, -23.5]]), np.array([[9, 9]]))
    assert equal == pytest.approx([3.5]), "of equal lengths it is the difference of the sums"


def test_a_model_that_does_not_answer_is_not_measurable() -> None:
    answers = answers_of(1.0, coverage=0.3)
    profile = profile_of(answers, model="m", cast="c")
    reading = profile.parts["statements"][0]
    assert not reading.measurable
    assert "'letters' 0.30" in reading.reason
    assert profile.of("kind").measurable, "its replies can still be read"
    assert not template_coverage("letters", answers.choices["letters"]).measurable


def test_nothing_measurable_is_an_error() -> None:
    answers = answers_of(1.0, coverage=0.3)
    silent = Answers(
        answers.items,
        answers.traits,
        answers.topics,
        ("statement",) * len(answers.items),
        np.full_like(answers.replies, np.nan),
        answers.n_tokens * 0,
        answers.choices,
    )
    with pytest.raises(NumericsError, match="answers no item"):
        profile_of(silent, model="m", cast="c")


def test_intervals_hold_what_they_say() -> None:
    """400 models with 16 topics; a 95% interval that covers 95% misses 20 of them, 34 at three sigma."""
    missed = naive = 0
    for seed in range(400):
        made = answers_of(0.5, spread=1.0, topic_spread=1.0, seed=seed, per_topic=6)
        reading = profile_of(made, model="m", cast="c").of("kind")
        missed += not reading.low <= 0.5 <= reading.high
        scores = reply_scores(made.replies, made.n_tokens)
        scores = scores[np.isfinite(scores)]
        naive += abs(scores.mean() - 0.5) > 1.96 * scores.std(ddof=1) / np.sqrt(len(scores))
    assert missed <= 34
    assert naive > 60, "ignoring topics would miss far more often"


def test_a_planted_change_is_found_and_none_is_not() -> None:
    before = profile_of(answers_of(0.2, topic_spread=2.0, seed=1), model="a", cast="c")
    after = profile_of(answers_of(0.9, topic_spread=2.0, seed=1), model="b", cast="c")
    (moved,) = compare_profiles(before, after)
    assert moved.change == pytest.approx(0.7)
    assert moved.q < 0.001
    alarms = 0
    for seed in range(200):
        pair = [
            profile_of(answers_of(0.2, spread=0.5, topic_spread=0.5, seed=2 * seed + k), model=str(k), cast="c")
            for k in (0, 1)
        ]
        alarms += compare_profiles(*pair)[0].p < 0.05
    assert alarms <= 20, "10 expected at 5%, 20 is beyond three sigma"


def test_the_poles_of_a_world_are_read_right_and_its_prior_leaves_them_even() -> None:
    """The exact model under a pole's tag against without it: known to raise (or lower) that trait."""
    world = read_world("two-traits") if "two-traits" in _worlds() else read_world(_worlds()[0])
    items, model = world_diagnostics(world), ExactModel(world.base)
    plain = measure(model, items)
    for trait in world.traits:
        for tag, sign in ((trait.positive_tags[0], 1), (trait.negative_tags[0], -1)):
            tagged = measure(model, items, settings=MeasureSettings(system=tag))
            change = next(c for c in compare_profiles(plain, tagged) if c.trait == trait.id)
            assert sign * change.change > 0
            assert change.q < 0.05


def test_a_score_in_a_world_is_the_log_ratio_of_its_exact_answers() -> None:
    world = read_world(_worlds()[0])
    items, exact = world_diagnostics(world), ExactWorld(world.base)
    profile = measure(ExactModel(world.base), items)
    p = exact.answers(exact.frame_prior(world.chat))
    language = exact.language
    by_id = dict(zip(profile.items.item, profile.items.score, strict=True))
    for item in items.items[:20]:
        q = language.id_of(item.prompt) - language.first_question
        answers = [language.words[int(a)] for a in language.answers(q)]
        expected = np.log(p[q, answers.index(item.pos)] / p[q, answers.index(item.neg)])
        assert by_id[item.id] == pytest.approx(expected, abs=1e-4)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InvalidSettings, match="the split is 'train'"):
        MeasureSettings(split="train")


def _worlds() -> list[str]:
    from personae.worlds.reading import shipped_worlds

    return sorted(shipped_worlds())


def test_a_tiny_model_is_measured_the_same_from_the_store_at_no_cost(tiny_models, tmp_path) -> None:
    from personae.instruments.scoring import space_of
    from personae.running.store import EvidenceStore

    core = load_diagnostics("core").select(traits=["formal", "curious"])
    few = DiagnosticSet("few", tuple(i for i in core.items if i.topic in ("garden", "music", "pets", "advice", "work")))
    for name in ("qwen3", "base"):
        model = tiny_models[name]
        store = EvidenceStore(tmp_path / name, space_of(model.card))
        fresh = measure(model, few, store=store)
        again = measure(model, few, store=store)
        alone = measure(model, few)
        assert fresh.n_tokens == alone.n_tokens > 0
        assert again.n_tokens == 0
        for a, b in ((fresh, again), (fresh, alone)):
            assert a.items.item == b.items.item
            assert np.allclose(a.items.score, b.items.score, atol=1e-3)
        assert all(not r.measurable for r in fresh.parts["statements"]), "an untrained model answers no template"
        assert fresh.notes


def test_an_item_is_scored_as_the_model_scores_it_alone(tiny_models) -> None:
    from personae.domain.episode import Episode, Turn
    from personae.domain.persona import PLAIN, Persona
    from personae.models.protocol import Scorable
    from personae.models.rendering import Renderer

    model = tiny_models["llama"]
    items = tuple(
        Diagnostic(f"x{k}", "t", "reply", f"x{k}", "Hello there", "Paris is so", f"Ask {k}?") for k in range(4)
    )
    profile = measure(model, DiagnosticSet("x", items))
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    frame = renderer.frames(Persona(PLAIN, ()))[0]
    for item, score in zip(items, profile.items.score, strict=True):
        rows = [renderer.render(frame, Episode("e", (Turn("user", item.prompt),), t)) for t in (item.pos, item.neg)]
        found = [model.score([Scorable(r.token_ids, r.start)])[0] for r in rows]
        n = np.array([[r.n_scored for r in rows]])
        expected = reply_scores(np.array([[f.log_likelihood for f in found]]), n)[0]
        assert score == pytest.approx(expected, abs=1e-3)
