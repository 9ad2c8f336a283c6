"""Diagnostic items x model -> Answers. One pass over each distinct beginning, everything cached.

    reply       frame + prompt | reply                       every reply to one prompt shares the prompt's pass
    choice      frame + "Which ... A or B?" A: pos B: neg | A, | B    and once more with the statements swapped
    agreement   frame + "Would you say ...?" statement | Yes, | No

The frame is the model's own template, with the system prompt under which it is measured; a base model gets the
plain dialogue frame. Not here: what the answers say (`inference.traits`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from personae.domain.diagnostic import Diagnostic
from personae.domain.episode import Episode, Turn
from personae.domain.persona import PLAIN, Persona
from personae.errors import NumericsError
from personae.instruments.scoring import Work
from personae.models.protocol import LanguageModel, Scorable
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
    places = asked(items, templates)
    digests = [episode.content_digest for _, episode in places]
    rows = Rows.empty([frame.digest], digests) if store is None else store.load([frame.digest], digests)
    n_tokens = _fill(model, renderer, frame, [e for _, e in places], rows, store, started)
    return _collected(items, places, rows, templates), n_tokens


def _fill(
    model: LanguageModel,
    renderer: Renderer,
    frame: Frame,
    episodes: Sequence[Episode],
    rows: Rows,
    store: EvidenceStore | None,
    started: Callable[[Work], Callable[[int], None]] | None,
) -> int:
    """Score what the rows lack, keep it, and give the number of tokens run."""
    missing = {
        e.content_digest: e for e in episodes if np.isnan(rows.log_likelihood[0, rows.episodes[e.content_digest]])
    }
    if not missing:
        return 0
    groups = _grouped(missing, renderer, frame)
    costs = [_cost([s for _, s in group]) for group in groups]
    advance = started(Work(len(missing), sum(costs))) if started else None
    for group, cost in zip(groups, costs, strict=True):
        made: list[tuple[bytes, bytes, int, float]] = []
        for (digest, _), result in zip(group, model.score([s for _, s in group]), strict=True):
            value, place = result.log_likelihood, rows.episodes[digest]
            if np.isnan(value):
                raise NumericsError(f"{model.card.name} gave item '{missing[digest].id}' no number.")
            rows.log_likelihood[0, place], rows.n_tokens[0, place] = value, len(result.log_probs)
            made.append((frame.digest, digest, len(result.log_probs), value))
        if store is not None:
            store.put(made)
        if advance is not None:
            advance(cost)
    return sum(costs)


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


def _collected(
    items: Sequence[Diagnostic], places: Sequence[tuple[_Place, Episode]], rows: Rows, templates: Sequence[Template]
) -> Answers:
    n = len(items)
    replies, n_tokens = np.full((n, 2), np.nan), np.zeros((n, 2), np.int64)
    choices = {t.name: np.full((n, 2, 2), np.nan) for t in templates}
    for place, episode in places:
        at = rows.episodes[episode.content_digest]
        value = float(rows.log_likelihood[0, at])
        if not place.template:
            replies[place.item, place.option] = value
            n_tokens[place.item, place.option] = rows.n_tokens[0, at]
        else:
            choices[place.template][place.item, place.asking, place.option] = value
    return Answers(
        tuple(i.id for i in items),
        tuple(i.trait for i in items),
        tuple(i.topic for i in items),
        tuple(i.kind for i in items),
        replies,
        n_tokens,
        {name: values for name, values in choices.items() if not np.isnan(values).all()},
    )
