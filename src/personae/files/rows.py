r"""Rows from files of several formats, one at a time, with their line numbers.

Not here: what a row means (`files.episodes`). A row that cannot be parsed is yielded with its error, so
that one pass can name all of them; a file that cannot be read at all raises. Half of a surrogate pair
(`"\ud800"` in JSON), which no encoding can carry and no tokenizer reads, becomes U+FFFD.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from personae.errors import InputError

FORMATS = ".jsonl, .jsonl.gz, .json, .csv, .parquet, or a folder saved by the datasets library"
_JSON_COLUMNS = ("messages", "prompt", "completion", "response", "chosen", "rejected")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its 1-based line (JSON lines, CSV) or number (others), and its value or why there is none."""

    line: int
    value: Mapping[str, object] = field(default_factory=dict)
    error: str = ""
    hint: str = ""


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a file in order, read as they are consumed.

    Raises:
        InputError: If the file is missing, empty, of an unknown format, or unreadable as a whole.
    """
    if not path.exists():
        raise InputError("there is no such file", path=str(path), hint="Check the path.")
    reader = _folder_rows if path.is_dir() else _reader(path)
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise InputError("the file is empty", path=str(path), hint="Check that this is the file you meant.")
        yield from reader(path)
    except PermissionError as error:
        raise InputError("no permission to read the file", path=str(path), hint="Check its permissions.") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"the file cannot be read: {str(error).strip()}", path=str(path)) from error


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    name = path.name.lower()
    for suffixes, reader in (
        ((".jsonl", ".jsonl.gz", ".ndjson"), _json_lines),
        ((".json",), _json_array),
        ((".csv",), _csv_rows),
        ((".parquet",), _parquet_rows),
    ):
        if name.endswith(suffixes):
            return reader
    raise InputError(f"unknown format '{path.suffix}'", path=str(path), hint=f"Known formats: {FORMATS}.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with numbers; a byte that is not UTF-8 is named with its line."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as handle:
        for number, raw in enumerate(handle, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1} of the line",
                    path=str(path),
                    line=number,
                    hint="Save the file as UTF-8 (for example: iconv -f LATIN1 -t UTF-8).",
                ) from error


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            value = _from_json(line.rstrip())  # so that a torn line is told the column where it ends
        except json.JSONDecodeError as error:
            yield Row(
                number,
                error=f"broken JSON: {error.msg} at column {error.colno}",
                hint="Each line must be one complete JSON object.",
            )
            continue
        except (RecursionError, ValueError) as error:
            yield Row(number, error=f"broken JSON: {_beyond_limits(error)}")
            continue
        yield _checked(number, value)


def _beyond_limits(error: RecursionError | ValueError) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has thousands of digits"


def _checked(number: int, value: object) -> Row:
    if isinstance(value, dict):
        return Row(number, value)
    return Row(number, error=f"the row is a JSON {type(value).__name__}, not an object")


def _from_json(text: str):
    value = json.loads(text)
    return _without_halves(value) if "\\u" in text else value  # only an escape can hold half a pair


def _without_halves(value: object):
    """The value with every half of a surrogate pair replaced."""
    match value:
        case str():
            return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
        case list():
            return [_without_halves(v) for v in value]
        case dict():
            return {_without_halves(k): _without_halves(v) for k, v in value.items()}
        case _:
            return value


def _json_array(path: Path) -> Iterator[Row]:
    text = "".join(line for _, line in _lines(path))
    try:
        value = _from_json(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"broken JSON: {error.msg} at column {error.colno}",
            path=str(path),
            line=error.lineno,
            hint="A .json file must hold one array of objects; for one object a line use .jsonl.",
        ) from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"broken JSON: {_beyond_limits(error)}", path=str(path)) from error
    if not isinstance(value, list):
        raise InputError("the file holds no JSON array", path=str(path), hint="Use an array of objects, or .jsonl.")
    for number, item in enumerate(value, start=1):
        yield _checked(number, item)


def _csv_rows(path: Path) -> Iterator[Row]:
    """CSV with a header; cells that hold a JSON list of messages are parsed, others are text."""
    # Strict, since an unclosed quote would otherwise swallow every row after it.
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    limit = csv.field_size_limit(2**31 - 1)
    first = 1
    try:
        header = next((cells for cells in reader if cells), [])
        if len(set(header)) < len(header):
            raise InputError("the CSV header has the same column twice", path=str(path), line=reader.line_num)
        first = reader.line_num + 1
        for cells in reader:
            if cells:
                yield _csv_row(first, header, cells)
            first = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"broken CSV in the row that starts here: {error}", path=str(path), line=first) from error
    finally:
        csv.field_size_limit(limit)


def _csv_row(line: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return Row(line, error=f"the row has {len(cells)} cells, the header {len(header)}")
    return Row(line, {k: _cell(k, v) for k, v in zip(header, cells, strict=True) if v != ""})


def _cell(key: str, text: str) -> object:
    if key in _JSON_COLUMNS and text.lstrip().startswith("["):
        try:
            value = _from_json(text)
        except (RecursionError, ValueError):
            return text
        if isinstance(value, list) and all(isinstance(m, dict) and "role" in m for m in value):
            return value
    return text


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        table = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"not a Parquet file: {error}", path=str(path)) from error
    number = 0
    for batch in table.iter_batches(batch_size=1024):
        for value in batch.to_pylist():
            number += 1
            yield Row(number, _without_nulls(value))


def _folder_rows(path: Path) -> Iterator[Row]:
    """A folder saved by `datasets`, read through its Arrow files, which need no more than pyarrow."""
    state = path / "state.json"
    if not state.exists():
        splits = sorted(p.parent.name for p in path.glob("*/state.json"))
        hint = (
            f"Name one split: {', '.join(str(path / s) for s in splits)}." if splits else f"Known formats: {FORMATS}."
        )
        raise InputError("the folder is not one data set split", path=str(path), hint=hint)
    try:
        names = [str(entry["filename"]) for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("state.json does not name the data files", path=str(path)) from error
    number = 0
    for name in names:
        if Path(name).name != name:
            raise InputError(f"state.json names a file outside the folder: {name}", path=str(path))
        for value in _arrow_values(path / name):
            number += 1
            yield Row(number, _without_nulls(value))


def _arrow_values(path: Path) -> Iterator[dict[str, object]]:
    try:
        with pa.memory_map(str(path)) as source, ipc.open_stream(source) as reader:
            for batch in reader:
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise InputError(f"not a readable Arrow file: {error}", path=str(path)) from error


def _without_nulls(value: Mapping[str, object]) -> dict[str, object]:
    return {k: v for k, v in value.items() if v is not None}
