"""`personae vectors conditions`: do vectors tell how far a prompt moves a trait, within one type of prompt?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli import options as opt
from personae.cli.traits import Source, load_items
from personae.cli.vectors_extract import N_TEST, N_TRAINING, Layers, NQuestions, QuestionFile, asked_in, texts_for
from personae.cli.workbench import Workbench, open_model, say
from personae.domain.diagnostic import Diagnostic
from personae.domain.persona import Cast
from personae.errors import InvalidSettings, MissingCapability
from personae.files.casts import built_in_casts, load_casts
from personae.files.diagnostics import has_further_items
from personae.inference.conditions import ConditionTest, judge_conditions
from personae.inference.nulls import Poles, Tested, direction_of
from personae.instruments.steering import parse_layers
from personae.models.activations import check_layers, require_activations
from personae.models.catalogue import DEFAULT_MODEL, require_target
from personae.models.protocol import KnowsPhrases
from personae.protocols.conditions import (
    LEAST_ITEMS,
    WORDINGS,
    Measured,
    common_prompts,
    measure_prompts,
    prompts_for,
    require_replies,
)
from personae.protocols.push import trait_gradients
from personae.protocols.vector_material import choose_questions, contrasts
from personae.protocols.vectors import Extractor, ExtractSettings, Material
from personae.report.text import clean
from personae.running.progress import progress_bar
from personae.running.run import make_run_folder, provenance, write_json, write_table

NAME = "vectors conditions"
N_GRADIENT = 12  # items behind a gradient


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings."""

    model: str = DEFAULT_MODEL
    cast: str = "core"
    only: str | None = None
    items: tuple[str, ...] = ()
    layers: str | None = None
    questions: str | None = None
    n_questions: int = N_TRAINING
    n_prompts: int = 6
    n_items: int = 6
    out: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    json: bool = False
    quiet: bool = False


