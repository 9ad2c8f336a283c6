"""Whom does the scorer favour? Conversations of known speakers, held by the scorer itself, say so.

    scorer as every persona (an instruction that does not score) -> conversations -> judge -> offsets, confusion
    target -> judge -> + offsets -> weights        and, beside them, the confusion turned round

A small scorer takes pirates for knights: then a mix comes out as its favourites whatever it was. Labels take that out
as far as the scorer hears any difference at all. Not here: the formulas (`inference.judge_bias`), who is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from personae.errors import InputError
from personae.inference.judge_bias import JudgeBias, fit_judge_bias, turned_round, without_bias
from personae.instruments.judging import Judge, Started
from personae.protocols.profile import Listened, listen
from personae.tables.persona_profile import Favour
from personae.tables.transcripts import Transcripts


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """Conversations of known speakers under the judge.

    Attributes:
        log_likelihood: Nats, of every component but the background, shape (n, k).
        label: Who spoke, shape (n,).
        n_tokens: Scored tokens, shape (n,).
        bias: What they say of the judge.
    """

    log_likelihood: NDArray[np.float64]
    label: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    bias: JudgeBias


def hear_known(said: Sequence[Transcripts], judge: Judge, *, started: Started) -> Known:
    """Score what every component but the background said.

    Args:
        said: By component, in the judge's order.
        judge: The judge.
        started: Told of the scoring before it begins.

    Raises:
        InputError: If a persona said nothing.
    """
    silent = [c.label for c, t in zip(judge.components, said, strict=False) if not t.spoken]
    if silent:
        raise InputError(f"the scorer says nothing as {silent[0]}, so it cannot be known how it hears it.")
    heard = [listen(t, judge, started=started).heard for t in said]
    k = len(said)
    table = np.concatenate([h.log_likelihood[:, :k] for h in heard])
    label = np.repeat(np.arange(k), [len(h.conversations) for h in heard])
    tokens = np.concatenate([h.n_tokens for h in heard])
    return Known(table, label, tokens, fit_judge_bias(table, label, tokens))


def without_favour(listened: Listened, known: Known) -> Listened:
    """The same conversations with every persona's offset."""
    heard = listened.heard
    table = without_bias(heard.log_likelihood, heard.n_tokens, known.bias)
    return replace(listened, heard=replace(heard, log_likelihood=table))


def favour_of(known: Known, listened: Listened, judge: Judge, *, seed: int = 0) -> Favour:
    """What labels said, and the target's weights by turning the confusion round.

    Args:
        known: From `hear_known`.
        listened: The target's conversations as first heard, without offsets.
        judge: The judge.
        seed: Of resamples.
    """
    k = known.log_likelihood.shape[1]
    heard = listened.heard
    turned = turned_round(
        known.log_likelihood, known.label, known.n_tokens, heard.log_likelihood[:, :k], heard.n_tokens, seed=seed
    )
    ids = [c.id for c in judge.components[:k]]
    rows = zip(ids, turned.weight.tolist(), turned.low.tolist(), turned.high.tolist(), strict=True)
    return Favour(
        int(np.bincount(known.label).min()),
        tuple(zip(ids, known.bias.offset.tolist(), strict=True)),
        tuple(tuple(row) for row in turned.confusion.tolist()),
        tuple(sorted(rows, key=lambda r: -r[1])),
        known.bias.log_loss,
        known.bias.log_loss_without,
    )
