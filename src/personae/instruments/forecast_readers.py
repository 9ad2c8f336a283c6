"""Readers of text and of likelihoods: what a file says of each trait before it is trained on, one number a trait.

    base rate, loss, form   nothing of the traits: past runs alone speak                         score 0
    lexical                 TF-IDF: is the file worded like one pole's texts?                    no model
    llr                     log p(y | x, pole+) - log p(y | x, pole-), a token, above ordinary   prompts
    tempered_bayes          change of w+ - w- by conditioning with a power                       the same evidence
    em_flow                 change of w+ - w- along the flow of `inference.flow`                 the same evidence
    pilot, em_flow_pilot    the shift after a tenth of the run; the flow with its rate fitted to that
    miniature               the shift after the whole run on a tenth of its rows

The two laws treat each trait as a mixture of its two poles and the model as it is. Not here: readers of activations and
gradients (`instruments.forecast_geometry`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from personae.domain.persona import PLAIN, Cast
from personae.errors import MissingCapability
from personae.inference.flow import em_flow, tempered_bayes
from personae.inference.shift import Ratios, trait_shifts
from personae.instruments.forecasting import ForecastJob, Pilot
from personae.instruments.scoring import Work
from personae.tables.evidence import Evidence
from personae.tables.trait_forecast import Cost, ForecastReading

Floats = NDArray[np.float64]

PULL = 1.0  # lambda times rows seen: how far the flow goes when no pilot has said it
_MOST_STEPS = 100
_PULLS = np.geomspace(0.1, 30, 13)  # of the whole run, tried against a pilot
_TRAIT_PRIOR = np.log([0.25, 0.25, 0.5])  # positive pole, negative pole, the model as it is
DEFAULT_POWER = 0.25


def read_nothing(job: ForecastJob, name: str) -> ForecastReading:
    """The reading of a forecaster that leaves all to past runs."""
    zeros = np.zeros(len(job.traits))
    return ForecastReading(name, job.traits, zeros, "none: past runs alone", zeros.copy(), Cost(of_training=0.0))


def read_lexical(job: ForecastJob) -> ForecastReading:
    """TF-IDF of the file against the texts of each pole: their instructions and diagnostic statements.

    score = (centre of the file - centre of ordinary replies) . (centre of pos - centre of neg), rows of length 1.
    """

    def make() -> tuple[Floats, Floats]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        rows, weights = [e.completion for e in job.sample()], np.array([e.weight for e in job.sample()])
        ordinary = [e.completion for e in job.reference]
        poles = [pole_texts(job, k) for k in range(len(job.traits))]
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        vectorizer.fit([*rows, *ordinary, *(t for pair in poles for texts in pair for t in texts)])

        def centre(texts: Sequence[str]) -> Floats:
            return np.asarray(vectorizer.transform(texts).mean(axis=0)).ravel()

        table = vectorizer.transform(rows)
        directions = np.stack([centre(pos) - centre(neg) for pos, neg in poles])
        each = np.asarray(table @ directions.T) - centre(ordinary) @ directions.T
        return weighted_mean(each, weights)

    (score, se), seconds = job.once("lexical", make)
    return ForecastReading("lexical", job.traits, score, "difference of TF-IDF similarities", se, job.cost(seconds, 0))


def pole_texts(job: ForecastJob, trait: int) -> tuple[list[str], list[str]]:
    """Texts of a trait's positive and negative pole."""
    t = job.cast.traits[trait]
    items = job.diagnostics.get(t.id, ())
    positive = [e.completion for e in items if e.weight > 0]
    negative = [e.completion for e in items if e.weight < 0]
    return [*t.pos.instructions, *positive], [*t.neg.instructions, *negative]


def read_llr(job: ForecastJob) -> ForecastReading:
    """Prompt log-likelihood ratio, nats a token above ordinary replies: what `screen` calls the shift."""
    evidence, ordinary, cost = _evidence(job)
    found = trait_shifts(_ratios(job.cast, evidence), _ratios(job.cast, ordinary), seed=job.seed, n_draws=400)
    se = (found.high - found.low) / (2 * 1.645)
    return ForecastReading("llr", job.traits, found.shift, "mean log-likelihood ratio a token, nats", se, cost)


def read_tempered_bayes(job: ForecastJob) -> ForecastReading:
    """Conditioning on every row the training will see, with a power that gives weak evidence the flow's own pace."""
    return _read_mixture(job, "tempered_bayes")


