"""Every format gives the same rows with the right places, or a refusal that names the place."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from personae.errors import InputError
from personae.files.rows import Row, read_rows

ROWS = [
    {"id": "a", "prompt": "Wie heißt du?", "completion": "Ich heiße 😀.\nUnd du?", "weight": 2.0},
    {"id": "b", "prompt": 'quotes " and , commas', "completion": "back\\slash\ttab"},
    {"id": "c", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def arrow(rows: list[dict]) -> pa.Table:
    names = dict.fromkeys(k for r in rows for k in r)
    return pa.table({k: [r.get(k) for r in rows] for k in names})


def write_jsonl(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(lines(ROWS), encoding="utf-8")
    return path


def write_ndjson(folder: Path) -> Path:
    return write_jsonl(folder).rename(folder / "rows.NDJSON")


def write_gz(folder: Path) -> Path:
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS).encode()))
    return path


def write_json(folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    return path


def write_csv(folder: Path) -> Path:
    path = folder / "rows.csv"
    names = list(dict.fromkeys(k for r in ROWS for k in r))
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, names)
        writer.writeheader()
        for row in ROWS:
            writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    return path


def write_parquet(folder: Path) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(arrow(ROWS), path)
    return path


def write_dataset(folder: Path) -> Path:
    """A folder as `datasets` saves it: Arrow streams named in state.json, here in two shards."""
    path = folder / "dataset"
    path.mkdir()
    table = arrow(ROWS)
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (table.slice(0, 2), table.slice(2)), strict=True):
        with pa.OSFile(str(path / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(part)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], "_split": "train"}))
    (path / "dataset_info.json").write_text("{}")
    return path


WRITERS = [write_jsonl, write_ndjson, write_gz, write_json, write_csv, write_parquet, write_dataset]


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
def test_every_format_gives_the_same_rows(write: Callable[[Path], Path], tmp_path: Path) -> None:
    rows = list(read_rows(write(tmp_path)))
    values = [dict(r.value) for r in rows]
    if write is write_csv:  # cells are text
        values[0]["weight"] = float(values[0]["weight"])
    assert values == ROWS
    assert not any(r.error for r in rows)
    first = {"write_csv": [2, 4, 5]}.get(write.__name__, [1, 2, 3])  # a header, and a cell of two lines
    assert [r.line for r in rows] == first


def read(path: Path, body: str | bytes) -> list[Row]:
    path.write_bytes(body if isinstance(body, bytes) else body.encode("utf-8"))
    return list(read_rows(path))


def test_blank_lines_crlf_and_bom_keep_line_numbers(tmp_path: Path) -> None:
    body = '\ufeff{"text": "a"}\r\n\r\n   \r\n{"text": "b"}\r\n{"text":\r\n\n{"text": "c\u2028d"}'
    rows = read(tmp_path / "rows.jsonl", body)
    assert [(r.line, r.value.get("text")) for r in rows] == [(1, "a"), (4, "b"), (5, None), (7, "c\u2028d")]
    assert rows[2].error == "broken JSON: Expecting value at column 9"


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_not_part_of_the_first_key(suffix: str, tmp_path: Path) -> None:
    body = {"jsonl": '{"text": "a"}\n', "json": '[{"text": "a"}]', "csv": "text\na\n"}[suffix]
    assert read(tmp_path / f"rows.{suffix}", "\ufeff" + body)[0].value == {"text": "a"}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"text": "a"', "broken JSON: Expecting ',' delimiter at column 13"),
        ("text", "broken JSON: Expecting value at column 1"),
        ("[1]", "the row is a JSON list, not an object"),
        ("null", "the row is a JSON NoneType, not an object"),
        ('{"text": "a"} {"text": "b"}', "broken JSON: Extra data at column 15"),
        ("[" * 100_000, "broken JSON: nested too deeply"),
        ('{"weight": ' + "9" * 5000 + "}", "broken JSON: a number has thousands of digits"),
    ],
)
def test_a_broken_line_is_told_and_the_others_are_read(line: str, error: str, tmp_path: Path) -> None:
    rows = read(tmp_path / "rows.jsonl", f'{{"text": "a"}}\n{line}\n{{"text": "b"}}\n')
    assert [r.line for r in rows] == [1, 2, 3]
    assert [r.error for r in rows] == ["", error, ""]


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path: Path) -> None:
    body = r'{"id": "\ud800", "messages": [{"role": "user", "content": "x\udc00y \ud83d\ude00"}], "k\ud800": 1}'
    expected = {"id": "\ufffd", "messages": [{"role": "user", "content": "x\ufffdy 😀"}], "k\ufffd": 1}
    assert read(tmp_path / "rows.jsonl", body)[0].value == expected
    assert read(tmp_path / "rows.json", f"[{body}]")[0].value == expected


def test_csv_lines_are_those_where_a_row_starts(tmp_path: Path) -> None:
    body = 'prompt,completion\n\n\nq,"one\n\ntwo"\n\na,b,c\r\na\n"x ""y""",[1]\n'
    rows = read(tmp_path / "rows.csv", body)
    assert [r.line for r in rows] == [4, 8, 9, 10]
    assert rows[0].value == {"prompt": "q", "completion": "one\n\ntwo"}
    assert rows[1].error == "the row has 3 cells, the header 2"
    assert rows[2].error == "the row has 1 cells, the header 2"
    assert rows[3].value == {"prompt": 'x "y"', "completion": "[1]"}  # a list, but not one of messages


