"""What a fine-tune moved: items asked of the base and of the adapter, paired; one small JSON file a run.

    adapter -> items-96.json (scores, kept in FOLDER) -> benchmarks/results/forecast/RUN.json (shifts by trait)

The headline of `measure --thorough` is used: the log-odds of paired replies, on prompts that no training file uses.
Only test items are asked, 32 a trait; forecasters may look at the other half of the items, with which they have no
topic in common. Items that were added later are asked of the kept adapters alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import RESULTS
from benchmarks.forecast.manifest import Run
from benchmarks.forecast.work import DOSES_OF, DTYPE, adapters_of, is_alone, train_run
from personae.domain.diagnostic import Diagnostic, DiagnosticSet
from personae.files.diagnostics import load_diagnostics
from personae.models.load import load_model
from personae.numerics.clustered import cluster_mean
from personae.protocols.measure import MeasureSettings, measure

STORED = RESULTS / "forecast"
SPLIT = "test"
Scores = dict[str, float]


@cache
def items() -> DiagnosticSet:
    """The paired replies of the core cast that outcomes are read on."""
    return load_diagnostics("core", thorough=True).select(kinds=("reply",), split=SPLIT)


def digest(n: int | None = None) -> str:
    """Of the items, or of the first `n`, which are those of earlier measurements."""
    asked = [[i.id, i.pos, i.neg, i.prompt, i.split] for i in items().items[:n]]
    return hashlib.blake2b(json.dumps(asked).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def measure_run(run: Run, folder: Path, evals: Path | None, *, doses: tuple[int, ...] = ()) -> dict[str, Any]:
    """Measure the given doses (none: the last) unless that is done, and store the shifts; gives all that is stored."""
    target = STORED / f"{run.id}.json"
    body = json.loads(target.read_text()) if target.is_file() else _head(run, train_run(run, folder, evals))
    known = {int(rows): dose.get("digest") for rows, dose in body["doses"].items()}
    missing = [rows for rows in doses or DOSES_OF[run.model][-1:] if known.get(rows) != digest()]
    if not missing:
        return body
    base, _ = _scores(run.model, folder / "base" / f"{run.model}.json")
    for rows in missing:
        adapter = adapters_of(run, folder)[rows]
        after, seconds = _scores(f"{run.model}+{adapter}", items_of(adapter, rows))
        changes = [round(after[i.id] - base[i.id], 2) for i in items().items]
        body["doses"][str(rows)] = {
            "seconds": seconds, "shift": shifts(base, after), "items": changes, "digest": digest(),
            "alone": is_alone(adapter),
        }  # fmt: skip
    # A line a dose keeps the file small and its differences readable.
    text = json.dumps(body).replace('"doses": {', '"doses": {\n').replace("}}, ", "}},\n") + "\n"
    _write(target, text)
    return body


def _head(run: Run, trained: dict[str, object]) -> dict[str, Any]:
    d = run.dataset
    return {
        "run": run.id,
        "model": run.model,
        "seed": run.seed,
        **{k: getattr(d, k) for k in ("name", "family", "kind", "trait", "pole", "opposite")},
        "training": trained | {"dtype": DTYPE},
        "doses": {},
    }


def items_of(adapter: Path, rows: int) -> Path:
    """Where the scores of an adapter's items are kept."""
    return adapter.parent / f"items-{rows}.json"


def shifts(before: Scores, after: Scores) -> dict[str, list[float]]:
    """By trait: mean over items of the score after less before, and its standard error clustered by topic, nats."""
    return by_trait([after[i.id] - before[i.id] for i in items().items])


def by_trait(changes: Sequence[float]) -> dict[str, list[float]]:
    """Mean and standard error of each trait, nats, from changes in the order of `items`, or of the first of them."""
    made: dict[str, list[float]] = {}
    asked = items().items[: len(changes)]
    for trait in items().traits:
        mine = [(i.topic, c) for i, c in zip(asked, changes, strict=True) if i.trait == trait]
        e = cluster_mean(np.array([c for _, c in mine]), [topic for topic, _ in mine])
        made[trait] = [round(e.value, 4), round(e.se, 4)]
    return made


def is_measured(kept: Path) -> bool:
    """Whether scores of all items, as they are worded now, are kept."""
    return kept.is_file() and not _missing(json.loads(kept.read_text()))


def _scores(model: str, kept: Path) -> tuple[Scores, float]:
    """Scores of all items under a model, and the seconds that loading and asking took."""
    stored = json.loads(kept.read_text()) if kept.is_file() else {"scores": {}, "texts": {}, "seconds": 0.0}
    missing = _missing(stored)
    if missing:
        started = time.perf_counter()
        asked = DiagnosticSet(items().name, missing)
        profile = measure(load_model(model, device="cpu"), asked, settings=MeasureSettings(quick=True))
        new = {i: round(float(s), 5) for i, s in zip(profile.items.item, profile.items.score, strict=True)}
        scores = stored["scores"] | new
        seconds = round(stored["seconds"] + time.perf_counter() - started, 2)
        stored = {"scores": scores, "texts": {i.id: _worded(i) for i in items().items}, "seconds": seconds}
        _write(kept, json.dumps(stored))
    return {i.id: stored["scores"][i.id] for i in items().items}, stored["seconds"]


def _missing(stored: dict[str, Any]) -> tuple[Diagnostic, ...]:
    """Items that were not asked, or in other words."""
    texts = stored.get("texts", {})
    return tuple(i for i in items().items if i.id not in stored["scores"] or texts.get(i.id, _worded(i)) != _worded(i))


def _worded(item: Diagnostic) -> str:
    return hashlib.blake2b(json.dumps([item.prompt, item.pos, item.neg]).encode(), digest_size=6).hexdigest()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".writing")
    aside.write_text(text)
    aside.replace(path)


def stored_runs() -> list[dict[str, Any]]:
    """Every run that was measured, in the order of their names."""
    return [json.loads(p.read_text()) for p in sorted(STORED.glob("*/*.json")) if p.parent.name != "readings"]
