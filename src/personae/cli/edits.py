"""From `--steer`, `--cap` and `--vectors` to a model under edits.

Vectors come from the files named, else from those that `personae vectors` has made for this model before. Not here:
what the words mean (`instruments.steering`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from personae.errors import InputError, InvalidSettings
from personae.instruments.reading import origin_of
from personae.instruments.steering import EditSpec, edits_of, parse_cap, parse_steer
from personae.models.activations import Edit, EditableModel, require_activations
from personae.models.catalogue import home
from personae.models.protocol import LanguageModel, ModelCard
from personae.tables.space import PersonaVector


@dataclass(frozen=True, slots=True)
class EditNames:
    """What was written after --steer, --cap and --vectors."""

    steer: tuple[str, ...] = ()
    cap: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """A line an edit, for people."""
        return (*(f"steer {s}" for s in self.steer), *(f"cap {c}" for c in self.cap))


def parse_edits(names: EditNames) -> list[EditSpec]:
    """What was written, read: cheap, so that a slip is told before a model is loaded.

    Raises:
        InvalidSettings: If an edit has another form.
        InputError: If a file of vectors is not there.
    """
    specs = [*(parse_steer(s) for s in names.steer), *(parse_cap(c) for c in names.cap)]
    if names.vectors and not specs:
        raise InvalidSettings("--vectors does nothing without --steer or --cap.")
    missing = next((path for path in names.vectors if not Path(path).exists()), None)
    if missing is not None:
        raise InputError("there is no such file of vectors", path=missing)
    return specs


@contextmanager
def edited_model(model: LanguageModel, names: EditNames) -> Iterator[LanguageModel]:
    """The model under the edits asked for; the model itself where there are none.

    Raises:
        MissingCapability: If the model has no activations.
        InvalidSettings, UnknownPersona, IncomparableEvidence: If an edit cannot be made of this model.
    """
    edits = edits_for(names)
    if edits is None:
        yield model
        return
    editable = require_activations(model)
    with editable.steered(edits(editable)) as view:
        yield view


def edits_for(names: EditNames) -> Callable[[EditableModel], list[Edit]] | None:
    """What makes the edits asked for of a model; None where there are none.

    Raises:
        InvalidSettings: If an edit has another form; the function raises as `edits_of` does.
    """
    specs = parse_edits(names)
    if not specs:
        return None

    def made(model: EditableModel) -> list[Edit]:
        return edits_of(specs, known_vectors(names.vectors, model.card), origin_of(model, model.card))

    return made


def known_vectors(files: tuple[str, ...], card: ModelCard) -> dict[str, PersonaVector]:
    """Vectors of the files named, else those kept for the model; none where none were made.

    Raises:
        InputError: If a file cannot be read.
    """
    from personae.models.hf_vectors import find_vectors, library_path

    kept = library_path(home(), card)
    return find_vectors([Path(f) for f in files] or [p for p in (kept,) if p.is_file()])
