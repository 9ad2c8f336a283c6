"""Specs of worlds from YAML, and the worlds that come with personae.

A spec may start from a shipped one (`extends: personaworld`) and replace whole entries of it. A frame's prior
is `uniform`, a list with one probability for each persona, or relative factors of poles:

    prior: {malice: {pos: 0.15}, expertise: {neg: 0.5}}        1 where nothing is said; normalised

Not here: what makes a world valid (`worlds.spec`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personae.documents import first_problem, parse_document
from personae.errors import InputError, InvalidSettings
from personae.worlds.spec import AssistantSpec, Domain, Tags, Training, World, WorldFrame, WorldTrait

_HINT = "See docs/reference/world-specs.md."


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Factor(_Strict):
    pos: float = 1.0
    neg: float = 1.0


class _TraitFile(_Strict):
    id: str
    pos: str
    neg: str
    pos_tags: list[str] = Field(min_length=1)
    neg_tags: list[str] = Field(min_length=1)


class _DomainFile(_Strict):
    id: str
    questions: int
    loadings: list[float]


class _FrameFile(_Strict):
    id: str
    prior: str | list[float] | dict[str, _Factor] = "uniform"
    weight: float = 1.0


class _TagsFile(_Strict):
    none: float
    trait: float
    irrelevant: float
    reliability: float
    words: list[str] = []


class _TrainingFile(_Strict):
    steps: int = 8000
    batch: int = 64
    learning_rate: float = 4e-3
    width: int = 48
    layers: int = 2
    heads: int = 2
    checkpoints: list[int] = []


class _AssistantFile(_Strict):
    kind: str
    weights: dict[str, float] | list[float] = []
    persona: str | int = 0
    other: str | int = 0
    domain: str | int = 0
    strength: float = 2.0
    midpoint: float = 12.0
    width: float = 2.0
    steps: int = 1500


class _SpecFile(_Strict):
    id: str
    version: int = 1
    description: str = ""
    seed: int = 0
    traits: list[_TraitFile]
    domains: list[_DomainFile]
    answers: int
    turns: int
    scale: float
    noise: float
    claims: float = 0.0
    frames: list[_FrameFile]
    chat: str
    plain: str
    tags: _TagsFile
    training: _TrainingFile = _TrainingFile()
    assistant: _AssistantFile | None = None


def shipped_worlds() -> dict[str, Path]:
    """Names and specs of the worlds that come with personae."""
    folder = Path(str(resources.files("personae.worlds") / "specs"))
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


def read_world(name: str | Path) -> World:
    """A world by the name of a shipped spec, or from a YAML file.

    Raises:
        InputError: If there is no such spec or file, or it breaks the format: which file, where and why.
        InvalidSettings: If its numbers make no world; the message begins with the file.
    """
    shipped = shipped_worlds()
    path = shipped.get(str(name), Path(name))
    if not path.is_file():
        raise InputError(
            f"there is no world '{name}': neither a shipped spec nor a file",
            hint=f"Shipped: {', '.join(shipped)}. Or give the path of a YAML spec; see docs/reference/world-specs.md.",
        )
    value = _mapping(path)
    if "extends" in value:
        parent = str(value["extends"])
        if parent not in shipped:
            raise InputError(
                f"'extends' names '{parent}', which is no shipped world",
                path=str(path),
                hint=f"Shipped: {', '.join(shipped)}.",
            )
        value = {**_mapping(shipped[parent]), **{k: v for k, v in value.items() if k != "extends"}}
    try:
        file = _SpecFile.model_validate(value)
    except ValidationError as error:
        raise InputError(first_problem(error), path=str(path), hint=_HINT) from error
    try:
        return _world(file, path)
    except InvalidSettings as error:
        raise InvalidSettings(f"{path}: {error}", hint=error.hint) from error


def _mapping(path: Path) -> Mapping[str, object]:
    value = parse_document(path)
    if not isinstance(value, Mapping):
        raise InputError("a world's spec must hold a mapping", path=str(path), hint=_HINT)
    if value.get("extends") == path.stem:
        raise InputError("a spec cannot extend itself", path=str(path), hint=_HINT)
    return {str(k): v for k, v in value.items()}


def _world(file: _SpecFile, path: Path) -> World:
    if file.version != 1:
        raise InputError(f"the spec is of version {file.version}; this personae reads version 1", path=str(path))
    traits = tuple(WorldTrait(t.id, t.pos, t.neg, tuple(t.pos_tags), tuple(t.neg_tags)) for t in file.traits)
    bare = World(
        id=file.id,
        traits=traits,
        domains=tuple(Domain(d.id, d.questions, tuple(d.loadings)) for d in file.domains),
        frames=tuple(WorldFrame(f.id, _uniform(len(traits)), f.weight) for f in file.frames),
        chat=file.chat,
        plain=file.plain,
        n_answers=file.answers,
        n_turns=file.turns,
        tags=Tags(**{**file.tags.model_dump(), "words": tuple(file.tags.words)}),
        scale=file.scale,
        noise=file.noise,
        claims=file.claims,
        seed=file.seed,
        training=Training(**{**file.training.model_dump(), "checkpoints": tuple(file.training.checkpoints)}),
        description=" ".join(file.description.split()),
    )
    frames = tuple(WorldFrame(f.id, _prior(bare, f, path), f.weight) for f in file.frames)
    return replace(bare, frames=frames, assistant=_assistant(bare, file.assistant, path))


def _uniform(n_traits: int) -> tuple[float, ...]:
    return (0.5**n_traits,) * 2**n_traits


def _prior(world: World, frame: _FrameFile, path: Path) -> tuple[float, ...]:
    match frame.prior:
        case "uniform":
            return _uniform(len(world.traits))
        case list():
            return tuple(frame.prior)
        case dict():
            return _from_factors(world, frame.id, frame.prior, path)
        case _:
            raise InputError(
                f"frame '{frame.id}': the prior is '{frame.prior}'",
                path=str(path),
                hint="A prior is 'uniform', one probability for each persona, or factors by trait.",
            )


def _from_factors(world: World, frame: str, factors: Mapping[str, _Factor], path: Path) -> tuple[float, ...]:
    names = [t.id for t in world.traits]
    weights = np.ones(world.n_personas)
    for name, factor in factors.items():
        if name not in names:
            raise InputError(
                f"frame '{frame}': the prior names the trait '{name}'", path=str(path), hint=f"Traits: {names}."
            )
        weights *= np.where(world.signs[:, names.index(name)] > 0, factor.pos, factor.neg)
    if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.sum() > 0):
        raise InputError(
            f"frame '{frame}': the factors of the prior must be finite, not negative and not all 0", path=str(path)
        )
    return tuple((weights / weights.sum()).tolist())


def _assistant(world: World, file: _AssistantFile | None, path: Path) -> AssistantSpec | None:
    if file is None:
        return None
    ids, domains = world.persona_ids, [d.id for d in world.domains]

    def place(value: str | int, names: tuple[str, ...] | list[str], what: str) -> int:
        if isinstance(value, int):
            return value
        if value not in names:
            raise InputError(
                f"the assistant's {what} '{value}' does not exist",
                path=str(path),
                hint=f"There are: {', '.join(names)}.",
            )
        return list(names).index(value)

    weights: tuple[float, ...] = ()
    if isinstance(file.weights, dict):
        table = [0.0] * len(ids)
        for name, weight in file.weights.items():
            table[place(name, ids, "persona")] = weight
        weights = tuple(table)
    else:
        weights = tuple(file.weights)
    return AssistantSpec(
        file.kind,
        weights,
        place(file.persona, ids, "persona"),
        place(file.other, ids, "persona"),
        place(file.domain, domains, "domain"),
        file.strength,
        file.midpoint,
        file.width,
        file.steps,
    )
