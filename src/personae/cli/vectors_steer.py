"""`personae vectors steer`: what a dose of a vector does, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli import options as opt
from personae.cli.edits import known_vectors
from personae.cli.vectors_extract import N_TEST, N_TRAINING, QuestionFile, asked_in, cast_of, texts_for
from personae.cli.workbench import Workbench, open_model, say
from personae.errors import InvalidSettings
from personae.files.episodes import read_episodes
from personae.files.reference import reference_path
from personae.instruments.sampling import Stage
from personae.instruments.steering import parse_layers
from personae.models.activations import check_layers, require_activations
from personae.models.catalogue import DEFAULT_MODEL, home, require_target
from personae.models.protocol import SamplingPlan
from personae.protocols.steering import DoseMeter, TraitItem, dose_curve, trait_items
from personae.protocols.vector_material import Contrast, choose_questions, contrasts
from personae.report.text import clean
from personae.running.progress import progress_bar
from personae.running.run import make_run_folder, provenance, write_json, write_table, write_text
from personae.tables.dose import DoseCurve
from personae.tables.vector_arithmetic import evaluate

NAME = "vectors steer"
_DOSES = "-1,-0.5,-0.25,0.25,0.5,1"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a dose-response curve."""

    vector: str
    trait: str | None = None
    model: str = DEFAULT_MODEL
    cast: tuple[str, ...] = ("core",)
    layers: str | None = None
    doses: str = _DOSES
    n_random: int = 3
    vectors: tuple[str, ...] = ()
    questions: str | None = None
    ordinary: str | None = None
    n_test: int = N_TEST
    n_ordinary: int = 20
    max_tokens: int = 24
    out: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    json: bool = False
    quiet: bool = False


def steer(
    vector: Annotated[str, typer.Argument(help="A vector, or a sum such as '2 * malicious - caring'.")],
    trait: Annotated[str | None, typer.Option(help="Trait or role whose log-odds are read. Default: VECTOR.")] = None,
    model: opt.Model = DEFAULT_MODEL,
    cast: opt.CastNames = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="0-based blocks, such as 12-18. Default: the vector's own layer.")
    ] = None,
    doses: Annotated[str, typer.Option(help="Coefficients, in median residual norms over all layers.")] = _DOSES,
    n_random: Annotated[int, typer.Option("--n-random", min=1, help="Random directions for comparison.")] = 3,
    vectors: opt.Vectors = None,
    questions: QuestionFile = None,
    ordinary: Annotated[
        str | None, typer.Option(help="Ordinary replies whose fluency is the cost. Default: built in.")
    ] = None,
    n_test: Annotated[int, typer.Option("--n-test", min=3, help="Questions of the trait.")] = N_TEST,
    n_ordinary: Annotated[int, typer.Option("--n-ordinary", min=1, help="Ordinary replies.")] = 20,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a reply of the trait.")] = 24,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Dose-response: effect of steering on a trait's log-odds beside its cost in fluency and random directions."""
    return execute(
        Settings(
            vector, trait, model, tuple(cast or ("core",)), layers, doses, n_random, tuple(vectors or ()), questions,
            ordinary, n_test, n_ordinary, max_tokens, out, seed, device, dtype, as_json, quiet,
        )
    )  # fmt: skip


