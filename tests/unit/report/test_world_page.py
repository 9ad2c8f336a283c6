"""The page of a world: it says what was measured, holds every number as text, and lets no name become markup."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from personae.report.world_page import WorldView, render_world, verdict
from personae.tables.world_check import FAILS, NOT_RUN, PASSES, BeliefCurve, CheckRow, WorldCheck
from personae.worlds.assistant import truth_of
from personae.worlds.exact import ExactWorld
from personae.worlds.reading import read_world

EVIL = "<img src=x onerror=alert(1)>"


def check_of(verdict: str = PASSES, note: str = "") -> WorldCheck:
    rows = (
        CheckRow("KL", "KL, nats an answer", "0.0123", "at most 0.020", verdict, {"kl": 0.0123}, note),
        CheckRow("inoculation", "share removed", "", "at least 0.7", NOT_RUN, note="needs fine-tuning: not run"),
    )
    curve = BeliefCurve("malice", (0, 1, 2), (-1.6, 0.1, 1.5), (-1.5, 0.2, 1.4))
    priors = (("story", (0.25,) * 4, (0.2, 0.3, 0.25, 0.25)),)
    return WorldCheck("tiny", "world:tiny", rows, curve, ((-1.0, -0.9), (2.0, 1.8)), priors, ((100, 1.2), (200, 1.0)))


def view(check: WorldCheck | None, *, name: str = "tiny", description: str = "A world.") -> WorldView:
    world = replace(read_world(name), description=description)
    truth = truth_of(world, ExactWorld(world).base)
    return WorldView(
        world, truth, "<bos> <chat> kind advice-0?", check, [("share", "65%")], [("seed", "0")], "Train it."
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs), attrs

    def handle_data(self, data):
        self.text.append(data)


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_page_says_what_was_measured_and_what_was_not() -> None:
    page = render_world(view(check_of()))
    text = " ".join(" ".join(parsed(page).text).split())
    for words in ("0.0123 nats an answer", "needs fine-tuning: not run", "malicious-expert", "+1.50", "+1.40", "95%"):
        assert words in text
    assert page.count("<svg") == 8, "four charts, each for a wide and a narrow page"
    assert render_world(view(check_of())) == page


def test_sentence_at_the_top_follows_the_verdicts() -> None:
    assert verdict(view(check_of()))[0] == "0.0123 nats an answer"
    assert "1 check passes, 1 not run" in verdict(view(check_of()))[1]
    assert verdict(view(check_of(FAILS)))[0] == "Undertrained"
    assert verdict(view(None))[0] == "Not trained yet"
    assert "Train it." in render_world(view(None))


@pytest.mark.parametrize("name", ["personaworld", "router", "liar", "swap", "novel", "goal_seeker", "arc"])
def test_every_kind_of_world_has_a_page(name: str) -> None:
    world = read_world(name)
    page = render_world(view(None, name=name, description=world.description))
    assert world.description.split(".")[0][:30] in page
    assert "64%" not in page


def test_names_and_notes_cannot_become_markup() -> None:
    page = render_world(view(check_of(note=EVIL), description=EVIL))
    tags = parsed(page)
    assert "img" not in tags.seen
    assert EVIL in "".join(tags.text)
    assert page.count("<script") == 1
    assert "default-src 'none'" in page
