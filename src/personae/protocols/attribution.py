"""Which rows did it? Rank rows for a trait before training, leave the first out, train again, and see what is left.

    share removed = 1 - shift without the named rows / shift with all rows

Three ways to name rows: `llr` (what `screen` names: log-likelihood ratio of the poles beyond ordinary replies),
`gradient` (inner product of the row's own gradient with that of the trait's measure: influence to first order,
2002.08484 at the starting point), and `random`, the null. Leaving rows out and training again is the only outcome:
a ranking alone proves nothing (2602.11079 removes 63% so). Not here: training and measuring, which are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.domain.episode import Episode
from personae.domain.persona import Cast
from personae.errors import InvalidSettings, UnknownPersona
from personae.inference.shift import Ratios, trait_shifts
from personae.instruments.forecast_geometry import LORA_RANK, statements_of, trait_gradients
from personae.instruments.forecasting import ForecastJob
from personae.models.gradients import open_gradients
from personae.numerics.statistics import auroc

Floats = NDArray[np.float64]
Outcome = tuple[float, float]
TrainAndMeasure = Callable[[Sequence[Episode], str], Outcome]

METHODS = ("llr", "gradient", "random")
_N_DRAWS = 4000


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Rows of a file ordered by what they would add to a trait.

    Attributes:
        method: How they were ranked.
        trait: For which trait, towards its positive pole times `side`.
        side: +1 or -1: the pole the file is thought to move to.
        episodes: Ids, in file order.
        score: Higher is more towards that pole, shape (n_episodes,).
        seconds: What ranking took.
    """

    method: str
    trait: str
    side: float
    episodes: tuple[str, ...]
    score: Floats
    seconds: float

    def first(self, n: int) -> tuple[str, ...]:
        """Ids of the n rows that add most."""
        return tuple(self.episodes[i] for i in np.argsort(-self.score, kind="stable")[:n])

    def separation(self, planted: Sequence[str]) -> float:
        """Probability that a planted row stands above another (AUROC)."""
        marked = set(planted)
        return auroc(self.score, np.array([e in marked for e in self.episodes]))


@dataclass(frozen=True, slots=True)
class Removal:
    """What was left of a trait's shift without some rows.

    Attributes:
        method: How rows were named.
        n_dropped: How many were left out.
        shift, se: Of the training without them, nats.
        removed: Share of the full training's shift that is gone; above 1 if the sign turned.
        low, high: 90% interval of `removed`, from both measurements' errors.
        separation: AUROC of planted rows under the ranking; None where none are marked.
    """

    method: str
    n_dropped: int
    shift: float
    se: float
    removed: float
    low: float
    high: float
    separation: float | None


@dataclass(frozen=True, slots=True)
class Attribution:
    """Outcome for one trait of one file.

    Attributes:
        trait: Its id.
        shift, se: Of the training with all rows, nats.
        n_rows: Rows of the file.
        removals: One a method.
        notes: What a reader must know.
    """

    trait: str
    shift: float
    se: float
    n_rows: int
    removals: tuple[Removal, ...]
    notes: tuple[str, ...] = ()


def rank_rows(job: ForecastJob, trait: str, *, method: str, side: float = 1.0, seed: int = 0) -> Ranking:
    """Rank every row of a job's file for a trait.

    Args:
        job: With `most_rows` at least the number of rows.
        trait: Of the job's cast.
        method: One of `METHODS`.
        side: +1 to look for rows that move towards the positive pole, -1 for the other.
        seed: Of the random ranking.

    Raises:
        InvalidSettings: If the method is not known or the job reads a sample only.
        UnknownPersona: If the cast has no such trait.
        InputError, MissingCapability: As the readers of `instruments`.
    """
    if method not in METHODS:
        raise InvalidSettings(f"no way to rank rows is called '{method}'.", hint=f"There are: {', '.join(METHODS)}.")
    if trait not in job.traits:
        raise UnknownPersona(f"the cast has no trait '{trait}'.", hint=f"Its traits: {', '.join(job.traits)}.")
    rows = job.sample()
    if len(rows) < sum(e.weight != 0 for e in job.episodes):
        raise InvalidSettings(f"the job reads {len(rows)} of {len(job.episodes)} rows; ranking needs them all.")
    make = {"llr": _by_ratio, "gradient": _by_gradient, "random": lambda j, _t: _at_random(j, seed)}[method]
    score, seconds = job.once(f"rank {method} {trait} {seed}", lambda: make(job, trait))
    return Ranking(method, trait, side, tuple(e.id for e in rows), side * score, seconds)


