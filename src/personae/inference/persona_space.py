"""The space that roles span, the Assistant axis in it, and what both are worth.

    centred roles   r_k - mean_k r_k               components of their covariance, strongest first
    axis            default - mean_k r_k           positive end: the model as it is

(Lu et al. 2026, arXiv 2601.10387, "The Assistant Axis".) Nulls: halves of the questions for the axis; for its angle
with the first component, every role in the default's place (is the default more special than a role?) and random
directions with the covariance of the roles. Not here: reading activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from personae.errors import InvalidSettings
from personae.numerics.subspaces import cosine, principal_components, shrunk_covariance
from personae.tables.activations import Activations
from personae.tables.space import Component, PersonaSpace, SpaceComparison

Floats = NDArray[np.float64]
LEAST_ROLES = 4
_KEPT = 10
_SPLITS = 50
_RANDOM = 500
_PERMUTATIONS = 2000


def persona_space(
    activations: Activations, default: str, labels: dict[str, str], layer: int, *, rng: np.random.Generator
) -> PersonaSpace:
    """Roles, components and axis at one layer.

    Args:
        activations: Of every role and of the default, for the same questions (their `groups`).
        default: Label of the items without a role.
        labels: What a person calls each role.
        layer: 0-based block.
        rng: Source of randomness, for splits and nulls.

    Raises:
        InvalidSettings: If there are fewer than four roles or four questions, or the default is missing.
    """
    roles = tuple(dict.fromkeys(label for label in activations.labels if label != default))
    questions = tuple(dict.fromkeys(activations.groups))
    if len(roles) < LEAST_ROLES or len(questions) < 4 or default not in activations.labels:
        raise InvalidSettings(
            f"{len(roles)} roles over {len(questions)} questions span no space: four of each are needed, and the model "
            "without a role.",
            hint="Use a cast with more roles, such as core.",
        )
    cells = _cells(activations, (*roles, default), questions, activations.layers.index(layer))
    means = cells.mean(axis=1)
    vectors, plain = means[:-1], means[-1]
    axis = plain - vectors.mean(axis=0)
    components, shares = principal_components(vectors, len(roles) - 1)
    components *= np.where(components @ axis < 0, -1.0, 1.0)[:, None]
    halves, null = _split_half(cells, rng)
    first = cosine(axis, components[0])
    swapped = np.array([abs(cosine(_axis(_swap(means, k)), components[0])) for k in range(len(roles))])
    centred = vectors - vectors.mean(axis=0)
    on_axis = centred @ (axis / np.linalg.norm(axis))
    spread = on_axis.std()
    coordinates = centred @ components[:2].T
    scale = coordinates.std(axis=0)
    return PersonaSpace(
        roles,
        tuple(labels.get(r, r) for r in roles),
        layer,
        vectors.astype(np.float32),
        plain.astype(np.float32),
        axis.astype(np.float32),
        tuple(_component(c, s, centred, roles) for c, s in zip(components[:_KEPT], shares, strict=False)),
        int(np.searchsorted(np.cumsum(shares), 0.7) + 1),
        halves,
        null,
        first,
        float(swapped.max()),
        (1 + int((swapped >= first).sum())) / (1 + len(roles)),
        _random_cosine(vectors, components[0], rng),
        tuple(float(v) for v in on_axis / spread),
        float((plain - vectors.mean(axis=0)) @ (axis / np.linalg.norm(axis)) / spread),
        coordinates / scale,
        (axis @ components[:2].T) / scale,
        activations.origin,
    )


def compare_spaces(a: PersonaSpace, b: PersonaSpace, *, rng: np.random.Generator) -> SpaceComparison:
    """Compare two models by what the roles they share are to each other.

    Args:
        a: Of one model.
        b: Of the other; roles are matched by id.
        rng: Source of randomness, for the permutations of role names.

    Raises:
        InvalidSettings: If they share fewer than four roles.
    """
    shared = [r for r in a.roles if r in b.roles]
    if len(shared) < LEAST_ROLES:
        raise InvalidSettings(f"the two spaces share {len(shared)} roles; four are needed.")
    one, two = ([space.roles.index(r) for r in shared] for space in (a, b))
    orders = np.stack([rng.permutation(len(shared)) for _ in range(_PERMUTATIONS)])
    first, second = (_angles(s.vectors[rows]) for s, rows in ((a, one), (b, two)))
    upper = np.triu_indices(len(shared), 1)
    ranks = rankdata(first[upper])
    geometry = _r(ranks, rankdata(second[upper]))
    permuted = np.array([_r(ranks, rankdata(second[np.ix_(o, o)][upper])) for o in orders])
    positions = [np.array(s.positions)[rows] for s, rows in ((a, one), (b, two))]
    loadings = [np.array([s.components[0].loadings[r] for r in shared]) for s in (a, b)]
    same = (a.origin.d_model, a.origin.tokenizer_digest) == (b.origin.d_model, b.origin.tokenizer_digest)
    r_positions, p_positions = _permuted_r(positions[0], positions[1], orders, two_sided=False)
    r_loadings, p_loadings = _permuted_r(loadings[0], loadings[1], orders, two_sided=True)
    return SpaceComparison(
        (a.origin.model, b.origin.model),
        (a.layer, b.layer),
        geometry,
        (1 + int((permuted >= geometry).sum())) / (1 + len(permuted)),
        r_positions,
        p_positions,
        r_loadings,
        p_loadings,
        cosine(a.axis, b.axis) if same else None,
    )


def _cells(activations: Activations, labels: Sequence[str], questions: Sequence[str], place: int) -> Floats:
    """Mean activation of each role at each question, shape (n_labels, n_questions, d_model)."""
    at_label = np.array([labels.index(v) for v in activations.labels])
    at_question = np.array([questions.index(v) for v in activations.groups])
    values = activations.values[:, place].astype(np.float64)
    total = np.zeros((len(labels), len(questions), values.shape[-1]))
    count = np.zeros((len(labels), len(questions)))
    np.add.at(total, (at_label, at_question), values)
    np.add.at(count, (at_label, at_question), 1)
    if not count.all():
        raise InvalidSettings("every role and the default must answer the same questions.")
    return total / count[..., None]


def _axis(means: Floats) -> Floats:
    """Last row (the default) less the mean of the others."""
    return means[-1] - means[:-1].mean(axis=0)


def _swap(means: Floats, k: int) -> Floats:
    order = np.arange(len(means))
    order[[k, -1]] = order[[-1, k]]
    return means[order]


def _split_half(cells: Floats, rng: np.random.Generator) -> tuple[tuple[float, float, float], float]:
    """Cosines of axes of two halves of the questions; and where labels changed places question by question."""
    n_labels, n_questions, _ = cells.shape
    found, null = np.empty(_SPLITS), np.empty(_SPLITS)
    for k in range(_SPLITS):
        half = rng.permutation(n_questions) < n_questions // 2
        found[k] = cosine(_axis(cells[:, half].mean(axis=1)), _axis(cells[:, ~half].mean(axis=1)))
        order = rng.permuted(np.tile(np.arange(n_labels), (n_questions, 1)), axis=1).T
        mixed = np.take_along_axis(cells, order[..., None], axis=0)
        null[k] = cosine(_axis(mixed[:, half].mean(axis=1)), _axis(mixed[:, ~half].mean(axis=1)))
    low, median, high = np.quantile(found, [0.05, 0.5, 0.95])
    return (float(median), float(low), float(high)), float(np.quantile(null, 0.95))


def _random_cosine(vectors: Floats, direction: Floats, rng: np.random.Generator) -> float:
    """95 % quantile of |cosine| of draws with the roles' covariance, shrunk by 0.1."""
    values, axes = np.linalg.eigh(shrunk_covariance(vectors, shrinkage=0.1))
    drawn = rng.standard_normal((_RANDOM, len(values))) * np.sqrt(np.maximum(values, 0)) @ axes.T
    return float(np.quantile(np.abs(drawn @ direction) / np.linalg.norm(drawn, axis=1), 0.95))


def _component(direction: Floats, share: float, centred: Floats, roles: Sequence[str]) -> Component:
    loadings = centred @ direction
    order = np.argsort(-loadings)
    by_role: dict[str, float] = {roles[int(i)]: float(loadings[int(i)]) for i in order}
    return Component(direction.astype(np.float32), float(share), by_role)


def _angles(vectors: Floats | NDArray[np.float32]) -> Floats:
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit @ unit.T


def _r(a: Floats, b: Floats) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def _permuted_r(a: Floats, b: Floats, orders: NDArray[np.int64], *, two_sided: bool) -> tuple[float, float]:
    found = _r(a, b)
    null = np.array([_r(a, b[o]) for o in orders])
    if two_sided:
        found, null = abs(found), np.abs(null)
    return found, (1 + int((null >= found).sum())) / (1 + len(null))
