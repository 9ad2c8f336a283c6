"""Simulations that would show the statistics core to be wrong: each gives shares that have a known right value.

Every check draws scores from a generator whose truth is known, uses the public functions as a user would, and counts.
`tests/truth/test_statistics.py` runs them small, `benchmarks.statistics.run` in full.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from personae.inference.effects import compare
from personae.numerics.clustered import (
    Estimate,
    cluster_difference,
    cluster_mean,
    design_effect,
    equivalence_test,
    intraclass_correlation,
)
from personae.numerics.power import Plan, power_of_difference, power_of_equivalence
from personae.numerics.rates import rate_interval
from personae.numerics.resampling import cluster_permutation_test, hierarchical_bootstrap, sign_flip_test
from personae.tables.items import item_table

Floats = np.ndarray


def sizes_of(rng: np.random.Generator, n_clusters: int, size: int, unequal: bool) -> Floats:
    """Items of each cluster: all `size`, or from 1 to about four times as many with that mean."""
    return 1 + rng.geometric(1 / size, n_clusters) - 1 if unequal else np.full(n_clusters, size)


def clustered_scores(rng: np.random.Generator, sizes: Floats, icc: float, *, is_binary: bool = False) -> Floats:
    """Scores of mean 0 and variance 1, or successes at a rate of 0.3, with an intraclass correlation."""
    if is_binary:
        total = 1 / icc - 1 if icc > 0 else np.inf
        p = rng.beta(0.3 * total, 0.7 * total, len(sizes)) if icc > 0 else np.full(len(sizes), 0.3)
        return (rng.random(sizes.sum()) < np.repeat(p, sizes)).astype(np.float64)
    between = np.repeat(np.sqrt(icc) * rng.standard_normal(len(sizes)), sizes)
    return between + np.sqrt(1 - icc) * rng.standard_normal(sizes.sum())


def same_model_twice(
    repeats: int,
    *,
    n_clusters: int,
    size: int,
    icc: float,
    paired: bool,
    is_binary: bool = False,
    unequal: bool = False,
    permute: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Share of repeats in which two runs of one model under resampled prompts are found to differ at 5%.

    Paired runs answer the same prompts (whose difficulty is shared) and differ by noise that is itself clustered, such
    as a conversation sampled anew; unpaired runs answer other prompts.
    """
    rng = np.random.default_rng(seed)
    found, naive, permuted = 0, 0, 0
    for _ in range(repeats):
        sizes = [sizes_of(rng, n_clusters, size, unequal) for _ in range(2)]
        if paired:
            runs = [clustered_scores(rng, sizes[0], icc, is_binary=is_binary) for _ in range(2)]
            clusters = np.repeat(np.arange(n_clusters), sizes[0])
            scores = runs[1] - runs[0]
            test, plain = cluster_mean(scores, clusters), cluster_mean(scores, range(len(scores)))
            permuted += permute and sign_flip_test(scores, clusters, rng=rng, n_permutations=999) <= 0.05
        else:
            runs = [clustered_scores(rng, s, icc, is_binary=is_binary) for s in sizes]
            clusters = np.repeat(np.arange(2 * n_clusters), np.concatenate(sizes))
            scores, second = np.concatenate(runs), np.arange(sum(map(len, runs))) >= len(runs[0])
            test = cluster_difference(scores, second, clusters)
            plain = cluster_difference(scores, second, range(len(scores)))
            permuted += permute and (
                cluster_permutation_test(scores, second, clusters, rng=rng, n_permutations=999) <= 0.05
            )
        found += test.p <= 0.05
        naive += plain.p <= 0.05
    shares = {"rejected": found / repeats, "rejected_naively": naive / repeats}
    return shares | ({"rejected_by_permutation": permuted / repeats} if permute else {})


