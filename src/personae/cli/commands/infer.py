"""`personae infer`: the posterior over personas from evidence on disk; no model is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.text import Text

from personae.cli import options as opt
from personae.cli.power import choose_power
from personae.domain.persona import Cast
from personae.errors import IncomparableEvidence, InputError, InvalidSettings
from personae.files.casts import load_casts
from personae.files.evidence_folder import StoredEvidence, read_evidence
from personae.inference.mixture import fit_mixture
from personae.models.protocol import ModelCard
from personae.report.text import clean
from personae.running.run import read_run, write_json

NAME = "infer"


@dataclass(frozen=True, slots=True)
class _Scored:
    """A `score` run: its evidence and the cast it was made with."""

    evidence: StoredEvidence
    cast: Cast
    whole: Cast
    card: ModelCard
    record: Mapping[str, object]
    reading: str


def command(
    run: Annotated[str, typer.Argument(help="Folder of a `score` run.")],
    eta: Annotated[
        float | None, typer.Option(help="Power on the likelihood. Default: as calibrated, else 0.25.")
    ] = None,
    seed: opt.Seed = 0,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Infer who speaks from a `score` run's tables: weights of personas, with intervals."""
    if eta is not None and not 0 < eta <= 10:
        raise InvalidSettings(f"--eta is {eta:g}; it must be above 0 and at most 10.")
    folder = Path(run)
    scored = _read(folder)
    power, source = (
        (eta, "given with --eta")
        if eta is not None
        else choose_power(scored.card, scored.whole, reading=scored.reading)
    )
    evidence = scored.evidence
    if not evidence.weight.any():
        raise InvalidSettings("every episode has weight 0: there is nothing to infer from.")
    fit = fit_mixture(evidence.sums(), scored.cast.log_prior, eta=power, seed=seed)
    order = np.argsort(-fit.weight, kind="stable")
    summary = {
        "command": NAME,
        "run": str(folder),
        "model": scored.card.name,
        "cast": scored.cast.id,
        "reading": scored.reading,
        "n_episodes": len(evidence.weight),
        "n_conversations": fit.n_groups,
        "n_tokens": int(evidence.n_tokens.sum()),
        "eta": power,
        "eta_source": source,
        "posterior": [
            {
                "persona": evidence.personas[k],
                "label": scored.cast.label_of(evidence.personas[k]),
                "prior": float(np.exp(scored.cast.log_prior[k])),
                "weight": float(fit.weight[k]),
                "ci": [float(fit.low[k]), float(fit.high[k])],
            }
            for k in order
        ],
    }
    write_json(folder / "infer.json", summary | {"seed": seed})
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not quiet:
        _print(summary)
    return 0


def _read(folder: Path) -> _Scored:
    record = read_run(folder)
    settings = record["settings"]
    if record.get("command") != "score" or not isinstance(settings, dict):
        raise InputError(
            f"run.json is of the command '{record.get('command')}'", path=str(folder), hint="Name a `score` run."
        )
    try:
        card = ModelCard(**record["model"])  # type: ignore[arg-type]
        whole = cast = load_casts([str(c) for c in settings["cast"]])
        if settings.get("only"):
            cast = cast.select([n.strip() for n in str(settings["only"]).split(",") if n.strip()])
    except (KeyError, TypeError) as error:
        raise InputError(f"run.json is incomplete: {error}", path=str(folder), hint="Score again.") from error
    evidence = read_evidence(folder)
    if evidence.personas != cast.component_ids:
        raise IncomparableEvidence(
            f"the cast '{cast.id}' is not the one {folder} was scored with: its personas differ.",
            hint="The cast's file has changed since, or is another one; score again.",
        )
    return _Scored(evidence, cast, whole, card, record, str(settings.get("reading", "reply")))


def _print(summary: Mapping[str, object]) -> None:
    console = Console(highlight=False)
    rows = summary["posterior"]
    assert isinstance(rows, list)
    console.print(
        Text(f"{summary['n_conversations']:,} conversations, eta {summary['eta']:.3g} ({summary['eta_source']})")
    )
    if summary["reading"] != "reply":
        console.print(Text(f"Evidence was read as '{summary['reading']}'."))
    for row in rows[:12]:
        low, high = row["ci"]
        console.print(Text(f"  {clean(row['label'])[:40]:<40} {row['weight']:6.1%}   {low:.1%} to {high:.1%}"))
    if len(rows) > 12:
        console.print(Text(f"  and {len(rows) - 12} more, in infer.json", style="dim"))
