"""From a model's answers to trait readings: item scores, what is measurable, intervals, changes.

    reply       2 n+ n- / (n+ + n-) (mean log p of a token of pos - of neg);  log p(pos) - log p(neg) if n+ = n-
    choice      half of [log p(A) - log p(B)] asked with pos first, plus [log p(B) - log p(A)] with neg first
    agreement   half of [log p(Yes) - log p(No)] of the pos statement, less that of the neg statement

A preference for a letter, a place or for Yes adds the same to both halves and cancels. A reply longer than its
opposite by some tokens would otherwise gain what the model gives any token; the harmonic mean of the lengths takes
exactly the pair's own mean rate times the difference in length away. Scores are nats towards the positive pole.

Not here: where answers come from (`instruments.diagnosing`). The rules follow Perez et al. 2022 (arXiv 2212.09251)
with the balancing of Yes/No, and Miller 2024 (arXiv 2411.00640) for errors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from personae.errors import InputError
from personae.inference.effects import compare
from personae.numerics.clustered import cluster_mean
from personae.numerics.statistics import benjamini_hochberg
from personae.tables.items import ItemTable, item_table
from personae.tables.traits import (
    REPLIES,
    STATEMENTS,
    Answers,
    TemplateCoverage,
    TraitChange,
    TraitProfile,
    TraitReading,
)

Floats = NDArray[np.float64]

LEAST_COVERAGE = 0.5
LEAST_ITEMS = 3


def reply_scores(replies: Floats, n_tokens: NDArray[np.int64]) -> Floats:
    """Score of every reply pair, nats, shape (n_items,); NaN for other kinds.

    Args:
        replies: Log-likelihoods of pos and neg, nats, shape (n_items, 2).
        n_tokens: Their tokens, same shape.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = replies / n_tokens
        harmonic = 2 * n_tokens.prod(axis=1) / n_tokens.sum(axis=1)
        return harmonic * (rate[:, 0] - rate[:, 1])


def choice_scores(asked: Floats) -> Floats:
    """Score of every item asked twice, nats, shape (n_items,), free of a preference for an option.

    Args:
        asked: Log-probabilities, shape (n_items, 2 askings, 2 options). In the first asking the first option speaks
            for the positive pole, in the second for the negative one. An item asked once (one statement) is NaN in
            the other; it is balanced by the items of the other pole.
    """
    odds = asked[..., 0] - asked[..., 1]
    both = (odds[:, 0] - odds[:, 1]) / 2
    single = np.isnan(both)
    if not single.any():
        return both
    means = [odds[single, k][~np.isnan(odds[single, k])] for k in (0, 1)]
    if any(len(m) == 0 for m in means):
        return both
    bias = (means[0].mean() + means[1].mean()) / 2
    return np.where(single, np.where(np.isnan(odds[:, 0]), bias - odds[:, 1], odds[:, 0] - bias), both)


def template_coverage(template: str, asked: Floats) -> TemplateCoverage:
    """How much of its probability a model gives to the two options, and what it prefers of itself."""
    given = ~np.isnan(asked[..., 0])
    coverage = float(np.exp(asked[given]).sum(axis=-1).mean())
    odds = asked[..., 0] - asked[..., 1]
    bias = float(np.nanmean(np.nanmean(odds, axis=0)))
    return TemplateCoverage(template, coverage, coverage >= LEAST_COVERAGE, bias)


def score_answers(answers: Answers, model: str) -> tuple[ItemTable | None, list[int], tuple[TemplateCoverage, ...]]:
    """Item scores of everything measurable, the item behind every row, and the coverage of the templates."""
    coverage = tuple(template_coverage(name, asked) for name, asked in answers.choices.items())
    columns: list[tuple[int, str, float]] = []
    for k, score in enumerate(reply_scores(answers.replies, answers.n_tokens)):
        if np.isfinite(score):
            columns.append((k, "reply", float(score)))
    for known in coverage:
        if not known.measurable:
            continue
        for trait in dict.fromkeys(answers.traits):
            rows = np.flatnonzero([t == trait for t in answers.traits])
            for k, score in zip(rows, choice_scores(answers.choices[known.template][rows]), strict=True):
                if np.isfinite(score):
                    columns.append((int(k), known.template, float(score)))
    if not columns:
        return None, [], coverage
    table = item_table(
        np.array([c[2] for c in columns]),
        item=[answers.items[c[0]] for c in columns],
        arm=[model] * len(columns),
        cluster=[answers.topics[c[0]] for c in columns],
        template=[c[1] for c in columns],
    )
    return table, [c[0] for c in columns], coverage


def read_trait(trait: str, part: str, table: ItemTable | None, *, reason: str = "") -> TraitReading:
    """The mean of a trait's item scores with a clustered interval; templates are averaged within an item.

    Args:
        trait: Id.
        part: What the scores are of.
        table: Its rows; None if there are none.
        reason: Why there are none.
    """
    if table is None:
        return _unmeasured(trait, part, reason or "no items of this kind", 0)
    items, means, clusters = average_templates(table)
    if len(items) < LEAST_ITEMS or len(set(clusters)) < 2:
        return _unmeasured(trait, part, f"only {len(items)} items in {len(set(clusters))} topics", len(items))
    e = cluster_mean(means, clusters)
    return TraitReading(trait, e.value, e.low, e.high, e.se, len(items), True, "", part, e.p)


