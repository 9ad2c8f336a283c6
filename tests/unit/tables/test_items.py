"""Item tables: what is refused on construction, and the way to a file and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personae.errors import InputError, StorageError
from personae.files.items import read_items, write_items
from personae.tables.items import ItemTable, item_table


def small(**changes: object) -> ItemTable:
    columns: dict[str, object] = {
        "item": ["q1", "q2", "q1", "q2"],
        "cluster": ["c", "d", "c", "d"],
        "arm": ["a", "a", "b", "b"],
        "score": [0.1, 0.2, 0.3, 0.4],
    }
    return item_table(**(columns | changes))  # type: ignore[arg-type]


def test_labels_become_texts_and_missing_columns_are_filled() -> None:
    table = item_table([1, 2], item=[7, 8], arm=["a", "a"], seed=[0, 0])
    assert table.item == table.cluster == ("7", "8")
    assert table.seed == ("0", "0")
    assert table.template == ("only", "only")
    assert len(table) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": [0.1, 0.2, np.nan, 0.4]}, "row 2 .*item 'q1', arm 'b'.*score nan"),
        ({"score": [0.1, 0.2, 0.3]}, "differ in length.*'score': 3"),
        ({"score": ["x", "y", "z", "w"]}, "must be numbers"),
        ({"score": [[0.1, 0.2, 0.3, 0.4]]}, "one a row"),
        ({"arm": ["a", "a", "b", None]}, "row 3 .*arm ''"),
        ({"arm": ["a", "a", "a", "b"]}, "rows 0 and 2 .*item 'q1'.*arm 'a'"),
        ({"cluster": ["c", "d", "e", "d"]}, "item 'q1' lies in two clusters, 'c' and 'e'"),
        ({"item": [], "cluster": [], "arm": [], "score": []}, "at least one row"),
    ],
)
def test_tables_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**changes)


def test_arms_are_picked_by_name() -> None:
    table = small()
    assert table.arms == ("a", "b")
    assert table.of_arm("b").score.tolist() == [0.3, 0.4]
    with pytest.raises(InputError, match="no arm 'z'") as refused:
        table.of_arm("z")
    assert "'a', 'b'" in refused.value.hint


def test_scores_cannot_be_changed_afterwards() -> None:
    scores = np.array([1.0, 2.0])
    table = item_table(scores, item=["x", "y"], arm=["a", "a"])
    scores[0] = 5.0
    assert table.score[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        table.score[0] = 2.0


def test_round_trip_through_parquet(tmp_path: Path) -> None:
    table = small(seed=[1, 1, 2, 2])
    write_items(tmp_path / "items.parquet", table)
    again = read_items(tmp_path / "items.parquet")
    assert again.item == table.item
    assert again.seed == ("1", "1", "2", "2")
    assert again.score.tolist() == table.score.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["items.parquet"]
    with pytest.raises(StorageError, match="cannot be written"):
        write_items(tmp_path / "missing" / "items.parquet", table)


def test_csv_keeps_labels_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item,arm,score,remark\n007,a,1,x\n008,a,0,y\n")
    table = read_items(path)
    assert table.item == ("007", "008")
    assert table.score.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("x.csv", "item,score\nq,1\n", "no column arm; it has item, score"),
        ("x.csv", "item,arm,score\nq,a,high\n", "a score is 'high'"),
        ("x.csv", "item,arm,score\nq,a,\n", "a score is None"),
        ("x.csv", "item,arm,score\nq,a\n", "cannot be read"),
        ("x.parquet", "no parquet", "cannot be read"),
        ("x.json", "{}", "unknown format '.json'"),
        ("x.csv", "item,arm,score\nq,a,1\nq,a,2\n", "rows 0 and 1 .*both hold item 'q'"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, name: str, body: str, message: str) -> None:
    (tmp_path / name).write_text(body)
    with pytest.raises(InputError, match=message) as refused:
        read_items(tmp_path / name)
    assert name in str(refused.value)
    with pytest.raises(InputError, match="no such file"):
        read_items(tmp_path / "nowhere.csv")


def test_further_columns_of_parquet_are_ignored(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item": ["q"], "arm": ["a"], "score": [0.5], "other": [1]}), tmp_path / "t.parquet")
    assert read_items(tmp_path / "t.parquet").arms == ("a",)
