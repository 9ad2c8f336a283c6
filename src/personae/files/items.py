"""Item tables in Parquet and CSV files.

Columns `item`, `arm` and `score`; `cluster`, `template` and `seed` may be left out. Not here: what the columns mean
(`tables.items`).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from personae.errors import InputError, StorageError
from personae.tables.items import LABELS, ItemTable, item_table


def read_items(path: str | Path) -> ItemTable:
    """Read a `.parquet` or `.csv` file as an item table; further columns are ignored.

    Raises:
        InputError: If the file cannot be read, a column is missing or empty in a row, a score is not a number, or the
            rows make no item table.
    """
    path = Path(path)
    table = _read(path)
    missing = [name for name in ("item", "arm", "score") if name not in table.column_names]
    if missing:
        raise InputError(
            f"the table has no column {', '.join(missing)}; it has {', '.join(table.column_names)}",
            path=str(path),
            hint="An item table has item, arm and score, and may have cluster, template and seed.",
        )
    columns = {name: table.column(name).to_pylist() for name in LABELS if name in table.column_names}
    try:
        score = np.array([_number(s) for s in table.column("score").to_pylist()])
        return item_table(score, **columns)
    except InputError as error:
        raise InputError(str(error), path=str(path), hint=error.hint) from error


def write_items(path: str | Path, table: ItemTable) -> None:
    """Write an item table as Parquet, whole or not at all.

    Raises:
        StorageError: If it cannot be written.
    """
    path = Path(path)
    columns = {name: pa.array(getattr(table, name), pa.string()) for name in LABELS}
    temporary = path.with_name(f".{path.name}.writing")
    try:
        pq.write_table(pa.table({**columns, "score": table.score}), temporary, compression="zstd")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.") from error


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise InputError("there is no such file", path=str(path))
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        if path.suffix == ".csv":
            texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(LABELS, pa.string()))
            return pyarrow.csv.read_csv(path, convert_options=texts)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"the table cannot be read: {error}", path=str(path)) from error
    raise InputError(f"unknown format '{path.suffix}'", path=str(path), hint="Use .parquet or .csv.")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"a score is {value!r}, which is not a number.", hint="Leave unscored items out.")
    return float(value)
