"""How much of KL(post || base) do personas account for? A ladder of explanations, cross-fitted.

    KL0 = E_x E_{y ~ post} sum_t KL(post(.|h_t) || base(.|h_t)),    FVE(M) = 1 - KL_M / KL0

KL is over the whole vocabulary at every sampled token (Rao-Blackwellised: the sampled token only decides which
history comes next). A mixture is one of whole conversations, its weights updated along them,

    w_k(h_t) = w_k prod_{s<t} p_k(y_s | h_s) / Z,       p_k = component k at temperature 1 or tau

so it is no router in disguise. Weights, the best single component and tau are fitted on one half of the
clusters and judged on the other. `Rung.partition` names a rival that may choose other weights for each part
(topic, turn, cue): the freedom that personas do not have. Not here: where distributions come from, intervals.
Source: the project's own definition; sampling of histories as in Lin et al. 2023 (arXiv 2312.01552).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personae.inference.rung_weights import blended, fitted_weights

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Arrays = Mapping[str, NDArray[Any]]
# Takes what a result depends on and what makes it; gives it, made or from where it was kept.
Keeper = Callable[[Sequence[object], Callable[[], Arrays]], Arrays]

TEMPERATURES = np.exp(np.linspace(np.log(0.4), np.log(2.5), 25))  # the middle one is 1
_LEAST_GAIN = 0.005  # of KL0, before a temperature other than 1 is believed
_BLOCK_NUMBERS = 6_000_000  # log-probabilities held at once
_IMPOSSIBLE = -1e3  # stands for -inf where it is multiplied by a probability


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """One conversation of the target, read by the target and by every component.

    Attributes:
        token_ids: Sampled tokens of all replies, joined, shape (n_tokens,).
        reply: Number of the reply that each token belongs to, from 0.
        read: From places (start, stop) of the joined tokens to log-probabilities of the target, shape
            (stop - start, vocab_size), and of the components, shape (n_components, stop - start, vocab_size).
        vocab_size: Size of the vocabulary.
        key: Names everything that `read` depends on, so that passes can be kept; empty where they are not.
    """

    token_ids: Ints
    reply: Ints
    read: Callable[[int, int], tuple[NDArray[np.floating], NDArray[np.floating]]]
    vocab_size: int
    key: str = ""


@dataclass(frozen=True, slots=True)
class Rung:
    """One explanation.

    Attributes:
        id: Short name.
        components: Places of the components it may use.
        single: The best one of them alone; else a mixture.
        tempered: Whether components may also be had at the fitted temperature.
        partition: Name of the labels of replies by which weights may differ; empty for a mixture of whole
            conversations.
    """

    id: str
    components: tuple[int, ...]
    single: bool = False
    tempered: bool = True
    partition: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What the first pass over a conversation leaves, nats.

    Attributes:
        log_likelihood: Of the sampled tokens under every component, shape (n_components, n_tokens); what is impossible
            has a large negative number, so that a mixture can be updated past it.
        log_target: Of the sampled tokens under the target, shape (n_tokens,).
        kl: From the target to every component, shape (n_components, n_tokens).
        kl_tempered: From the target to the base at each of `TEMPERATURES`, shape (n_temperatures, n_tokens).
        rank: Rank in the base of the target's likeliest token, from 0, shape (n_tokens,).
    """

    log_likelihood: Floats
    log_target: Floats
    kl: Floats
    kl_tempered: Floats
    rank: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What one half of the conversations says about every rung.

    Attributes:
        temperature: Of the base.
        log_weights: By rung, then by part of its partition ("" where there is none): log weights of the
            components at temperature 1 and then at the fitted one, shape (2 n_components,).
        n_fitted: Conversations used.
    """

    temperature: float
    log_weights: dict[str, dict[str, Floats]]
    n_fitted: int


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """KL of every token under every rung.

    Attributes:
        rungs: Their ids.
        kl: One array a conversation, shape (n_rungs, n_tokens), nats.
        fits: Of the two halves; `fits[h]` was fitted on half h and judged on the other.
        half: Of each conversation.
        readings: First passes.
    """

    rungs: tuple[str, ...]
    kl: tuple[Floats, ...]
    fits: tuple[Fit, Fit]
    half: Ints
    readings: tuple[Reading, ...]
    labels: tuple[dict[str, tuple[str, ...]], ...] = field(default=())


def halves(clusters: Sequence[str], seed: int) -> Ints:
    """0 or 1 for each conversation, whole clusters at a time."""
    names = sorted(set(clusters))
    order = np.random.default_rng([seed, 31]).permutation(len(names))
    side = {names[c]: place % 2 for place, c in enumerate(order)}
    return np.array([side[c] for c in clusters])


def explain(
    conversations: Sequence[Conversation],
    rungs: Sequence[Rung],
    *,
    clusters: Sequence[str],
    labels: Sequence[dict[str, tuple[str, ...]]],
    seed: int = 0,
    advance: Callable[[int], None] = lambda amount: None,
    keeper: Keeper = lambda parts, make: make(),
) -> Explained:
    """Judge every rung on conversations that it was not fitted to.

    Args:
        conversations: Of the target, component 0 being the base in the target's own context.
        rungs: Explanations, weakest first.
        clusters: Of each conversation; halves never share one.
        labels: Of each conversation: by partition, a label for every reply.
        seed: Of the halves.
        advance: Told of every conversation passed, twice.
        keeper: Keeps what was computed of a conversation that has a key, so that a killed run need not do it again.
    """
    half = halves(clusters, seed)
    readings: list[Reading] = []
    for c in conversations:
        readings.append(Reading(**_kept(keeper, c, ("read",), lambda c=c: asdict(read(c)))))
        advance(1)
    taus = [_temperature([r for r, h in zip(readings, half, strict=True) if h == side]) for side in (0, 1)]
    tempered = [
        _kept(keeper, c, ("tempered", taus), lambda c=c: {"values": tempered_log_likelihood(c, taus)})["values"]
        for c in conversations
    ]
    both = [
        [np.concatenate([r.log_likelihood, t[side]]) for side in (0, 1)]
        for r, t in zip(readings, tempered, strict=True)
    ]
    fits = tuple(
        _fit(
            rungs,
            [b[side] for b, h in zip(both, half, strict=True) if h == side],
            [c.reply for c, h in zip(conversations, half, strict=True) if h == side],
            [x for x, h in zip(labels, half, strict=True) if h == side],
            taus[side],
        )
        for side in (0, 1)
    )
    kl: list[Floats] = []
    for i, c in enumerate(conversations):
        fit, own = fits[1 - int(half[i])], both[i][1 - int(half[i])]
        parts = ("judge", *_described(rungs, fit), labels[i])
        judged = _kept(keeper, c, parts, lambda c=c, i=i, f=fit, b=own: {"values": _judge(c, rungs, f, b, labels[i])})
        kl.append(judged["values"])
        advance(1)
    return Explained(tuple(r.id for r in rungs), tuple(kl), (fits[0], fits[1]), half, tuple(readings), tuple(labels))


def _kept(keeper: Keeper, conversation: Conversation, parts: Sequence[object], make: Callable[[], Arrays]) -> Arrays:
    return keeper((*parts, conversation.key), make) if conversation.key else make()


def _described(rungs: Sequence[Rung], fit: Fit) -> tuple[object, ...]:
    """Everything that a judgement depends on besides the conversation, as plain values and arrays."""
    weights = [w for rung in rungs for w in fit.log_weights[rung.id].values()]
    parts = [[r.id, list(fit.log_weights[r.id])] for r in rungs]
    return [asdict(r) for r in rungs], parts, fit.temperature, np.stack(weights)


def read(conversation: Conversation) -> Reading:
    """First pass: every component's KL and log-likelihood, and the base at every temperature."""
    parts: list[tuple[Floats, ...]] = []
    for start, stop in _blocks(conversation):
        target, components = conversation.read(start, stop)
        token = conversation.token_ids[start:stop]
        p = np.exp(target)
        entropy = -np.sum(p * np.maximum(target, _IMPOSSIBLE), axis=-1, dtype=np.float64)
        at = np.arange(stop - start)
        cross = -np.einsum("tv,ktv->kt", p, np.maximum(components, _IMPOSSIBLE), dtype=np.float64)
        base = np.maximum(components[0], _IMPOSSIBLE)
        chosen = base[at, target.argmax(axis=-1)]
        parts.append(
            (
                np.maximum(components[:, at, token].astype(np.float64), _IMPOSSIBLE),
                target[at, token].astype(np.float64),
                np.maximum(cross - entropy, 0.0),
                np.maximum(_tempered_cross(p, base) - entropy, 0.0),
                (base > chosen[:, None]).sum(axis=-1),
            )
        )
    return Reading(*(np.concatenate(x, axis=-1) for x in zip(*parts, strict=True)))  # type: ignore[arg-type]


