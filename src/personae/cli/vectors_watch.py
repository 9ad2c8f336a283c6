"""`personae vectors monitor` and `personae vectors diff`: conversations and checkpoints in the terms of vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli import options as opt
from personae.cli.edits import known_vectors
from personae.cli.vectors_extract import N_TEST, N_TRAINING, QuestionFile, asked_in, texts_for
from personae.cli.workbench import open_model, say
from personae.domain.persona import PLAIN, Persona
from personae.errors import InvalidSettings
from personae.files.episodes import read_episodes
from personae.files.reference import load_reference
from personae.inference.checkpoint_diff import LayerChange, compare_checkpoints
from personae.instruments.reading import Reading, question, read_all
from personae.instruments.steering import parse_layers
from personae.models.activations import check_layers, require_activations
from personae.models.catalogue import DEFAULT_MODEL, require_target
from personae.models.protocol import ModelCard
from personae.protocols.monitor import watch
from personae.protocols.vector_material import choose_questions
from personae.report.text import clean
from personae.running.progress import progress_bar
from personae.running.run import make_run_folder, provenance, write_json, write_table
from personae.tables.activations import Activations
from personae.tables.monitor import Watch, WatchedToken, WatchedTurn
from personae.tables.space import PersonaVector
from personae.tables.vector_arithmetic import evaluate

_SHOWN = 12

VectorNames = Annotated[
    list[str] | None,
    typer.Option("--vector", help="A vector, or a sum of vectors; repeatable. Default: all that were extracted."),
]


def monitor(
    data: opt.Data,
    vector: VectorNames = None,
    model: opt.Model = DEFAULT_MODEL,
    layer: Annotated[int | None, typer.Option(help="0-based block. Default: the one chosen for each vector.")] = None,
    vectors: opt.Vectors = None,
    reference: Annotated[
        str | None, typer.Option(help="Ordinary replies that set the threshold, with a 'group'. Default: built in.")
    ] = None,
    false_alarms: Annotated[
        float, typer.Option("--false-alarms", help="Rate of alarms on ordinary replies to set the threshold for.")
    ] = 0.001,
    tokens: Annotated[bool, typer.Option("--tokens", help="Tokens of every reply, not only of alarms.")] = False,
    turns: opt.Turns = "all",
    limit: opt.Limit = None,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Watch conversations: projections of every reply on vectors, with alarms against ordinary replies."""
    episodes = read_episodes(data, turns=turns, limit=limit).require_clean().episodes
    ordinary = load_reference(reference)
    require_target(model)
    folder = make_run_folder(out, "vectors-monitor")
    say(f"Loading {model} …", quiet=quiet)
    bench = open_model(model, device=device, dtype=dtype)
    editable = require_activations(bench.model)
    chosen = _chosen(vector, vectors, bench.model.card)
    watched = {name: (v, _layer_of(v, layer, editable.n_layers)) for name, v in chosen.items()}
    with progress_bar("Reading", len(episodes) + len(ordinary), quiet=quiet, unit="replies") as done:
        found = watch(
            editable,
            bench.renderer,
            watched,
            episodes,
            ordinary,
            false_alarms=false_alarms,
            every_token=tokens,
            advance=done,
        )
    notes = {"model": model, "unit": "projection in units of the residual stream; z against ordinary replies"}
    write_table(folder / "turns.parquet", _columns(found.turns, WatchedTurn), notes)
    write_table(folder / "tokens.parquet", _columns(found.tokens, WatchedToken), notes)
    summary = {
        "command": "vectors monitor",
        "model": model,
        "n_turns": len(episodes),
        "layers": found.layers,
        "threshold_z": found.threshold,
        "false_alarms": found.false_alarms,
        "reference_rate": found.reference_rate,
        "n_reference": found.n_reference,
        "overhead": found.overhead,
        "alarms": [asdict(t) for t in found.turns if t.alarm],
        "run": str(folder),
    }
    inputs = [data, *(vectors or ()), *filter(None, [reference])]
    record = provenance(inputs, seed=seed) | {"model_card": bench.model.card.to_dict()}
    settings = {"data": data, "vector": list(watched), "false_alarms": false_alarms, "turns": turns}
    write_json(folder / "run.json", {"command": "vectors monitor", "settings": settings, **record, "result": summary})
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not quiet:
        _print_watch(found)
    return 0