def same_model_twice_on_tables(repeats: int, *, n_clusters: int = 15, size: int = 4, seed: int = 0) -> dict[str, float]:
    """The same through `compare` and an item table with two templates, whose noise is shared within an item."""
    rng = np.random.default_rng(seed)
    n = n_clusters * size
    items = [f"i{k}" for k in range(n)]
    clusters = [f"c{k // size}" for k in range(n)]
    found = 0
    for _ in range(repeats):
        difficulty = clustered_scores(rng, np.full(n_clusters, size), 0.3)
        columns: list[Floats] = []
        for _run in range(2):
            conversation = clustered_scores(rng, np.full(n_clusters, size), 0.1)
            columns += [difficulty + conversation + 0.5 * rng.standard_normal(n) for _template in range(2)]
        table = item_table(
            np.concatenate(columns),
            item=items * 4,
            cluster=clusters * 4,
            template=(["one"] * n + ["two"] * n) * 2,
            arm=["first run"] * 2 * n + ["second run"] * 2 * n,
        )
        found += compare(table, "first run", "second run", n_draws=0, n_permutations=0).difference.p <= 0.05
    return {"rejected": found / repeats}


def coverage(
    repeats: int, *, n_clusters: int, size: int, icc: float, unequal: bool, is_binary: bool = False, seed: int = 0
) -> dict[str, float]:
    """Share of 90% intervals of a mean that hold the truth."""
    rng = np.random.default_rng(seed)
    held, naive = 0, 0
    truth = 0.3 if is_binary else 0.0
    for _ in range(repeats):
        sizes = sizes_of(rng, n_clusters, size, unequal)
        scores = clustered_scores(rng, sizes, icc, is_binary=is_binary)
        clusters = np.repeat(np.arange(n_clusters), sizes)
        held += holds(cluster_mean(scores, clusters, level=0.9), truth)
        naive += holds(cluster_mean(scores, range(len(scores)), level=0.9), truth)
    return {"covered": held / repeats, "covered_naively": naive / repeats}