def tempered_log_likelihood(conversation: Conversation, temperatures: Sequence[float]) -> Floats:
    """Log-likelihood of the sampled tokens under every component at each temperature, (n, n_components, n_tokens)."""
    parts: list[Floats] = []
    for start, stop in _blocks(conversation):
        _, components = conversation.read(start, stop)
        token, at = conversation.token_ids[start:stop], np.arange(stop - start)
        own = np.maximum(components[:, at, token].astype(np.float64), _IMPOSSIBLE)
        parts.append(np.stack([own if t == 1 else own / t - _log_norm(components, t) for t in temperatures]))
    return np.concatenate(parts, axis=-1)


def _blocks(conversation: Conversation) -> Iterator[tuple[int, int]]:
    first = conversation.read(0, 1)[1]
    size = max(1, _BLOCK_NUMBERS // (2 * max(1, len(first)) * conversation.vocab_size))
    n = len(conversation.token_ids)
    for start in range(0, n, size):
        yield start, min(start + size, n)


def _log_norm(log_p: NDArray[np.floating], temperature: float) -> Floats:
    """Log sum_v p_v^(1/temperature)."""
    return np.log(np.sum(np.exp(log_p / temperature), axis=-1, dtype=np.float64))


def _tempered_cross(p: NDArray[np.floating], base: NDArray[np.floating]) -> Floats:
    """Cross-entropy from p to the base at every temperature, shape (n_temperatures, n_places)."""
    mean = np.sum(p * base, axis=-1, dtype=np.float64)
    return np.stack([_log_norm(base, t) - mean / t for t in TEMPERATURES])


def _temperature(readings: Sequence[Reading]) -> float:
    """The base's best temperature on these conversations; 1 unless another is clearly better."""
    plain = sum(float(r.kl[0].sum()) for r in readings)
    values = np.sum([r.kl_tempered.sum(axis=1) for r in readings], axis=0)
    best = int(np.argmin(values))
    return float(TEMPERATURES[best]) if values[best] < plain * (1 - _LEAST_GAIN) else 1.0


def _fit(
    rungs: Sequence[Rung],
    both: Sequence[Floats],
    reply: Sequence[Ints],
    labels: Sequence[dict[str, tuple[str, ...]]],
    temperature: float,
) -> Fit:
    """Weights of every rung on one half; `both` holds log-likelihoods at temperature 1, then tempered."""
    whole = np.array([b.sum(axis=1) for b in both])
    n = whole.shape[1] // 2
    fitted: dict[str, dict[str, Floats]] = {}
    before: Floats | None = None
    for rung in rungs:
        used = _used(rung, n, temperature)
        if not rung.partition:
            alone = fitted_weights(whole, used, single=True)
            if rung.single or used.sum() == 1:
                fitted[rung.id] = {"": alone}
                continue
            nested = before is not None and rung.tempered and not np.isfinite(before[~used]).any()
            made = blended(whole, used, before if nested and before is not None else alone)
            fitted[rung.id] = {"": made}
            before = made if rung.tempered else before
            continue
        rows = [b[:, r == k].sum(axis=1) for b, r in zip(both, reply, strict=True) for k in range(int(r.max()) + 1)]
        names = [x for label in labels for x in label[rung.partition]]
        table = np.array(rows)
        parts = {name: np.array([x == name for x in names]) for name in sorted(set(names))}
        fitted[rung.id] = {"": fitted_weights(table, used, single=rung.single)} | {
            name: fitted_weights(table[mine], used, single=rung.single) for name, mine in parts.items()
        }
    return Fit(temperature, fitted, len(both))


def _used(rung: Rung, n: int, temperature: float) -> NDArray[np.bool_]:
    used = np.zeros(2 * n, bool)
    used[list(rung.components)] = True
    if rung.tempered and temperature != 1:
        used[[n + k for k in rung.components]] = True
    if rung.id == TEMPERED_BASE and temperature != 1:
        used[:n] = False
    return used


TEMPERED_BASE = "R1"


def _judge(
    conversation: Conversation, rungs: Sequence[Rung], fit: Fit, both: Floats, labels: dict[str, tuple[str, ...]]
) -> Floats:
    """Second pass: KL from the target to every rung at every token."""
    force = np.stack([_in_force(r, fit, both, conversation.reply, labels) for r in rungs])  # rung, component, token
    active = np.flatnonzero(np.isfinite(force).any(axis=(0, 2)))
    weights = np.exp(force[:, active])
    n = both.shape[0] // 2
    parts: list[Floats] = []
    for start, stop in _blocks(conversation):
        target, components = conversation.read(start, stop)
        p = np.exp(target)
        pieces = np.stack([_piece(components, int(k), n, fit.temperature) for k in active])
        mixed = np.einsum("rkt,ktv->rtv", weights[:, :, start:stop], pieces)
        with np.errstate(divide="ignore"):
            log_m = np.maximum(np.log(mixed), _IMPOSSIBLE)
        entropy = np.sum(p * np.maximum(target, _IMPOSSIBLE), axis=-1, dtype=np.float64)
        parts.append(np.maximum(entropy - np.einsum("tv,rtv->rt", p, log_m, dtype=np.float64), 0.0))
    return np.concatenate(parts, axis=-1)


def _piece(components: NDArray[np.floating], k: int, n: int, temperature: float) -> NDArray[np.floating]:
    if k < n:
        return np.exp(components[k])
    warm = np.exp(components[k - n] / temperature)
    return warm / warm.sum(axis=-1, keepdims=True)


def _in_force(rung: Rung, fit: Fit, both: Floats, reply: Ints, labels: dict[str, tuple[str, ...]]) -> Floats:
    """Log weights at every token, shape (2 n_components, n_tokens): the fitted ones, updated by what was said before.

    A mixture of conversations is updated along the whole of one; a rival with a partition chooses anew at every
    reply, by its label, and is updated inside the reply.
    """
    start = fit.log_weights[rung.id]
    before = np.cumsum(both, axis=1) - both
    if not rung.partition:
        return _updated(start[""][:, None] + before)
    names = labels[rung.partition]
    out = np.empty_like(both)
    for k in range(int(reply.max()) + 1):
        mine = reply == k
        within = before[:, mine] - before[:, mine][:, :1]
        out[:, mine] = _updated(start.get(names[k], start[""])[:, None] + within)
    return out


def _updated(values: Floats) -> Floats:
    top = values.max(axis=0, keepdims=True)
    return values - top - np.log(np.exp(values - top).sum(axis=0, keepdims=True))
