"""Per-trait shift of a file against ordinary replies: estimate, interval, null, flag.

    shift = sum_i w_i (l_i - mu n_i) / sum_i |w_i| n_i,     mu = sum_r l_r / sum_r n_r  over the reference

l_i is an episode's summed log-likelihood ratio of the two poles (nats), n_i its completion tokens. Two ways
in which a file can differ from ordinary data are tested, each against what the reference shows:

    location   the whole file leans: |shift| against how topics of the reference differ among themselves
    tail       some rows lean: how far rows lie beyond one standard deviation of the file's own centre

p is twice the smaller of the two (Bonferroni). Files by other hands differ more than topics by one hand do: both
nulls carry a variance between files that was measured on ordinary files written apart. Not here: posterior
weights (`inference.mixture`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from personae.numerics.statistics import benjamini_hochberg, bootstrap_ratios, cluster_sums

Floats = NDArray[np.float64]

_TAIL_LEVEL = 0.95
_LEVEL = 0.9
# Between ordinary files, in variances of a row and in squares of the mean excess: twenty files of ten rows by
# another hand than the reference, eleven traits (docs/decisions/0022).
_FILE_SHARE = 0.075
_FILE_TAIL = 0.35
_NORMAL_EXCESS = 0.083  # of a standard normal variable beyond 1: less than that is luck of few rows
_OUT_OF_ORDINARY = 0.025  # half of 5%, since two tests are looked at


@dataclass(frozen=True, slots=True, eq=False)
class Ratios:
    """Log-likelihood ratios of some episodes under several traits.

    Attributes:
        llr: Nats, shape (n_episodes, n_traits).
        n_tokens: Completion tokens, shape (n_episodes,).
        weight: Episode weights, shape (n_episodes,); negative for rejected replies.
        cluster: Conversation, or topic in the reference.
    """

    llr: Floats
    n_tokens: Floats
    weight: Floats
    cluster: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class OrdinaryModel:
    """What the reference says of ordinary rows, trait by trait; every array has shape (n_traits,).

    Attributes:
        mean: mu, nats a token.
        topic_sd: Standard deviation of ordinary files around mu, nats a token: that of the reference's topics,
            sampling error removed, and at least what files by other hands showed.
        observed_variance: Variance of the topics' own ratios, sampling error included.
        token_variance: Variance of a row's ratio per token (noise that averages out within a row).
        row_variance: Variance between rows of a topic, per token squared (noise that does not).
        tail_high, tail_low: 95th and 5th percentile of centred z within topics.
        excess_mean, excess_variance: Of z and of -z beyond 1, cut at 3, over rows, shape (2, n_traits).
        excess_spread: Variance of topics' mean excess over what independent rows would show, at least 1; same shape.
        n_topics: Topics.
        n_rows: Rows.
    """

    mean: Floats
    topic_sd: Floats
    observed_variance: Floats
    token_variance: Floats
    row_variance: Floats
    tail_high: Floats
    tail_low: Floats
    excess_mean: Floats
    excess_variance: Floats
    excess_spread: Floats
    n_topics: int
    n_rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Shifts:
    """Result for every trait; arrays have shape (n_traits,).

    Attributes:
        shift, low, high: Estimate and 90% interval, nats a token.
        raw: The file's own ratio, nats a token.
        null_low, null_high: Where 95% of ordinary files of this size lie.
        p_location, p_tail, p, q: Probabilities under "ordinary"; q after Benjamini-Hochberg.
        tail: Share of rows in the tail on the side of `sign`.
        sign: +1 or -1, the side the evidence is on.
        z: Standardised rows, shape (n_episodes, n_traits).
        excess: What a row adds to the sum in `shift`, l_i - mu n_i, nats, same shape.
        strength: Signed number by which traits are ranked.
    """

    shift: Floats
    low: Floats
    high: Floats
    raw: Floats
    null_low: Floats
    null_high: Floats
    p_location: Floats
    p_tail: Floats
    p: Floats
    q: Floats
    tail: Floats
    sign: Floats
    z: Floats
    excess: Floats
    strength: Floats


def fit_ordinary(reference: Ratios) -> OrdinaryModel:
    """Learn from the reference how ordinary rows and topics vary."""
    n = reference.n_tokens[:, None].astype(np.float64)
    mean = reference.llr.sum(axis=0) / n.sum()
    centred = reference.llr - mean * n
    topic = cluster_sums(centred, reference.cluster)
    tokens = cluster_sums(n, reference.cluster)
    rows = cluster_sums(np.ones_like(n), reference.cluster)
    place = {c: i for i, c in enumerate(dict.fromkeys(reference.cluster))}
    index = np.array([place[c] for c in reference.cluster])
    rate = topic / tokens
    residual = centred - rate[index] * n
    # A mean taken from the same few rows eats into the residuals; m / (m - 1) restores their size.
    squares = residual**2 * (rows / np.maximum(rows - 1, 1))[index]
    token_variance, row_variance = _variance_parts(squares, n)
    spread = token_variance * n + row_variance * n**2
    sampling = cluster_sums(spread, reference.cluster) / tokens**2
    observed = rate.var(axis=0, ddof=1)
    between_hands = _FILE_SHARE * (token_variance / n.mean() + row_variance)
    topic_variance = np.maximum(observed - sampling.mean(axis=0), between_hands)
    z = np.empty_like(residual)
    for t in range(len(place)):
        mine = index == t
        z[mine] = _left_out_z(reference.llr[mine], n[mine], spread[mine])
    high, low = np.quantile(z, [_TAIL_LEVEL, 1 - _TAIL_LEVEL], axis=0)
    excess = _excess(z)
    return OrdinaryModel(
        mean,
        np.sqrt(topic_variance),
        observed,
        token_variance,
        row_variance,
        high,
        low,
        np.maximum(excess.mean(axis=1), _NORMAL_EXCESS),
        excess.var(axis=1, ddof=1),
        _excess_spread(excess, index, rows[:, 0]),
        len(place),
        len(z),
    )


def trait_shifts(file: Ratios, reference: Ratios, *, seed: int = 0, n_draws: int = 2000) -> Shifts:
    """Compare a file with the reference, trait by trait.

    Args:
        file: The file's ratios; weights may be negative.
        reference: The reference's ratios; its clusters are topics.
        seed: Of the bootstrap.
        n_draws: Bootstrap resamples.

    Returns:
        The shifts, with intervals clustered by conversation and topic.
    """
    ordinary = fit_ordinary(reference)
    n, w = file.n_tokens[:, None].astype(np.float64), file.weight[:, None]
    size = (np.abs(w) * n).sum()
    excess = file.llr - ordinary.mean * n
    shift = (w * excess).sum(axis=0) / size
    raw = (w * file.llr).sum(axis=0) / size
    low, high = _interval(file, reference, np.random.default_rng(seed), n_draws)
    null_sd = _null_sd(file, ordinary, reference)
    df = _degrees_of_freedom(null_sd, ordinary)
    t = _standardised(shift, null_sd**2)
    p_location = 2 * stats.t.sf(np.abs(t), df)
    reach = stats.t.ppf(0.975, df) * null_sd
    row_variance = ordinary.token_variance * n + (ordinary.row_variance + ordinary.topic_sd**2) * n**2
    z = _standardised(excess, row_variance)
    p_tail, tail, tail_sign = _tail_test(file, ordinary)
    # Around its own centre a file that leans as a whole has a heavy tail on the other side too: where the mean
    # itself is beyond ordinary files, it says which way.
    by_tail = (p_tail < p_location) & (p_location >= _OUT_OF_ORDINARY)
    sign = np.where(by_tail, tail_sign, np.where(shift < 0, -1.0, 1.0))
    p = np.minimum(1.0, 2 * np.minimum(p_location, p_tail))
    strength = sign * stats.norm.isf(np.maximum(p, 1e-300) / 2)
    return Shifts(
        shift,
        low,
        high,
        raw,
        -reach,
        reach,
        p_location,
        p_tail,
        p,
        benjamini_hochberg(p),
        np.where(sign > 0, tail[0], tail[1]),
        sign,
        z,
        excess,
        strength,
    )


def _variance_parts(squares: Floats, n: Floats) -> tuple[Floats, Floats]:
    """Non-negative fit of E[u^2] = a n + b n^2, each row weighted by 1 / n^2 so that long rows do not rule."""
    design = np.concatenate([1 / n, np.ones_like(n)], axis=1)
    target = squares / n**2
    a, b = np.linalg.lstsq(design, target, rcond=None)[0]
    only_tokens = (target * design[:, :1]).sum(axis=0) / (design[:, :1] ** 2).sum()
    only_rows = target.mean(axis=0)
    token = np.where(b < 0, only_tokens, np.where(a < 0, 0.0, a))
    row = np.where(b < 0, 0.0, np.where(a < 0, only_rows, b))
    return token, row


def _standardised(deviation: Floats, variance: Floats) -> Floats:
    """Deviations in standard deviations; 0 where nothing varies."""
    return np.divide(deviation, np.sqrt(variance), out=np.zeros_like(deviation), where=variance > 0)


def _centred_z(llr: Floats, n: Floats, spread: Floats) -> Floats:
    """Rows in standard deviations around their own file's (or topic's) median rate."""
    return _standardised(llr - np.median(llr / n, axis=0) * n, spread)


def _left_out_z(llr: Floats, n: Floats, spread: Floats) -> Floats:
    """Rows of one topic around the median rate of the topic's other rows.

    A row must not pull its own centre; the other rows' median has an error of its own, pi / 2 over their
    number in variances of a row, which a large file's median has not: it is divided out.
    """
    m = len(n)
    if m < 2:
        return np.zeros_like(llr)
    rate = llr / n
    centre = np.stack([np.median(np.delete(rate, i, axis=0), axis=0) for i in range(m)])
    return _standardised(llr - centre * n, spread * (1 + np.pi / 2 / (m - 1)))


def _excess(z: Floats) -> Floats:
    """How far rows lie beyond one standard deviation, upwards and downwards, shape (2, n_episodes, n_traits).

    At most two more: a single row, however odd, must not flag a file.
    """
    return np.stack([np.clip(z - 1, 0.0, 2.0), np.clip(-z - 1, 0.0, 2.0)])


def _excess_spread(excess: Floats, index: NDArray[np.int64], rows: Floats) -> Floats:
    """Variance of topics' mean excess over that of as many independent rows; at least 1, shape (2, n_traits)."""
    sums = np.zeros((len(rows), 2, excess.shape[2]))
    np.add.at(sums, index, excess.transpose(1, 0, 2))
    off = (sums / rows[:, None, None] - excess.mean(axis=1)) ** 2 * rows[:, None, None]
    variance = excess.var(axis=1, ddof=1)
    return np.maximum(np.divide(off.mean(axis=0), variance, out=np.ones_like(variance), where=variance > 0), 1.0)


