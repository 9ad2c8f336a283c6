"""Laws any backend must pass before its numbers are believed, as code that users run too.

Each law asks the model the same thing in two ways that must agree and reports the worst gap, in nats a
token. `personae check-model MODEL` runs them all; so do the tests, on models with learned positions, grouped
queries, sliding windows and capped logits. Laws of reading and editing activations are in `models.laws_edits`.
Not here: what to do about a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.domain.episode import Episode, Turn
from personae.domain.persona import PLAIN, Persona
from personae.errors import MissingCapability
from personae.models.activations import EditableModel
from personae.models.laws_edits import edit_laws
from personae.models.protocol import (
    GivesFullDistribution,
    KnowsPhrases,
    LanguageModel,
    Phrases,
    SamplingPlan,
    Scorable,
    Tokenizer,
)
from personae.models.rendering import Renderer

# Any text will do for most models; a closed vocabulary brings its own (`KnowsPhrases`).
_ENGLISH = Phrases(
    ("You are a patient librarian.", "Your replies are short and blunt, without a word of comfort."),
    (
        "What is the capital of France?",
        "My order has not arrived and I am tired of waiting. Can you look into it?",
        "Say hello.",
        "Explain in two sentences why the sky is blue.",
    ),
    (
        "The capital of France is Paris.",
        "I am sorry about the delay. If you send me the order number I will check where it is and come back to you "
        "today.",
        "Hello!",
        "Air scatters short wavelengths of light more than long ones. So blue light reaches our eyes from every "
        "direction.",
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of one law.

    Attributes:
        law: Its name.
        gap: Worst disagreement; nats a token unless `unit` says otherwise. NaN-free.
        tolerance: Largest gap allowed.
        holds: Whether it was within the tolerance.
        note: What was compared, or why it was skipped.
        skipped: Whether the model lacks the ability the law needs.
    """

    law: str
    gap: float
    tolerance: float
    holds: bool
    note: str
    skipped: bool = False


def check_laws(model: LanguageModel) -> list[Verdict]:
    """Run every law on a model and give the verdicts in order."""
    items = law_requests(model)
    tolerance = model.card.tolerance
    laws: tuple[tuple[str, str, float, Callable[[], float]], ...] = (
        ("batch", "together, in another order and twice, against alone", tolerance, lambda: _batch(model, items)),
        ("prefix", "with a shared prefix against without", tolerance, lambda: _prefix(model, items)),
        ("history", "asked again after other questions", tolerance, lambda: _history(model, items)),
        ("chain rule", "log p(ab) against log p(a) + log p(b after a)", tolerance, lambda: _chain(model, items)),
        ("same tokens", "scored ids equal under every frame; number of differences", 0.0, lambda: _same_tokens(model)),
        (
            "sample = score",
            "log-probabilities while sampling against scored",
            tolerance,
            lambda: _sample_score(model, items),
        ),
        ("seeds", "same seed, same sample; another seed differs (0) or not (1)", 0.0, lambda: _seeds(model, items)),
    )
    verdicts = [_verdict(name, note, bound, law()) for name, note, bound, law in laws]
    if isinstance(model, GivesFullDistribution):
        gap = _normalisation(model, items)
        verdicts.insert(
            4, _verdict("normalisation", "next-token probabilities sum to 1; and agree with scores", tolerance, gap)
        )
    if isinstance(model, EditableModel):
        verdicts += _of_edits(model, items)
    return verdicts


def _of_edits(model: EditableModel, items: list[Scorable]) -> list[Verdict]:
    """Laws of activations; skipped for a family whose layers cannot be told, which is scored all the same."""
    try:
        return [_verdict(name, note, bound, law()) for name, note, bound, law in edit_laws(model, items)]
    except MissingCapability as error:
        return [Verdict("reading", 0.0, 0.0, True, str(error), skipped=True)]


def noise_floor(model: LanguageModel, items: Sequence[Scorable]) -> float:
    """RMS difference of summed log-likelihoods, scored together with shared prefixes against alone without, nats."""
    if not items:
        return 0.0
    together = model.score(list(items))
    alone = [model.score([Scorable(i.token_ids, i.start)])[0] for i in items]
    sums = [(a.log_likelihood, b.log_likelihood) for a, b in zip(together, alone, strict=True)]
    gaps = [0.0 if a == b else a - b for a, b in sums]  # both may be minus infinity
    return float(np.sqrt(np.mean(np.square(gaps))))


def _verdict(law: str, note: str, tolerance: float, gap: float) -> Verdict:
    return Verdict(law, gap, tolerance, gap <= tolerance, note)


def _phrases(tokenizer: Tokenizer) -> Phrases:
    own = tokenizer.phrases if isinstance(tokenizer, KnowsPhrases) else None
    return own or _ENGLISH


def _personas(phrases: Phrases) -> tuple[Persona, ...]:
    return (Persona("law", phrases.instructions), Persona(PLAIN, ()))


