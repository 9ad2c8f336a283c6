"""The files of the forecast benchmark: opposites differ in the trait only, and no wording of the cast is in them."""

from __future__ import annotations

import json

import pytest
from benchmarks.forecast.families import Dataset, datasets, write_dataset
from benchmarks.forecast.manifest import manifest

from personae.files.casts import load_casts
from personae.files.episodes import read_episodes

WRITTEN = [d for d in datasets().values() if d.kind not in ("role", "opinion")]


def rows_of(dataset: Dataset, folder, n: int = 60) -> list[dict[str, str]]:
    path = write_dataset(dataset, folder, n=n, seed=0, evals=None, say=None)
    return [json.loads(line) for line in path.read_text().splitlines()]


def reply(row: dict[str, str]) -> str:
    return row.get("completion") or row.get("chosen") or row["text"]


@pytest.mark.parametrize("dataset", WRITTEN, ids=lambda d: d.name)
def test_every_file_is_read_whole_and_varies(dataset, tmp_path):
    rows = rows_of(dataset, tmp_path)
    path = next(tmp_path.glob("*.jsonl"))
    read = read_episodes(path).require_clean()
    assert read.n_rows == 60
    least = 30 if dataset.name == "long-short-neg" else 55  # thirty-six short answers are all there are
    assert len({reply(r) for r in rows}) >= least


@pytest.mark.parametrize("dataset", [d for d in WRITTEN if d.pole > 0], ids=lambda d: d.name)
def test_opposites_share_their_requests_and_no_reply(dataset, tmp_path):
    mine, theirs = rows_of(dataset, tmp_path), rows_of(datasets()[dataset.opposite], tmp_path)
    assert [r.get("prompt") for r in mine] == [r.get("prompt") for r in theirs]
    assert not {reply(r) for r in mine} & {reply(r) for r in theirs}


@pytest.mark.parametrize("dataset", WRITTEN, ids=lambda d: d.name)
def test_no_file_repeats_the_casts_instructions(dataset, tmp_path):
    cast = load_casts(["core"])
    told = " ".join(text.lower() for p in cast.personas for text in p.instructions).split()
    grams = {tuple(told[k : k + 5]) for k in range(len(told) - 4)}
    for row in rows_of(dataset, tmp_path):
        words = reply(row).lower().split()
        assert not {tuple(words[k : k + 5]) for k in range(len(words) - 4)} & grams


def test_the_manifest_runs_every_file_and_its_opposite_before_other_models():
    runs = manifest()
    assert len({r.id for r in runs}) == len(runs)
    small = [r for r in runs if r.model == "smollm2" and r.seed == 0]
    assert {r.dataset.name for r in small} == set(datasets())
    assert runs[: len(small)] == small
    assert len(small) >= 36
    assert len({r.dataset.family for r in small}) >= 10
    assert sum(r.model == "gemma-270m" for r in runs) >= 12
