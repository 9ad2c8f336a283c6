"""Comparisons of two arms on an item table, with errors at the level at which scores are independent.

Templates are averaged within an item first: two wordings of one question are not two questions. Then

    paired      d_i = score of item i in the second arm less that in the first; the mean over items, by cluster
    unpaired    mean over items of one arm less that of the other, by cluster

with the errors of `numerics.clustered`. Arms trained with several seeds have that level too: the variance between
seeds is added (two-way, Cameron, Gelbach & Miller 2011), because a claim about a way of training is a claim about
seeds not yet drawn. With one seed the claim is about these two models only, and a note says so. The norms are
Miller's (2024, arXiv 2411.00640). Not here: where the scores come from.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.errors import InputError, InvalidSettings
from personae.numerics.clustered import (
    Equivalence,
    Estimate,
    as_estimate,
    cluster_difference,
    cluster_index,
    cluster_mean,
    design_effect,
    equivalence_test,
    intraclass_correlation,
)
from personae.numerics.power import detectable_from_error
from personae.numerics.resampling import (
    Bootstrap,
    cluster_permutation_test,
    hierarchical_bootstrap,
    sign_flip_test,
)
from personae.numerics.statistics import benjamini_hochberg
from personae.tables.items import ItemTable

Floats = NDArray[np.float64]

FEW_CLUSTERS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Effect:
    """How the second arm differs from the first.

    Attributes:
        first, second: The arms; positive differences mean that the second scores higher.
        difference: Its mean with clustered error and t-based p; the headline.
        naive: The same as if every score were independent: what not to report.
        p_permutation: By exchange of whole clusters, free of distributional assumptions; None with several seeds, or
            where unpaired arms share clusters. Compare it with `difference.p` below ten clusters.
        bootstrap: By resampling seeds and clusters; None for unpaired arms.
        equivalence: Whether the arms are equal up to the margin; None if no margin was given.
        icc: Intraclass correlation of the differences (paired) or scores, None if no cluster has two items.
        design_effect: How many times the clustering multiplies the variance; 1 where icc is None.
        detectable: Smallest true difference that as many clusters find with probability 0.8.
        is_paired: Whether both arms answered the same items.
        n_items: Items in both arms (paired) or in either.
        n_clusters, n_seeds: Units of the upper levels; seeds of the arm with fewer.
        left_out: Items that only one arm has, which a paired comparison does not use.
        notes: Sentences a reader of the numbers must know.
    """

    first: str
    second: str
    difference: Estimate
    naive: Estimate
    p_permutation: float | None
    bootstrap: Bootstrap | None
    equivalence: Equivalence | None
    icc: float | None
    design_effect: float
    detectable: float
    is_paired: bool
    n_items: int
    n_clusters: int
    n_seeds: int
    left_out: int
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """One sentence: different, equal up to the margin, or undecided."""
        d = self.difference
        interval = f"{d.value:+.4g} ({100 * d.level:g}% interval {d.low:+.4g} to {d.high:+.4g})"
        if self.equivalence is not None and self.equivalence.is_equivalent:
            return f"'{self.second}' and '{self.first}' are equal up to {self.equivalence.margin:g}: {interval}."
        if d.p <= 1 - d.level:
            return f"'{self.second}' scores {'higher' if d.value > 0 else 'lower'} than '{self.first}': {interval}."
        return f"undecided between '{self.second}' and '{self.first}': {interval}; too few items to show either."


@dataclass(frozen=True, slots=True)
class _Cells:
    """One arm's scores averaged over templates: one entry an item and seed."""

    item: tuple[str, ...]
    cluster: tuple[str, ...]
    seed: tuple[str, ...]
    score: Floats

    @property
    def seeds(self) -> set[str]:
        return set(self.seed)

    def by_item(self) -> tuple[tuple[str, ...], tuple[str, ...], Floats]:
        """Items, their clusters, and the mean over seeds."""
        index, n = cluster_index(self.item)
        mean = np.bincount(index, weights=self.score, minlength=n) / np.bincount(index, minlength=n)
        home = dict(zip(self.item, self.cluster, strict=True))
        return tuple(home), tuple(home.values()), mean

    def take(self, items: set[str]) -> _Cells:
        rows = [i for i, item in enumerate(self.item) if item in items]
        picked = (tuple(column[i] for i in rows) for column in (self.item, self.cluster, self.seed))
        return _Cells(*picked, score=self.score[rows])


@dataclass(frozen=True, slots=True)
class _Sample:
    """What the errors are computed from: item differences, or the items of both arms side by side."""

    score: Floats
    cluster: tuple[str, ...]
    is_second: NDArray[np.bool_] | None  # None: the scores are paired differences

    def estimate(self, clusters: Sequence[Hashable], level: float) -> Estimate:
        if self.is_second is None:
            return cluster_mean(self.score, clusters, level=level)
        return cluster_difference(self.score, self.is_second, clusters, level=level)

    def permutation_p(self, rng: np.random.Generator, n_permutations: int) -> float | None:
        if self.is_second is None:
            return sign_flip_test(self.score, self.cluster, rng=rng, n_permutations=n_permutations)
        sides = [{c for c, s in zip(self.cluster, self.is_second, strict=True) if s == side} for side in (False, True)]
        if sides[0] & sides[1]:
            return None
        return cluster_permutation_test(
            self.score, self.is_second, self.cluster, rng=rng, n_permutations=n_permutations
        )

    def icc(self) -> float | None:
        centred = self.score.copy()
        if self.is_second is not None:
            for side in (self.is_second, ~self.is_second):
                centred[side] -= centred[side].mean()
        n_clusters = len(set(self.cluster))
        return intraclass_correlation(centred, self.cluster) if 2 <= n_clusters < len(centred) else None