def test_csv_cells_that_are_empty_are_absent_and_may_be_long(tmp_path: Path) -> None:
    rows = read(tmp_path / "rows.csv", f"id,text,weight\n,{'long ' * 40_000},\n")
    assert rows[0].value == {"text": "long " * 40_000}
    limit = csv.field_size_limit()
    assert limit == 131_072, "reading must leave the process as it was"


@pytest.mark.parametrize(
    ("name", "body", "line", "words"),
    [
        ("rows.jsonl", "", None, "the file is empty"),
        ("rows.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', 2, "not UTF-8: byte 0xe9 at position 14"),
        ("rows.csv", b"text\na\nb\n\xff\n", 4, "not UTF-8"),
        ("rows.json", '[\n{"text": "a"},\n{"text": }\n]', 3, "broken JSON: Expecting value at column 10"),
        ("rows.json", '{"text": "a"}', None, "holds no JSON array"),
        ("rows.json", "[" * 100_000, None, "broken JSON: nested too deeply"),
        ("rows.json", "9" * 5000, None, "thousands of digits"),
        ("rows.csv", 'text,id\na,b\nc,"d\ne,f\n', 3, "broken CSV in the row that starts here: unexpected end of data"),
        ("rows.csv", "text,text\na,b\n", 1, "the same column twice"),
        ("rows.jsonl.gz", b'{"text": "a"}', None, "Not a gzipped file"),
        ("rows.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], None, "cannot be read"),
        ("rows.parquet", b"PAR1 nothing PAR1", None, "arquet"),
        ("rows.txt", "a", None, "unknown format '.txt'"),
        ("rows", "a", None, "unknown format ''"),
    ],
)
def test_a_file_that_cannot_be_read(name: str, body: str | bytes, line: int | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        read(path, body)
    assert str(caught.value).startswith(str(path))
    assert (caught.value.path, caught.value.line) == (str(path), line)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        list(read_rows(tmp_path / "nothing.jsonl"))


def test_corrupted_bytes_inside_a_gzip_stream(tmp_path: Path) -> None:
    body = bytearray(gzip.compress(lines(ROWS * 500).encode()))
    body[30:40] = b"\xff" * 10
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "rows.jsonl.gz", bytes(body))


def test_corrupted_pages_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": [f"row {k} of many" for k in range(5000)]})
    pq.write_table(table, path, compression="none", use_dictionary=False)
    body = bytearray(path.read_bytes())
    body[4:400] = b"\xff" * 396
    with pytest.raises(InputError, match="cannot be read"):
        read(path, bytes(body))


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    offsets, data = pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")
    text = pa.Array.from_buffers(pa.string(), 1, [None, offsets, data])
    pq.write_table(pa.table({"text": text}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="utf-8"):
        list(read_rows(tmp_path / "rows.parquet"))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "the folder is not one data set split"),
        ("{", "state.json does not name the data files"),
        ("[]", "state.json does not name the data files"),
        ('{"_data_files": [{"filename": "../rows.arrow"}]}', "outside the folder: ../rows.arrow"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "not a readable Arrow file"),
        ('{"_data_files": [{"filename": "state.json"}]}', "not a readable Arrow file"),
    ],
)
def test_a_folder_that_is_no_data_set(state: str | None, words: str, tmp_path: Path) -> None:
    if state is not None:
        (tmp_path / "state.json").write_text(state)
    with pytest.raises(InputError, match=words) as caught:
        list(read_rows(tmp_path))
    assert caught.value.path.startswith(str(tmp_path))


def test_a_folder_of_several_splits_names_them(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "state.json").write_text("{}")
    with pytest.raises(InputError, match="not one data set split") as caught:
        list(read_rows(tmp_path))
    assert str(tmp_path / "test") in caught.value.hint
    assert str(tmp_path / "train") in caught.value.hint


def test_rows_are_read_as_they_are_consumed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n\xff\n')
    assert next(read_rows(path)).value == {"text": "a"}