def attribute(
    episodes: Sequence[Episode],
    rankings: Sequence[Ranking],
    train_and_measure: TrainAndMeasure,
    *,
    share: float = 0.1,
    planted: Sequence[str] = (),
    seed: int = 0,
) -> Attribution:
    """Train on all rows, then without the rows that each ranking names, and compare.

    Args:
        episodes: The file.
        rankings: Of the same trait and side.
        train_and_measure: Given rows and a name for the run, trains and gives the trait's shift with its standard
            error, nats towards the positive pole. The number of steps should not depend on the number of rows.
        share: Of the rows to leave out.
        planted: Ids of rows that are known to be responsible, where they are.
        seed: Of the intervals.

    Raises:
        InvalidSettings: If rankings are of different traits, none is given, or the share leaves nothing to do.
    """
    n_dropped = round(share * len(episodes))
    if not rankings or len({(r.trait, r.side) for r in rankings}) > 1:
        raise InvalidSettings("rankings of one trait and one side are needed, one at least.")
    if not 0 < n_dropped < len(episodes):
        raise InvalidSettings(f"a share of {share:g} of {len(episodes)} rows leaves none out, or none over.")
    full, full_se = train_and_measure(list(episodes), "all rows")
    rng = np.random.default_rng(seed)
    draws = rng.normal(full, full_se, _N_DRAWS)
    removals: list[Removal] = []
    for ranking in rankings:
        dropped = set(ranking.first(n_dropped))
        shift, se = train_and_measure([e for e in episodes if e.id not in dropped], f"without {ranking.method}")
        ratio = 1 - rng.normal(shift, se, _N_DRAWS) / draws
        low, high = np.quantile(ratio, [0.05, 0.95])
        removals.append(
            Removal(
                ranking.method,
                n_dropped,
                shift,
                se,
                1 - shift / full if full else float("nan"),
                float(low),
                float(high),
                ranking.separation(planted) if planted else None,
            )
        )
    notes = ()
    if abs(full) < 2 * full_se:
        notes = (
            f"The training moved '{rankings[0].trait}' by {full:+.2f} ± {full_se:.2f} nats, which is no clear shift: "
            "shares of it mean little.",
        )
    return Attribution(rankings[0].trait, full, full_se, len(episodes), tuple(removals), notes)


def _by_ratio(job: ForecastJob, trait: str) -> Floats:
    """What each row adds to the trait's shift, nats beyond ordinary replies; a rejected reply counts the other way."""
    t = job.cast.traits[job.traits.index(trait)]
    cast = Cast(job.cast.id, (t,))
    episodes = job.sample()

    def silent(_work: object) -> Callable[[int], None]:
        return lambda _tokens: None

    def ratios(rows: Sequence[Episode]) -> Ratios:
        evidence = job.scoring.evidence(cast, rows, started=silent, shipped=job.shipped)
        llr = evidence.log_likelihood_ratio(t.pos.id, t.neg.id)[:, None]
        return Ratios(llr, evidence.n_tokens.astype(np.float64), evidence.weight, evidence.group)

    found = trait_shifts(ratios(episodes), ratios(job.reference), seed=job.seed, n_draws=50)
    return found.excess[:, 0] * np.array([e.weight for e in episodes])


def _by_gradient(job: ForecastJob, trait: str) -> Floats:
    """Inner product of each row's gradient with that of the trait's measure, rows as the loss weighs them."""
    gradients = open_gradients(job.model, rank=LORA_RANK, seed=job.seed)
    measure = trait_gradients(job, [statements_of(job, [trait])[0]], gradients)
    weight = np.array([e.weight for e in job.sample()])
    return weight * gradients.products(job.rendered(), measure)[:, 0]


def _at_random(job: ForecastJob, seed: int) -> Floats:
    return np.random.default_rng([seed, 13]).random(len(job.sample()))
