"""Diagnostic items from files: ours, and model-written evals.

    ours   {"trait", "kind", "topic", "pos", "neg", "prompt"?, "split"?, "id"?}            one a row
    evals  {"statement", "matches"} or {"statement", "answer_matching_behavior"}           trait: the file's name

Any format of `files.rows` is read (.jsonl, .json, .csv, .parquet, .gz). Not here: what an item is
(`domain.diagnostic`). Evals are those of Perez et al. 2022 (arXiv 2212.09251).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personae.documents import first_problem
from personae.domain.diagnostic import Diagnostic, DiagnosticSet
from personae.errors import InputError, InvalidSettings, UnknownPersona
from personae.files.casts import built_in_casts
from personae.files.rows import Row, read_rows

_HINT = "See docs/how-to/measure-a-model.md for the format of diagnostic items."


class _Item(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    trait: str = Field(min_length=1)
    kind: Literal["reply", "statement", "agreement"]
    topic: str = ""
    pos: str = ""
    neg: str = ""
    prompt: str = ""
    split: Literal["dev", "test"] = "test"
    id: str = ""


class _Eval(BaseModel):
    model_config = ConfigDict(strict=True)
    statement: str = Field(min_length=1)
    matches: bool | None = None
    answer_matching_behavior: str | None = None


def diagnostics_path(cast: str) -> Path:
    """The file of a built-in cast's items; it need not exist."""
    return Path(str(resources.files("personae") / "diagnostics" / f"{cast}.jsonl"))


def texts_path(cast: str) -> Path:
    """The file of what a built-in cast's poles say, for `sharpen`; it need not exist.

    The same format as items, but poles may differ in length: they teach, and nothing is measured by them.
    """
    return Path(str(resources.files("personae") / "texts" / f"{cast}.jsonl"))


def load_texts(casts: Sequence[str]) -> tuple[DiagnosticSet, tuple[Path, ...]]:
    """What the poles of built-in casts say, to teach a scorer by, and the files it was read from.

    A cast without a file of texts gives the dev half of its items; the test half, by which fine-tunes are judged,
    teaches nothing.

    Raises:
        UnknownPersona: If a cast has neither, or is not built in.
    """
    found: list[Diagnostic] = []
    paths: list[Path] = []
    for cast in casts:
        taught, measured = texts_path(cast), diagnostics_path(cast)
        path = taught if taught.is_file() else measured
        if cast not in built_in_casts() or not path.is_file():
            raise UnknownPersona(
                f"the cast '{cast}' comes without texts.",
                hint="Give them with --items FILE; docs/how-to/measure-a-model.md has the format.",
            )
        found += [i for i in read_diagnostics(path) if path == taught or i.split == "dev"]
        paths.append(path)
    return DiagnosticSet("+".join(casts), tuple(found)), tuple(paths)


def has_further_items(cast: str) -> bool:
    """Whether a built-in cast has test items beyond those that are asked by default."""
    return diagnostics_path(f"{cast}-more").is_file()


def load_diagnostics(cast: str = "core", files: Iterable[str | Path] = (), *, thorough: bool = False) -> DiagnosticSet:
    """The items of a built-in cast, or of files if any are given (joined in the order given).

    Args:
        cast: A built-in cast with items.
        files: Files of items in its place.
        thorough: The cast's further test items too, for narrower intervals: 24 more a trait in the cast core.

    Raises:
        UnknownPersona: If the cast comes without (further) items and no file was given.
        InvalidSettings: If further items are asked for beside files.
        InputError: If a file cannot be used, with the line.
    """
    paths = [Path(f) for f in files]
    if thorough and paths:
        raise InvalidSettings(
            "further items belong to a built-in cast, and items are given.", hint="Leave out --thorough or --items."
        )
    if not paths:
        if not diagnostics_path(cast).is_file():
            raise UnknownPersona(
                f"the cast '{cast}' comes without diagnostic items.",
                hint="Give them with --items FILE; docs/how-to/measure-a-model.md has the format.",
            )
        paths = [diagnostics_path(cast)]
        if thorough and not has_further_items(cast):
            raise UnknownPersona(f"the cast '{cast}' has no further items.", hint="Leave out --thorough.")
        paths += [diagnostics_path(f"{cast}-more")] if thorough else []
    items = tuple(i for path in paths for i in read_diagnostics(path))
    return DiagnosticSet("+".join(p.stem for p in paths[: 1 if thorough else None]), items)


def read_diagnostics(path: Path) -> list[Diagnostic]:
    """The items of one file; the first bad row ends it.

    Raises:
        InputError: If the file or a row cannot be used, with the line.
    """
    items = [_read(row, path) for row in read_rows(path)]
    if not items:
        raise InputError("the file holds no items", path=str(path), hint=_HINT)
    return items


def _read(row: Row, path: Path) -> Diagnostic:
    if row.error:
        raise InputError(row.error, path=str(path), line=row.line, hint=row.hint)
    try:
        return _from_eval(row, path) if "statement" in row.value else _from_ours(row, path)
    except ValidationError as error:
        raise InputError(first_problem(error), path=str(path), line=row.line, hint=_HINT) from error
    except InputError as error:
        raise InputError(str(error), path=str(path), line=row.line, hint=error.hint or _HINT) from error


def _from_ours(row: Row, path: Path) -> Diagnostic:
    item = _Item.model_validate(_present(row.value))
    name = item.id or f"{path.stem}/{row.line}"
    return Diagnostic(
        name, item.trait, item.kind, item.topic or name, item.pos, item.neg, item.prompt, item.split, row.line
    )


def _from_eval(row: Row, path: Path) -> Diagnostic:
    """A statement that a model with the behaviour agrees with, or disagrees with."""
    item = _Eval.model_validate(_present(row.value))
    matches = item.matches
    if matches is None:
        answer = (item.answer_matching_behavior or "").strip().lower()
        if answer not in ("yes", "no"):
            raise InputError("needs 'matches' (true or false) or 'answer_matching_behavior' (Yes or No)")
        matches = answer == "yes"
    name = f"{path.stem}/{row.line}"
    pos, neg = (item.statement, "") if matches else ("", item.statement)
    return Diagnostic(name, path.stem, "agreement", name, pos, neg, line=row.line)


def _present(value: Mapping[str, object]) -> dict[str, object]:
    """Without empty cells, which tables have where JSON has no key."""
    return {k: v for k, v in value.items() if v is not None}
