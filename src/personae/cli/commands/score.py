"""`personae score`: the evidence table, log p(y | x, persona) for every pair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer

from personae.cli import options as opt
from personae.cli.workbench import (
    Counted,
    ScoringSettings,
    Workbench,
    announced_parts,
    count_inputs,
    open_workbench,
    say,
)
from personae.domain.episode import Episode
from personae.domain.persona import BACKGROUND, Cast, Persona
from personae.errors import InvalidSettings
from personae.files.episodes import stream_episodes
from personae.instruments.describing import check_reading, quotes_cut, quotes_note
from personae.instruments.scoring import cut_note, n_cut
from personae.models.catalogue import DEFAULT_MODEL
from personae.numerics.logspace import chain_increments
from personae.running.run import TableWriter, make_run_folder, provenance, write_json
from personae.tables.evidence import Evidence

NAME = "score"
PART = 8_192  # episodes scored, written and forgotten together


@dataclass(frozen=True, slots=True)
class Settings(ScoringSettings):
    """All settings of a scoring."""

    tokens: bool = False
    _: KW_ONLY
    reading: str = "reply"


def command(
    data: opt.Data,
    model: opt.Model = DEFAULT_MODEL,
    cast: opt.CastNames = None,
    only: opt.Only = None,
    paraphrases: opt.Paraphrases = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Also write a table with one row a token.")] = False,
    reading: opt.Reading = "reply",
    turns: opt.Turns = "last",
    limit: opt.Limit = None,
    skip_bad_rows: opt.SkipBadRows = False,
    steer: opt.Steer = None,
    cap: opt.Cap = None,
    vectors: opt.Vectors = None,
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
            tuple(steer or ()),
            tuple(cap or ()),
            tuple(vectors or ()),
            tokens,
            executor=executor,
            workers=workers,
            address=address,
            gpus_per_worker=gpus_per_worker,
            tokenizer=tokenizer,
            reading=reading,
        )
    )


def execute(settings: Settings) -> int:
    """Score part by part, in memory that does not grow with the file, and write the tables; give the exit status."""
    check_reading(settings.reading)
    if settings.tokens and settings.reading != "reply":
        raise InvalidSettings(
            "--tokens gives the tokens of replies, which do not sum to what another reading gives.",
            hint="Leave --tokens or --reading out.",
        )
    inputs = count_inputs(settings)
    folder = make_run_folder(settings.out, NAME)
    with closing(open_workbench(settings)) as bench:
        made = _write_tables(settings, inputs, bench, folder)
    notes = [*inputs.notes, *made.notes]
    provenance_ = provenance(inputs.paths, seed=settings.seed) | dict(made.provenance)
    summary = {
        "command": NAME,
        "model": settings.model,
        "cast": inputs.cast.id,
        "n_episodes": made.n_episodes,
        "n_tokens": made.n_tokens,
        "n_personas": len(inputs.cast.component_ids),
        **{name: str(path) for name, path in made.paths.items() if name != "episodes"},
        "notes": notes,
        "run": str(folder),
    }
    write_json(folder / "run.json", {"command": NAME, "settings": settings.to_dict(), **provenance_, "result": summary})
    if settings.json:
        typer.echo(json.dumps(summary))
    elif not settings.quiet:
        typer.echo(str(made.paths["evidence"]))
    for note in notes:
        say(f"note: {note}", quiet=settings.quiet)
    return 0


@dataclass(slots=True)
class _Made:
    """What was written, summed over the parts."""

    paths: dict[str, Path]
    n_episodes: int = 0
    n_tokens: int = 0
    n_cut: int = 0
    n_quotes_cut: int = 0
    provenance: Mapping[str, object] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        return cut_note(self.n_cut, self.n_episodes) + quotes_note(self.n_quotes_cut, self.n_episodes)


def _write_tables(settings: Settings, inputs: Counted, bench: Workbench, folder: Path) -> _Made:
    scoring = bench.scoring_of(settings.reading)
    passes = 1 if settings.reading == "reply" else 2
    about = {
        "unit": "nats, summed over completion tokens",
        "model": settings.model,
        "space": bench.space,
        "reading": settings.reading,
    }
    ratios = ["ratios"] if inputs.cast.traits else []
    names = ["evidence", "episodes", *ratios, *(["tokens"] if settings.tokens else [])]
    made = _Made({name: folder / f"{name}.parquet" for name in names})
    n_parts = -(-inputs.census.n_episodes // PART)
    parts = stream_episodes(settings.data, part=PART, turns=settings.turns, limit=settings.limit)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(TableWriter(path, about)) for name, path in made.paths.items()}
        of_part = stack.enter_context(announced_parts("Scoring", n_parts, quiet=settings.quiet, passes=passes))
        for k, episodes in enumerate(parts):
            evidence = scoring.evidence(inputs.cast, episodes, started=of_part(min(k, n_parts - 1)))
            writers["evidence"].add(_columns(inputs.cast, evidence))
            writers["episodes"].add(_episode_columns(evidence))
            if ratios:
                writers["ratios"].add(_ratio_columns(inputs.cast, evidence))
            if settings.tokens:
                writers["tokens"].add(_token_columns(bench, inputs.cast, episodes))
            made.n_episodes += len(episodes)
            made.n_tokens += int(evidence.n_tokens.sum())
            made.n_cut += n_cut(bench.renderer, episodes)
            made.n_quotes_cut += quotes_cut(evidence)
            made.provenance = made.provenance or evidence.provenance
    if settings.reading != "reply":
        made.provenance = {**made.provenance, "quotes_cut": made.n_quotes_cut}
    return made


def _columns(cast: Cast, evidence: Evidence) -> dict[str, pa.Array]:
    """One row an episode and component, episode by episode."""
    components = cast.component_ids
    table = evidence.matrix(components)
    n, k = table.shape
    return {
        "episode": pa.array(evidence.episodes).take(pa.array(np.repeat(np.arange(n), k))),
        "persona": pa.array(components).take(pa.array(np.tile(np.arange(k), n))),
        "n_tokens": pa.array(np.repeat(evidence.n_tokens, k)),
        "log_likelihood": pa.array(table.ravel()),
    }


def _ratio_columns(cast: Cast, evidence: Evidence) -> dict[str, pa.Array]:
    """One row an episode and trait: the ratio of its poles, mean over paraphrases, nats."""
    ratios = np.stack([evidence.log_likelihood_ratio(t.pos.id, t.neg.id) for t in cast.traits], axis=1)
    n, k = ratios.shape
    return {
        "episode": pa.array(evidence.episodes).take(pa.array(np.repeat(np.arange(n), k))),
        "trait": pa.array([t.id for t in cast.traits]).take(pa.array(np.tile(np.arange(k), n))),
        "llr": pa.array(ratios.ravel()),
    }


def _episode_columns(evidence: Evidence) -> dict[str, pa.Array]:
    """What inference needs to know of every episode."""
    return {
        "episode": pa.array(evidence.episodes),
        "line": pa.array(evidence.line),
        "weight": pa.array(evidence.weight),
        "group": pa.array(evidence.group),
        "n_tokens": pa.array(evidence.n_tokens),
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
