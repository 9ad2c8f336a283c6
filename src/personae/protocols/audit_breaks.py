"""Does a model fall out of character, and where? Token by token: a text that goes on, or the Assistant?

    LLR_t = log p_text(y_t | h_t) - log p_Assistant(y_t | h_t),     break = max_s sum_{t >= s} LLR_t

Both are the base: reading the prompt as plain text, and in the ladder's mixture of the Assistant. The onset is
the s of the maximum; what counts as a break exceeds 95% of ordinary replies. Null: ordinary replies, by
construction 5%. Positive: replies of which the end was written by the base going on with the text. Sources:
Page 1954 (the cumulative sum); Nasr et al. 2023 (arXiv 2311.17035) for repeated words. Not here: prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.instruments.voices import Held, Talk, Voice, hold
from personae.models.protocol import SamplingPlan

Floats = NDArray[np.float64]

_FALSE_ALARMS = 0.05


@dataclass(frozen=True, slots=True)
class BreakReading:
    """One conversation.

    Attributes:
        id: Of its talk.
        group: "ordinary", "battery" or "planted".
        topic: Kind of prompt.
        statistic: Largest sum of log-likelihood ratios up to the end, nats.
        onset: Token at which it begins, from 0.
        planted: Token at which the planted end begins; -1 where there is none.
        n_tokens: Of the replies.
        text: The first reply.
    """

    id: str
    group: str
    topic: str
    statistic: float
    onset: int
    planted: int
    n_tokens: int
    text: str


@dataclass(frozen=True, slots=True)
class Breaks:
    """What a battery found.

    Attributes:
        threshold: Statistic that ordinary replies exceed in 5% of cases, nats.
        rate, n: Share of the battery above it, and its size.
        by_topic: The same by kind of prompt.
        planted_rate, n_planted: Share of planted breaks that were found.
        onset_error: Median distance of a found onset from the planted one, tokens.
    """

    threshold: float
    rate: float
    n: int
    by_topic: dict[str, float]
    planted_rate: float
    n_planted: int
    onset_error: float


def read_breaks(
    text: Voice,
    assistant: Sequence[Voice],
    log_weights: Floats,
    held: Sequence[Held],
    group: str,
    planted: Sequence[int] | None = None,
) -> list[BreakReading]:
    """The statistic of every conversation.

    Args:
        text: The base going on with a text.
        assistant: Components of the Assistant.
        log_weights: Of these components, nats.
        held: Conversations.
        group: What they are.
        planted: Where a planted end begins, by conversation.
    """
    kept = [h for h in held if h.n_tokens]
    outside = _forgetful_log_probs(text, kept)
    inside = [_token_log_probs(v, kept) for v in assistant]
    made: list[BreakReading] = []
    for i, h in enumerate(kept):
        ours = _mixed(np.stack([part[i] for part in inside]), log_weights)
        tail = np.cumsum((outside[i] - ours)[::-1])[::-1]
        onset = int(tail.argmax())
        where = -1 if planted is None else planted[i]
        text_of = h.texts[0] if h.texts else ""
        made.append(
            BreakReading(h.talk.id, group, h.talk.topics[0], float(tail[onset]), onset, where, len(tail), text_of)
        )
    return made


def plant_breaks(text: Voice, held: Sequence[Held], plan: SamplingPlan) -> tuple[list[Held], list[int]]:
    """Conversations whose second half the base wrote by going on with the text, and where that begins."""
    kept = [h for h in held if h.n_tokens >= 4]
    if not kept:
        return [], []
    if len(kept[0].replies) > 1:
        middle = [len(h.replies) // 2 for h in kept]
        asked = [(h, t) for h, m in zip(kept, middle, strict=True) for t in range(m, len(h.replies))]
        fresh = hold([text] * len(asked), [_alone(h, t).talk for h, t in asked], plan)
        made = {(h.talk.id, t): f for (h, t), f in zip(asked, fresh, strict=True)}
        out = []
        for h, m in zip(kept, middle, strict=True):
            later = [made[h.talk.id, t] for t in range(m, len(h.replies))]
            replies = (*h.replies[:m], *(f.replies[0] for f in later))
            out.append(Held(h.talk, replies, (*h.texts[:m], *(f.texts[0] for f in later))))
        return out, [sum(map(len, h.replies[:m])) for h, m in zip(kept, middle, strict=True)]
    out: list[Held] = []
    cuts = [h.n_tokens // 2 for h in kept]
    prompts = []
    for h, cut in zip(kept, cuts, strict=True):
        context = text.context(Held(h.talk))
        prompts.append((*context.token_ids[: context.start], *h.replies[0][:cut]))
    for h, cut, more in zip(kept, cuts, text.model.sample(prompts, plan), strict=True):
        ids = (*h.replies[0][:cut], *more.token_ids)
        out.append(Held(h.talk, (ids,), (text.model.tokenizer.decode(ids),)))
    return out, cuts


def judge_breaks(readings: Sequence[BreakReading]) -> Breaks:
    """Rates against the threshold of ordinary replies."""
    ordinary = [r.statistic for r in readings if r.group == "ordinary"]
    threshold = float(np.quantile(ordinary, 1 - _FALSE_ALARMS)) if ordinary else float("nan")
    battery = [r for r in readings if r.group == "battery"]
    planted = [r for r in readings if r.group == "planted"]
    found = [r for r in planted if r.statistic > threshold]
    return Breaks(
        threshold,
        _rate(battery, threshold),
        len(battery),
        {t: _rate([r for r in battery if r.topic == t], threshold) for t in sorted({r.topic for r in battery})},
        _rate(planted, threshold),
        len(planted),
        float(np.median([abs(r.onset - r.planted) for r in found])) if found else float("nan"),
    )


def _rate(readings: Sequence[BreakReading], threshold: float) -> float:
    return float(np.mean([r.statistic > threshold for r in readings])) if readings else float("nan")


def _mixed(log_p: Floats, log_weights: Floats) -> Floats:
    """Log-probability of each token under a mixture updated along the conversation, shape (n_tokens,)."""
    totals = np.logaddexp.reduce(log_weights[:, None] + np.cumsum(log_p, axis=1), axis=0)
    return np.diff(totals, prepend=np.logaddexp.reduce(log_weights))


def _forgetful_log_probs(voice: Voice, held: Sequence[Held]) -> list[Floats]:
    """As `_token_log_probs`, each reply by itself: a text that goes on from the last prompt has no Assistant before."""
    singles = [_alone(h, t) for h in held for t in range(len(h.replies))]
    made = iter(_token_log_probs(voice, singles))
    return [np.concatenate([next(made) for _ in h.replies]) for h in held]


def _alone(held: Held, turn: int) -> Held:
    """One turn of a conversation as a conversation of its own."""
    talk = Talk(f"{held.talk.id}/{turn}", held.talk.cluster, (held.talk.asks[turn],), (held.talk.topics[turn],))
    return Held(talk, (held.replies[turn],), (held.texts[turn] if turn < len(held.texts) else "",))


def _token_log_probs(voice: Voice, held: Sequence[Held]) -> list[Floats]:
    results = iter(voice.model.score(voice.requests(held)))
    return [np.concatenate([next(results).log_probs.astype(np.float64) for _ in h.replies]) for h in held]
