"""`personae verify --attribution`: train a finished run again without the rows that are named for a trait.

    RUN/attribution/NAME-KEY/     one training each, with `outcome.json`; what is done is not done again

KEY is of the rows that are left, the settings and the items, so the same command goes on where it was interrupted, and
another share or seed trains anew. Not here: naming rows and comparing trainings (`protocols.attribution`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli.forecasting import ONCE_A_MODEL
from personae.cli.trained_run import TrainedRun
from personae.cli.workbench import announced, open_model, say
from personae.domain.diagnostic import DiagnosticSet
from personae.domain.episode import Episode
from personae.errors import InvalidSettings, UnknownPersona
from personae.instruments.forecasting import ForecastJob
from personae.instruments.training import train
from personae.instruments.training_settings import TrainingSettings
from personae.protocols.attribution import (
    METHODS,
    Outcome,
    Ranking,
    attribute,
    n_left_out,
    outcome_of,
    rank_rows,
)
from personae.protocols.measure import MeasureSettings, measure
from personae.report.text import clean
from personae.running.progress import training_progress
from personae.running.run import write_json, write_table
from personae.tables.attribution import Attribution, Share
from personae.tables.traits import TraitProfile

_FOLDER = "attribution"


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for.

    Attributes:
        trait: Whose shift.
        share: Of the rows to leave out.
        rankings: How rows are named.
        seed: Of the random ranking.
        device, dtype: Of the measurements; trainings keep the dtype of the run.
        quiet: No progress.
    """

    trait: str
    share: float
    rankings: tuple[str, ...]
    seed: int
    device: str
    dtype: str
    quiet: bool


def check_attribution(asked: Asked, run: TrainedRun, traits: Sequence[str]) -> None:
    """Refuse what cannot be done before a model is loaded.

    Raises:
        UnknownPersona: If the trait is not measured.
        InvalidSettings: If a ranking is not known, the share leaves nothing to do, a second file was mixed in, or
            the training was steered.
        InputError: If the run's settings cannot be read.
    """
    if asked.trait not in traits:
        raise UnknownPersona(f"no trait '{asked.trait}' is measured here.", hint=f"There are: {', '.join(traits)}.")
    for name in asked.rankings:
        if name not in METHODS:
            raise InvalidSettings(f"no way to rank rows is called '{name}'.", hint=f"There are: {', '.join(METHODS)}.")
    if run.is_mixed:
        raise InvalidSettings("this training had a second file mixed in; rows are left out of one file only.")
    if run.is_steered:
        raise InvalidSettings("this training was steered; rows are left out of trainings without --steer only.")
    n_left_out(len(run.episodes), asked.share)


def attribute_run(
    asked: Asked, run: TrainedRun, job: ForecastJob, items: DiagnosticSet, profiles: tuple[TraitProfile, TraitProfile]
) -> tuple[Attribution, list[Ranking]]:
    """Name rows, train without them, measure, compare.

    Args:
        asked: What was asked for.
        run: The finished training, which stands for the one on all rows.
        job: Of all rows.
        items: Diagnostic items of the cast.
        profiles: Of the base and of the trained model, on test items.

    Raises:
        StorageError, NumericsError, OutOfMemory: As `train` and `measure`.
    """
    before, after = profiles
    full = outcome_of(before, after, asked.trait)
    side = 1.0 if full.shift >= 0 else -1.0
    rankings: list[Ranking] = []
    for method in asked.rankings:
        say(f"Ranking {len(run.episodes):,} rows by {method} …", quiet=asked.quiet)
        with announced(ONCE_A_MODEL, quiet=asked.quiet) as started:
            told = replace(job, started=started)
            rankings.append(rank_rows(told, asked.trait, method=method, side=side, seed=asked.seed))
    mine = items.select(traits=[asked.trait])

    def train_and_measure(rows: Sequence[Episode], name: str) -> Outcome:
        return _outcome(asked, run, rows, name, mine, before)

    return attribute(run.episodes, rankings, train_and_measure, share=asked.share, full=full), rankings


