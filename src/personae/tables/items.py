"""Scores of items under several arms: the table that comparisons are made from.

One row is one score: of an item (a question, a prompt) asked through a template, of one arm (a model, a checkpoint, a
persona) and one training seed. Items lie in clusters (topic, conversation, source), which are independent of each
other; items of one cluster are not. Not here: what follows from the scores (`inference.effects`), files
(`files.items`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from personae.errors import InputError

Floats = NDArray[np.float64]

LABELS = ("item", "cluster", "template", "seed", "arm")


@dataclass(frozen=True, slots=True, eq=False)
class ItemTable:
    """Scores with the labels that say what is independent of what; every column has n_rows entries.

    Attributes:
        item: What was asked; the same id in two arms pairs them.
        cluster: What the item belongs to; every item lies in one cluster. The item itself if items are independent.
        template: The wording it was asked in.
        seed: Training seed (or run) of the arm; a level of its own, above all others.
        arm: What is compared.
        score: Finite, in any unit; higher is more of whatever is measured.

    Raises:
        InputError: On construction, naming the row (0-based): columns of unequal length, no rows, an empty label, a
            score that is not finite, the same (item, template, seed, arm) twice, an item in two clusters.
    """

    item: tuple[str, ...]
    cluster: tuple[str, ...]
    template: tuple[str, ...]
    seed: tuple[str, ...]
    arm: tuple[str, ...]
    score: Floats

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in (*LABELS, "score")}
        if len(set(lengths.values())) > 1:
            raise InputError(f"the columns of an item table differ in length: {lengths}.")
        if len(self.score) == 0:
            raise InputError("an item table needs at least one row.")
        for name in LABELS:
            for row, label in enumerate(getattr(self, name)):
                if not isinstance(label, str) or not label:
                    raise InputError(
                        f"row {row} of the item table has the {name} {label!r}; labels are texts, not empty."
                    )
        bad = np.flatnonzero(~np.isfinite(self.score))
        if len(bad):
            raise InputError(
                f"row {bad[0]} of the item table (item '{self.item[bad[0]]}', arm '{self.arm[bad[0]]}') has the score "
                f"{self.score[bad[0]]}.",
                hint="Leave unscored items out; a missing score is not a number.",
            )
        self._check_keys()
        self.score.setflags(write=False)

    def _check_keys(self) -> None:
        seen: dict[tuple[str, ...], int] = {}
        home: dict[str, str] = {}
        for row, key in enumerate(zip(self.item, self.template, self.seed, self.arm, strict=True)):
            if (first := seen.setdefault(key, row)) != row:
                raise InputError(
                    f"rows {first} and {row} of the item table both hold item '{key[0]}', template '{key[1]}', seed "
                    f"'{key[2]}', arm '{key[3]}'.",
                    hint="Average repeated answers first, or give them templates of their own.",
                )
            cluster = self.cluster[row]
            if home.setdefault(key[0], cluster) != cluster:
                raise InputError(
                    f"item '{key[0]}' lies in two clusters, '{home[key[0]]}' and '{cluster}' (row {row}).",
                    hint="Make item ids unique across clusters, for example 'CLUSTER/ITEM'.",
                )

    def __len__(self) -> int:
        return len(self.score)

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms in order of first appearance."""
        return tuple(dict.fromkeys(self.arm))

    def of_arm(self, arm: str) -> ItemTable:
        """The rows of one arm.

        Raises:
            InputError: If there are none.
        """
        rows = np.flatnonzero([a == arm for a in self.arm])
        if len(rows) == 0:
            raise InputError(
                f"the item table has no arm '{arm}'.", hint=f"It has {', '.join(repr(a) for a in self.arms)}."
            )
        return self.take(rows)

    def take(self, index: NDArray[np.int64]) -> ItemTable:
        """The rows at `index`, in that order."""
        labels = (tuple(getattr(self, name)[i] for i in index) for name in LABELS)
        return ItemTable(*labels, score=self.score[index].copy())


def item_table(
    score: ArrayLike,
    *,
    item: Sequence[object],
    arm: Sequence[object],
    cluster: Sequence[object] | None = None,
    template: Sequence[object] | None = None,
    seed: Sequence[object] | None = None,
) -> ItemTable:
    """An item table from columns of any type; labels become texts.

    Args:
        score: One score a row, shape (n_rows,).
        item: Ids of the items.
        arm: What each score is of.
        cluster: What the items belong to; left out, every item is its own cluster.
        template: The wording; left out, there is one.
        seed: The training seed; left out, there is one.

    Raises:
        InputError: If scores are not numbers, and as `ItemTable`.
    """
    try:
        scores = np.array(score, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"the scores of an item table must be numbers: {error}.") from error
    if scores.ndim != 1:
        raise InputError(f"the scores of an item table have the shape {scores.shape}; one a row is wanted.")
    n = len(scores)
    items = _texts(item)
    return ItemTable(
        item=items,
        cluster=items if cluster is None else _texts(cluster),
        template=("only",) * n if template is None else _texts(template),
        seed=("only",) * n if seed is None else _texts(seed),
        arm=_texts(arm),
        score=scores,
    )


def _texts(labels: Sequence[object]) -> tuple[str, ...]:
    return tuple("" if label is None else str(label) for label in labels)
