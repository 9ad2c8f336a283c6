"""Casts from files: our YAML, Assistant-Axis role and trait files or folders, persona-vectors trait files.

Not here: what a cast is (`domain.persona`). Three formats, told apart by content:

    ours             {id, traits: [{id, pos, neg}], roles: [{id, instructions}], prior}
    Assistant-Axis   {instruction: [{pos, neg?}, ...], ...}; the id is the file's name
    persona-vectors  {instruction: [{pos, neg}, ...], questions, eval_prompt}; the same rule reads it

Neither `questions` nor `eval_prompt` is used. Instructions may hold `{model_name}`, which is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from personae.documents import first_problem, parse_document
from personae.domain.persona import Cast, Persona, Trait, join_casts
from personae.errors import InputError, UnknownPersona


def _whole(text: str) -> str:
    """Refuse half of a surrogate pair, which no tokenizer reads and no table can hold."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("holds half of a surrogate pair")
    return text


_Text = Annotated[str, AfterValidator(_whole)]


class _Pole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    label: _Text = ""
    instructions: list[_Text] = Field(min_length=1)


class _Trait(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: _Text = Field(min_length=1)
    description: _Text = ""
    pos: _Pole
    neg: _Pole


class _Role(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: _Text = Field(min_length=1)
    kind: _Text = ""
    label: _Text = ""
    description: _Text = ""
    instructions: list[_Text] = Field(min_length=1)


class _CastFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: _Text = Field(min_length=1)
    version: int = 1
    description: _Text = ""
    traits: list[_Trait] = []
    roles: list[_Role] = []
    prior: dict[_Text, float] = {}


class _AxisInstruction(BaseModel):
    pos: _Text
    neg: _Text | None = None


class _AxisFile(BaseModel):
    instruction: list[_AxisInstruction] = Field(min_length=1)


def built_in_casts() -> dict[str, Path]:
    """Names and files of the casts that come with personae."""
    folder = resources.files("personae") / "casts"
    return {p.stem: p for p in sorted(Path(str(folder)).glob("*.yaml"))}


def load_casts(names: Iterable[str]) -> Cast:
    """One cast from built-in names, files and folders, joined in the order given.

    Raises:
        UnknownPersona: If a name is neither a built-in cast nor a file or folder.
        InputError: If a file breaks the format, with the place and the reason.
        DuplicatePersona: If two entries share an id.
    """
    cast = join_casts([_load_one(name) for name in names])
    if len(cast.traits) * 2 + len(cast.roles) < 2:
        raise InputError(
            f"cast '{cast.id}' has only {len(cast.roles)} persona; a comparison needs two",
            hint="Add a trait (two poles) or a second role.",
        )
    return cast


def _load_one(name: str) -> Cast:
    built_in = built_in_casts()
    if name in built_in:
        return _read_file(built_in[name])
    path = Path(name)
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_file(path)
    raise UnknownPersona(
        f"there is no cast '{name}': neither a built-in cast nor a file or folder.",
        hint=f"Built in: {', '.join(built_in)}. `personae casts` lists them.",
    )


def _read_folder(path: Path) -> Cast:
    files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".yaml", ".yml"))
    if not files:
        raise InputError("the folder holds no .json or .yaml cast files", path=str(path))
    joined = join_casts([_read_file(p) for p in files])
    return Cast(path.name, joined.traits, joined.roles, joined.prior, f"{len(files)} files of {path.name}")


def _read_file(path: Path) -> Cast:
    value = parse_document(path)
    if not isinstance(value, Mapping):
        raise InputError("a cast file must hold a mapping", path=str(path), hint="See docs/how-to/write-a-cast.md.")
    try:
        if "instruction" in value:
            return _from_axis(_AxisFile.model_validate(value), path)
        return _from_ours(_CastFile.model_validate(value), path)
    except ValidationError as error:
        raise InputError(first_problem(error), path=str(path), hint="See docs/how-to/write-a-cast.md.") from error


def _from_ours(file: _CastFile, path: Path) -> Cast:
    traits = tuple(
        Trait(
            t.id,
            Persona(f"{t.id}/pos", _texts(t.pos.instructions, t.id, path), t.pos.label or t.id, "pole"),
            Persona(f"{t.id}/neg", _texts(t.neg.instructions, t.id, path), t.neg.label or f"not {t.id}", "pole"),
            t.description,
        )
        for t in file.traits
    )
    roles = tuple(
        Persona(r.id, _texts(r.instructions, r.id, path), r.label or r.id, "role", r.description) for r in file.roles
    )
    return Cast(file.id, traits, roles, file.prior, " ".join(file.description.split()))


def _from_axis(file: _AxisFile, path: Path) -> Cast:
    """One trait when every instruction has both poles, one role when none has a negative pole."""
    name = path.stem
    negatives = [i.neg for i in file.instruction if i.neg]
    # The default role of that collection holds one empty instruction, which means "no instruction": ours is `plain`.
    positives = [i.pos for i in file.instruction if i.pos.strip()]
    if not negatives:
        role = Persona(name, _texts(positives, name, path), name.replace("_", " "), "role")
        return Cast(name, roles=(role,))
    if len(negatives) != len(file.instruction) or len(positives) != len(file.instruction):
        raise InputError("some instructions lack a pole", path=str(path), hint="Give every one both 'pos' and 'neg'.")
    label = name.replace("_", " ")
    trait = Trait(
        name,
        Persona(f"{name}/pos", _texts(positives, name, path), label, "pole"),
        Persona(f"{name}/neg", _texts(negatives, name, path), f"not {label}", "pole"),
    )
    return Cast(name, traits=(trait,))


def _texts(instructions: Sequence[str], owner: str, path: Path) -> tuple[str, ...]:
    """Instructions with surplus white space removed, each present and different."""
    texts = tuple(" ".join(i.split()) for i in instructions)
    if any(not t for t in texts):
        raise InputError(f"'{owner}' has an empty instruction", path=str(path))
    if len(set(texts)) != len(texts):
        raise InputError(f"'{owner}' has the same instruction twice", path=str(path))
    return texts
