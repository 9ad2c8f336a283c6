"""`personae score`: the evidence table, log p(y | x, persona) for every pair."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer

from personae.cli import options as opt
from personae.cli.workbench import ScoringSettings, Workbench, announced, open_workbench, read_inputs, say
from personae.domain.episode import Episode
from personae.domain.persona import BACKGROUND, Cast, Persona
from personae.instruments.scoring import cut_note
from personae.models.catalogue import DEFAULT_MODEL
from personae.numerics.logspace import chain_increments
from personae.running.run import make_run_folder, provenance, write_json, write_table
from personae.tables.evidence import Evidence

NAME = "score"


@dataclass(frozen=True, slots=True)
class Settings(ScoringSettings):
    """All settings of a scoring."""

    tokens: bool = False


def command(
    data: opt.Data,
    model: opt.Model = DEFAULT_MODEL,
    cast: opt.CastNames = None,
    only: opt.Only = None,
    paraphrases: opt.Paraphrases = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Also write a table with one row a token.")] = False,
    turns: opt.Turns = "last",
    limit: opt.Limit = None,
    skip_bad_rows: opt.SkipBadRows = False,
    truncate: opt.Truncate = False,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    executor: opt.ExecutorName = "serial",
    workers: opt.Workers = None,
    address: opt.Address = None,
    gpus_per_worker: opt.GpusPerWorker = 0.0,
    tokenizer: opt.TokenizerName = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Write log-likelihoods of every completion under every persona of a cast."""
    return execute(
        Settings(
            data,
            model,
            tuple(cast or ("core",)),
            only,
            paraphrases,
            out,
            seed,
            limit,
            turns,
            as_json,
            quiet,
            device,
            dtype,
            truncate,
            skip_bad_rows,
            tokens,
            executor=executor,
            workers=workers,
            address=address,
            gpus_per_worker=gpus_per_worker,
            tokenizer=tokenizer,
        )
    )


def execute(settings: Settings) -> int:
    """Score and write the table; give the exit status."""
    inputs = read_inputs(settings)
    folder = make_run_folder(settings.out, NAME)
    bench = open_workbench(settings)
    episodes = inputs.data.episodes
    with announced("Scoring", quiet=settings.quiet) as started:
        evidence = bench.scoring.evidence(inputs.cast, episodes, started=started)
    notes = [*inputs.notes, *cut_note(bench.renderer, episodes)]
    made = provenance(inputs.paths, seed=settings.seed) | dict(evidence.provenance)
    path = folder / "evidence.parquet"
    about = {"unit": "nats, summed over completion tokens", "model": settings.model, "space": bench.space}
    write_table(path, _columns(inputs.cast, evidence), about)
    paths = {"evidence": str(path)}
    if settings.tokens:
        token_path = folder / "tokens.parquet"
        write_table(token_path, _token_columns(bench, inputs.cast, episodes), about)
        paths["tokens"] = str(token_path)
    summary = {
        "command": NAME,
        "model": settings.model,
        "cast": inputs.cast.id,
        "n_episodes": len(episodes),
        "n_tokens": int(evidence.n_tokens.sum()),
        "n_personas": len(inputs.cast.component_ids),
        **paths,
        "notes": notes,
        "run": str(folder),
    }
    write_json(folder / "run.json", {"command": NAME, "settings": settings.to_dict(), **made, "result": summary})
    if settings.json:
        typer.echo(json.dumps(summary))
    elif not settings.quiet:
        typer.echo(str(path))
    for note in notes:
        say(f"note: {note}", quiet=settings.quiet)
    return 0


def _columns(cast: Cast, evidence: Evidence) -> dict[str, Sequence[object]]:
    components = cast.component_ids
    table = evidence.matrix(components)
    n = len(evidence.episodes)
    return {
        "episode": [e for e in evidence.episodes for _ in components],
        "persona": list(components) * n,
        "n_tokens": [int(c) for c in evidence.n_tokens for _ in components],
        "log_likelihood": table.ravel().tolist(),
    }


def _token_columns(bench: Workbench, cast: Cast, episodes: tuple[Episode, ...]) -> dict[str, list[object]]:
    """One row a token and persona; a persona's tokens sum to its mixture log-likelihood (chain rule)."""
    columns: dict[str, list[object]] = {k: [] for k in ("episode", "persona", "position", "token", "log_likelihood")}
    for episode in episodes:
        texts = bench.renderer.completion_text(episode)
        for persona in (*cast.personas, Persona(BACKGROUND, ())):
            frames = bench.renderer.frames(persona)
            values = chain_increments(np.asarray(bench.scoring.token_log_probs(frames, episode), np.float64))
            columns["episode"] += [episode.id] * len(texts)
            columns["persona"] += [persona.id] * len(texts)
            columns["position"] += list(range(len(texts)))
            columns["token"] += texts
            columns["log_likelihood"] += values.tolist()
    return columns
