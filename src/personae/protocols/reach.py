"""Reach: how much of a persona's own behaviour in the context brings a model to speak as that persona.

    contexts of n turns by persona k  ->  belief in k at the next reply  ->  belief curve  ->  critical n

A persona that no test elicited still has its row: its weight without context, and how far away it is, censored where
the turns tried do not bring it above one half. Two checks of "training is conditioning" follow: retention R(n) of a
change in prior under contrary turns, and whether the model's own answers leave its predictions in place on average
(the martingale property of exact Bayes). Where they fail is part of the result. Sources: A11 and section 5.3 of the
project's methods; Bigelow et al. 2025 (arXiv 2511.00617), Falck et al. 2024 (arXiv 2406.00793). Not here: how beliefs
are read (`protocols.beliefs`), curves (`inference.belief_curves`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from personae.inference.belief_curves import (
    LEAST_CHANGE,
    MartingaleCheck,
    Retention,
    fit_belief_curve,
    martingale_check,
    retention,
)
from personae.instruments.judging import Component
from personae.tables.persona_profile import Reach, ReachRow

Floats = NDArray[np.float64]
Talk = tuple[tuple[str, str], ...]  # what was asked and what was answered, turn by turn

_CLIP = 0.003
_LEAST_MASS = 1e-5
_RETAINED = (0, 1, 2, 3, 4)
STRICT = 0.1  # how far R(n) may lie from 1 before a note says so


class BeliefReader(Protocol):
    """Reads beliefs about who speaks after a conversation so far."""

    @property
    def components(self) -> Sequence[Component]:
        """Whose reach is wanted."""
        ...

    @property
    def against(self) -> str:
        """What belief is measured against, in words."""
        ...

    @property
    def joint(self) -> bool:
        """Whether beliefs in all components come from one read-out, so that two of them may be compared."""
        ...

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of turns tried, from 0."""
        ...

    def contexts(self, component: Component | None) -> Sequence[Talk]:
        """Conversations by a persona, as long as the last level; by nobody in particular where None."""
        ...

    def weights(self, talks: Sequence[Talk], component: Component, *, base: bool) -> Floats:
        """Belief in `component` after each conversation, of the target or its base, shape (n_talks,)."""
        ...

    def has_base(self) -> bool:
        """Whether there is a base to compare with."""
        ...

    def own_turns(self, *, seed: int) -> tuple[Floats, Floats] | None:
        """Predictions before and after one turn of the target's own, as `martingale_check` takes them."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class RawBelief:
    """Beliefs as read: one row a persona, context and number of turns. What the page is drawn from."""

    persona: tuple[str, ...]
    context: NDArray[np.int64]
    turns: NDArray[np.int64]
    weight: Floats


def reach(
    reader: BeliefReader, *, seed: int = 0, advance: Callable[[int], None] = lambda amount: None
) -> tuple[Reach, RawBelief]:
    """Reach of every component, retention and the martingale check.

    Args:
        reader: Reads beliefs.
        seed: Of resampling.
        advance: Told of every component that is done.
    """
    rows: list[ReachRow] = []
    raw: list[tuple[str, int, int, float]] = []
    start: dict[str, Floats] = {}
    for component in reader.components:
        talks = reader.contexts(component)
        weights = _by_level(reader, talks, component, reader.levels, base=False)
        start[component.id] = weights[:, 0]
        raw += [
            (component.id, c, n, float(weights[c, j])) for c in range(len(talks)) for j, n in enumerate(reader.levels)
        ]
        rows.append(_row(component, reader.levels, weights, seed))
        advance(1)
    kept = _retention(reader, start, seed) if reader.has_base() else None
    own = reader.own_turns(seed=seed)
    martingale = martingale_check(*own, seed=seed) if own is not None else None
    rows.sort(key=lambda r: (r.critical_n is None, r.critical_n or 0.0, -r.weight))
    made = Reach(tuple(rows), reader.against, notes=tuple(_notes(rows, kept[1] if kept else None, martingale)))
    if kept is not None:
        made = _with_retention(made, *kept)
    else:
        made = replace(made, retention_reason="there is no base model to compare with")
    if martingale is not None:
        made = replace(
            made,
            martingale_drift=martingale.drift,
            martingale_noise=martingale.noise,
            martingale_p=martingale.p,
        )
    names, contexts, turns, values = zip(*raw, strict=True)
    return made, RawBelief(names, np.array(contexts), np.array(turns), np.array(values))


def _by_level(
    reader: BeliefReader, talks: Sequence[Talk], component: Component, levels: Sequence[int], *, base: bool
) -> Floats:
    """Belief after each number of turns of each conversation, shape (n_talks, n_levels)."""
    cut = [talk[:n] for talk in talks for n in levels]
    distinct = list(dict.fromkeys(cut))
    read = dict(zip(distinct, reader.weights(distinct, component, base=base), strict=True))
    return np.array([read[c] for c in cut]).reshape(len(talks), len(levels))


def _row(component: Component, levels: Sequence[int], weights: Floats, seed: int) -> ReachRow:
    odds = logit(np.clip(weights, _CLIP, 1 - _CLIP))
    fit = fit_belief_curve(levels, odds, seed=seed)
    mean = odds.mean(axis=0)
    note = ""
    if mean[-1] < mean[0]:
        note = "its own behaviour does not raise belief in it: the scorer's version of it may not be what is read"
    return ReachRow(
        component.id,
        component.label,
        float(weights[:, 0].mean()),
        fit.critical_n,
        fit.critical_low,
        fit.critical_high,
        float(levels[-1]),
        fit.law,
        tuple(mean.tolist()),
        tuple(levels),
        note,
    )


def _retention(reader: BeliefReader, start: dict[str, Floats], seed: int) -> tuple[Component, Retention]:
    """R(n) for the persona whose prior moved most, under turns that speak against the move.

    Log-odds are against the persona that moved most the other way, whose odds exact Bayes shifts by the same amount
    after every context; where none did, against all others.
    """
    moves: dict[str, float] = {}
    for component in reader.components:
        before = reader.weights([()], component, base=True)[0]
        moves[component.id] = _odds(start[component.id].mean()) - _odds(before)
    most = max(reader.components, key=lambda c: abs(moves[c.id]))
    if abs(moves[most.id]) < LEAST_CHANGE:
        reason = f"no persona moved by {LEAST_CHANGE} nats from the base: nothing to retain"
        return most, Retention((), moves[most.id], (), (), (), reason)
    sign = np.sign(moves[most.id])
    other = min(reader.components, key=lambda c: sign * moves[c.id])
    rival = other if sign * moves[other.id] < 0 else None
    talks = reader.contexts(most if sign < 0 else rival)
    both = [_log_odds(reader, talks, most, rival, base=base) for base in (True, False)]
    return most, retention(_RETAINED, *both, seed=seed)


def _log_odds(
    reader: BeliefReader, talks: Sequence[Talk], most: Component, rival: Component | None, *, base: bool
) -> Floats:
    weights = np.clip(_by_level(reader, talks, most, _RETAINED, base=base), _LEAST_MASS, 1 - _LEAST_MASS)
    if rival is None or not reader.joint:
        return logit(weights)
    others = np.maximum(_by_level(reader, talks, rival, _RETAINED, base=base), _LEAST_MASS)
    return np.log(weights) - np.log(others)


def _odds(weight: float) -> float:
    return float(logit(np.clip(weight, _LEAST_MASS, 1 - _LEAST_MASS)))


def _with_retention(made: Reach, who: Component, kept: Retention) -> Reach:
    return replace(
        made,
        retained_persona=who.label,
        retention_turns=kept.turns,
        retention=kept.ratio,
        retention_low=kept.low,
        retention_high=kept.high,
        change_at_zero=kept.change_at_zero,
        retention_reason=kept.reason,
    )


def _notes(rows: Sequence[ReachRow], kept: Retention | None, martingale: MartingaleCheck | None) -> list[str]:
    notes: list[str] = []
    censored = sum(r.critical_n is None for r in rows)
    if censored:
        notes.append(
            f"{censored} of {len(rows)} personas stay below one half after {rows[0].n_most:g} turns of their own "
            "behaviour: their reach is censored, not infinite."
        )
    if kept is not None and kept.ratio:
        off = [
            n
            for n, low, high in zip(kept.turns, kept.low, kept.high, strict=True)
            if high < 1 - STRICT or low > 1 + STRICT
        ]
        if off:
            notes.append(
                f"Strict conditioning fails: after {off[0]} contrary turns {kept.ratio[kept.turns.index(off[0])]:.2f} "
                "of the change in log-odds is left where Bayes leaves 1."
            )
    if martingale is not None and martingale.p <= 0.05:
        notes.append(
            f"The martingale property fails: one turn of the model's own moves its predictions by "
            f"{martingale.drift:.3f} in total variation on average, where sampling alone gives {martingale.noise:.3f} "
            f"(p = {martingale.p:.3f}). In-context beliefs are not exact Bayes there."
        )
    return notes