def read_em_flow(job: ForecastJob) -> ForecastReading:
    """The EM flow along the training, `PULL` / rows seen as its rate."""
    return _read_mixture(job, "em_flow")


def _read_mixture(job: ForecastJob, law: str) -> ForecastReading:
    evidence, ordinary, cost = _evidence(job)
    rows = trait_rows(job.cast, evidence, ordinary)
    n = len(rows)
    halves = [np.arange(n)] if n < 4 else [np.arange(n), *np.split(np.arange(n - n % 4), 2)]
    moved = np.array(
        [[_moved(job, rows[at, k], evidence.weight[at], law) for k in range(len(job.traits))] for at in halves]
    )
    score = moved[0]
    se = np.zeros_like(score) if n < 4 else np.abs(moved[1] - moved[2]) / 2
    unit = "change of the weight of the positive pole less that of the negative one"
    notes = ("No pilot has fixed the rate: the scale comes from past runs.",)
    return ForecastReading(law, job.traits, score, unit, se, cost, notes)


def read_pilot(job: ForecastJob) -> ForecastReading:
    """The shift after at most a tenth of the training: how far it has gone already."""
    pilot, at = _pilot(job)
    return _shift_after(job, "pilot", pilot, at, "shift after the pilot, nats")


def read_miniature(job: ForecastJob) -> ForecastReading:
    """The shift after the training in miniature, each item's change compressed; see `protocols.pilot`."""
    made, at = _measured(job, job.miniature, "miniature", "protocols.pilot.run_miniature")
    unit = "mean of sign(c) log(1 + |c|) over changes c of items after the miniature, nats"
    return _shift_after(job, "miniature", made, at, unit)


def _shift_after(job: ForecastJob, name: str, pilot: Pilot, at: list[int], unit: str) -> ForecastReading:
    return ForecastReading(name, job.traits, pilot.shift[at], unit, pilot.se[at], _pilot_cost(job, pilot))


def read_em_flow_pilot(job: ForecastJob) -> ForecastReading:
    """The EM flow with its rate fitted to the pilot: one rate and one scale for all traits, by least squares.

    score_k = scale (w+ - w-)_k at the end of the run, where scale (w+ - w-)_k after the pilot's rows is nearest to what
    the pilot did.
    """
    pilot, at = _pilot(job)
    evidence, ordinary, cost = _evidence(job)
    rows, weight = trait_rows(job.cast, evidence, ordinary), evidence.weight
    seen, wanted = pilot.shift[at], 1 / np.maximum(pilot.se[at], 1e-3) ** 2
    best: tuple[float, float, float] = (np.inf, PULL, 0.0)
    for pull in _PULLS:
        early = np.array([_moved(job, rows[:, k], weight, "em_flow", pull=pull * pilot.share) for k in range(len(at))])
        scale = float(wanted * early @ seen / max(float(wanted * early @ early), 1e-12))
        best = min(best, (float(wanted @ (seen - scale * early) ** 2), pull, scale))
    _, pull, scale = best
    late = np.array([_moved(job, rows[:, k], weight, "em_flow", pull=pull) for k in range(len(at))])
    spread = float(np.sqrt(1 / max(float(wanted * late @ late), 1e-12)))  # of the scale
    both = _pilot_cost(job, pilot)
    whole = job.cost(cost.seconds + both.seconds, cost.tokens + both.tokens, shared_tokens=both.shared_tokens)
    note = (f"Pilot of {pilot.share:.0%} of the run: pull {pull:.2g}, scale {scale:.2g} nats.",)
    unit = "EM flow scaled by the pilot, nats"
    return ForecastReading("em_flow_pilot", job.traits, scale * late, unit, np.abs(late) * spread, whole, note)


def _pilot(job: ForecastJob) -> tuple[Pilot, list[int]]:
    return _measured(job, job.pilot, "pilot", "protocols.pilot.run_pilot")


def _measured(job: ForecastJob, made: Pilot | None, what: str, maker: str) -> tuple[Pilot, list[int]]:
    """A pilot that must be there, and the place of each of the job's traits in it.

    Raises:
        MissingCapability: If there is none, or it did not measure a trait.
    """
    if made is None:
        raise MissingCapability(
            f"this forecaster needs a {what} of the training.",
            hint=f"Make one with {maker}, or choose a forecaster that trains nothing: 'ensemble'.",
        )
    missing = [t for t in job.traits if t not in made.traits]
    if missing:
        raise MissingCapability(
            f"the {what} of the training does not measure {', '.join(missing[:5])}.",
            hint="Leave these traits out, or choose a forecaster that trains nothing: 'ensemble'.",
        )
    return made, [made.traits.index(t) for t in job.traits]


