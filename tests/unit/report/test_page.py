from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personae.errors import StorageError
from personae.report import figures
from personae.report.finding import finding
from personae.report.ledger import embed
from personae.report.page import render_report
from personae.report.text import clean
from personae.running.run import write_text
from personae.tables.forecast import Screening

Build = Callable[..., Screening]
Rewrite = Callable[[Screening, str], Screening]

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "template": "{{7*7}}{% raw %}",
    "cdata": "]]>",
    "closing": "</script><!--<script>",
    "quotes": "\"'` onclick=alert(1) x='",
    "direction": "a\u202eb\u2066c",
    "nul": "a\x00b\x1b[31mc",
    "surrogate": "a\ud800b\udfffc",
    "separators": "a\u2028b\u2029c&amp;&lt;",
    "namespace": ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"',
}


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, text, and the insides of scripts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.scripts: dict[str, str] = {}
        self.styles: list[str] = []
        self.cells: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in {"meta", "br", "input"}:
            self._open.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            kind = self.elements[-1][1].get("type", "text/javascript")
            self.scripts[kind] = self.scripts.get(kind, "") + data
        elif inside == "style":
            self.styles.append(data)
        else:
            self.text.append(data)
            if {"td", "th"} & set(self._open):
                self.cells[-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment came out of the data: {data}")

    @property
    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(sorted(attrs))) for tag, attrs in self.elements]

    @property
    def ledger(self) -> dict[str, Any]:
        return json.loads(self.scripts["application/json"], parse_constant=_refuse)


def _refuse(constant: str) -> object:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture(scope="module")
def source(screening: Screening) -> str:
    return render_report(screening)


@pytest.fixture(scope="module")
def small(build: Build) -> Screening:
    return build(n_rows=6, n_traits=3, n_flagged=2, roles=False)


@pytest.fixture(scope="module")
def plain(small: Screening, rewrite: Rewrite) -> Page:
    """The page whose data is the same word everywhere: the markup that is ours."""
    return Page(render_report(rewrite(small, "word")))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_stays_text(small: Screening, rewrite: Rewrite, plain: Page, text: str) -> None:
    page = Page(render_report(rewrite(small, text)))
    assert page.shape == plain.shape
    for (_, attrs), (_, usual) in zip(page.elements, plain.elements, strict=True):
        for name, value in attrs.items():
            assert value == usual[name] or name in {"width", "height", "viewbox", "transform"}
            assert not name.startswith("on")
    seen = "\n".join(page.text)
    assert seen.count(clean(text)) > 20
    assert page.ledger["excerpt"] == [clean(text)] * 6
    assert "".join(page.scripts) == "application/jsontext/javascript"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_charts_escape_their_labels(small: Screening, rewrite: Rewrite, text: str) -> None:
    hostile = rewrite(small, text)
    bars = figures.bars_of(hostile.posterior, "background")
    for svg in (figures.trait_chart(hostile.traits, figures.NARROW), figures.persona_chart(bars, figures.WIDE)):
        page = Page(svg)
        assert {tag for tag, _ in page.elements} <= {"svg", "g", "path", "line", "text", "rect"}
        assert not any(name.startswith("on") or "href" in name for _, attrs in page.elements for name in attrs)
        assert any(part.startswith(clean(text).split()[0][:4]) for part in page.text)


def test_hidden_characters_become_visible(build: Build, rewrite: Rewrite, tmp_path: Path) -> None:
    text = "".join(HOSTILE.values()) + "\r\nend"
    path = tmp_path / "report.html"
    write_text(path, render_report(rewrite(build(n_rows=3, n_traits=1, n_flagged=1), text)))
    body = path.read_bytes().decode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", body)
    assert "a[U+202E]b[U+2066]c" in body
    assert "a␀b␛[31mc" in body


def test_nothing_is_loaded(source: str) -> None:
    page = Page(source)
    assert "http:" not in source
    assert "https:" not in source
    assert "@import" not in source
    assert "url(" not in source
    assert not {tag for tag, _ in page.elements} & {"link", "iframe", "object", "embed", "base", "form", "img"}
    for _, attrs in page.elements:
        assert not attrs.keys() & {"src", "srcset", "data", "style", "xlink:href"}
        assert attrs.get("href", "#").startswith("#")


def test_policy_allows_our_script_only(source: str) -> None:
    page = Page(source)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts["text/javascript"].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; ")
    assert f"script-src 'sha256-{digest}'; img-src data:" in policy
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function", page.scripts["text/javascript"]
    )


def test_embedded_json_cannot_leave_its_element() -> None:
    body = embed(["</script>&\u2028\u2029<!--"])
    assert not set(body) & set("<>&\u2028\u2029")
    assert json.loads(body) == ["</script>&\u2028\u2029<!--"]


