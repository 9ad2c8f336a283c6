"""Steering and capping as a user writes them, and the edits they come to.

    NAME:COEFFICIENT[@LAYERS]     contemptuous:-1.5@12-18      add to the residual stream
    NAME:FLOOR[@LAYERS]           assistant_axis:p25           floor the projection: a percentile, or a number

NAME is a vector or a sum of vectors (`2 * malicious - caring`). A coefficient is in units of the median length of the
residual stream, in total: over several layers it is shared evenly. LAYERS are 0-based blocks, `12`, `12-18` or
`12,14`; left out, the layer that was chosen for the vector. Not here: doing it (`models.hf_hooks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from personae.errors import InvalidSettings
from personae.models.activations import Capping, Edit, Steering, check_layers
from personae.tables.activations import Origin
from personae.tables.space import PersonaVector
from personae.tables.vector_arithmetic import evaluate


@dataclass(frozen=True, slots=True)
class EditSpec:
    """One edit as written.

    Attributes:
        name: Vector, or a sum of vectors.
        size: Coefficient, floor, or percentage.
        kind: "steer", "floor" or "percentile".
        layers: 0-based blocks; empty for the layer chosen for the vector.
    """

    name: str
    size: float
    kind: str
    layers: tuple[int, ...]


def parse_steer(text: str) -> EditSpec:
    """Read `NAME:COEFFICIENT[@LAYERS]`.

    Raises:
        InvalidSettings: If it has another form.
    """
    name, size, layers = _split(text, "--steer", "'contemptuous:-1.5@12-18'")
    return EditSpec(name, _number(size, text, "--steer"), "steer", layers)


def parse_cap(text: str) -> EditSpec:
    """Read `NAME:FLOOR[@LAYERS]`, the floor a number or a percentile such as p25.

    Raises:
        InvalidSettings: If it has another form, or the percentile lies outside 0 to 100.
    """
    name, size, layers = _split(text, "--cap", "'assistant_axis:p25' or 'assistant_axis:-3.5@16'")
    if not size.startswith("p"):
        return EditSpec(name, _number(size, text, "--cap"), "floor", layers)
    percent = _number(size[1:], text, "--cap")
    if not 0 <= percent <= 100:
        raise InvalidSettings(f"--cap '{text}': p{percent:g} is no percentage between 0 and 100.")
    return EditSpec(name, percent, "percentile", layers)


def edits_of(specs: Sequence[EditSpec], vectors: Mapping[str, PersonaVector], origin: Origin) -> list[Edit]:
    """The edits that specs come to for a model.

    Args:
        specs: As written.
        vectors: By name.
        origin: Of the model to be edited.

    Raises:
        UnknownPersona: If a vector does not exist.
        IncomparableEvidence: If a vector is of another model.
        InvalidSettings: If a layer does not exist, none was chosen, a vector is zero there, or a floor lies above
            every projection of the reference population.
    """
    edits: list[Edit] = []
    for spec in specs:
        vector = evaluate(spec.name, vectors)
        vector.origin.require_same(origin)
        for layer in _layers(spec, vector, origin):
            unit = vector.unit(layer)
            if spec.kind == "steer":
                share = spec.size * vector.norm(layer) / len(spec.layers or (layer,))
                edits.append(Steering(layer, unit, share))
            else:
                edits.append(Capping(layer, unit, _floor(spec, vector, layer)))
    return edits


def steering(vector: PersonaVector, coefficient: float, layers: Sequence[int]) -> list[Edit]:
    """Steering along a vector, the coefficient (in residual norms) shared evenly by the layers."""
    return [Steering(layer, vector.unit(layer), coefficient * vector.norm(layer) / len(layers)) for layer in layers]


def random_like(vector: PersonaVector, rng: np.random.Generator) -> PersonaVector:
    """A vector of random directions with the same lengths: the control of every steering."""
    drawn = rng.standard_normal(vector.values.shape)
    drawn *= np.linalg.norm(vector.values, axis=1, keepdims=True) / np.linalg.norm(drawn, axis=1, keepdims=True)
    return PersonaVector(
        "random", vector.layers, drawn.astype(np.float32), vector.norms, "nothing", "random", vector.origin
    )


def _floor(spec: EditSpec, vector: PersonaVector, layer: int) -> float:
    floor = vector.quantile(layer, spec.size) if spec.kind == "percentile" else spec.size
    if vector.quantiles is not None and floor > vector.quantile(layer, 100):
        raise InvalidSettings(
            f"--cap {spec.name}:{spec.size:g}: the floor lies above every projection of the reference population at "
            f"layer {layer} (the largest is {vector.quantile(layer, 100):.4g}), so it would move every token.",
            hint="Give a percentile such as p25, or a number inside the range that `personae vectors show` prints.",
        )
    return floor


def _layers(spec: EditSpec, vector: PersonaVector, origin: Origin) -> tuple[int, ...]:
    if spec.layers:
        return check_layers(spec.layers, origin.n_layers)
    if vector.best_layer < 0:
        raise InvalidSettings(
            f"no layer was chosen for the vector '{vector.id}'.", hint=f"Name one: {spec.name}:{spec.size:g}@LAYER."
        )
    return (vector.best_layer,)


def _split(text: str, option: str, example: str) -> tuple[str, str, tuple[int, ...]]:
    body, at, layers = text.rpartition("@") if "@" in text else (text, "", "")
    name, colon, size = body.rpartition(":")
    if not colon or not name.strip() or not size.strip() or (at and not layers.strip()):
        raise InvalidSettings(f"{option} '{text}' is not NAME:SIZE or NAME:SIZE@LAYERS.", hint=f"Example: {example}")
    return name.strip(), size.strip(), parse_layers(layers, option) if at else ()


def parse_layers(text: str, option: str) -> tuple[int, ...]:
    """Read `12`, `12-18` or `12,14` as 0-based layers, in order.

    Raises:
        InvalidSettings: If it has another form.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InvalidSettings(
                f"{option}: '{text}' names no layers.", hint="Write 12, 12-18 or 12,14; the first block is 0."
            )
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high - low > 10_000:
            raise InvalidSettings(f"{option}: the layers '{part.strip()}' run backwards or without end.")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def _number(text: str, whole: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise InvalidSettings(f"{option} '{whole}': '{text}' is not a number.") from error
    if not math.isfinite(value):
        raise InvalidSettings(f"{option} '{whole}': the size must be finite.")
    return value


def while_training(edits: Sequence[Edit]) -> Callable[[Any], AbstractContextManager[None]]:
    """Preventative steering: edits in force during training steps and gone after.

    Steering *towards* a trait while training on data that would teach it leaves the weights less to learn of it (Chen
    et al. 2025, arXiv 2507.21509, section 5). Gradients flow through the edits.

    Args:
        edits: Checked against the model (`models.activations.check_edits`).

    Returns:
        From a transformers module (also one with adapters) to the context in which a training step runs.
    """

    def during(module: Any) -> AbstractContextManager[None]:
        from personae.models.hf_hooks import edited  # torch is loaded by then

        return edited(module, edits)

    return during