def execute(settings: Settings) -> int:
    """Measure the curve and give the exit status."""
    from personae.report.vectors_page import render_dose  # charts are slow to import

    doses = _numbers(settings.doses)
    chosen = None if settings.layers is None else parse_layers(settings.layers, "--layers")
    contrast = _contrast(settings)
    asked = asked_in(settings.questions)
    texts = read_episodes(settings.ordinary or reference_path()).require_clean().episodes
    require_target(settings.model)
    folder = make_run_folder(settings.out, NAME.replace(" ", "-"))
    say(f"Loading {settings.model} …", quiet=settings.quiet)
    bench = open_model(settings.model, device=settings.device, dtype=settings.dtype)
    editable = require_activations(bench.model)
    vector = evaluate(settings.vector, known_vectors(settings.vectors, bench.model.card))
    if chosen is None and vector.best_layer < 0:
        raise InvalidSettings(f"no layer was chosen for '{vector.id}'.", hint="Name some with --layers.")
    at = check_layers(chosen or (vector.best_layer,), editable.n_layers)
    step = max(1, len(texts) // settings.n_ordinary)
    meter = DoseMeter(
        editable, bench.renderer, _items(bench, contrast, asked, settings), texts[::step][: settings.n_ordinary]
    )
    with progress_bar("Steering", len({0.0, *doses}), quiet=settings.quiet, unit="doses") as done:
        curve = dose_curve(
            meter, editable, vector, doses, at, n_random=settings.n_random, seed=settings.seed, advance=done
        )
    inputs = [p for p in (*settings.vectors, settings.questions, settings.ordinary) if p]
    record = provenance(inputs, seed=settings.seed) | {"model_card": bench.model.card.to_dict()}
    report = folder / "report.html"
    write_text(report, render_dose(curve, contrast.id, record))
    columns = {name: [getattr(d, name) for d in curve.doses] for name in curve.doses[0].__dataclass_fields__}
    write_table(folder / "doses.parquet", columns, {"unit": "nats a token", "model": settings.model})
    summary = {"command": NAME, "trait": contrast.id} | _plain(curve) | {"report": str(report), "run": str(folder)}
    write_json(folder / "run.json", {"command": NAME, "settings": asdict(settings), **record, "result": summary})
    if settings.json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not settings.quiet:
        _print(curve, contrast.id, str(report))
    return 0


def _items(bench: Workbench, contrast: Contrast, asked: tuple[str, ...], settings: Settings) -> list[TraitItem]:
    tokenizer = bench.model.tokenizer
    questions = choose_questions(
        texts_for(tokenizer, asked), tokenizer, n_training=N_TRAINING, n_test=settings.n_test, seed=settings.seed
    )
    stage = Stage(bench.model, bench.renderer, home() / "transcripts", bench.space)
    plan = SamplingPlan(settings.max_tokens, seed=settings.seed)

    def sampling(n: int) -> Callable[[int], None]:
        if n:
            say(f"Sampling {n} replies of '{contrast.id}' …", quiet=settings.quiet)
        return lambda _done: None

    return trait_items(stage, bench.model, bench.renderer, contrast, questions.test, plan, sampling=sampling)


def _contrast(settings: Settings) -> Contrast:
    name = settings.trait or settings.vector.strip()
    known = {c.id: c for c in contrasts(cast_of(settings.cast, None))}
    if name not in known:
        raise InvalidSettings(
            f"'{name}' is no trait or role of the cast, so its log-odds cannot be read.",
            hint="Name one with --trait; `personae casts NAME` lists them.",
        )
    return known[name]


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidSettings(f"--doses '{text}' are not numbers.", hint="Example: -1,-0.5,0.5,1") from error
    if not all(abs(v) < 1e6 for v in found) or not any(found):
        raise InvalidSettings("--doses must be finite, and one of them not 0.")
    return found


def _plain(curve: DoseCurve) -> dict[str, object]:
    costs = {f"{cost:g}": curve.effect_at_cost(cost) for cost in (0.05, 0.1, 0.2)}
    return asdict(curve) | {"beats_random": curve.beats_random, "effect_at_cost": costs, "unit": "nats a token"}


def _print(curve: DoseCurve, trait: str, report: str) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("dose", "effect", "90% interval", "cost", "random effect", "random cost"):
        table.add_column(column, justify="right", no_wrap=True)
    for d in curve.doses:
        table.add_row(
            f"{d.coefficient:+g}",
            f"{d.effect:+.3f}",
            f"{d.low:+.3f} {d.high:+.3f}",
            f"{d.cost:+.3f}",
            f"±{d.random_largest:.3f}",
            f"{d.random_cost:+.3f}",
        )
    console.print(table)
    beats = "moves it further than every random direction" if curve.beats_random else "does no more than random ones"
    console.print(Text(f"\n'{clean(curve.vector)}' on the log-odds of '{clean(trait)}' (nats a token): {beats}."))
    console.print(Text(f"Report: {report}"), soft_wrap=True)
