"""Diagnostic items: what a trait is measured with, apart from the instructions that define it.

    reply       a prompt and two replies, one typical of each pole
    statement   two opposite first-person statements, one of each pole
    agreement   one statement, of one pole; the other pole has statements of its own

Not here: files (`files.diagnostics`), how an item is asked (`instruments.diagnosing`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from personae.errors import InputError, InvalidSettings, UnknownPersona

KINDS = ("reply", "statement", "agreement")
SPLITS = ("dev", "test")


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One item.

    Attributes:
        id: Unique in its set.
        trait: The trait it measures.
        kind: "reply", "statement" or "agreement".
        topic: What it is about; items of one topic are not independent.
        split: "dev" or "test": halves with no topic in common.
        prompt: What the user says before a reply; empty for other kinds.
        pos, neg: The texts of the poles; an agreement item has one of them.
        line: 1-based line in its file, 0 where there is none.
    """

    id: str
    trait: str
    kind: str
    topic: str
    pos: str
    neg: str
    prompt: str = ""
    split: str = "test"
    line: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown kind '{self.kind}'", hint=f"Kinds are {', '.join(KINDS)}.")
        if self.split not in SPLITS:
            raise InputError(f"unknown split '{self.split}'", hint=f"Splits are {', '.join(SPLITS)}.")
        texts = [t for t in (self.pos, self.neg) if t.strip()]
        if len(texts) != (1 if self.kind == "agreement" else 2):
            raise InputError(f"a {self.kind} item needs {'one' if self.kind == 'agreement' else 'both'} of pos and neg")
        if len(set(texts)) < len(texts):
            raise InputError("pos and neg are the same text")
        if bool(self.prompt.strip()) != (self.kind == "reply"):
            raise InputError(f"a {self.kind} item {'needs a' if self.kind == 'reply' else 'has no'} prompt")


@dataclass(frozen=True, slots=True)
class DiagnosticSet:
    """Items in order, with a name. Ids are unique.

    Raises:
        InputError: On construction, if two items share an id or there is none.
    """

    name: str
    items: tuple[Diagnostic, ...]

    def __post_init__(self) -> None:
        if not self.items:
            raise InputError(f"the diagnostic items of '{self.name}' are empty.")
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise InputError(f"two diagnostic items have the id '{item.id}'.", hint="Give every item its own id.")
            seen.add(item.id)

    @property
    def traits(self) -> tuple[str, ...]:
        """Traits in order of first appearance."""
        return tuple(dict.fromkeys(i.trait for i in self.items))

    def select(
        self,
        *,
        traits: Collection[str] | None = None,
        split: str | None = None,
        kinds: Collection[str] | None = None,
    ) -> DiagnosticSet:
        """The items of some traits, one half, some kinds; None leaves a choice open.

        Raises:
            UnknownPersona: If a trait has no items.
            InvalidSettings: If nothing is left.
        """
        missing = [t for t in traits or () if t not in self.traits]
        if missing:
            raise UnknownPersona(
                f"'{self.name}' has no diagnostic items for {', '.join(missing)}.",
                hint=f"It has items for {', '.join(self.traits)}. Give items for other traits with --items FILE.",
            )
        kept = tuple(
            i
            for i in self.items
            if (traits is None or i.trait in traits)
            and (split is None or i.split == split)
            and (kinds is None or i.kind in kinds)
        )
        if not kept:
            raise InvalidSettings(f"no diagnostic item of '{self.name}' is left (split {split}, kinds {kinds}).")
        return replace(self, items=kept)
