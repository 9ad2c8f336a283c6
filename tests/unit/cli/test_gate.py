"""The gate trips only when the whole interval lies beyond the threshold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.cli.gate import Gate, parse_gates
from personae.errors import InvalidSettings
from personae.tables.forecast import TraitShift


def shift(low: float, middle: float, high: float) -> TraitShift:
    return TraitShift(
        id="rude",
        positive="rude",
        negative="polite",
        description="",
        shift=middle,
        low=low,
        high=high,
        raw=middle,
        null_low=-0.1,
        null_high=0.1,
        p=0.01,
        q=0.01,
        flag=True,
        direction="pos",
        tail=0.2,
        n=10,
    )


@pytest.mark.parametrize(
    ("condition", "trips"),
    [
        ("rude>0.1", True),
        ("rude>0.2", False),  # the shift is above, the interval is not
        ("rude>0.15", False),  # equal to the lower end is not beyond it
        ("rude>-1", True),
        ("rude<0.4", True),
        ("rude<0.35", False),
        ("rude<0.2", False),
        ("rude<-1", False),
    ],
)
def test_the_sure_end_of_the_interval_decides(condition: str, trips: bool) -> None:
    (gate,) = parse_gates([condition], ["rude"])
    assert bool(gate.trips(shift(0.15, 0.25, 0.35))) == trips


def test_the_reason_names_condition_bound_and_interval() -> None:
    assert Gate("rude", ">", 0.1).trips(shift(0.15, 0.25, 0.35)) == (
        "rude > 0.1: the lower end of its interval is +0.150 (shift +0.250, 90% interval +0.150 to +0.350)"
    )
    assert "the upper end of its interval is -0.350" in Gate("rude", "<", 0).trips(shift(-0.5, -0.4, -0.35))


@given(st.tuples(*[st.floats(-5, 5)] * 3).map(sorted), st.floats(-5, 5))
def test_a_gate_and_its_mirror_agree(ends: list[float], threshold: float) -> None:
    low, middle, high = ends
    above = Gate("rude", ">", threshold).trips(shift(low, middle, high))
    below = Gate("rude", "<", -threshold).trips(shift(-high, -middle, -low))
    assert bool(above) == bool(below) == (low > threshold)


@pytest.mark.parametrize("text", ["rude>0.2", " rude > 0.2 ", "rude>.2", "rude>2e-1", "rude>+0.2"])
def test_spellings(text: str) -> None:
    assert parse_gates([text], ["rude"]) == (Gate("rude", ">", 0.2),)


def test_several_conditions_keep_their_order() -> None:
    gates = parse_gates(["b<-1", "a>0", "a<3"], ["a", "b"])
    assert gates == (Gate("b", "<", -1.0), Gate("a", ">", 0.0), Gate("a", "<", 3.0))
    assert parse_gates([], ["a"]) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not of the form trait>number"),
        ("nonsense", "not of the form trait>number"),
        ("rude", "not of the form trait>number"),
        ("rude>", "not of the form trait>number"),
        (">0.2", "not of the form trait>number"),
        ("rude=0.2", "not of the form trait>number"),
        ("rude>=0.2", "'=0.2' is not a number"),
        ("rude>0.1<0.2", "not of the form trait>number"),
        ("rude>0,2", "'0,2' is not a number"),
        ("rude>high", "'high' is not a number"),
        ("rude>nan", "must be finite"),
        ("rude>inf", "must be finite"),
        ("rude<-inf", "must be finite"),
        ("Rude>0.1", "the cast has no trait 'Rude'"),
        ("rude/pos>0.1", "the cast has no trait 'rude/pos'"),
    ],
)
def test_conditions_that_are_none(text: str, words: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_gates(["rude>0.1", text], ["rude"])
    assert f"'{text}'" in str(caught.value)
    assert words in str(caught.value)


def test_an_unknown_trait_is_told_what_there_is() -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_gates(["nice>0"], ["rude", "calm"])
    assert caught.value.hint == "Its traits: rude, calm."
    with pytest.raises(InvalidSettings) as caught:
        parse_gates(["nice>0"], [])
    assert caught.value.hint == "Its traits: none."
