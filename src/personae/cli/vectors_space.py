"""`personae vectors space`: where the roles of a cast lie, and the Assistant among them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.text import Text

from personae.cli import options as opt
from personae.cli.vectors_extract import N_TEST, QuestionFile, asked_in, cast_of, texts_for
from personae.cli.workbench import open_model, say
from personae.domain.persona import Cast
from personae.errors import InvalidSettings
from personae.files.casts import built_in_casts
from personae.inference.persona_space import LEAST_ROLES, compare_spaces
from personae.models.activations import check_layers, require_activations
from personae.models.catalogue import DEFAULT_MODEL, home, require_target
from personae.models.protocol import ModelCard
from personae.protocols.space import AXIS, axis_vector, read_roles, role_vectors, space_at
from personae.protocols.vector_material import choose_questions
from personae.report.text import clean
from personae.running.progress import progress_bar
from personae.running.run import make_run_folder, provenance, write_json, write_text
from personae.tables.activations import Activations
from personae.tables.space import PersonaSpace, PersonaVector, SpaceComparison

NAME = "vectors space"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a space."""

    model: str = DEFAULT_MODEL
    against: str | None = None
    cast: tuple[str, ...] = ("core",)
    only: str | None = None
    poles: bool = False
    layer: int | None = None
    questions: str | None = None
    n_questions: int = N_TEST
    paraphrases: int | None = None
    out: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    json: bool = False
    quiet: bool = False