def conditions(
    model: opt.Model = DEFAULT_MODEL,
    cast: Annotated[str, typer.Option(help="Cast whose traits are judged.")] = "core",
    only: Annotated[str | None, typer.Option(help="Comma-separated traits of the cast; at least two.")] = None,
    items: Annotated[
        list[str] | None, typer.Option(help="Your own diagnostic items instead of the cast's; repeat to join.")
    ] = None,
    layers: Layers = None,
    questions: QuestionFile = None,
    n_questions: NQuestions = N_TRAINING,
    n_prompts: Annotated[
        int,
        typer.Option(
            "--n-prompts",
            min=3,
            max=len(WORDINGS),
            help="Wordings of each instruction told, and shares of replies shown.",
        ),
    ] = 6,
    n_items: Annotated[
        int, typer.Option("--n-items", min=LEAST_ITEMS, help="Paired replies that measure the trait under a prompt.")
    ] = 6,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Judge vectors by prompts of several types: do they tell degrees within a type, or only the types?"""
    return execute(
        Settings(
            model, cast, only, tuple(items or ()), layers, questions, n_questions, n_prompts, n_items, out, seed,
            device, dtype, as_json, quiet,
        )
    )  # fmt: skip


def execute(settings: Settings) -> int:
    """Measure prompts of every trait, judge its direction, and give the exit status."""
    chosen = None if settings.layers is None else parse_layers(settings.layers, "--layers")
    known = load_casts([settings.cast])
    more = not settings.items and has_further_items(settings.cast)
    source = load_items(settings.model, settings.cast, settings.items, settings.only, thorough=more)
    traits = [t for t in source.items.traits if t in {trait.id for trait in known.traits}]
    if len(traits) < 2:
        raise InvalidSettings(
            "the directions of other traits are one of the nulls: name at least two traits with items and poles.",
            hint=f"Traits of '{settings.cast}': {', '.join(t.id for t in known.traits)}.",
        )
    for trait in traits:  # before anything dear
        for split, least in (("dev", settings.n_prompts - 1), ("test", LEAST_ITEMS)):
            require_replies(trait, _replies(source, trait, split), split=split, least=least)
    asked = asked_in(settings.questions)
    require_target(settings.model)
    folder = make_run_folder(settings.out, NAME.replace(" ", "-"))
    say(f"Loading {settings.model} …", quiet=settings.quiet)
    bench = open_model(settings.model, device=settings.device, dtype=settings.dtype)
    layers = check_layers(chosen, require_activations(bench.model).n_layers)
    if isinstance(bench.model.tokenizer, KnowsPhrases) and bench.model.tokenizer.phrases is not None:
        raise MissingCapability(
            f"'{settings.model}' has a vocabulary of its own, in which prompts of these types cannot be written.",
            hint="Use a language model.",
        )
    material = _material(bench, known.select(traits), asked, settings, layers)
    measured = _measured(bench, known, material, source, settings, layers)
    made = _directions(bench, material, source, settings, layers)
    judged = _judged(made, measured, settings.seed)
    summary = {
        "command": NAME,
        "model": settings.model,
        "cast": settings.cast,
        "types": list(dict.fromkeys(p.type for p in measured.prompts)),
        "n_prompts": len(measured.prompts),
        "traits": [condition_json(*which, test, layers) for which, test in judged.items()],
        "run": str(folder),
    }
    _write_prompts(folder / "prompts.parquet", measured)
    paths = [str(built_in_casts().get(settings.cast, Path(settings.cast))), *source.paths]
    inputs = [*dict.fromkeys(paths), *([settings.questions] if settings.questions else [])]
    record = provenance(inputs, seed=settings.seed) | {"model_card": bench.model.card.to_dict()}
    write_json(folder / "run.json", {"command": NAME, "settings": asdict(settings), **record, "result": summary})
    if settings.json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not settings.quiet:
        _print(judged, layers, folder)
    return 0


def condition_json(trait: str, vector: str, test: ConditionTest, layers: tuple[int, ...]) -> dict[str, object]:
    """One vector of a trait as plain values; layers are block numbers."""

    def plain(t: Tested) -> dict[str, object]:
        nulls = [asdict(n) for n in t.nulls]
        return {
            "r": t.signed, "layer": layers[t.layer], "n": t.n, "nulls": nulls, "beats_every_null": t.beats_every_null,
            "verdict": t.verdict,
        }  # fmt: skip

    return {
        "id": trait,
        "vector": vector,
        "pooled": plain(test.pooled),
        "within": plain(test.within),
        "by_type": test.by_type,
        "share_of_types": test.share_of_types,
    }


def _material(
    bench: Workbench, cast: Cast, asked: tuple[str, ...], settings: Settings, layers: tuple[int, ...]
) -> list[Material]:
    tokenizer = bench.model.tokenizer
    questions = choose_questions(
        texts_for(tokenizer, asked), tokenizer, n_training=settings.n_questions, n_test=N_TEST, seed=settings.seed
    )
    extractor = Extractor(
        require_activations(bench.model), bench.renderer, None, ExtractSettings(layers=layers, seed=settings.seed)
    )
    wanted = [c for c in contrasts(cast) if c.id in {t.id for t in cast.traits}]
    say(f"Reading {len(wanted)} traits …", quiet=settings.quiet)
    with progress_bar("Reading", len(wanted), quiet=settings.quiet, unit="traits") as done:
        made = []
        for contrast in wanted:
            made.append(extractor.read(contrast, questions))
            done(1)
    return made


def _measured(
    bench: Workbench,
    cast: Cast,
    material: list[Material],
    source: Source,
    settings: Settings,
    layers: tuple[int, ...],
) -> Measured:
    """Prompts about every trait and about none, with the scores of all traits and the states."""
    rng, n = np.random.default_rng([settings.seed, 61]), settings.n_prompts
    traits = [m.contrast.id for m in material]
    prompts = [
        *(
            p
            for m in material
            for p in prompts_for(bench.renderer, m.contrast, _replies(source, m.contrast.id, "dev"), n=n, rng=rng)
        ),
        *common_prompts(bench.renderer, cast, traits, n=n, rng=rng),
    ]
    say(f"Measuring {len(prompts)} prompts …", quiet=settings.quiet)
    with progress_bar("Measuring", len(prompts), quiet=settings.quiet, unit="prompts") as done:
        return measure_prompts(
            require_activations(bench.model),
            bench.renderer,
            prompts,
            {t: _spread(_replies(source, t, "test"), settings.n_items) for t in traits},
            layers=layers,
            advance=done,
        )


def _directions(
    bench: Workbench, material: list[Material], source: Source, settings: Settings, layers: tuple[int, ...]
) -> dict[tuple[str, str], Poles]:
    """What directions are made from, by trait and kind of vector.

    A gradient is made from test items that measure nothing here; a trait without four of them has none. Its poles are
    the items' gradients with both signs, so that permuted labels are flipped signs.
    """
    found: dict[tuple[str, str], Poles] = {}
    for m in material:
        trait = m.contrast.id
        found[trait, "difference"] = Poles(
            m.training.values, np.array([s == "pos" for s in m.training.labels]), m.training.groups
        )
        test = _replies(source, trait, "test")
        measured = {i.id for i in _spread(test, settings.n_items)}
        free = _spread([i for i in test if i.id not in measured], N_GRADIENT)
        if len(free) >= LEAST_ITEMS:
            model = require_activations(bench.model)
            g = trait_gradients(model, bench.renderer, free)[:, list(layers)]
            ids = [i.id for i in free]
            found[trait, "gradient"] = Poles(np.concatenate([g, -g]), np.arange(2 * len(g)) < len(g), [*ids, *ids])
    return found


def _judged(
    made: Mapping[tuple[str, str], Poles], measured: Measured, seed: int
) -> dict[tuple[str, str], ConditionTest]:
    """Each direction on the prompts of all traits, beside those of the same kind of the other traits."""
    found: dict[tuple[str, str], ConditionTest] = {}
    for k, ((trait, kind), poles) in enumerate(made.items()):
        others = [direction_of(p) for (t, of), p in made.items() if t != trait and of == kind]
        found[trait, kind] = judge_conditions(
            poles,
            measured.values[trait],
            measured.scores[trait],
            [p.type_for(trait) for p in measured.prompts],
            rng=np.random.default_rng([seed, 62, k]),
            others=np.stack(others) if others else None,
        )
    return found


def _replies(source: Source, trait: str, split: str) -> list[Diagnostic]:
    return [i for i in source.items.items if (i.trait, i.kind, i.split) == (trait, "reply", split)]


def _spread(items: list[Diagnostic], n: int) -> list[Diagnostic]:
    """So many items, from all over the list: neighbours share a topic."""
    return items if len(items) <= n else [items[int(k)] for k in np.linspace(0, len(items) - 1, n)]


def _write_prompts(path: Path, measured: Measured) -> None:
    """A row for each trait under each prompt."""
    rows = [
        (t, p, float(s)) for t, scores in measured.scores.items() for p, s in zip(measured.prompts, scores, strict=True)
    ]
    columns = {
        "trait": [t for t, _, _ in rows],
        "about": [p.trait for _, p, _ in rows],
        "type": [p.type_for(t) for t, p, _ in rows],
        "system": [p.frame.instruction for _, p, _ in rows],
        "shots": [len(p.shots) // 2 for _, p, _ in rows],
        "positive_shots": [p.n_positive for _, p, _ in rows],
        "score": [s for _, _, s in rows],
    }
    write_table(path, columns, {"unit": "nats towards the positive pole, mean of the items' log-odds"})


def _print(judged: Mapping[tuple[str, str], ConditionTest], layers: tuple[int, ...], folder: Path) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    heads = ("trait", "pooled", "within", "perm.", "rand.", "others", "parts", "layer", "types")
    for column in heads:
        table.add_column(column, justify="left" if column == "trait" else "right", no_wrap=True)
    for (trait, kind), test in judged.items():
        nulls = {n.name: f"{n.high:.2f}" for n in test.within.nulls}
        table.add_row(
            Text(clean(trait) if kind == "difference" else "  its gradient"),
            f"{test.pooled.signed:+.2f}",
            f"{test.within.signed:+.2f}{'*' if test.within.beats_every_null else ' '}",
            *(nulls.get(n, "-") for n in ("permuted labels", "random", "other traits", "components")),
            str(layers[test.within.layer]),
            f"{test.share_of_types:.0%}",
        )
    console.print(table)
    console.print(
        Text(
            "Correlation of projections at the ends of prompts with the trait measured there, largest over layers; "
            "within: after the mean of each type of prompt about each trait is taken off both. Beside it what 97.5 % "
            "of permuted labels and of random directions like the data stay below, and the largest of the other "
            "traits' vectors and of the principal components. types: share of the trait's variance that lies between "
            "types. * beats all of them within (p at most 0.05).",
            style="dim",
        )
    )
    console.print(Text(f"\nPrompts: {folder / 'prompts.parquet'}"), soft_wrap=True)