def test_same_screening_same_page(build: Build, source: str) -> None:
    assert render_report(build()) == source


def test_every_colour_of_a_chart_follows_the_theme(screening: Screening, source: str) -> None:
    bars = figures.bars_of(screening.posterior, "background")
    charts = [figures.trait_chart(screening.traits, figures.WIDE), figures.persona_chart(bars, figures.NARROW)]
    used = set(re.findall(r'(?:fill|stroke)="([^"]+)"', "".join(charts))) - {"none", "transparent"}
    assert used <= set(figures.COLOURS.values())
    style = Page(source).styles[0]
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    for role, value in figures.COLOURS.items():
        assert f"--{role}: {value};" in light
        assert f"--{role}: #" in dark
        for what in ("fill", "stroke"):
            assert f'.chart [{what}="{value}"] {{ {what}: var(--{role}); }}' in style


def test_tables_hold_every_number_of_the_charts(screening: Screening, source: str) -> None:
    cells = Page(source).cells
    for trait in screening.traits:
        for value in (trait.shift, trait.low, trait.high, trait.null_low, trait.null_high):
            assert any(f"{abs(value):.3f}" in cell for cell in cells)
    assert sum("flagged" in cell for cell in cells) == 3
    for persona in screening.posterior:
        assert any(cell.startswith(persona.label) for cell in cells)
    for value in screening.telling[0].token_llr:
        assert any(cell.endswith(f"{abs(value):.2f}") for cell in cells)


def test_none_of_these_is_always_shown(screening: Screening) -> None:
    bars = figures.bars_of(screening.posterior, "background", limit=12)
    assert len(bars) == 14
    assert bars[-2].label == "none of these"
    assert bars[-1].label == "73 others"
    assert sum(b.weight for b in bars) == pytest.approx(1)
    assert sum(b.prior for b in bars) == pytest.approx(1)


def test_ledger_holds_two_thousand_rows(build: Build) -> None:
    page = Page(render_report(build(n_rows=2_000, n_traits=4)))
    assert sorted(page.ledger["line"]) == list(range(1, 2_001))
    assert len(page.ledger["llr"]) == 4
    assert len(page.ledger["llr"][0]) == 2_000
    assert sum(attrs.get("class") == "excerpt" for _, attrs in page.elements) == 200
    assert "The first 200 of 2,000 rows, the strongest first." in page.text
    assert "listed are the" not in "".join(page.text)


def test_ledger_says_when_it_is_cut(build: Build) -> None:
    screening = build(n_rows=5_400, n_traits=70)
    page = Page(render_report(screening))
    words = "".join(page.text)
    assert len(page.ledger["line"]) == 5_000
    assert "The file has 5,400 rows; listed are the 5,000 with the largest z" in words
    assert "Of 70 traits, the 60 of strongest evidence" in words
    assert len(page.ledger["llr"]) == len(page.ledger["traits"]) == 60
    strongest = np.argsort(-np.abs(screening.ledger.z).max(axis=1), kind="stable")[:5_000]
    assert page.ledger["line"] == screening.ledger.line[strongest].tolist()
    assert "Drawn are the 40 traits" in words


def test_ledger_shows_weights_only_when_they_differ(small: Screening, plain: Page) -> None:
    weight = np.ones(6)
    weight[3] = -1.0
    weighted = replace(small, ledger=replace(small.ledger, weight=weight))
    assert all(attrs.get("data-key") != "weight" for _, attrs in plain.elements)
    page = Page(render_report(weighted))
    assert any(attrs.get("data-key") == "weight" for _, attrs in page.elements)
    assert page.cells.count("−1.00") == 1


def test_ledger_row_names_the_pole_it_leans_to(screening: Screening, source: str) -> None:
    ledger = Page(source).ledger
    row = ledger["id"].index("desk-001")
    top = int(np.argmax(np.abs(screening.ledger.z[0])))
    trait = screening.traits[top]
    z = screening.ledger.z[0, top]
    assert ledger["pole"][row] == (trait.positive if z > 0 else trait.negative)
    assert ledger["top"]["z"][row] == pytest.approx(z, abs=0.005)


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_flagged": 0},
        {"n_traits": 1, "n_flagged": 1},
        {"n_traits": 0, "n_flagged": 0},
        {"n_rows": 0},
        {"roles": False},
        {"n_traits": 56, "n_flagged": 5},
    ],
    ids=str,
)
def test_page_of_unusual_sizes(build: Build, sizes: dict[str, int]) -> None:
    page = Page(render_report(build(**sizes)))
    assert not re.search(r"\b(nan|inf|None|undefined)\b(?! of these)", "".join(page.text))
    assert [attrs["id"] for tag, attrs in page.elements if tag == "section"] == [
        "traits",
        "personas",
        "episodes",
        "rows",
        "making",
    ]


