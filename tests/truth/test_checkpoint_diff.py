"""What changed between two checkpoints, where it was planted: named, novel, nothing, and by chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest

from personae.errors import IncomparableEvidence, InvalidSettings
from personae.inference.checkpoint_diff import compare_checkpoints
from personae.tables.activations import Activations, Origin
from personae.tables.space import PersonaVector

D, N = 64, 40
ORIGIN = Origin("base", "one", "tokenizer", 1, D)
ITEMS = tuple(str(i) for i in range(N))


def table(values: np.ndarray) -> Activations:
    values = values[:, None].astype(np.float32)
    return Activations(ITEMS, ("plain",) * N, ITEMS, (0,), values, "prompt_last", ORIGIN)


def cast(rng: np.random.Generator) -> dict[str, PersonaVector]:
    directions = np.linalg.qr(rng.normal(size=(D, 8)))[0].T.astype(np.float32)
    ones = np.ones(1, np.float32)
    return {
        f"t{k}": PersonaVector(f"t{k}", (0,), directions[k : k + 1], ones, f"t{k}", "planted", ORIGIN) for k in range(8)
    }


def stream(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(N, D)) * np.geomspace(4, 0.3, D)


def test_a_planted_trait_is_named_first_with_its_sign() -> None:
    rng = np.random.default_rng(0)
    vectors, x = cast(rng), stream(rng)
    after = x - 3 * vectors["t5"].at(0) + 0.1 * rng.normal(size=x.shape)
    found = compare_checkpoints(table(x), table(after), vectors, (0,), rng=rng)[0]
    assert found.traits[0].vector == "t5"
    assert found.traits[0].cosine < -0.95
    assert found.traits[0].shift < 0
    assert found.traits[0].q < 0.05
    assert all(t.q > 0.05 for t in found.traits[1:])
    assert found.outside < 0.05 < found.outside_null
    assert found.consistency > 0.9


def test_what_the_cast_has_no_word_for_lies_outside() -> None:
    rng = np.random.default_rng(1)
    vectors, x = cast(rng), stream(rng)
    span = np.stack([v.at(0) for v in vectors.values()])
    novel = rng.normal(size=D)
    novel -= span.T @ (span @ novel)
    found = compare_checkpoints(table(x), table(x + novel), vectors, (0,), rng=rng)[0]
    assert found.outside > 0.99
    assert all(t.q > 0.05 for t in found.traits)


def test_identical_checkpoints_give_exactly_nothing() -> None:
    rng = np.random.default_rng(2)
    vectors, x = cast(rng), stream(rng)
    found = compare_checkpoints(table(x), table(x), vectors, (0,), rng=rng)[0]
    assert (found.size, found.outside, found.consistency) == (0, 0, 0)
    assert all(t.cosine == 0 and t.p == 1 for t in found.traits)


def test_changes_like_the_data_name_no_trait_too_often() -> None:
    """A change drawn like the activations differ anyway is what the null expects: p is uniform."""
    rng = np.random.default_rng(3)
    p = []
    for _ in range(60):
        vectors, x = cast(rng), stream(rng)
        change = rng.normal(size=D) * np.sqrt(
            0.9 * np.geomspace(4, 0.3, D) ** 2 + 0.1 * np.mean(np.geomspace(4, 0.3, D) ** 2)
        )
        found = compare_checkpoints(table(x), table(x + change), vectors, (0,), rng=rng)[0]
        p.append(next(t.p for t in found.traits if t.vector == "t0"))
    assert kstest(p, "uniform").pvalue > 0.001


def test_bad_input() -> None:
    rng = np.random.default_rng(4)
    vectors, x = cast(rng), stream(rng)
    other = replace(table(x), origin=replace(ORIGIN, tokenizer_digest="another"))
    with pytest.raises(IncomparableEvidence, match="nothing in common"):
        compare_checkpoints(table(x), other, vectors, (0,), rng=rng)
    with pytest.raises(InvalidSettings, match="same items"):
        compare_checkpoints(table(x), replace(table(x), items=ITEMS[::-1]), vectors, (0,), rng=rng)
    with pytest.raises(InvalidSettings, match="some vectors"):
        compare_checkpoints(table(x), table(x), {}, (0,), rng=rng)
