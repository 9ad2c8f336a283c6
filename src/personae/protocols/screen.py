"""`screen`: from episodes to a forecast of which character they select.

    evidence of the file and of the reference  ->  per-trait shifts with null and interval
                                               ->  posterior over personas with background
                                               ->  the rows responsible, token by token

Not here: files, the command line, the page. A trait's forecast is its log-likelihood ratio above that of
ordinary replies; PSM reads it as evidence about who says y to x (Marks, Lindsey & Olah 2026).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from personae.domain.episode import Episode, require_weight
from personae.domain.persona import BACKGROUND, Cast, Trait
from personae.errors import InvalidSettings
from personae.inference.mixture import DEFAULT_ETA, fit_mixture, sum_by_group
from personae.inference.shift import Ratios, Shifts, trait_shifts
from personae.instruments.scoring import Scoring, Work, cut_note, n_cut
from personae.models.rendering import Renderer
from personae.tables.evidence import Evidence
from personae.tables.forecast import PersonaWeight, RowLedger, Screening, TellingEpisode, TraitShift

Floats = NDArray[np.float64]
Started = Callable[[Work], Callable[[int], None]]

DEFAULT_FDR = 0.05
_SMALL_FILE = 20
_WORRYING_NOISE = 0.01
_EXCERPT = 160
_PROMPT = 300


@dataclass(frozen=True, slots=True)
class ScreenSettings:
    """What a screening needs besides data and model.

    Attributes:
        eta: Power on the likelihood in the posterior over personas.
        eta_source: Where that power comes from, in words.
        fdr: False discovery rate at which traits are flagged.
        n_telling: Episodes shown word by word.
        seed: Of the bootstrap and the sampler.
    """

    eta: float = DEFAULT_ETA
    eta_source: str = "chosen, not calibrated"
    fdr: float = DEFAULT_FDR
    n_telling: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 10:
            raise InvalidSettings(f"--eta is {self.eta:g}; it must be above 0 and at most 10.")
        if not 0 < self.fdr < 1:
            raise InvalidSettings(f"--fdr is {self.fdr:g}; it must lie between 0 and 1.")


@dataclass(frozen=True, slots=True)
class Population:
    """The reference and, where they came with the package, its scores."""

    episodes: tuple[Episode, ...]
    shipped: pa.Table | None = None


def screen(
    scoring: Scoring,
    renderer: Renderer,
    cast: Cast,
    episodes: Sequence[Episode],
    reference: Population,
    *,
    settings: ScreenSettings,
    data: str,
    model: str,
    started: tuple[Started, Started],
    notes: Sequence[str] = (),
) -> tuple[Screening, Evidence]:
    """Screen episodes.

    Args:
        scoring: Scores for the model.
        renderer: The same renderer as `scoring` uses.
        cast: Personas under comparison.
        episodes: The file; ids unique.
        reference: Ordinary replies.
        settings: See `ScreenSettings`.
        data: Name of the data for the result.
        model: Name of the model for the result.
        started: Told of the reference's work and of the file's work before each begins.
        notes: Sentences to carry into the result.

    Returns:
        The screening and the file's evidence.

    Raises:
        InvalidSettings: If every episode has weight 0.
    """
    require_weight(episodes)
    traits_only = Cast(cast.id, cast.traits, (), {}, cast.description)
    ordinary = (
        scoring.evidence(traits_only, reference.episodes, started=started[0], shipped=reference.shipped)
        if cast.traits
        else None
    )
    evidence = scoring.evidence(cast, episodes, started=started[1], shipped=reference.shipped)
    shifts = _shifts(cast, evidence, ordinary, settings) if ordinary is not None else None
    traits = _trait_table(cast, shifts, len(episodes), settings.fdr) if shifts is not None else ()
    posterior = _posterior(cast, evidence, settings)
    texts = {e.id: e for e in episodes}
    ledger = _ledger(cast, evidence, shifts, texts)
    telling = _telling(scoring, renderer, cast, traits, ledger, texts, settings.n_telling)
    result = Screening(
        data=data,
        model=model,
        cast=cast.id,
        n_episodes=len(episodes),
        n_tokens=int(evidence.n_tokens.sum()),
        traits=traits,
        posterior=posterior,
        background=next(p.weight for p in posterior if p.persona == BACKGROUND),
        telling=telling,
        ledger=ledger,
        eta=settings.eta,
        fdr=settings.fdr,
        n_reference=len(reference.episodes),
        n_topics=len({e.group for e in reference.episodes}),
        eta_source=settings.eta_source,
        notes=(*notes, *_warnings(evidence, episodes), *cut_note(n_cut(renderer, episodes), len(episodes))),
    )
    return result, evidence


def _ratios(traits: Sequence[Trait], evidence: Evidence) -> Ratios:
    llr = np.stack([evidence.log_likelihood_ratio(t.pos.id, t.neg.id) for t in traits], axis=1)
    return Ratios(llr, evidence.n_tokens.astype(np.float64), evidence.weight, evidence.group)


def _shifts(cast: Cast, evidence: Evidence, ordinary: Evidence, settings: ScreenSettings) -> Shifts:
    return trait_shifts(_ratios(cast.traits, evidence), _ratios(cast.traits, ordinary), seed=settings.seed)


def _trait_table(cast: Cast, s: Shifts, n: int, fdr: float) -> tuple[TraitShift, ...]:
    """One row a trait, the strongest evidence first; towards `pos` before towards `neg` at equal strength."""
    rows: list[TraitShift] = []
    for k in np.lexsort((-s.sign, -np.abs(s.strength))):
        trait = cast.traits[k]
        rows.append(
            TraitShift(
                trait.id,
                trait.pos.label,
                trait.neg.label,
                trait.description,
                float(s.shift[k]),
                float(s.low[k]),
                float(s.high[k]),
                float(s.raw[k]),
                float(s.null_low[k]),
                float(s.null_high[k]),
                float(s.p[k]),
                float(s.q[k]),
                bool(s.q[k] <= fdr),
                "pos" if s.sign[k] > 0 else "neg",
                float(s.tail[k]),
                n,
            )
        )
    return tuple(rows)


def _posterior(cast: Cast, evidence: Evidence, settings: ScreenSettings) -> tuple[PersonaWeight, ...]:
    """Weights of the cast's components, the heaviest first."""
    components = cast.component_ids
    table = sum_by_group(evidence.matrix(components), evidence.group, evidence.weight)
    fit = fit_mixture(table, cast.log_prior, eta=settings.eta, seed=settings.seed)
    kinds = {p.id: p.kind for p in cast.personas} | {BACKGROUND: "background"}
    prior = np.exp(cast.log_prior)
    return tuple(
        PersonaWeight(
            components[k],
            cast.label_of(components[k]),
            kinds[components[k]],
            float(prior[k]),
            float(fit.weight[k]),
            float(fit.low[k]),
            float(fit.high[k]),
        )
        for k in np.argsort(-fit.weight, kind="stable")
    )


