"""`measure`: where a model stands on every trait, judge-free.

    items, asked of the model  ->  item scores  ->  per trait log-odds towards the positive pole, with an interval

The headline is what the model prefers to say (paired replies); what it says about itself (statements) is reported
beside it and only stands in where a trait has no replies. Not here: files, the command line, the page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from personae.domain.diagnostic import SPLITS, DiagnosticSet
from personae.errors import InvalidSettings, NumericsError
from personae.inference.traits import LEAST_COVERAGE, change_of, readings, score_answers
from personae.instruments.diagnosing import TEMPLATES, Template, ask
from personae.instruments.scoring import Work
from personae.models.protocol import LanguageModel
from personae.models.rendering import Renderer
from personae.running.store import EvidenceStore
from personae.tables.traits import (
    REPLIES,
    STATEMENTS,
    Answers,
    TemplateCoverage,
    TraitChange,
    TraitProfile,
    TraitReading,
)

Started = Callable[[Work], Callable[[int], None]]


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """What is asked, and how.

    Attributes:
        system: System prompt under which the model is measured; empty for none.
        split: "dev" or "test" for one half of the items, None for all.
        quick: Only the paired replies.
    """

    system: str = ""
    split: str | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        if self.split is not None and self.split not in SPLITS:
            raise InvalidSettings(
                f"the split is '{self.split}'; it can be {' or '.join(SPLITS)}, or left out for both."
            )


def measure(
    model: LanguageModel,
    items: DiagnosticSet,
    *,
    settings: MeasureSettings | None = None,
    renderer: Renderer | None = None,
    store: EvidenceStore | None = None,
    started: Started | None = None,
    name: str = "",
) -> TraitProfile:
    """Measure a model on every trait that has items.

    Args:
        model: The model.
        items: What it is asked, for example `load_diagnostics("core")`.
        settings: Left out, everything is asked without a system prompt.
        renderer: Renders for the model; left out, one is made.
        store: Keeps answers, so that a repeat costs nothing. Its space must be that of the model; leave it out for
            weights that change under one name.
        started: Told of the work before it begins; gives a function that is told of tokens done.
        name: What the model is called in the result; left out, as its card.

    Returns:
        The profile, log-odds in nats.

    Raises:
        ContextOverflow, RenderingError: If an item does not fit or cannot be written by the template.
        InvalidSettings: If no item is left.
    """
    chosen = settings or MeasureSettings()
    quick = chosen.quick and any(i.kind == "reply" for i in items.items)
    items = items.select(split=chosen.split, kinds=("reply",) if quick else None)
    renderer = renderer or Renderer(model.tokenizer, context_length=model.card.context_length)
    templates: tuple[Template, ...] = () if quick else TEMPLATES
    answers, n_tokens = ask(
        model, renderer, items.items, system=chosen.system, templates=templates, store=store, started=started
    )
    profile = profile_of(answers, model=name or model.card.name, cast=items.name)
    return replace(profile, system=chosen.system, n_tokens=n_tokens, provenance={"model": model.card.to_dict()})


def profile_of(answers: Answers, *, model: str, cast: str) -> TraitProfile:
    """The profile that follows from a model's answers."""
    traits = tuple(dict.fromkeys(answers.traits))
    table, behind, coverage = score_answers(answers, model)
    row_traits = tuple(answers.traits[k] for k in behind)
    row_parts = tuple(REPLIES if answers.kinds[k] == "reply" else STATEMENTS for k in behind)
    parts = readings(traits, table, row_traits, row_parts, reason=_why_not(coverage))
    if table is None:
        raise NumericsError(f"{model} answers no item: {_why_not(coverage)}.")
    has_replies = {t for t, kind in zip(answers.traits, answers.kinds, strict=True) if kind == "reply"}
    headline = tuple(r if r.trait in has_replies else s for r, s in zip(parts[REPLIES], parts[STATEMENTS], strict=True))
    return TraitProfile(
        model, cast, headline, parts, table, row_traits, row_parts, coverage, notes=tuple(_notes(headline, coverage))
    )


def compare_profiles(first: TraitProfile, second: TraitProfile) -> tuple[TraitChange, ...]:
    """What moved from the first model to the second, paired by item; see `inference.traits.change_of`."""
    return change_of(first, second)


def _why_not(coverage: tuple[TemplateCoverage, ...]) -> str:
    low = [f"'{c.template}' {c.coverage:.2f}" for c in coverage if not c.measurable]
    if not low:
        return ""
    return f"the model gives the answers asked for less than {LEAST_COVERAGE:g} of its probability: {', '.join(low)}"


def _notes(headline: tuple[TraitReading, ...], coverage: tuple[TemplateCoverage, ...]) -> list[str]:
    notes: list[str] = []
    if any(not c.measurable for c in coverage):
        notes.append(f"Not measurable by some templates: {_why_not(coverage)}.")
    unmeasured = [r.trait for r in headline if not r.measurable]
    if unmeasured:
        notes.append(f"{len(unmeasured)} traits could not be measured: {', '.join(unmeasured)}.")
    return notes
