"""The page and the card of a profile: whole, escaped, and honest about what was not measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from personae.report.profile_finding import finding
from personae.report.profile_page import render_card, render_profile
from personae.tables.persona_profile import (
    Move,
    PersonaShare,
    Profile,
    Reach,
    ReachRow,
    SelfDescription,
    TellingPrompt,
    TopicRow,
    Topics,
    TraitMargin,
    Versus,
    WhiteBox,
)

NASTY = "<script>alert(1)</script>"


def share(persona: str, weight: float, kind: str = "role") -> PersonaShare:
    return PersonaShare(persona, f"a {persona}", kind, 0.25, weight, weight / 2, min(1.0, weight * 1.5))


@pytest.fixture
def made() -> Profile:
    shares = (
        share("pirate", 0.5),
        share("plain", 0.3, "plain"),
        share("knight", 0.1),
        share("background", 0.1, "background"),
    )
    rows = tuple(TopicRow(t, 5, shares[:3], 0.2, 0.3) for t in ("advice", "self-description"))
    return Profile(
        target=f"target {NASTY}",
        system=f"You are {NASTY}",
        scorer="smollm2",
        cast="core",
        n_prompts=10,
        n_conversations=10,
        n_tokens=200,
        n_empty=1,
        n_refusals=0,
        shares=shares,
        background=0.1,
        traits=(TraitMargin("rude", "rude", "polite", 0.1, 0.0, 0.2, 0.3, 0.2, 0.4, -0.1, -0.2, 0.1),),
        topics=Topics(0.2, 0.01, 0.02, rows),
        telling=(TellingPrompt("p1", "advice", f"What? {NASTY}", 0.4, 1),),
        classes=((("a", "b"), 0.2),),
        eta=0.25,
        eta_source="a default",
        is_identified=False,
        rank=2,
        white_box_reason="it is a file",
        not_measurable=("Hardly anything.",),
        notes=(f"note {NASTY}",),
        provenance={"date": "2026-11-21T12:00:00+00:00", "versions": {"personae": "0.1"}},
    )


def with_everything(made: Profile) -> Profile:
    rows = (
        ReachRow("pirate", "a pirate", 0.5, 0.0, 0.0, 1.0, 8, "linear", (0.1, 1.0), (0, 8)),
        ReachRow("knight", "a knight", 0.1, None, 6.0, None, 8, "power", (-2.0, -1.0), (0, 8), "does not rise"),
    )
    reach = Reach(
        rows, "the others", "a pirate", (1, 2), (0.6, 0.5), (0.4, 0.3), (0.8, 0.7), 1.2, "", 0.1, 0.05, 0.01, ("x",)
    )
    moves = (
        Move("pirate", "a pirate", "role", 0.1, 0.5, 0.3, 0.2, 0.4, 0.0001, 0.001),
        Move("rude", "rude against polite", "trait", 0.0, 0.1, 0.1, -0.1, 0.3, 0.4, 0.5),
    )
    own = SelfDescription(made.shares[:2], made.shares[1:3], 0.4, 0.01)
    white = WhiteBox(made.shares, 13, 0.02, False, 0.3, 0.7, False, ("rough",))
    return replace(made, reach=reach, versus=Versus("other", 10, moves, 0.05), self_description=own, white_box=white)


def test_what_came_from_outside_is_escaped(made: Profile) -> None:
    for page in (render_profile(with_everything(made)), render_card(with_everything(made))):
        assert NASTY not in page
        assert "&lt;script&gt;" in page


def test_the_finding_names_the_leader_or_says_that_it_is_itself(made: Profile) -> None:
    assert finding(made).endswith("speaks as a pirate in 50% (25% to 75%) of its answers.")
    plain_first = replace(made, shares=(made.shares[1], made.shares[0], *made.shares[2:]))
    assert "itself" in finding(plain_first)
    assert "nearest persona is a pirate" in finding(plain_first)


def test_a_comparison_says_what_moved_or_that_nothing_did(made: Profile) -> None:
    whole = with_everything(made)
    assert finding(whole).startswith("1 measure moved")
    assert whole.versus is not None
    still = replace(whole, versus=replace(whole.versus, fdr=1e-9))
    assert finding(still).startswith("Nothing moved")
    assert "nothing moved" in render_profile(still)


def test_sections_that_were_not_measured_say_why_or_stay_away(made: Profile) -> None:
    page = render_profile(made)
    assert "Not read: it is a file" in page
    assert 'id="reach"' not in page
    assert 'id="moved"' not in page
    assert "Said the same here" in page
    assert "Ask more prompts" in page
    card = render_card(made)
    assert "Not compared" in card
    assert "Hardly anything." in card
    assert "Who it could be" not in card


def test_censored_reach_is_shown_as_beyond_the_turns_tried(made: Profile) -> None:
    page = render_profile(with_everything(made))
    assert "&gt; 8" in page
    assert "0.60" in page
    assert "moves</strong> its predictions" in page


def test_the_same_profile_gives_the_same_page(made: Profile) -> None:
    assert render_profile(made) == render_profile(made)
    assert "<svg" in render_card(made)
