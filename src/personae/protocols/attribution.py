"""Which rows did it? Rank rows for a trait before training, leave the first out, train again, and see what is left.

    share removed = (shift with all rows - shift without the named) / shift with all rows,    paired by item

Three ways to name rows: `llr` (what `screen` names: log-likelihood ratio of the poles beyond ordinary replies),
`gradient` (inner product of the row's own gradient with that of the trait's measure: influence to first order,
2002.08484 at the starting point), and `random`, the null. Leaving rows out and training again is the only outcome:
a ranking alone proves nothing (2602.11079 removes 63% so). Any fine-tune moves a trait somewhat whatever its rows say,
so where the responsible rows are known the training without them is made too, and shares are told of what they
induced. Not here: training and measuring, which are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from personae.domain.episode import Episode
from personae.domain.persona import Cast
from personae.errors import InvalidSettings, UnknownPersona
from personae.inference.shift import Ratios, trait_shifts
from personae.instruments.forecast_passes import gradients_of, trait_marks
from personae.instruments.forecasting import ForecastJob
from personae.numerics.clustered import cluster_mean
from personae.numerics.statistics import auroc
from personae.tables.attribution import Attribution, Removal, Share
from personae.tables.traits import TraitProfile

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What one training did to a trait.

    Attributes:
        change: Of the trait's log-odds by item, after less before, nats, shape (n_items,); the same items throughout.
        topics: Of each item; items of a topic are no independent evidence.
    """

    change: Floats
    topics: tuple[str, ...]

    @property
    def shift(self) -> float:
        """Mean over items, nats."""
        return float(np.mean(self.change))

    @property
    def se(self) -> float:
        """Standard error of `shift`, clustered by topic."""
        return cluster_mean(self.change, self.topics).se


def outcome_of(before: TraitProfile, after: TraitProfile, trait: str) -> Outcome:
    """What moved between two profiles of a trait, item by item.

    Raises:
        InvalidSettings: If either could not be measured, or they share no item.
    """
    tables = [p.of_part(trait, p.of(trait).part) for p in (before, after)]
    first, second = (dict(zip(zip(t.item, t.template, strict=True), t.score, strict=True)) for t in tables)
    clusters = dict(zip(zip(tables[0].item, tables[0].template, strict=True), tables[0].cluster, strict=True))
    shared = [k for k in first if k in second]
    if not shared or before.of(trait).part != after.of(trait).part:
        raise InvalidSettings(f"'{trait}' was not measured on the same items before and after.")
    return Outcome(np.array([second[k] - first[k] for k in shared]), tuple(clusters[k] for k in shared))


TrainAndMeasure = Callable[[Sequence[Episode], str], Outcome]

METHODS = ("llr", "gradient", "random")
WITHOUT_PLANTED = "planted"


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
    full: Outcome | None = None,
) -> Attribution:
    """Train without the rows that each ranking names, and compare with the training on all rows.

    Args:
        episodes: The file; the rows of a preference pair share their `group` and go together.
        rankings: Of the same trait and side.
        train_and_measure: Given rows and a name for the run, trains and measures; on the same items each time. The
            number of steps should not depend on the number of rows.
        share: Of the rows to leave out.
        planted: Ids of rows that are known to be responsible, where they are.
        full: The training on all rows, where it was made already.

    Raises:
        InvalidSettings: If rankings are of different traits, none is given, or the share leaves nothing to do.
    """
    if not rankings or len({(r.trait, r.side) for r in rankings}) > 1:
        raise InvalidSettings("rankings of one trait and one side are needed, one at least.")
    n_dropped = n_left_out(len(episodes), share)
    whole = full if full is not None else train_and_measure(list(episodes), "all rows")
    induced = None
    if planted:
        clean = train_and_measure(_without(episodes, planted), f"without {WITHOUT_PLANTED}")
        induced = Outcome(whole.change - clean.change, whole.topics)
    removals: list[Removal] = []
    for ranking in rankings:
        kept = _without(episodes, ranking.first(n_dropped))
        found = train_and_measure(kept, f"without {ranking.method}")
        gone = Outcome(whole.change - found.change, whole.topics)
        removals.append(
            Removal(
                ranking.method,
                len(episodes) - len(kept),
                found.shift,
                found.se,
                gone.shift,
                gone.se,
                share_of(gone, whole),
                share_of(gone, induced) if induced is not None else None,
                ranking.separation(planted) if planted else None,
            )
        )
    first = rankings[0]
    notes = ()
    if share_of(whole, whole).value is None:
        notes = (
            f"The training moved '{first.trait}' by {whole.shift:+.2f} ± {whole.se:.2f} nats, which is no clear shift: "
            "shares of it are not told.",
        )
    return Attribution(
        first.trait,
        first.side,
        whole.shift,
        whole.se,
        induced.shift if induced is not None else None,
        induced.se if induced is not None else None,
        len(episodes),
        tuple(removals),
        notes,
    )


def n_left_out(n_rows: int, share: float) -> int:
    """How many rows a share is.

    Raises:
        InvalidSettings: If that is none, or all.
    """
    n = round(share * n_rows) if 0 < share < 1 else 0
    if not 0 < n < n_rows:
        raise InvalidSettings(f"a share of {share:g} of {n_rows} rows leaves none out, or none over.")
    return n


def share_of(part: Outcome, whole: Outcome) -> Share:
    """The ratio of two means over the same items with its 90% interval, by Fieller's theorem (1954).

    The interval holds every r for which the mean of part - r whole does not differ from 0 at that level; errors of
    items are shared by both and cancel. Where the whole does not differ from 0 there is no interval, and no value.
    """
    a, b, both = (cluster_mean(v, whole.topics) for v in (part.change, whole.change, part.change + whole.change))
    cov = (both.se**2 - a.se**2 - b.se**2) / 2
    t2 = float(stats.t.ppf(0.95, max(b.df, 1.0))) ** 2
    square = b.value**2 - t2 * b.se**2
    if not square > 0:
        return Share(None, None, None)
    middle = a.value * b.value - t2 * cov
    width = np.sqrt(max(0.0, middle**2 - square * (a.value**2 - t2 * a.se**2)))
    return Share(a.value / b.value, float((middle - width) / square), float((middle + width) / square))


def _without(episodes: Sequence[Episode], dropped: Sequence[str]) -> list[Episode]:
    """Rows that are left; of a preference pair both rows go."""
    named = set(dropped)
    pairs = {e.group for e in episodes if e.id in named and any(o.weight < 0 for o in episodes)}
    return [e for e in episodes if e.id not in named and e.group not in pairs]


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
    measure = trait_marks(job, [trait]).gradients
    weight = np.array([e.weight for e in job.sample()])
    return weight * gradients_of(job).products(job.rendered(), measure)[:, 0]


def _at_random(job: ForecastJob, seed: int) -> Floats:
    return np.random.default_rng([seed, 13]).random(len(job.sample()))
