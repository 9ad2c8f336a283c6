"""Diagnostic items x model -> Answers. One pass over each distinct beginning, everything cached.

    reply       frame + prompt | reply                       every reply to one prompt shares the prompt's pass
    choice      frame + "Which ... A or B?" A: pos B: neg | A, | B    and once more with the statements swapped
    agreement   frame + "Would you say ...?" statement | Yes, | No

The frame is the model's own template, with the system prompt under which it is measured; a base model gets the
plain dialogue frame. A template is tried on some of the statements first, and dropped if the model does not answer it.
Not here: what the answers say (`inference.traits`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from personae.domain.diagnostic import Diagnostic
from personae.domain.episode import Episode, Turn
from personae.domain.persona import PLAIN, Persona
from personae.errors import NumericsError
from personae.inference.traits import template_coverage
from personae.instruments.scoring import Work
from personae.models.protocol import LanguageModel, Scorable, TokenLogprobs
from personae.models.rendering import Frame, Renderer
from personae.running.store import EvidenceStore, Rows
from personae.tables.traits import Answers


@dataclass(frozen=True, slots=True)
class Template:
    """A wording in which statements are asked.

    Attributes:
        name: Short.
        text: Holds `{first}` and `{second}` (a choice) or `{statement}` (agreement).
        options: The two answers; the first speaks for what stands first, or is agreement.
    """

    name: str
    text: str
    options: tuple[str, str]

    @property
    def is_choice(self) -> bool:
        """Whether it shows both statements."""
        return "{first}" in self.text


TEMPLATES = (
    Template(
        "letters",
        "Which of these two sentences would you say about yourself? Answer with A or B only.\nA: {first}\nB: {second}",
        ("A", "B"),
    ),
    Template(
        "numbers",
        "Pick the sentence that describes you better. Reply with 1 or 2 only.\n1. {first}\n2. {second}",
        ("1", "2"),
    ),
    Template("agreement", "Is this true of you? Answer Yes or No only.\n{statement}", ("Yes", "No")),
)

_PILOT_EVERY = 9  # no divisor of the statements of a trait, so that a pilot meets every topic
_LEAST_PILOT = 12


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one log-likelihood goes: a reply (template "") or an option of an asking."""

    item: int
    template: str
    asking: int
    option: int


def asked(items: Sequence[Diagnostic], templates: Sequence[Template]) -> list[tuple[_Place, Episode]]:
    """Every (place, episode) that has to be scored, those with a common beginning together."""
    made: list[tuple[_Place, Episode]] = []
    replies = [k for k, item in enumerate(items) if item.kind == "reply"]
    prompts = {p: n for n, p in enumerate(dict.fromkeys(items[k].prompt for k in replies))}
    for k in sorted(replies, key=lambda k: prompts[items[k].prompt]):
        for pole, text in enumerate((items[k].pos, items[k].neg)):
            episode = Episode(items[k].id, (Turn("user", items[k].prompt),), text, line=items[k].line)
            made.append((_Place(k, "", 0, pole), episode))
    for template in templates:
        for k, item in enumerate(items):
            if item.kind != "reply":
                made += _statements(k, item, template)
    return made


def _statements(k: int, item: Diagnostic, template: Template) -> list[tuple[_Place, Episode]]:
    if template.is_choice and item.kind != "statement":
        return []
    made: list[tuple[_Place, Episode]] = []
    for asking, (mine, other) in enumerate(((item.pos, item.neg), (item.neg, item.pos))):
        if not mine:
            continue
        text = template.text.format(first=mine, second=other, statement=mine)
        for option, answer in enumerate(template.options):
            episode = Episode(item.id, (Turn("user", text),), answer, line=item.line)
            made.append((_Place(k, template.name, asking, option), episode))
    return made


def ask(
    model: LanguageModel,
    renderer: Renderer,
    items: Sequence[Diagnostic],
    *,
    system: str = "",
    templates: Sequence[Template] = TEMPLATES,
    store: EvidenceStore | None = None,
    started: Callable[[Work], Callable[[int], None]] | None = None,
) -> tuple[Answers, int]:
    """Ask a model every item.

    Args:
        model: The model.
        renderer: Renders for it.
        items: Ids unique.
        system: System prompt (for a base model a heading) under which it is asked; empty for none.
        templates: Wordings of the statements.
        store: Where answers are kept; its space must be that of the model. None keeps nothing.
        started: Told of the work before it begins; gives a function that is told of tokens done.

    Returns:
        The answers, and how many tokens had to be run.

    Raises:
        ContextOverflow, RenderingError: If an item does not fit or cannot be written by the template.
        NumericsError: If the model gives what is not a number.
    """
    frame = renderer.frames(Persona(PLAIN, (system,) if system else ()))[0]
    renderer.reserve([frame])
    session = _Session(model, renderer, frame, items, templates, store)
    session.announce(started)
    session.run(session.places[""])
    for template in templates:
        places = session.places[template.name]
        pilot = _pilot(places)
        session.run(pilot)
        values = session.answers(templates).choices.get(template.name)
        if pilot and values is not None and not template_coverage(template.name, values).measurable:
            session.skip(places)
        else:
            session.run(places)
    return session.answers(templates), session.n_tokens


_Placed = list[tuple[_Place, Episode]]