def arm_mean(table: ItemTable, arm: str, *, level: float = 0.95) -> Estimate:
    """Mean score of an arm over its items, with a clustered error (and a part for seeds, if it has several).

    Raises:
        InputError: If the table has no such arm.
        InvalidSettings: If its items lie in one cluster, or the level is impossible.
    """
    cells = _cells(table.of_arm(arm))
    _, clusters, mean = cells.by_item()
    return _with_seeds(cluster_mean(mean, clusters, level=level), [_seed_means(cells)])


def compare(
    table: ItemTable,
    first: str,
    second: str,
    *,
    paired: bool | None = None,
    margin: float | None = None,
    level: float = 0.95,
    n_draws: int = 2000,
    n_permutations: int = 9999,
    seed: int = 0,
) -> Effect:
    """Compare two arms of a table.

    Args:
        table: Scores of both.
        first: The arm compared with.
        second: The arm of interest.
        paired: Whether to compare item by item; left out, it is done when the arms share an item.
        margin: Smallest difference that would matter, in the scores' unit, for a test of equivalence at 1 - level.
            Choose it before looking.
        level: Mass of the intervals, above 0.5; tests are at 1 - level.
        n_draws: Bootstrap resamples; 0 leaves the bootstrap out.
        n_permutations: Permutations at most; 0 leaves the test out.
        seed: Of the resampling.

    Returns:
        The effect. Positive means that the second arm scores higher.

    Raises:
        InputError: If an arm is missing, the arms are the same, or a paired comparison finds no common item.
        InvalidSettings: If there are too few clusters for an error, or a level or margin is impossible.
    """
    if first == second:
        raise InputError(f"an arm is compared with itself: '{first}'.")
    if not 0.5 < level < 1:
        raise InvalidSettings(f"the level is {level}; a comparison needs one between 0.5 and 1, such as 0.95.")
    a, b = (_cells(table.of_arm(arm)) for arm in (first, second))
    common = set(a.item) & set(b.item)
    is_paired = bool(common) if paired is None else paired
    if is_paired and not common:
        raise InputError(
            f"arms '{first}' and '{second}' share no item, so they cannot be paired.",
            hint="Give equal questions equal item ids, or compare unpaired.",
        )
    left_out = len(set(a.item) ^ set(b.item)) if is_paired else 0
    if is_paired:
        a, b = a.take(common), b.take(common)
    sample = _differences(a, b) if is_paired else _side_by_side(a, b)
    rng = np.random.default_rng(seed)
    estimate = _with_seeds(sample.estimate(sample.cluster, level), _seed_parts(a, b))
    icc = sample.icc()
    sizes = np.bincount(cluster_index(sample.cluster)[0])
    one_seed = len(a.seeds) == len(b.seeds) == 1
    return Effect(
        first=first,
        second=second,
        difference=estimate,
        naive=sample.estimate(range(len(sample.score)), level),
        p_permutation=sample.permutation_p(rng, n_permutations) if one_seed and n_permutations else None,
        bootstrap=_bootstrap(a, b, level=level, n_draws=n_draws, rng=rng) if is_paired and n_draws else None,
        equivalence=None if margin is None else equivalence_test(estimate, margin, alpha=1 - level),
        icc=icc,
        design_effect=1.0 if icc is None else design_effect(sizes, max(icc, 0.0)),
        detectable=detectable_from_error(estimate.se, estimate.df, alpha=1 - level),
        is_paired=is_paired,
        n_items=len(sample.score),
        n_clusters=len(sizes),
        n_seeds=min(len(a.seeds), len(b.seeds)),
        left_out=left_out,
        notes=tuple(_notes(a, b, len(sizes), left_out)),
    )


def compare_many(
    table: ItemTable,
    first: str,
    seconds: Sequence[str] | None = None,
    *,
    margin: float | None = None,
    level: float = 0.95,
) -> tuple[tuple[Effect, float], ...]:
    """Compare several arms with one, with q-values of Benjamini & Hochberg (1995) over the family.

    Args:
        table: Scores of all arms.
        first: The arm compared with.
        seconds: The others; left out, all. The family is what is declared here, not what looks good afterwards.
        margin: As in `compare`.
        level: Mass of the intervals.

    Returns:
        Pairs of effect and q in the order of `seconds`; the effects without bootstrap and permutation.

    Raises:
        InputError: If there is no other arm, and as `compare`.
        InvalidSettings: As `compare`.
    """
    others = [arm for arm in table.arms if arm != first] if seconds is None else list(seconds)
    if not others:
        raise InputError(f"there is no arm to compare with '{first}'.")
    effects = [compare(table, first, arm, margin=margin, level=level, n_draws=0, n_permutations=0) for arm in others]
    q = benjamini_hochberg(np.array([e.difference.p for e in effects]))
    return tuple((effect, float(one)) for effect, one in zip(effects, q, strict=True))


