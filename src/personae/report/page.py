"""The report of a screening: one HTML file that needs no network, no fonts and, to be read, no JavaScript.

    Screening -> sections (one function and one template each) -> page

Everything that came from data passes through Jinja's escaping and through `text.clean`; the browser is told by
the page's own Content-Security-Policy to load nothing and to run no script but ours. Not here: charts
(`figures`), the ledger's rows (`ledger`), the sentence at the top (`finding`).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath

import jinja2
from markupsafe import Markup

from personae.domain.persona import BACKGROUND
from personae.report import figures, text
from personae.report.finding import finding, finding_pieces
from personae.report.ledger import MAX_ROWS, PLAIN_ROWS, ledger_view
from personae.tables.forecast import UNIT, Screening, TellingEpisode

_CHARTED_TRAITS = 40
_LISTED_PERSONAS = 12
_HEAT = (0.1, 0.3, 0.8, 1.6)  # nats at which a token's shade grows


@dataclass(frozen=True, slots=True)
class Token:
    """A token with what it adds, in nats, and the style class of its shade; leading blanks stay unshaded."""

    blank: str
    text: str
    nats: float
    style: str


@dataclass(frozen=True, slots=True)
class ShownEpisode:
    """A telling episode with its tokens shaded and the poles its colours stand for."""

    episode: TellingEpisode
    tokens: tuple[Token, ...]
    positive: str
    negative: str


def render_report(screening: Screening) -> str:
    """The report as one string of HTML; the same screening gives the same string."""
    script = _asset("script.js")
    page = _render(
        "page",
        title=f"{PurePath(screening.data).name}: {finding(screening)}",
        style=_asset("style.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sections=[section(screening) for section in SECTIONS],
    )
    return str(page)


def header(screening: Screening) -> Markup:
    """The finding in one sentence, and which file, model, cast and day it belongs to."""
    return _render(
        "header",
        s=screening,
        name=PurePath(screening.data).name,
        pieces=finding_pieces(screening),
        date=text.moment(str(screening.provenance.get("date", ""))),
    )


def traits(screening: Screening) -> Markup:
    """Shift of every trait against the range of ordinary files."""
    charted = screening.traits[:_CHARTED_TRAITS]
    return _render(
        "traits",
        s=screening,
        unit=UNIT,
        n_charted=len(charted),
        charts=_charts(functools.partial(figures.trait_chart, charted)) if charted else {},
    )


def training(screening: Screening) -> Markup:
    """What training on the file would do to each trait; nothing where that was not forecast."""
    f = screening.training
    if f is None:
        return Markup("")
    order = sorted(range(len(f.traits)), key=lambda k: -abs(float(f.net[k])))
    rows = [
        (f.traits[k], *(float(v[k]) for v in (f.mean, f.low, f.high, f.shared, f.net))) for k in order[:_CHARTED_TRAITS]
    ]
    return _render("training", f=f, rows=rows)


def posterior(screening: Screening) -> Markup:
    """Which components of the cast account for the replies."""
    bars = figures.bars_of(screening.posterior, BACKGROUND, limit=_LISTED_PERSONAS)
    return _render(
        "posterior",
        s=screening,
        bars=bars,
        more=len(screening.posterior) > len(bars),
        charts=_charts(functools.partial(figures.persona_chart, bars)) if bars else {},
    )


def telling(screening: Screening) -> Markup:
    """The episodes that speak most, token by token."""
    poles = {t.id: (t.positive, t.negative) for t in screening.traits}
    shown = [_shaded(e, poles.get(e.trait, (e.trait, f"not {e.trait}"))) for e in screening.telling]
    return _render("telling", episodes=shown, heat=_HEAT)


def ledger(screening: Screening) -> Markup:
    """Every row with its strongest trait, to sort and to filter."""
    return _render("ledger", view=ledger_view(screening), max_rows=MAX_ROWS, plain_rows=PLAIN_ROWS)


def making(screening: Screening) -> Markup:
    """How the numbers were made, and what they cannot say."""
    return _render("making", s=screening, unit=UNIT, facts=provenance_facts(screening.provenance))


SECTIONS: tuple[Callable[[Screening], Markup], ...] = (header, traits, training, posterior, telling, ledger, making)


def _charts(draw: Callable[[figures.Layout], str]) -> dict[str, Markup]:
    """A chart for a wide and one for a narrow page; vl-convert escapes the text in them."""
    return {"wide": Markup(draw(figures.WIDE)), "narrow": Markup(draw(figures.NARROW))}


def _shaded(episode: TellingEpisode, poles: tuple[str, str]) -> ShownEpisode:
    pairs = zip(episode.tokens, episode.token_llr, strict=True)
    return ShownEpisode(episode, tuple(_token(t, v) for t, v in pairs), *poles)


def _token(token: str, nats: float) -> Token:
    word = token.lstrip(" ") or token
    return Token(token[: len(token) - len(word)], word, nats, _shade(token, nats))


def _shade(token: str, nats: float) -> str:
    """Style classes of a token: "p3" leans clearly to the positive pole, "n1" slightly to the negative one."""
    level = sum(abs(nats) >= step for step in _HEAT)
    shade = "" if level == 0 else f"{'p' if nats > 0 else 'n'}{level}"
    return f"{shade} br".strip() if "\n" in token else shade


def provenance_facts(provenance: Mapping[str, object]) -> list[tuple[str, list[str]]]:
    """Provenance as names with one or more lines of text."""
    return [(name.replace("_", " "), _lines(value)) for name, value in provenance.items()]


def _lines(value: object) -> list[str]:
    match value:
        case Mapping():
            return [f"{k}: {_phrase(v)}" for k, v in value.items()] or ["—"]
        case list() | tuple():
            return [_phrase(v) for v in value] or ["—"]
        case _:
            return [_phrase(value)]


def _phrase(value: object) -> str:
    match value:
        case None:
            return "—"
        case bool():
            return "yes" if value else "no"
        case float() if not math.isfinite(value):
            return text.number(value)
        case Mapping() | list() | tuple():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return str(value)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("personae.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for show in (
        text.number,
        text.signed,
        text.lean,
        text.probability,
        text.percent,
        text.share,
        text.ratio,
        text.count,
    ):
        environment.filters[show.__name__] = show
    return environment


def _visible(value: object) -> object:
    """Make visible what hides in a string; our own markup and numbers pass."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else text.clean(value)


def _render(name: str, /, **values: object) -> Markup:
    return Markup(_environment().get_template(f"{name}.html.j2").render(**values))


def _asset(name: str) -> Markup:
    return Markup((resources.files("personae.report") / "templates" / name).read_text(encoding="utf-8"))


def fill(name: str, values: Mapping[str, object]) -> Markup:
    """A template filled in, for other pages of this style; strings are escaped and made visible."""
    return _render(name, **values)


def style() -> Markup:
    """The style sheet that pages share."""
    return _asset("style.css")