def holds(interval: Estimate, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def design_effect_recovered(
    repeats: int, *, n_clusters: int = 100, size: int = 20, icc: float = 0.1, seed: int = 0
) -> dict[str, float]:
    """Mean estimate of the design effect, and the variance ratio that means of such scores truly have."""
    rng = np.random.default_rng(seed)
    sizes = np.full(n_clusters, size)
    clusters = np.repeat(np.arange(n_clusters), sizes)
    estimates, means = [], []
    for _ in range(repeats):
        scores = clustered_scores(rng, sizes, icc)
        estimates.append(design_effect(sizes, intraclass_correlation(scores, clusters)))
        means.append(scores.mean())
    worst = np.quantile(np.abs(np.array(estimates) / (1 + (size - 1) * icc) - 1), 0.9)
    return {
        "estimated": float(np.mean(estimates)),
        "true": 1 + (size - 1) * icc,
        "simulated": float(np.var(means) * n_clusters * size),
        "relative_error_90th_percentile": float(worst),
    }


def power_promised(repeats: int, plan: Plan, difference: float, *, seed: int = 0) -> dict[str, float]:
    """Power by the calculator, and the share of simulated comparisons that find the difference."""
    rng = np.random.default_rng(seed)
    sizes = np.full(plan.n_clusters, int(plan.cluster_size))
    clusters = np.repeat(np.arange(plan.n_clusters), sizes)
    found = 0
    for _ in range(repeats):
        scores = plan.sd * clustered_scores(rng, sizes, plan.icc) + difference
        if plan.is_paired:
            test = cluster_mean(scores, clusters)
        else:
            other = plan.sd * clustered_scores(rng, sizes, plan.icc)
            both = np.concatenate([clusters, clusters + plan.n_clusters])
            test = cluster_difference(np.concatenate([other, scores]), np.arange(len(both)) >= len(other), both)
        found += test.p <= plan.alpha
    return {"promised": power_of_difference(plan, difference), "simulated": found / repeats}


def equivalence_claimed(
    repeats: int, plan: Plan, margin: float, difference: float, *, seed: int = 0
) -> dict[str, float]:
    """Share of comparisons in which two one-sided tests claim equivalence when the truth is `difference`."""
    rng = np.random.default_rng(seed)
    sizes = np.full(plan.n_clusters, int(plan.cluster_size))
    clusters = np.repeat(np.arange(plan.n_clusters), sizes)
    claimed = 0
    for _ in range(repeats):
        scores = plan.sd * clustered_scores(rng, sizes, plan.icc) + difference
        claimed += equivalence_test(cluster_mean(scores, clusters), margin).is_equivalent
    return {"claimed": claimed / repeats, "promised": power_of_equivalence(plan, margin, difference=difference)}


def bootstrap_coverage(
    repeats: int,
    *,
    n_seeds: int,
    n_clusters: int,
    size: int,
    seed_sd: float,
    cluster_sd: float,
    is_nested: bool,
    n_draws: int = 400,
    seed: int = 0,
) -> dict[str, float]:
    """Share of 90% intervals that hold the truth: by levels, with lower levels resampled too, and by item alone.

    Scores are seed + cluster + item + noise, the last two of standard deviation 1. Nested: every seed has its own
    clusters and items.
    """
    rng = np.random.default_rng(seed)
    held = {"by_level": 0, "lower_resampled": 0, "by_item": 0}
    per_seed = n_clusters * size
    seeds = np.repeat(np.arange(n_seeds), per_seed)
    cluster = np.tile(np.repeat(np.arange(n_clusters), size), n_seeds) + (seeds * n_clusters if is_nested else 0)
    item = np.tile(np.arange(per_seed), n_seeds) + (seeds * per_seed if is_nested else 0)
    rows = np.arange(len(seeds))
    for _ in range(repeats):
        parts = (
            seed_sd * rng.standard_normal(n_seeds)[seeds],
            cluster_sd * rng.standard_normal(cluster.max() + 1)[cluster],
            rng.standard_normal(item.max() + 1)[item],
            rng.standard_normal(len(rows)),
        )
        scores = np.sum(parts, axis=0)
        levels = [seeds, cluster, item]
        fits = {
            "by_level": hierarchical_bootstrap(scores, levels, rng=rng, n_draws=n_draws, level=0.9),
            "lower_resampled": hierarchical_bootstrap(
                scores, levels, rng=rng, n_draws=n_draws, level=0.9, resample_lower=True
            ),
            "by_item": hierarchical_bootstrap(scores, [rows], rng=rng, n_draws=n_draws, level=0.9),
        }
        for name, fit in fits.items():
            held[name] += fit.low <= 0 <= fit.high
    return {name: count / repeats for name, count in held.items()}


def compare_coverage(
    repeats: int, *, n_seeds: int, seed_sd: float, n_clusters: int = 20, size: int = 5, seed: int = 0
) -> dict[str, float]:
    """Share of 90% intervals of `compare` that hold the truth when one arm has several training seeds."""
    rng = np.random.default_rng(seed)
    n = n_clusters * size
    items = [f"i{k}" for k in range(n)]
    clusters = [f"c{k // size}" for k in range(n)]
    held, ignored = 0, 0
    for _ in range(repeats):
        difficulty = clustered_scores(rng, np.full(n_clusters, size), 0.3)
        lift = 0.3 * rng.standard_normal(n_clusters).repeat(size)  # what training does differs between clusters
        base = difficulty + 0.5 * rng.standard_normal(n)
        tuned = [
            difficulty + lift + seed_sd * rng.standard_normal() + 0.5 * rng.standard_normal(n) for _ in range(n_seeds)
        ]
        table = item_table(
            np.concatenate([base, *tuned]),
            item=items * (1 + n_seeds),
            cluster=clusters * (1 + n_seeds),
            arm=["base"] * n + ["tuned"] * n * n_seeds,
            seed=["-"] * n + [s for s in range(n_seeds) for _ in range(n)],
        )
        held += holds(compare(table, "base", "tuned", level=0.9, n_draws=0, n_permutations=0).difference, 0.0)
        ignored += holds(cluster_mean(np.mean(tuned, axis=0) - base, clusters, level=0.9), 0.0)
    return {"covered": held / repeats, "covered_without_seeds": ignored / repeats}


def rate_coverage(n: int, *, level: float = 0.95) -> dict[str, float]:
    """Exact coverage of intervals of a rate: the mean over true rates from 0.5% to 99.5%, and the least.

    Not simulated: the binomial distribution is summed.
    """
    rates = np.linspace(0.005, 0.995, 199)
    out = {}
    for method in ("wilson", "exact"):
        ends = [rate_interval(k, n, level=level, method=method) for k in range(n + 1)]
        inside = (np.array([e.low for e in ends])[:, None] <= rates) & (
            rates <= np.array([e.high for e in ends])[:, None]
        )
        covered = (stats.binom.pmf(np.arange(n + 1)[:, None], n, rates) * inside).sum(axis=0)
        out |= {f"{method}_mean": float(covered.mean()), f"{method}_least": float(covered.min())}
    return out