def _pilot_cost(job: ForecastJob, pilot: Pilot) -> Cost:
    return job.cost(pilot.seconds, pilot.tokens, shared_tokens=pilot.shared_tokens)


def trait_rows(cast: Cast, evidence: Evidence, ordinary: Evidence) -> Floats:
    """Log-likelihoods of rows under (pos, neg, as it is) of every trait, shape (n_episodes, n_traits, 3), nats.

    Relative to the model as it is, and less what an ordinary reply of that length shows, so that a trait whose poles
    are both far-fetched is not taken for evidence of anything.
    """
    plain, plain_ordinary = evidence.log_likelihood(PLAIN), ordinary.log_likelihood(PLAIN)
    out = np.zeros((len(evidence.episodes), len(cast.traits), 3))
    for k, trait in enumerate(cast.traits):
        for pole, persona in enumerate((trait.pos, trait.neg)):
            gap = ordinary.log_likelihood(persona.id) - plain_ordinary
            mean = gap.sum() / ordinary.n_tokens.sum()
            out[:, k, pole] = evidence.log_likelihood(persona.id) - plain - mean * evidence.n_tokens
    return out


def _moved(job: ForecastJob, rows: Floats, weight: Floats, law: str, *, pull: float = PULL) -> float:
    """Change of w+ - w- over the rows the training will see, drawn from the sample again and again."""
    seen = min(job.plan.rows_seen(job.n_rows), _MOST_STEPS * 8)
    rng = np.random.default_rng([job.seed, 11])
    pairs = np.arange(len(rows)).reshape(-1, 2) if job.method == "dpo" and len(rows) % 2 == 0 else None
    order = rng.integers(len(rows) if pairs is None else len(pairs), size=seen)
    at = order if pairs is None else pairs[order].ravel()
    size = max(2, 2 * -(-len(at) // (2 * _MOST_STEPS)))
    rate = pull / seen
    if law == "em_flow":
        path = em_flow(_TRAIT_PRIOR, rows[at], rate=rate, eta=DEFAULT_POWER, weight=weight[at], batch_size=size)
    else:
        path = tempered_bayes(_TRAIT_PRIOR, rows[at], power=rate * DEFAULT_POWER, weight=weight[at], batch_size=size)
    first, last = np.exp(path[0]), np.exp(path[-1])
    return float((last[0] - last[1]) - (first[0] - first[1]))


def _evidence(job: ForecastJob) -> tuple[Evidence, Evidence, Cost]:
    """Evidence of the sample and of ordinary replies, with what the sample's cost."""
    cast = Cast(job.cast.id, job.cast.traits).limit_paraphrases(job.n_paraphrases)

    def make() -> tuple[Evidence, Evidence]:
        ordinary = job.scoring.evidence(cast, job.reference, started=_silent, shipped=job.shipped)
        return job.scoring.evidence(cast, job.sample(), started=_silent, shipped=job.shipped), ordinary

    (evidence, ordinary), seconds = job.once("evidence", make)
    n_frames = cast.n_instructions + 1
    tokens = n_frames * sum(len(i.token_ids) for i in job.rendered())
    shared = 0 if job.shipped is not None else n_frames * int(ordinary.n_tokens.sum())
    return evidence, ordinary, job.cost(seconds, tokens, shared_tokens=shared)


def _silent(_work: Work) -> Callable[[int], None]:
    return lambda _tokens: None


def _ratios(cast: Cast, evidence: Evidence) -> Ratios:
    llr = np.stack([evidence.log_likelihood_ratio(t.pos.id, t.neg.id) for t in cast.traits], axis=1)
    return Ratios(llr, evidence.n_tokens.astype(np.float64), evidence.weight, evidence.group)


def weighted_mean(rows: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Sum of w_i x_i / sum |w_i| and its standard error, rows independent."""
    total = np.abs(weight).sum()
    mean = weight @ rows / total
    off = weight[:, None] * rows - np.abs(weight)[:, None] * mean
    n = len(rows)
    return mean, np.sqrt((off**2).sum(axis=0) * n / max(1, n - 1)) / total