def _outcome(
    asked: Asked, run: TrainedRun, rows: Sequence[Episode], name: str, items: DiagnosticSet, before: TraitProfile
) -> Outcome:
    """One training and its measurement, from its folder where that is done."""
    # Other items are another outcome of the same training.
    key = _digest([[r.content_digest.hex() for r in rows], asdict(run.training), run.base_digest])
    folder = run.folder / _FOLDER / f"{asked.trait}-{name.replace(' ', '-')}-{key}"
    note = folder / f"outcome-{asked.dtype}-{_digest([[i.id, i.pos, i.neg, i.prompt] for i in items.items])}.json"
    known = _kept(note)
    if known is not None:
        say(f"Trained {name} before: {folder}", quiet=asked.quiet)
        return known
    use = _trained(asked, run, rows, name, folder)
    with announced(f"Measuring {name}", quiet=asked.quiet) as measuring:
        model = open_model(use, device=asked.device, dtype=asked.dtype)
        chosen = MeasureSettings(split="test", quick=True)
        after = measure(model.model, items, settings=chosen, renderer=model.renderer, started=measuring)
    found = outcome_of(before, after, asked.trait)
    write_json(note, {"n_rows": len(rows), "change": found.change.tolist(), "topics": list(found.topics)})
    return found


def _trained(asked: Asked, run: TrainedRun, rows: Sequence[Episode], name: str, folder: Path) -> str:
    """Name of the model trained on some rows; from its folder where that is done."""
    note = folder / "trained.json"
    if note.is_file():
        return str(json.loads(note.read_text(encoding="utf-8"))["use"])
    with ExitStack() as stack:

        def started(n_steps: int) -> Callable[[int, float], None]:
            label = f"Training {name}"
            return stack.enter_context(training_progress(label, n_steps, quiet=asked.quiet, unit="nats a token"))

        folder.mkdir(parents=True, exist_ok=True)
        record = train(
            run.model, rows, folder=folder, settings=_again(run), device=asked.device, dtype=run.dtype, started=started
        )
    write_json(note, {"use": record.use})
    return record.use


def _digest(about: list[object]) -> str:
    text = json.dumps(about, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def _kept(note: Path) -> Outcome | None:
    """What was measured before; None where there is nothing that can be read."""
    try:
        stored = json.loads(note.read_text(encoding="utf-8"))
        return Outcome(np.array(stored["change"], np.float64), tuple(map(str, stored["topics"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _again(run: TrainedRun) -> TrainingSettings:
    """The run's own settings, with its number of steps fixed, so that fewer rows are not fewer steps."""
    # Rows held out and early stopping would make two trainings differ in more than the rows that were named.
    return replace(run.training, steps=run.plan.steps, checkpoints=(), held_out=0.0, stop_early=False)


def write_rankings(folder: Path, run: TrainedRun, rankings: Sequence[Ranking], share: float) -> None:
    """`rows.parquet`: every row with its score under each ranking, and whether it was left out."""
    lines = {e.id: e.line for e in run.episodes}
    first = rankings[0]
    columns: dict[str, object] = {"episode": list(first.episodes), "line": [lines[e] for e in first.episodes]}
    for r in rankings:
        named = set(r.first(n_left_out(len(run.episodes), share)))
        at = {e: float(s) for e, s in zip(r.episodes, r.score, strict=True)}
        columns[f"{r.method}_score"] = [at[e] for e in first.episodes]
        columns[f"{r.method}_left_out"] = [e in named for e in first.episodes]
    write_table(folder / "rows.parquet", columns, {"trait": first.trait, "side": f"{first.side:+.0f}"})


def print_attribution(found: Attribution) -> None:
    """What was left of the shift, a line a ranking."""
    console = Console(highlight=False)
    what = f"'{clean(found.trait)}' moved by {found.shift:+.2f} ± {found.se:.2f} nats with all {found.n_rows} rows"
    console.print(Text(f"\nTrained again without named rows; {what}:"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("named by", "left out", "shift", "± s.e.", "gone", "± s.e.", "share of the shift", "90% interval"):
        table.add_column(column, justify="left" if column == "named by" else "right", no_wrap=True)
    for r in found.removals:
        table.add_row(
            Text(r.method),
            str(r.n_dropped),
            f"{r.shift:+.2f}",
            f"{r.se:.2f}",
            f"{r.gone:+.2f}",
            f"{r.gone_se:.2f}",
            *_shown(r.removed),
        )
    console.print(table)
    for note in found.notes:
        console.print(Text(f"note: {clean(note)}", style="dim"), soft_wrap=True)


def _shown(share: Share) -> tuple[str, str]:
    if share.value is None or share.low is None or share.high is None:
        return "—", "—"
    return f"{share.value:.0%}", f"{share.low:.0%} to {share.high:.0%}"