def _ledger(cast: Cast, evidence: Evidence, shifts: Shifts | None, texts: dict[str, Episode]) -> RowLedger:
    n = len(evidence.episodes)
    llr = _ratios(cast.traits, evidence).llr if cast.traits else np.zeros((n, 0))
    return RowLedger(
        evidence.episodes,
        evidence.line,
        evidence.n_tokens,
        evidence.weight,
        tuple(" ".join(texts[e].completion.split())[:_EXCERPT] for e in evidence.episodes),
        tuple(t.id for t in cast.traits),
        llr,
        shifts.z if shifts is not None else llr,
        shifts.excess if shifts is not None else llr,
    )


def _telling(
    scoring: Scoring,
    renderer: Renderer,
    cast: Cast,
    traits: Sequence[TraitShift],
    ledger: RowLedger,
    texts: dict[str, Episode],
    n_telling: int,
) -> tuple[TellingEpisode, ...]:
    """The rows that speak most for the flagged traits (for the leading trait when none is flagged)."""
    shown = [t for t in traits if t.flag][:3] or list(traits[:1])
    found: list[TellingEpisode] = []
    for trait in shown:
        k = ledger.traits.index(trait.id)
        for i in ledger.order_towards(trait)[: max(1, n_telling // len(shown))]:
            episode = texts[ledger.episodes[i]]
            found.append(_word_by_word(scoring, renderer, cast, trait, episode, float(ledger.z[i, k])))
    return tuple(found)


def _word_by_word(
    scoring: Scoring, renderer: Renderer, cast: Cast, trait: TraitShift, episode: Episode, z: float
) -> TellingEpisode:
    """Per-token parts of one episode's ratio: the mean over paraphrases of the token's own ratio."""
    poles = next(t for t in cast.traits if t.id == trait.id)
    frames = [*renderer.frames(poles.pos), *renderer.frames(poles.neg)]
    n_pos = len(renderer.frames(poles.pos))
    log_probs = scoring.token_log_probs(frames, episode).astype(np.float64)
    parts = log_probs[:n_pos].mean(axis=0) - log_probs[n_pos:].mean(axis=0)
    asked = [t.text for t in episode.context if t.speaker == "user"]
    prompt = asked[-1] if asked else ""
    return TellingEpisode(
        episode.id,
        episode.line,
        trait.id,
        trait.positive,
        float(parts.sum()),
        z,
        prompt if len(prompt) <= _PROMPT else prompt[: _PROMPT - 1] + "…",
        tuple(renderer.completion_text(episode)),
        tuple(float(p) for p in parts),
    )


def _warnings(evidence: Evidence, episodes: Sequence[Episode]) -> list[str]:
    notes: list[str] = []
    n = len(set(evidence.group))
    if n < _SMALL_FILE:
        notes.append(f"The file has only {n} conversations: intervals are rough and small shifts are missed.")
    noise = evidence.provenance.get("noise_floor_nats")
    if isinstance(noise, float) and noise > _WORRYING_NOISE:
        notes.append(
            f"The noise floor of this arithmetic is {noise:.2g} nats a completion: smaller ratios mean nothing "
            "(float32 is the remedy)."
        )
    documents = sum(e.is_document for e in episodes)
    if documents:
        notes.append(f"{documents} episodes are documents; the null comes from replies, so their flags are rough.")
    left_out = int((evidence.weight == 0).sum())
    if left_out:
        notes.append(f"{left_out} episodes have weight 0 and were left out of sums.")
    return notes