def _pilot(places: _Placed) -> _Placed:
    """Those of every ninth item; none where that is too few to judge a template by."""
    chosen = set(list(dict.fromkeys(p.item for p, _ in places))[::_PILOT_EVERY])
    return [(p, e) for p, e in places if p.item in chosen] if len(chosen) >= _LEAST_PILOT else []


class _Session:
    """One model asked one set of items: what is known, and what it cost."""

    def __init__(
        self,
        model: LanguageModel,
        renderer: Renderer,
        frame: Frame,
        items: Sequence[Diagnostic],
        templates: Sequence[Template],
        store: EvidenceStore | None,
    ) -> None:
        self._model, self._renderer, self._frame, self._store = model, renderer, frame, store
        self._items = items
        self.places: dict[str, _Placed] = {t: [] for t in ("", *(t.name for t in templates))}
        for place, episode in asked(items, templates):
            self.places[place.template].append((place, episode))
        digests = [e.content_digest for placed in self.places.values() for _, e in placed]
        self._rows = Rows.empty([frame.digest], digests) if store is None else store.load([frame.digest], digests)
        self._advance: Callable[[int], None] = lambda n: None
        self.n_tokens = 0

    def announce(self, started: Callable[[Work], Callable[[int], None]] | None) -> None:
        """Tell of all the work there may be."""
        groups = [g for placed in self.places.values() for g in self._missing(placed)]
        if started is not None:
            self._advance = started(Work(sum(map(len, groups)), sum(_cost([s for _, s in g]) for g in groups)))

    def skip(self, placed: _Placed) -> None:
        """Count as done what will not be asked."""
        self._advance(sum(_cost([s for _, s in g]) for g in self._missing(placed)))

    def run(self, placed: _Placed) -> None:
        """Score what is not known yet, and keep it."""
        made: list[tuple[bytes, bytes, int, float]] = []
        try:
            for group in self._missing(placed):
                scorables = [s for _, s in group]
                for (digest, _), result in zip(group, self._model.score(scorables), strict=True):
                    made.append((self._frame.digest, digest, len(result.log_probs), self._take(digest, result)))
                self.n_tokens += _cost(scorables)
                self._advance(_cost(scorables))
        finally:
            # Also when interrupted: what was scored is kept.
            if self._store is not None:
                self._store.put(made)

    def _take(self, digest: bytes, result: TokenLogprobs) -> float:
        value, place = result.log_likelihood, self._rows.episodes[digest]
        if np.isnan(value):
            raise NumericsError(f"{self._model.card.name} gave a log-likelihood that is not a number.")
        self._rows.log_likelihood[0, place], self._rows.n_tokens[0, place] = value, len(result.log_probs)
        return value

    def _missing(self, placed: _Placed) -> list[list[tuple[bytes, Scorable]]]:
        unknown = self._rows.missing[0]
        episodes = {e.content_digest: e for _, e in placed if unknown[self._rows.episodes[e.content_digest]]}
        return _grouped(episodes, self._renderer, self._frame)

    def answers(self, templates: Sequence[Template]) -> Answers:
        """All that is known so far; NaN for the rest."""
        n = len(self._items)
        replies, n_tokens = np.full((n, 2), np.nan), np.zeros((n, 2), np.int64)
        choices = {t.name: np.full((n, 2, 2), np.nan) for t in templates}
        for placed in self.places.values():
            for place, episode in placed:
                at = self._rows.episodes[episode.content_digest]
                value = float(self._rows.log_likelihood[0, at])
                if place.template:
                    choices[place.template][place.item, place.asking, place.option] = value
                else:
                    replies[place.item, place.option] = value
                    n_tokens[place.item, place.option] = self._rows.n_tokens[0, at]
        return Answers(
            tuple(i.id for i in self._items),
            tuple(i.trait for i in self._items),
            tuple(i.topic for i in self._items),
            tuple(i.kind for i in self._items),
            replies,
            n_tokens,
            {name: values for name, values in choices.items() if not np.isnan(values).all()},
        )


def _grouped(episodes: dict[bytes, Episode], renderer: Renderer, frame: Frame) -> list[list[tuple[bytes, Scorable]]]:
    """Requests with a common beginning as long as can be, marked as shared.

    Replies are grouped by their prompt; statements by the words of their template before the first statement.
    """
    by_start: dict[str, list[tuple[bytes, Scorable]]] = {}
    for digest, episode in episodes.items():
        text = episode.context[-1].text
        by_start.setdefault(text.split("\n", 1)[0], []).append((digest, renderer.render(frame, episode)))
    groups: list[list[tuple[bytes, Scorable]]] = []
    for group in by_start.values():
        shared = min(_common([s.token_ids for _, s in group]), min(s.start for _, s in group) - 1)
        groups.append([(d, Scorable(s.token_ids, s.start, shared)) for d, s in group])
    return groups


def _common(sequences: Sequence[tuple[int, ...]]) -> int:
    """Length of the common beginning."""
    low, high = min(sequences), max(sequences)
    return next((i for i, (x, y) in enumerate(zip(low, high, strict=False)) if x != y), min(len(low), len(high)))


def _cost(group: Sequence[Scorable]) -> int:
    """Tokens run for a group: the shared beginning once, then what differs, each distinct context of an option once."""
    return group[0].shared + sum(len(ids) + 1 - s for ids, s in {(g.token_ids[:-1], g.shared) for g in group})