def test_what_is_not_finite_is_a_dash_or_infinity(screening: Screening) -> None:
    z, llr = screening.ledger.z.copy(), screening.ledger.llr.copy()
    z[0, :] = np.nan
    llr[1, :] = -np.inf
    first = replace(screening.traits[0], shift=float("-inf"), low=float("-inf"), p=float("nan"), tail=float("nan"))
    broken = replace(
        screening,
        traits=(first, *screening.traits[1:]),
        ledger=replace(screening.ledger, z=z, llr=llr),
        provenance={"noise_floor": float("nan"), "versions": {}, "gpu": None, "resumed": True},
    )
    page = Page(render_report(broken))
    assert not re.search(r"\b(nan|inf|None)\b(?! of these)", "".join(page.text))
    assert "−∞" in page.cells
    assert None in page.ledger["top"]["llr"]


def test_heat_shades_by_size_and_sign(small: Screening) -> None:
    tokens = (" plain", " yes", " never\n", " ")
    episode = replace(small.telling[0], tokens=tokens, token_llr=(0.05, 0.4, -2.0, 0.9), llr=-0.65)
    page = Page(render_report(replace(small, telling=(episode,))))
    heat = [attrs for tag, attrs in page.elements if tag == "span" and attrs.get("title", "").endswith(" nats")]
    assert [attrs.get("class") for attrs in heat] == [None, "p2", "n4 br", "p3"]
    assert [attrs["title"] for attrs in heat] == ["+0.05 nats", "+0.40 nats", "−2.00 nats", "+0.90 nats"]


def test_report_that_cannot_be_written_says_so(small: Screening, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_text(tmp_path / "absent" / "report.html", render_report(small))
    folder = tmp_path / "report.html"
    folder.mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        write_text(folder, render_report(small))
    assert list(tmp_path.iterdir()) == [folder]


def test_finding_of_nothing(build: Build) -> None:
    assert finding(build(n_flagged=0)) == (
        "No trait differs from ordinary replies: none of the 28 measured stands out at a false discovery rate of 5%."
    )
    assert finding(build(n_traits=1, n_flagged=0)).endswith("the one trait measured does not stand out (p = 0.050).")
    assert finding(build(n_traits=0, n_flagged=0)) == "No trait was measured: this cast holds roles only."


def test_finding_of_one_trait(screening: Screening) -> None:
    first = replace(screening.traits[0], null_low=-0.05, null_high=0.06)
    rest = tuple(replace(t, flag=False) for t in screening.traits[1:])
    assert finding(replace(screening, traits=(first, *rest))) == (
        "This file leans towards a character that is contemptuous: 1 of 28 traits differs from ordinary replies "
        "(+0.21 nats a token; 19 in 20 ordinary files of this size stay between −0.050 and +0.060)."
    )


def test_finding_towards_the_negative_pole(screening: Screening) -> None:
    first = replace(screening.traits[0], shift=-0.21, null_low=-0.05, null_high=0.06, direction="neg")
    rest = tuple(replace(t, flag=False) for t in screening.traits[1:])
    words = finding(replace(screening, traits=(first, *rest)))
    assert "a character that is respectful: 1 of 28 traits" in words
    assert "(+0.21 nats a token; 19 in 20 ordinary files of this size stay between −0.060 and +0.050)" in words


def test_finding_of_a_heavy_tail_alone(screening: Screening) -> None:
    first = replace(screening.traits[0], shift=0.02, null_low=-0.05, null_high=0.06, tail=0.14)
    rest = tuple(replace(t, flag=False) for t in screening.traits[1:])
    assert finding(replace(screening, traits=(first, *rest))).endswith(
        "(14% of its rows lie beyond the 95th percentile of ordinary replies; "
        "its mean, +0.020 nats a token, would be ordinary)."
    )


def test_finding_of_several_names_three(build: Build) -> None:
    words = finding(build(n_flagged=3))
    assert words.startswith("This file leans towards a character that is contemptuous, sarcastic and callous: 3 of 28")
    assert "(+0.21, +0.14 and +0.12 nats a token; 19 in 20 ordinary files of this size stay below +0.0" in words
    many = finding(build(n_flagged=7))
    assert many.startswith("This file leans most towards a character that is contemptuous, sarcastic and callous: 7 of")


def test_finding_is_one_line_of_visible_text(screening: Screening, rewrite: Rewrite) -> None:
    words = finding(rewrite(screening, "\x1b[2Ja\u202eb\nc"))
    assert "␛[2Ja[U+202E]b" in words
    assert "\n" not in words
