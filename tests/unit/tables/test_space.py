"""Persona vectors as values, and what steering words come to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from personae.errors import IncomparableEvidence, InvalidSettings, NumericsError
from personae.instruments.steering import EditSpec, edits_of, parse_cap, parse_layers, parse_steer, random_like
from personae.models.activations import Capping, Steering
from personae.tables.activations import Activations, Origin
from personae.tables.dose import Dose, DoseCurve
from personae.tables.space import PersonaVector
from personae.tables.vector_arithmetic import evaluate

ORIGIN = Origin("m", "digest", "tokenizer", 4, 3)


def vector(name: str, rows: list[list[float]], **more: object) -> PersonaVector:
    norms = np.array([2.0, 4.0], np.float32)
    made = PersonaVector(name, (1, 2), np.array(rows, np.float32), norms, name, "test", ORIGIN)
    return replace(made, **more)


A = vector("a", [[3, 0, 0], [0, 4, 0]], best_layer=2)
B = vector("b", [[0, 1, 0], [0, 0, 1]])


def test_arithmetic_is_that_of_the_arrays() -> None:
    found = evaluate("2 * a - b / 4 + (a - 3 * b)", {"a": A, "b": B})
    np.testing.assert_allclose(found.values, 3 * A.values - 3.25 * B.values, rtol=1e-6)
    assert found.positive == found.id
    assert (found.best_layer, found.quantiles) == (2, None)
    np.testing.assert_array_equal((-A).values, -A.values)
    np.testing.assert_array_equal(evaluate("'a'", {"a": A}).values, A.values)
    odd = replace(A, id="anti-social")
    np.testing.assert_array_equal(evaluate("'anti-social' * 2", {"anti-social": odd}).values, 2 * A.values)


def test_cosines_and_projections() -> None:
    assert A.cosines(A) == pytest.approx({1: 1.0, 2: 1.0})
    assert A.cosines(B) == pytest.approx({1: 0.0, 2: 0.0})
    values = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    read = Activations(("x", "y"), ("p", "p"), ("q", "r"), (0, 1, 2, 3), values, "prompt_last", ORIGIN)
    np.testing.assert_allclose(A.project(read), [[3, 7], [15, 19]])
    with pytest.raises(InvalidSettings, match="was not read"):
        A.project(replace(read, layers=(0, 1), values=values[:, :2].copy()))
    assert read.norms[0] == pytest.approx(np.median(np.linalg.norm(values[:, 0], axis=1)))


def test_what_is_refused() -> None:
    other = replace(B, origin=replace(ORIGIN, d_model=3, tokenizer_digest="another"))
    with pytest.raises(IncomparableEvidence):
        _ = A + other
    with pytest.raises(InvalidSettings, match="different layers"):
        _ = A + replace(B, layers=(0, 1))
    with pytest.raises(NumericsError):
        _ = A * float("inf")
    with pytest.raises(InvalidSettings, match="points nowhere"):
        (A - A).unit(1)
    with pytest.raises(InvalidSettings, match="no layer 3"):
        A.at(3)
    with pytest.raises(InvalidSettings, match="were promised"):
        vector("short", [[1, 2, 3]])


def test_a_coefficient_is_in_residual_norms_and_shared() -> None:
    edits = edits_of([parse_steer("a:-1.5@1-2")], {"a": A}, ORIGIN)
    assert [(e.layer, e.coefficient) for e in edits if isinstance(e, Steering)] == [(1, -1.5), (2, -3.0)]
    assert all(np.linalg.norm(e.vector) == pytest.approx(1) for e in edits)
    assert [e.layer for e in edits_of([parse_steer("a:1")], {"a": A}, ORIGIN)] == [2], "the layer chosen for it"


def test_a_floor_is_a_percentile_of_the_population() -> None:
    known = replace(A, quantiles=np.tile(np.linspace(-10, 10, 101, dtype=np.float32), (2, 1)))
    [edit] = edits_of([parse_cap("a:p25@1")], {"a": known}, ORIGIN)
    assert isinstance(edit, Capping)
    assert edit.floor == pytest.approx(-5)
    [number] = edits_of([parse_cap("a:-3.5@1")], {"a": known}, ORIGIN)
    assert isinstance(number, Capping)
    assert number.floor == -3.5
    with pytest.raises(InvalidSettings, match="above every projection"):
        edits_of([parse_cap("a:10.5@1")], {"a": known}, ORIGIN)


def test_words_and_layers() -> None:
    assert parse_steer("2 * a - b:0.5@12,14-16") == EditSpec("2 * a - b", 0.5, "steer", (12, 14, 15, 16))
    assert parse_cap("assistant_axis:p25") == EditSpec("assistant_axis", 25.0, "percentile", ())
    assert parse_layers("3,1-2,2", "--layers") == (1, 2, 3)


def test_random_vectors_are_as_long() -> None:
    drawn = random_like(A, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(drawn.values, axis=1), np.linalg.norm(A.values, axis=1), rtol=1e-6)


def dose(c: float, effect: float, cost: float, reach: float = 0.1) -> Dose:
    return Dose(c, effect, effect - 0.01, effect + 0.01, cost, 0.0, reach, cost)


def curve(*doses: Dose) -> DoseCurve:
    return DoseCurve("a", "a", "m", (1,), doses, 5, 3, 1.0, True)


def test_effect_at_a_cost_is_read_off_the_curve() -> None:
    made = curve(dose(-1, -2.0, 0.5), dose(0, 0, 0), dose(1, 1.0, 0.1), dose(2, 1.5, 0.3))
    assert made.effect_at_cost(0.1) == pytest.approx(1.0)
    assert made.effect_at_cost(0.2) == pytest.approx(1.25)
    assert made.effect_at_cost(0.05) == pytest.approx(0.5)
    assert made.effect_at_cost(9.0) == 1.5, "never so dear: the largest dose"
    assert made.beats_random
    assert not curve(dose(0, 0, 0), dose(1, 0.05, 0.1)).beats_random
    assert not curve(dose(0, 0, 0), dose(1, -2.0, 0.1)).beats_random, "the wrong way"