def _tail_test(file: Ratios, ordinary: OrdinaryModel) -> tuple[Floats, Floats, Floats]:
    """P of the heavier tail (both looked at), shares of the upper and lower tail, and the heavier side."""
    used = file.weight > 0
    n = file.n_tokens[used, None].astype(np.float64)
    count = int(used.sum())
    if count < 2:
        nothing = np.ones(file.llr.shape[1])
        return nothing, np.zeros((2, len(nothing))), nothing
    z = _centred_z(file.llr[used], n, ordinary.token_variance * n + ordinary.row_variance * n**2)
    shares = np.stack([(z > ordinary.tail_high).mean(axis=0), (z < ordinary.tail_low).mean(axis=0)])
    p = _excess_sf(_excess(z).mean(axis=1), count, ordinary)
    side = np.where(p[0] <= p[1], 1.0, -1.0)
    return np.minimum(1.0, 2 * p.min(axis=0)), shares, side


def _excess_sf(seen: Floats, count: int, ordinary: OrdinaryModel) -> Floats:
    """P(mean excess >= seen) in an ordinary file of `count` rows, shape (2, n_traits).

    A mean of skewed, non-negative numbers: a Gamma of matching mean and variance. The variance has the file's
    rows, the reference's own error, and the difference between files by other hands.
    """
    mean = ordinary.excess_mean
    rows = ordinary.excess_variance * ordinary.excess_spread
    variance = rows * (1 / count + 1 / ordinary.n_rows) + (_FILE_TAIL * mean) ** 2
    known = mean > 0
    shape = np.divide(mean**2, variance, out=np.ones_like(mean), where=known)
    scale = np.divide(variance, mean, out=np.ones_like(mean), where=known)
    return np.where(known, stats.gamma.sf(seen, shape, scale=scale), np.where(seen > 0, 0.0, 1.0))


