"""What an episode is checked for, and which contents share a key."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.domain.episode import Episode, Turn
from personae.errors import InputError

Q, A, S = Turn("user", "q"), Turn("assistant", "a"), Turn("system", "s")


@pytest.mark.parametrize(
    "context", [(), (S,), (Q,), (S, Q), (Q, A, Q), (S, Q, A, Q)], ids=lambda c: " ".join(t.speaker for t in c) or "none"
)
def test_contexts_that_may_stand_before_a_reply(context: tuple[Turn, ...]) -> None:
    assert Episode("e", context, "y").context == context


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ((A,), "turn 1 is from assistant, expected user"),
        ((Q, A), "two assistant turns in a row"),
        ((S, Q, A), "two assistant turns in a row"),
        ((Q, Q), "turn 2 is from user, expected assistant"),
        ((Q, S, Q), "a system turn may only come first"),
        ((S, S, Q), "a system turn may only come first"),
        ((Turn("tool", "x"),), "unknown role 'tool'"),
        ((S, Turn("", "x")), "unknown role ''"),
    ],
)
def test_contexts_out_of_order(context: tuple[Turn, ...], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Episode("e", context, "y")


@pytest.mark.parametrize("completion", ["", " ", "\n\t ", "\u00a0\u2003"])
def test_an_empty_completion(completion: str) -> None:
    with pytest.raises(InputError, match="the completion is empty") as caught:
        Episode("e", (Q,), completion)
    assert caught.value.hint


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite(weight: float) -> None:
    with pytest.raises(InputError, match="not a finite number"):
        Episode("e", (Q,), "y", weight)


def test_an_episode_is_its_own_group_unless_told() -> None:
    assert Episode("e", (Q,), "y").group == "e"
    assert Episode("e", (Q,), "y", group="g").group == "g"


def test_the_digest_names_content_and_nothing_else() -> None:
    one = Episode("e", (S, Q), "y")
    assert one.content_digest == Episode("f", (S, Q), "y", -2.0, "g", 9).content_digest
    others = [
        Episode("e", (Q,), "y"),
        Episode("e", (S, Q), "y "),
        Episode("e", (S, Turn("user", "Q")), "y"),
        Episode("e", (), "y"),
        Episode("e", (), "y", is_document=True),
    ]
    digests = {e.content_digest for e in (one, *others)}
    assert len(digests) == 1 + len(others)
    assert {len(d) for d in digests} == {16}


def test_the_digest_is_that_of_earlier_stores() -> None:
    """A change here throws away every score anybody has kept, and those that come with the package."""
    assert Episode("e", (S, Q, A, Q), "y\té").content_digest.hex() == "335e43a1184af2675d4e7e7843d213e4"


# Few characters, so that the separators of the digest's parts come often.
tricky = st.text(alphabet="\0\1\2abcuser=", max_size=6)


def test_turns_written_into_a_text_are_not_turns() -> None:
    flat = Episode("e", (Turn("user", "a\1assistant\0b\1user\0c"),), "y")
    deep = Episode("e", (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")), "y")
    assert flat.content_digest != deep.content_digest


@given(st.lists(tricky, max_size=3), tricky, st.lists(tricky, max_size=3), tricky)
def test_equal_digests_mean_equal_contents(texts: list[str], reply: str, other: list[str], other_reply: str) -> None:
    def make(parts: list[str], completion: str) -> Episode:
        speakers = ("user", "assistant", "user")[: len(parts) - (len(parts) % 2 == 0)]
        return Episode("e", tuple(map(Turn, speakers, parts)), completion + "y")

    a, b = make(texts, reply), make(other, other_reply)
    same = (a.context, a.completion) == (b.context, b.completion)
    assert (a.content_digest == b.content_digest) == same


def test_half_a_surrogate_pair_does_not_break_the_digest() -> None:
    assert Episode("e", (), "\ud800").content_digest != Episode("e", (), "\udc00").content_digest