def _cells(arm: ItemTable) -> _Cells:
    index, n = cluster_index(list(zip(arm.item, arm.seed, strict=True)))
    mean = np.bincount(index, weights=arm.score, minlength=n) / np.bincount(index, minlength=n)
    rows = np.unique(index, return_index=True)[1]
    return _Cells(*(tuple(column[i] for i in rows) for column in (arm.item, arm.cluster, arm.seed)), score=mean)


def _differences(a: _Cells, b: _Cells) -> _Sample:
    items, clusters, before = a.by_item()
    theirs, _, after = b.by_item()
    place = {item: i for i, item in enumerate(theirs)}
    return _Sample(after[[place[item] for item in items]] - before, clusters, None)


def _side_by_side(a: _Cells, b: _Cells) -> _Sample:
    (_, homes_a, before), (_, homes_b, after) = a.by_item(), b.by_item()
    scores = np.concatenate([before, after])
    return _Sample(scores, homes_a + homes_b, np.arange(len(scores)) >= len(before))


def _seed_means(cells: _Cells) -> Floats:
    """Mean over items of each seed."""
    index, n = cluster_index(cells.seed)
    return np.bincount(index, weights=cells.score, minlength=n) / np.bincount(index, minlength=n)


def _is_matched(a: _Cells, b: _Cells) -> bool:
    return a.seeds == b.seeds and len(a.seeds) > 1


def _seed_parts(a: _Cells, b: _Cells) -> list[Floats]:
    """What varies between seeds: matched differences where both arms have the same seeds, else each arm's means."""
    if not _is_matched(a, b):
        return [_seed_means(a), _seed_means(b)]
    theirs = dict(zip(dict.fromkeys(b.seed), _seed_means(b), strict=True))
    mine = dict(zip(dict.fromkeys(a.seed), _seed_means(a), strict=True))
    return [np.array([theirs[s] - mine[s] for s in mine])]


def _with_seeds(alone: Estimate, parts: Sequence[Floats]) -> Estimate:
    """Add the variance of the mean over seeds, with Satterthwaite's degrees of freedom for the sum.

    Noise of single answers is in both terms, so the error errs on the wide side where seeds do not differ.
    """
    terms = [(alone.se**2, alone.df)]
    terms += [(float(part.var(ddof=1)) / len(part), len(part) - 1.0) for part in parts if len(part) > 1]
    if len(terms) == 1:
        return alone
    variance = sum(v for v, _ in terms)
    df = variance**2 / sum(v**2 / d for v, d in terms) if variance > 0 else alone.df
    return as_estimate(
        alone.value, float(np.sqrt(variance)), df, level=alone.level, n=alone.n, n_clusters=alone.n_clusters
    )


def _bootstrap(a: _Cells, b: _Cells, *, level: float, n_draws: int, rng: np.random.Generator) -> Bootstrap | None:
    """Of paired differences by seed and item; None where both arms have several seeds that do not match."""
    if min(len(a.seeds), len(b.seeds)) > 1 and not _is_matched(a, b):
        return None
    before = dict(zip(zip(a.item, a.seed, strict=True), a.score, strict=True))
    after = dict(zip(zip(b.item, b.seed, strict=True), b.score, strict=True))
    if _is_matched(a, b):
        pairs = [(key, key) for key in after if key in before]
    else:
        homes: dict[str, list[tuple[str, str]]] = {}
        for key in before:
            homes.setdefault(key[0], []).append(key)
        pairs = [(mine, key) for key in after for mine in homes[key[0]]]
    cluster = dict(zip(b.item, b.cluster, strict=True))
    difference = np.array([after[key] - before[mine] for mine, key in pairs])
    seeds = [f"{mine[1]}/{key[1]}" for mine, key in pairs]
    levels = [seeds, [cluster[key[0]] for _, key in pairs], [key[0] for _, key in pairs]]
    return hierarchical_bootstrap(difference, levels, rng=rng, n_draws=n_draws, level=level)


def _notes(a: _Cells, b: _Cells, n_clusters: int, left_out: int) -> Iterator[str]:
    counts = len(a.seeds), len(b.seeds)
    if max(counts) == 1:
        yield "one training seed an arm: this is about these two models, not about how they were trained."
    elif min(counts) == 1:
        yield "one arm has a single training seed: its own variance between seeds is not in the error."
    elif min(counts) < 3:
        yield "two training seeds: the variance between seeds is hardly known."
    if n_clusters < FEW_CLUSTERS:
        yield f"{n_clusters} clusters: look at the permutation test too; the interval needs near-normal cluster means."
    if left_out:
        yield f"{left_out} items are in one arm only and were left out."