def space(
    model: opt.Model = DEFAULT_MODEL,
    against: Annotated[
        str | None, typer.Option(help="A second model, such as the base model, to compare with.")
    ] = None,
    cast: opt.CastNames = None,
    only: opt.Only = None,
    poles: Annotated[bool, typer.Option("--poles", help="Poles of traits take part as roles.")] = False,
    layer: Annotated[int | None, typer.Option(help="0-based block of the map. Default: the middle one.")] = None,
    questions: QuestionFile = None,
    n_questions: Annotated[int, typer.Option("--n-questions", min=4, help="Questions asked of every role.")] = N_TEST,
    paraphrases: opt.Paraphrases = None,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Map the roles of a cast, find the Assistant axis, and say what both are worth."""
    return execute(
        Settings(
            model, against, tuple(cast or ("core",)), only, poles, layer, questions, n_questions, paraphrases, out,
            seed, device, dtype, as_json, quiet,
        )
    )  # fmt: skip


def execute(settings: Settings) -> int:
    """Read, map, and give the exit status."""
    from personae.models.hf_vectors import library_path, save_vectors
    from personae.report.vectors_page import render_space  # charts are slow to import

    cast = cast_of(settings.cast, settings.only)
    if settings.paraphrases is not None:
        cast = cast.limit_paraphrases(settings.paraphrases)
    n_roles = len(cast.roles) + (2 * len(cast.traits) if settings.poles else 0)
    if n_roles < LEAST_ROLES:
        raise InvalidSettings(
            f"the cast has {n_roles} roles; a space needs {LEAST_ROLES}.",
            hint="Use --poles, or a cast with more roles.",
        )
    asked = asked_in(settings.questions)
    for name in filter(None, (settings.model, settings.against)):
        require_target(name)
    folder = make_run_folder(settings.out, NAME.replace(" ", "-"))
    spaces: list[PersonaSpace] = []
    cards: list[dict[str, object]] = []
    files: list[str] = []
    for name in filter(None, (settings.model, settings.against)):
        activations, card = _read(name, cast, asked, settings)
        layer = activations.origin.n_layers // 2 if settings.layer is None or spaces else settings.layer
        spaces.append(space_at(activations, cast, layer, seed=settings.seed))
        made: dict[str, PersonaVector] = {AXIS: axis_vector(activations, layer)} | role_vectors(activations, layer)
        stem = "vectors" if len(spaces) == 1 else "vectors-against"
        files.append(str(save_vectors(folder / f"{stem}.safetensors", made)))
        save_vectors(library_path(home(), card), {AXIS: made[AXIS]}, keep=True)
        cards.append(card.to_dict())
    rng = np.random.default_rng([settings.seed, 42])
    compared = compare_spaces(spaces[0], spaces[1], rng=rng) if len(spaces) == 2 else None
    paths = [str(built_in_casts().get(c, Path(c))) for c in settings.cast]
    record = provenance([*paths, *filter(None, [settings.questions])], seed=settings.seed) | {"model_card": cards[0]}
    report = folder / "report.html"
    write_text(report, render_space(spaces, compared, record))
    summary = {
        "command": NAME,
        "spaces": [space_json(s) for s in spaces],
        "comparison": None if compared is None else asdict(compared),
        "files": files,
        "report": str(report),
        "run": str(folder),
    }
    write_json(folder / "run.json", {"command": NAME, "settings": asdict(settings), **record, "result": summary})
    if settings.json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not settings.quiet:
        _print(spaces, compared, report)
    return 0


def _read(name: str, cast: Cast, asked: tuple[str, ...], settings: Settings) -> tuple[Activations, ModelCard]:
    say(f"Loading {name} …", quiet=settings.quiet)
    bench = open_model(name, device=settings.device, dtype=settings.dtype)
    editable = require_activations(bench.model)
    if settings.layer is not None:
        check_layers([settings.layer], editable.n_layers)
    tokenizer = bench.model.tokenizer
    n_test = settings.n_questions // 2
    questions = choose_questions(
        texts_for(tokenizer, asked),
        tokenizer,
        n_training=settings.n_questions - n_test,
        n_test=n_test,
        seed=settings.seed,
    )
    n_items = (cast.n_instructions if settings.poles else sum(len(r.instructions) for r in cast.roles) + 1) * (
        len(questions.training) + len(questions.test)
    )
    say(f"Reading {n_items:,} prompts …", quiet=settings.quiet)
    with progress_bar("Reading", n_items, quiet=settings.quiet, unit="prompts") as done:
        found = read_roles(editable, bench.renderer, cast, questions, poles=settings.poles, advance=done)
    return found, bench.model.card


def space_json(s: PersonaSpace) -> dict[str, object]:
    """What is known of a space, as plain values."""
    return {
        "model": s.origin.model,
        "layer": s.layer,
        "n_roles": len(s.roles),
        "axis": {
            "positive": "the model as it is",
            "split_half": {"cosine": s.split_half[0], "range": list(s.split_half[1:]), "null_95": s.split_half_null},
            "first_component": {
                "cosine": s.first_cosine,
                "largest_of_roles": s.first_null_roles,
                "p": s.first_p,
                "random_95": s.first_null_random,
            },
        },
        "n_for_70": s.n_for_70,
        "shares": [c.share for c in s.components],
        "default_position": s.default_position,
        "positions": dict(zip(s.roles, s.positions, strict=True)),
        "loadings": dict(s.components[0].loadings),
    }


def _print(spaces: list[PersonaSpace], compared: SpaceComparison | None, report: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for s in spaces:
        order = np.argsort(s.positions)
        ends = [", ".join(clean(s.labels[i]) for i in part) for part in (order[-1:-5:-1], order[:4])]
        beats = "no role in its place comes as close" if s.first_p <= 1 / (1 + len(s.roles)) else "so do some roles"
        lines = (
            f"{clean(s.origin.model)}, layer {s.layer}: {len(s.roles)} roles; {s.n_for_70} components hold 70 % of the "
            "variance between them.",
            f"Assistant axis: halves of the questions agree to {s.split_half[0]:.3f} (labels mixed: "
            f"{s.split_half_null:.3f}); cosine with the first component {s.first_cosine:.2f}, {beats} (largest "
            f"{s.first_null_roles:.2f}; random directions {s.first_null_random:.2f}).",
            f"The model as it is lies {s.default_position:+.1f} standard deviations along it. Next to it: "
            f"{ends[0]}. At the far end: {ends[1]}.",
        )
        console.print(Text("\n".join(lines) + "\n"))
    if compared is not None:
        console.print(
            Text(
                f"Between the two: geometry of roles r = {compared.geometry:.2f} (p = {compared.geometry_p:.3g}), "
                f"positions on the axis r = {compared.positions:.2f} (p = {compared.positions_p:.3g}), first loadings "
                f"|r| = {compared.loadings:.2f} (p = {compared.loadings_p:.3g})."
            )
        )
    console.print(Text(f"Report: {report}"))