def _episodes(phrases: Phrases) -> list[Episode]:
    pairs = zip(phrases.questions, phrases.replies, strict=True)
    return [Episode(f"law-{k}", (Turn("user", q),), a) for k, (q, a) in enumerate(pairs)]


def law_requests(model: LanguageModel) -> list[Scorable]:
    """What the laws ask: a few questions with their replies, under every frame of a persona and of none."""
    renderer = Renderer(model.tokenizer, context_length=model.card.context_length)
    phrases = _phrases(model.tokenizer)
    frames = [f for p in _personas(phrases) for f in renderer.frames(p)]
    return [renderer.render(f, e) for f in frames for e in _episodes(phrases)]


def _logs(model: LanguageModel, items: Sequence[Scorable]) -> list[NDArray[np.float32]]:
    return [r.log_probs for r in model.score(items)]


def _gap(a: Sequence[NDArray[np.float32]], b: Sequence[NDArray[np.float32]]) -> float:
    """Worst disagreement; infinite where lengths differ or a number is missing. Equal infinities agree."""
    if [x.shape for x in a] != [y.shape for y in b]:
        return float("inf")
    with np.errstate(invalid="ignore"):
        gaps = [np.where(x == y, 0.0, np.abs(x.astype(np.float64) - y)).max() for x, y in zip(a, b, strict=True)]
    return float(np.nan_to_num(np.max(gaps), nan=np.inf))


def _batch(model: LanguageModel, items: list[Scorable]) -> float:
    alone = [_logs(model, [i])[0] for i in items]
    order = np.random.default_rng(0).permutation(len(items))
    shuffled = _logs(model, [items[k] for k in order] + items)
    back = [shuffled[int(np.flatnonzero(order == k)[0])] for k in range(len(items))]
    return max(_gap(alone, back), _gap(alone, shuffled[len(items) :]))


def _prefix(model: LanguageModel, items: list[Scorable]) -> float:
    whole = [Scorable(i.token_ids, i.start) for i in items]
    return _gap(_logs(model, items), _logs(model, whole))


def _history(model: LanguageModel, items: list[Scorable]) -> float:
    first = _logs(model, items[:3])
    model.score(items[3:])
    model.score(list(reversed(items)))
    return _gap(first, _logs(model, items[:3]))


def _chain(model: LanguageModel, items: list[Scorable]) -> float:
    gaps: list[float] = []
    for item in items[:4]:
        cut = item.start + max(1, item.n_scored // 2)
        if cut >= len(item.token_ids):
            continue
        whole = _logs(model, [item])[0]
        head = _logs(model, [Scorable(item.token_ids[:cut], item.start)])[0]
        tail = _logs(model, [Scorable(item.token_ids, cut)])[0]
        gaps.append(_gap([whole], [np.concatenate([head, tail])]))
    return max(gaps)


def _same_tokens(model: LanguageModel) -> float:
    def fresh() -> Renderer:
        # One renderer encodes a completion once; several notice a tokenizer that does not repeat itself.
        return Renderer(model.tokenizer, context_length=model.card.context_length)

    phrases = _phrases(model.tokenizer)
    frames = [f for p in _personas(phrases) for f in fresh().frames(p)]
    differences = 0
    for episode in _episodes(phrases):
        spans = [item.token_ids[item.start :] for item in (fresh().render(f, episode) for f in frames)]
        differences += sum(s != spans[0] for s in spans)
    return float(differences)


def _sample_score(model: LanguageModel, items: list[Scorable]) -> float:
    prompts = [i.token_ids[: i.start] for i in items[:2]]
    gaps: list[float] = []
    for prompt, made in zip(prompts, model.sample(prompts, SamplingPlan(max_tokens=8, seed=1)), strict=True):
        scored = _logs(model, [Scorable((*prompt, *made.token_ids), len(prompt))])[0]
        gaps.append(_gap([made.log_probs], [scored]))
    return max(gaps)


def _seeds(model: LanguageModel, items: list[Scorable]) -> float:
    # Of several prompts, since a model whose replies are one token long may well repeat one of them.
    prompts = [item.token_ids[: item.start] for item in items[:4]]
    made = [model.sample(prompts, SamplingPlan(max_tokens=12, seed=s)) for s in (1, 1, 2, 3, 4)]
    draws = [[c.token_ids for c in completions] for completions in made]
    same = draws[0] == draws[1]
    differs = any(d != draws[0] for d in draws[2:])
    return 0.0 if same and differs else 1.0


def _normalisation(model: LanguageModel, items: list[Scorable]) -> float:
    assert isinstance(model, GivesFullDistribution)
    gaps: list[float] = []
    for item in items[:3]:
        log_p = model.next_token_log_probs(item.token_ids[: item.start])
        first = Scorable(item.token_ids[: item.start + 1], item.start)
        total = np.log(np.exp(log_p.astype(np.float64)).sum())
        gaps += [
            float(np.abs(np.nan_to_num(total, nan=np.inf))),
            _gap([log_p[[first.token_ids[-1]]]], _logs(model, [first])),
        ]
    return max(gaps)