def average_templates(table: ItemTable) -> tuple[list[str], Floats, list[str]]:
    """Items with the mean of their scores over templates, and their clusters."""
    scores: dict[str, list[float]] = {}
    for item, score in zip(table.item, table.score, strict=True):
        scores.setdefault(item, []).append(float(score))
    home = dict(zip(table.item, table.cluster, strict=True))
    return list(scores), np.array([sum(s) / len(s) for s in scores.values()]), [home[i] for i in scores]


def _unmeasured(trait: str, part: str, reason: str, n: int) -> TraitReading:
    nan = float("nan")
    return TraitReading(trait, nan, nan, nan, nan, n, False, reason, part)


def change_of(first: TraitProfile, second: TraitProfile) -> tuple[TraitChange, ...]:
    """What moved from the first model to the second, paired by item, with q-values over the traits.

    Only the headline's part is compared, and only items that both answered.

    Raises:
        InputError: If the profiles have no trait in common.
    """
    common = [r.trait for r in first.readings if r.trait in {s.trait for s in second.readings}]
    if not common:
        raise InputError(f"the profiles of '{first.model}' and '{second.model}' have no trait in common.")
    rows = [_change(first, second, trait) for trait in common]
    known = [r for r in rows if r.measurable]
    q = iter(benjamini_hochberg(np.array([r.p for r in known])) if known else ())
    return tuple(
        TraitChange(r.trait, r.change, r.low, r.high, r.se, r.p, float(next(q)), r.n_items) if r.measurable else r
        for r in rows
    )


def _change(first: TraitProfile, second: TraitProfile, trait: str) -> TraitChange:
    a, b = first.of(trait), second.of(trait)
    nan = float("nan")
    for profile, reading in ((first, a), (second, b)):
        if not reading.measurable:
            why = f"not measurable in {profile.model}: {reading.reason}"
            return TraitChange(trait, nan, nan, nan, nan, nan, nan, 0, False, why)
    if a.part != b.part:
        why = f"measured by {a.part} in {first.model} and by {b.part} in {second.model}"
        return TraitChange(trait, nan, nan, nan, nan, nan, nan, 0, False, why)
    e = compare(_joined(first, second, trait, a.part), "first", "second", n_draws=0, n_permutations=0)
    d = e.difference
    return TraitChange(trait, d.value, d.low, d.high, d.se, d.p, nan, e.n_items)


def compressed_changes(first: TraitProfile, second: TraitProfile) -> dict[str, tuple[float, float]]:
    """Mean over a trait's items of sign(c) log(1 + |c|), c the item's change in nats, and its standard error.

    Compressed, as few items of a trait move far and which ones do is chance: on the forecast benchmark this forecasts
    other items better than plain means do (decision 51). Traits that cannot be compared are left out.

    Raises:
        InputError: If the profiles have no trait in common.
    """
    made: dict[str, tuple[float, float]] = {}
    for trait in (c.trait for c in change_of(first, second) if c.measurable):
        table = _joined(first, second, trait, first.of(trait).part)
        rows = list(zip(table.arm, table.item, table.template, table.cluster, table.score, strict=True))
        before = {(item, template): score for arm, item, template, _, score in rows if arm == "first"}
        after = [(score - before[i, t], cluster) for arm, i, t, cluster, score in rows if arm == "second"]
        moved = np.array([change for change, _ in after])
        mean = cluster_mean(np.sign(moved) * np.log1p(np.abs(moved)), [cluster for _, cluster in after])
        made[trait] = (mean.value, mean.se)
    return made


def _joined(first: TraitProfile, second: TraitProfile, trait: str, part: str) -> ItemTable:
    """The rows of both that share item and template."""
    tables = [profile.of_part(trait, part) for profile in (first, second)]
    keys = [set(zip(t.item, t.template, strict=True)) for t in tables]
    common = keys[0] & keys[1]
    kept = [t.take(np.flatnonzero([k in common for k in zip(t.item, t.template, strict=True)])) for t in tables]
    return item_table(
        np.concatenate([t.score for t in kept]),
        item=[i for t in kept for i in t.item],
        arm=[name for name, t in zip(("first", "second"), kept, strict=True) for _ in t.item],
        cluster=[c for t in kept for c in t.cluster],
        template=[c for t in kept for c in t.template],
    )


def readings(
    traits: Sequence[str], table: ItemTable | None, row_traits: Sequence[str], row_parts: Sequence[str], *, reason: str
) -> dict[str, tuple[TraitReading, ...]]:
    """Readings of both parts for every trait, in the order given."""
    made: dict[str, tuple[TraitReading, ...]] = {}
    for part in (REPLIES, STATEMENTS):
        found: list[TraitReading] = []
        for trait in traits:
            rows = [k for k, key in enumerate(zip(row_traits, row_parts, strict=True)) if key == (trait, part)]
            some = table.take(np.array(rows, np.int64)) if table is not None and rows else None
            found.append(read_trait(trait, part, some, reason=reason if part == STATEMENTS else ""))
        made[part] = tuple(found)
    return made
