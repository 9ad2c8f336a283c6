"""Strict YAML and JSON documents: a key given twice is an error, and an error names its line.

Not here: what a document means (casts, specs of worlds).
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path

import yaml
from pydantic import ValidationError

from personae.errors import InputError


class _OneOfEachKey(yaml.SafeLoader):
    """Plain YAML (no tag makes an object), in which a key given twice is an error rather than a loss."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key '{key.value}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def parse_document(path: Path) -> object:
    """The value of a YAML file, or of a JSON file where its name ends so.

    Raises:
        InputError: If it cannot be read, with the line where one is to blame.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.load(text, _OneOfEachKey)
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", path=str(path), hint="Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise InputError(f"broken JSON: {error.msg}", path=str(path), line=error.lineno) from error
    except (ValueError, RecursionError) as error:  # a date of month 13, a number or a nesting without end
        raise InputError(f"holds a value that cannot be read: {error}", path=str(path)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        raise InputError(f"broken YAML: {getattr(error, 'problem', error)}", path=str(path), line=line) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=str(path)) from error


def first_problem(error: ValidationError) -> str:
    """The first violation in words: where in the document, and what."""
    problem = error.errors()[0]
    place = ".".join(str(p) for p in problem["loc"])
    words = {"missing": "is missing", "extra_forbidden": "is not a known key"}.get(
        str(problem["type"]), str(problem["msg"]).lower().removeprefix("value error, ")
    )
    more = error.error_count() - 1
    return f"'{place}' {words}" + (f" (and {more} more problems)" if more else "")
