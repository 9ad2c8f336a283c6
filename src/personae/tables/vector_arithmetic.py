"""Arithmetic with named persona vectors: `2 * malicious - caring`, read without ever being run as a program.

Names that are no words of Python stand in quotes: `'anti-social' + caring`. Allowed: + and - of vectors, * and / by
numbers, brackets. Not here: what a sum means (`tables.space`).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from personae.errors import InvalidSettings, UnknownPersona
from personae.tables.space import PersonaVector

_HINT = "Write sums of vectors with numbers before them, such as '2 * malicious - caring'."
_DEEPEST = 40


def evaluate(expression: str, vectors: Mapping[str, PersonaVector]) -> PersonaVector:
    """The vector that an expression stands for.

    Args:
        expression: A name, or a sum of names with factors.
        vectors: By name, all of one model.

    Raises:
        InvalidSettings: If it is not such a sum, or comes to a number.
        UnknownPersona: If a name is not among the vectors.
        IncomparableEvidence: If two vectors are of different models.
    """
    if expression.strip() in vectors:
        return vectors[expression.strip()]
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidSettings(f"'{expression}' is not an expression of vectors.", hint=_HINT) from error
    value = _value(tree, expression, vectors, 0)
    if not isinstance(value, PersonaVector):
        raise InvalidSettings(f"'{expression}' is a number and not a vector.", hint=_HINT)
    return value


def _value(node: ast.expr, expression: str, vectors: Mapping[str, PersonaVector], depth: int) -> PersonaVector | float:
    if depth > _DEEPEST:
        raise InvalidSettings(f"'{expression[:40]}…' is nested too deeply.", hint=_HINT)
    match node:
        case ast.Name(id=name) | ast.Constant(value=str(name)):
            return _named(name, vectors)
        case ast.Constant(value=int(number) | float(number)) if not isinstance(number, bool):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -1 * _value(operand, expression, vectors, depth + 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, expression, vectors, depth + 1)
        case ast.BinOp(left=left, op=op, right=right):
            a = _value(left, expression, vectors, depth + 1)
            b = _value(right, expression, vectors, depth + 1)
            return _combined(a, op, b, expression)
        case _:
            raise InvalidSettings(f"'{ast.unparse(node)}' in '{expression}' cannot stand there.", hint=_HINT)


def _combined(
    a: PersonaVector | float, op: ast.operator, b: PersonaVector | float, expression: str
) -> PersonaVector | float:
    if isinstance(a, PersonaVector) and isinstance(b, PersonaVector):
        if isinstance(op, ast.Add):
            return a + b
        if isinstance(op, ast.Sub):
            return a - b
    elif isinstance(a, float) and isinstance(b, float):
        if (found := _of_numbers(a, op, b)) is not None:
            return found
    elif isinstance(a, PersonaVector) and isinstance(b, float):
        if isinstance(op, ast.Mult):
            return a * b
        if isinstance(op, ast.Div) and b:
            return a * (1 / b)
    elif isinstance(a, float) and isinstance(b, PersonaVector) and isinstance(op, ast.Mult):
        return b * a
    raise InvalidSettings(f"'{expression}' mixes numbers and vectors in a way that has no meaning.", hint=_HINT)


def _of_numbers(a: float, op: ast.operator, b: float) -> float | None:
    """The four operations; None for others and for a division by 0."""
    match op:
        case ast.Add():
            return a + b
        case ast.Sub():
            return a - b
        case ast.Mult():
            return a * b
        case ast.Div() if b:
            return a / b
        case _:
            return None


def _named(name: str, vectors: Mapping[str, PersonaVector]) -> PersonaVector:
    if name not in vectors:
        raise UnknownPersona(
            f"there is no vector '{name}'.",
            hint=f"There are: {', '.join(sorted(vectors)) or 'none yet'}. `personae vectors extract` makes them.",
        )
    return vectors[name]
