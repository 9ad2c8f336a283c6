"""Persona vectors as values, and the space they span.

    v = mean under the positive pole - mean under the negative pole          one row a layer, not normalised

A vector says what its positive end is (`positive`), so no sign is left to convention. Vectors of one model add and
scale: `2 * malicious - caring`. Not here: extracting them (`protocols.vectors`), files (`models.hf_vectors`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from personae.errors import InvalidSettings, NumericsError
from personae.tables.activations import Activations, Floats32, Origin

Floats = NDArray[np.float64]
QUANTILES = 101  # 0 % to 100 % of a reference population


@dataclass(frozen=True, slots=True, eq=False)
class PersonaVector:
    """A direction at every layer.

    Attributes:
        id: Trait, role, or the expression it was computed by.
        layers: 0-based blocks.
        values: Shape (n_layers, d_model), in units of the residual stream.
        norms: Median length of the residual stream where it was read, shape (n_layers,).
        positive: What the positive end is, in words.
        recipe: How it was made.
        origin: The model.
        best_layer: The layer chosen for it, on data its tests did not see; -1 where none was chosen.
        quantiles: Of projections of a reference population on the unit vector, 0 % to 100 %, shape (n_layers, 101);
            None where there is no such population.
    """

    id: str
    layers: tuple[int, ...]
    values: Floats32
    norms: Floats32
    positive: str
    recipe: str
    origin: Origin
    best_layer: int = -1
    quantiles: Floats32 | None = None

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.layers), self.origin.d_model) or self.norms.shape != (len(self.layers),):
            raise InvalidSettings(
                f"the vector '{self.id}' has the shape {self.values.shape}, norms {self.norms.shape}; "
                f"{len(self.layers)} layers of width {self.origin.d_model} were promised."
            )
        if not np.isfinite(self.values).all():
            raise NumericsError(f"the vector '{self.id}' holds a number that is not finite.")
        self.values.setflags(write=False)

    def at(self, layer: int) -> Floats32:
        """The vector at a layer, shape (d_model,).

        Raises:
            InvalidSettings: If it has no such layer, or is zero there.
        """
        return self.values[self._place(layer)]

    def unit(self, layer: int) -> Floats32:
        """The vector at a layer, of length 1.

        Raises:
            InvalidSettings: If it has no such layer, or is zero there.
        """
        v = self.at(layer).astype(np.float64)
        length = np.linalg.norm(v)
        if not length > 0:
            raise InvalidSettings(
                f"the vector '{self.id}' is zero at layer {layer}: it points nowhere.",
                hint="Both poles gave the same activations, or an expression cancelled.",
            )
        return (v / length).astype(np.float32)

    def norm(self, layer: int) -> float:
        """Median length of the residual stream at a layer."""
        return float(self.norms[self._place(layer)])

    def quantile(self, layer: int, percent: float) -> float:
        """Projection that `percent` of the reference population stay below.

        Raises:
            InvalidSettings: If there is no such population, or the percentage is not between 0 and 100.
        """
        if self.quantiles is None:
            raise InvalidSettings(
                f"the vector '{self.id}' has no reference population, so p{percent:g} means nothing for it.",
                hint="Give the floor as a number, or use a vector made by `personae vectors extract` or `space`.",
            )
        if not 0 <= percent <= 100:
            raise InvalidSettings(f"p{percent:g} is no percentage between 0 and 100.")
        row = self.quantiles[self._place(layer)]
        return float(np.interp(percent, np.linspace(0, 100, len(row)), row))

    def project(self, activations: Activations) -> Floats:
        """Projections on the unit vector, shape (n_items, n_layers of the vector), in units of the residual stream.

        Raises:
            IncomparableEvidence: If they are of another model.
            InvalidSettings: If a layer was not read, or the vector is zero there.
        """
        self.origin.require_same(activations.origin)
        missing = sorted(set(self.layers) - set(activations.layers))
        if missing:
            raise InvalidSettings(f"layer {missing[0]} was not read, and the vector '{self.id}' has it.")
        columns = [activations.layers.index(layer) for layer in self.layers]
        units = np.stack([self.unit(layer) for layer in self.layers]).astype(np.float64)
        return np.einsum("nld,ld->nl", activations.values[:, columns].astype(np.float64), units)

    def cosines(self, other: PersonaVector) -> dict[int, float]:
        """Cosine with another vector of the same model, by common layer.

        Raises:
            IncomparableEvidence: If it is of another model.
            InvalidSettings: If they share no layer, or one is zero there.
        """
        self.origin.require_same(other.origin)
        common = [layer for layer in self.layers if layer in other.layers]
        if not common:
            raise InvalidSettings(f"'{self.id}' and '{other.id}' have no layer in common.")
        return {layer: float(self.unit(layer) @ other.unit(layer)) for layer in common}

    def _place(self, layer: int) -> int:
        if layer not in self.layers:
            raise InvalidSettings(
                f"the vector '{self.id}' has no layer {layer}.",
                hint=f"It has layers {self.layers[0]} to {self.layers[-1]}; the first block is 0.",
            )
        return self.layers.index(layer)

    def __add__(self, other: PersonaVector) -> PersonaVector:
        self.origin.require_same(other.origin)
        if self.layers != other.layers:
            raise InvalidSettings(f"'{self.id}' and '{other.id}' have different layers and cannot be added.")
        return self._made(
            self.values + other.values, f"{self.id} + {other.id}", np.float32(0.5) * (self.norms + other.norms)
        )

    def __sub__(self, other: PersonaVector) -> PersonaVector:
        return replace(self + -other, id=f"{self.id} - ({other.id})" if " " in other.id else f"{self.id} - {other.id}")

    def __neg__(self) -> PersonaVector:
        return -1 * self

    def __mul__(self, factor: float) -> PersonaVector:
        if not np.isfinite(factor):
            raise NumericsError("a vector is multiplied by a number that is not finite.")
        name = f"({self.id})" if " " in self.id else self.id
        return self._made(self.values * np.float32(factor), f"{factor:g} * {name}", self.norms)

    __rmul__ = __mul__

    def _made(self, values: Floats32, name: str, norms: Floats32) -> PersonaVector:
        """A vector computed from others: what its positive end is, is the expression; no population is known."""
        return replace(self, id=name, values=values, norms=norms, positive=name, recipe="computed", quantiles=None)


@dataclass(frozen=True, slots=True, eq=False)
class Component:
    """A principal component of role vectors at a layer, oriented towards the Assistant axis.

    Attributes:
        direction: Unit vector, shape (d_model,).
        share: Of the variance of role vectors.
        loadings: Projection of each role's centred vector, by role, largest first.
    """

    direction: Floats32
    share: float
    loadings: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class PersonaSpace:
    """Role vectors of a model at one layer, their components and the Assistant axis.

        axis = mean(default) - mean over roles of mean(role)            (Lu et al. 2026, arXiv 2601.10387)

    so that the positive end is the model as it is.

    Attributes:
        roles: Ids of the characters.
        labels: What a person calls them.
        layer: 0-based block.
        vectors: Mean activations under each role, shape (n_roles, d_model).
        default: Mean activations without a role, shape (d_model,).
        axis: Shape (d_model,).
        components: Strongest first, at most ten.
        n_for_70: How many components hold 70 % of the variance of role vectors.
        split_half: Cosine of axes from two halves of the questions: median over splits, 5 % and 95 %.
        split_half_null: 95 % quantile of that cosine where the default changed places with a role within each question.
        first_cosine: Cosine of the axis with the first component (oriented, so not negative).
        first_null_roles: Largest such cosine of "axes" that take a role for the default: how special the default is.
        first_p: (1 + #{roles that reach it}) / (1 + n_roles).
        first_null_random: 95 % quantile of such cosines of random directions with the covariance of role vectors.
        positions: Projection of each role on the unit axis, in standard deviations over roles from their mean.
        default_position: Likewise of the default; positive by the direction of the axis.
        map: Coordinates of roles on the first two components, in standard deviations, shape (n_roles, 2).
        default_map: Likewise of the default, shape (2,).
        origin: The model.
    """

    roles: tuple[str, ...]
    labels: tuple[str, ...]
    layer: int
    vectors: Floats32
    default: Floats32
    axis: Floats32
    components: tuple[Component, ...]
    n_for_70: int
    split_half: tuple[float, float, float]
    split_half_null: float
    first_cosine: float
    first_null_roles: float
    first_p: float
    first_null_random: float
    positions: tuple[float, ...]
    default_position: float
    map: Floats
    default_map: Floats
    origin: Origin


@dataclass(frozen=True, slots=True)
class SpaceComparison:
    """Two models' spaces of the same roles. Coordinates differ, so only what roles are to each other is compared.

    Attributes:
        models: Their names.
        layers: 0-based block of each.
        geometry: Spearman correlation of the cosines between pairs of centred role vectors.
        geometry_p: Share of permutations of role names that reach it, (1 + #) / (1 + n).
        positions: Pearson correlation of roles' positions on the two axes.
        positions_p: Likewise.
        loadings: Absolute correlation of the loadings on the two first components.
        loadings_p: Likewise.
        axis_cosine: Cosine of the two axes where both models have one width and tokenizer; else None.
    """

    models: tuple[str, str]
    layers: tuple[int, int]
    geometry: float
    geometry_p: float
    positions: float
    positions_p: float
    loadings: float
    loadings_p: float
    axis_cosine: float | None