def _degrees_of_freedom(null_sd: Floats, ordinary: OrdinaryModel) -> Floats:
    """Satterthwaite's: the topics' variance was estimated from few topics and then had a part taken away.

    var(estimate) = 2 observed^2 / (T - 1), so the null's variance V has (T - 1) (V / observed)^2 degrees.
    """
    most = max(ordinary.n_topics - 1, 1)
    observed = np.where(ordinary.observed_variance > 0, ordinary.observed_variance, 1.0)
    return np.clip(most * (null_sd**2 / observed) ** 2, min(3, most), most)


def _null_sd(file: Ratios, ordinary: OrdinaryModel, reference: Ratios) -> Floats:
    """Standard deviation of `shift` for an ordinary file of this size.

    Three parts: the file's topic, its rows, and the error of the reference's own mean.
    """
    n, w = file.n_tokens.astype(np.float64), file.weight
    size = (np.abs(w) * n).sum()
    lean = (w * n).sum() / size  # 1 for ordinary files, about 0 for preference pairs
    rows = ((w**2 * n).sum() * ordinary.token_variance + (w**2 * n**2).sum() * ordinary.row_variance) / size**2
    m = reference.n_tokens.astype(np.float64)
    error = (m.sum() * ordinary.token_variance + (m**2).sum() * ordinary.row_variance) / m.sum() ** 2
    topics = ordinary.topic_sd**2 * (1 + 1 / ordinary.n_topics)
    return np.sqrt(lean**2 * (topics + error) + rows)


def _interval(file: Ratios, reference: Ratios, rng: np.random.Generator, n_draws: int) -> tuple[Floats, Floats]:
    """Percentile interval of the difference, both populations resampled by cluster."""
    n, w = file.n_tokens[:, None].astype(np.float64), file.weight[:, None]
    tops = cluster_sums(np.concatenate([w * file.llr, w * n], axis=1), file.cluster)
    bottoms = cluster_sums(np.abs(w) * n, file.cluster)[:, 0]
    draws = bootstrap_ratios(tops, bottoms, n_draws=n_draws, rng=rng)
    m = reference.n_tokens[:, None].astype(np.float64)
    mu = bootstrap_ratios(
        cluster_sums(reference.llr, reference.cluster),
        cluster_sums(m, reference.cluster)[:, 0],
        n_draws=n_draws,
        rng=rng,
    )
    difference = draws[:, :-1] - mu * draws[:, -1:]
    tail = (1 - _LEVEL) / 2
    return tuple(np.quantile(difference, [tail, 1 - tail], axis=0))  # type: ignore[return-value]