def diff(
    before: Annotated[str, typer.Argument(help="A checkpoint.")],
    after: Annotated[str, typer.Argument(help="A later one of the same model.")],
    vector: VectorNames = None,
    vectors: opt.Vectors = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="0-based blocks. Default: all that vectors have.")
    ] = None,
    questions: QuestionFile = None,
    n_questions: Annotated[int, typer.Option("--n-questions", min=6)] = N_TRAINING + N_TEST,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Say what moved between two checkpoints: the mean change of activations, in the terms of vectors."""
    asked = asked_in(questions)
    for name in (before, after):
        require_target(name)
    chosen_layers = None if layers is None else parse_layers(layers, "--layers")
    folder = make_run_folder(out, "vectors-diff")
    states: list[Activations] = []
    cards: list[ModelCard] = []
    chosen: Mapping[str, PersonaVector] = {}
    for name in (before, after):
        say(f"Loading {name} …", quiet=quiet)
        bench = open_model(name, device=device, dtype=dtype)
        editable = require_activations(bench.model)
        chosen = chosen or _chosen(vector, vectors, bench.model.card)
        tokenizer = bench.model.tokenizer
        texts = choose_questions(
            texts_for(tokenizer, asked), tokenizer, n_training=n_questions - 2, n_test=2, seed=seed
        )
        frame = bench.renderer.frames(Persona(PLAIN, ()))[0]
        readings = [Reading(q, PLAIN, q, frame, question(q, texts.any_reply)) for q in (*texts.training, *texts.test)]
        states.append(read_all(editable, bench.renderer, readings, reduce="prompt_last"))
        cards.append(bench.model.card)
    at = check_layers(chosen_layers or next(iter(chosen.values())).layers, states[0].origin.n_layers)
    found = compare_checkpoints(states[0], states[1], chosen, at, rng=np.random.default_rng([seed, 51]))
    largest = max(found, key=lambda c: c.size)
    summary = {
        "command": "vectors diff",
        "before": before,
        "after": after,
        "n_prompts": len(states[0].items),
        "identical": all(c.size == 0 for c in found),
        "largest_layer": largest.layer,
        "layers": [asdict(c) for c in found],
        "run": str(folder),
    }
    record = provenance([*(vectors or ()), *filter(None, [questions])], seed=seed) | {
        "model_cards": [c.to_dict() for c in cards]
    }
    settings = {"before": before, "after": after, "vector": list(chosen), "seed": seed}
    write_json(folder / "run.json", {"command": "vectors diff", "settings": settings, **record, "result": summary})
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not quiet:
        _print_diff(largest, before, after, len(states[0].items))
    return 0


def _chosen(names: list[str] | None, files: list[str] | None, card: ModelCard) -> dict[str, PersonaVector]:
    known = known_vectors(tuple(files or ()), card)
    chosen = {name: evaluate(name, known) for name in names} if names else known
    if not chosen:
        raise InvalidSettings(
            f"no vectors of '{card.name}' are kept here.",
            hint=f"Make some: personae vectors extract --model {card.name}   (or name files with --vectors)",
        )
    return chosen


def _layer_of(v: PersonaVector, layer: int | None, n_layers: int) -> int:
    if layer is not None:
        return check_layers([layer], n_layers)[0]
    if v.best_layer < 0:
        raise InvalidSettings(f"no layer was chosen for the vector '{v.id}'.", hint="Name one with --layer.")
    return v.best_layer


def _columns(rows: tuple[WatchedTurn, ...] | tuple[WatchedToken, ...], kind: type) -> dict[str, list[object]]:
    return {f.name: [getattr(r, f.name) for r in rows] for f in fields(kind)}


def _print_watch(found: Watch) -> None:
    console = Console(highlight=False)
    alarms = sorted((t for t in found.turns if t.alarm), key=lambda t: -t.z)
    n = len({t.episode for t in found.turns})
    head = f"{len({t.episode for t in alarms})} of {n} replies raise an alarm (z above {found.threshold:.2f})."
    console.print(Text(head, style="bold"))
    if alarms:
        table = Table(box=None, pad_edge=False)
        for column in ("line", "reply", "vector", "z"):
            table.add_column(column, justify="right" if column in ("line", "z") else "left", no_wrap=True)
        for t in alarms[:_SHOWN]:
            table.add_row(str(t.line), Text(clean(t.episode)), Text(clean(t.vector)), f"{t.z:+.2f}")
        console.print(table)
    console.print(
        Text(
            f"Of {found.n_reference} ordinary replies {found.reference_rate:.1%} pass a threshold set by the other "
            f"topics (asked for: {found.false_alarms:.1%}). Watching adds {found.overhead:.1%} to a pass.",
            style="dim",
        )
    )


def _print_diff(change: LayerChange, before: str, after: str, n: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if change.size == 0:
        console.print(Text(f"{clean(before)} and {clean(after)} are identical on {n} prompts: nothing moved."))
        return
    console.print(
        Text(
            f"Most moved layer {change.layer}: by {change.size:.3f} residual norms on the mean of {n} prompts; "
            f"{change.consistency:.0%} of it in one direction. {change.outside:.0%} lies outside what the vectors span "
            f"(random directions: {change.outside_null:.0%} or more)."
        )
    )
    table = Table(box=None, pad_edge=False)
    for column in ("vector", "cosine", "shift, sd", "q"):
        table.add_column(column, justify="left" if column == "vector" else "right", no_wrap=True)
    for t in change.traits[:_SHOWN]:
        table.add_row(Text(clean(t.vector)), f"{t.cosine:+.3f}", f"{t.shift:+.2f}", f"{t.q:.3g}")
    console.print(table)
