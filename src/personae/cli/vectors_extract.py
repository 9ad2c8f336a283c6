"""`personae vectors extract`: persona vectors of a cast, each with its nulls."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personae.cli import options as opt
from personae.cli.workbench import Workbench, open_model, say
from personae.domain.persona import Cast
from personae.errors import InvalidSettings
from personae.files.casts import built_in_casts, load_casts
from personae.files.episodes import read_episodes
from personae.files.openers import load_openers
from personae.instruments.sampling import Stage
from personae.instruments.steering import parse_layers
from personae.models.activations import check_layers, require_activations
from personae.models.catalogue import DEFAULT_MODEL, home, require_target
from personae.models.protocol import KnowsPhrases, Tokenizer
from personae.protocols.vector_material import Questions, choose_questions, contrasts
from personae.protocols.vectors import ExtractedVector, Extractor, ExtractSettings, Material, make_vectors
from personae.report.text import clean
from personae.running.progress import progress_bar
from personae.running.run import make_run_folder, provenance, write_json

NAME = "vectors extract"
N_TRAINING, N_TEST = 20, 10

Layers = Annotated[str | None, typer.Option("--layers", help="0-based blocks, such as 8-20. Default: all.")]
QuestionFile = Annotated[
    str | None, typer.Option("--questions", help="What the user says: a file of episodes. Default: built in.")
]
NQuestions = Annotated[int, typer.Option("--n-questions", min=4, help="Questions that make a vector.")]
NTest = Annotated[int, typer.Option("--n-test", min=2, help="Other questions that it is judged on.")]


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of an extraction."""

    model: str = DEFAULT_MODEL
    cast: tuple[str, ...] = ("core",)
    only: str | None = None
    recipe: str = "prompt"
    texts: str | None = None
    name: str | None = None
    layers: str | None = None
    questions: str | None = None
    n_questions: int = N_TRAINING
    n_test: int = N_TEST
    max_tokens: int = 32
    out: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    json: bool = False
    quiet: bool = False


def extract(
    model: opt.Model = DEFAULT_MODEL,
    cast: opt.CastNames = None,
    only: opt.Only = None,
    recipe: Annotated[
        str, typer.Option(help="'prompt' (last prompt token), 'reply' (mean of sampled replies), 'texts' (given ones).")
    ] = "prompt",
    texts: Annotated[
        str | None, typer.Option(help="For --recipe texts: rows of prompt, chosen (positive), rejected (negative).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call the vector of --texts.")] = None,
    layers: Layers = None,
    questions: QuestionFile = None,
    n_questions: NQuestions = N_TRAINING,
    n_test: NTest = N_TEST,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a sampled reply.")] = 32,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Make persona vectors of traits and roles, and put every one to four nulls."""
    return execute(
        Settings(
            model, tuple(cast or ("core",)), only, recipe, texts, name, layers, questions, n_questions, n_test,
            max_tokens, out, seed, device, dtype, as_json, quiet,
        )
    )  # fmt: skip


def execute(settings: Settings) -> int:
    """Extract, keep the vectors for --steer and --cap, and give the exit status."""
    from personae.models.hf_vectors import library_path, save_vectors

    chosen = _chosen(settings)
    cast = cast_of(settings.cast, settings.only)
    asked = asked_in(settings.questions)
    require_target(settings.model)
    folder = make_run_folder(settings.out, NAME.replace(" ", "-"))
    say(f"Loading {settings.model} …", quiet=settings.quiet)
    bench = open_model(settings.model, device=settings.device, dtype=settings.dtype)
    check_layers(chosen.layers, require_activations(bench.model).n_layers)
    questions = choose_questions(
        texts_for(bench.model.tokenizer, asked),
        bench.model.tokenizer,
        n_training=settings.n_questions,
        n_test=settings.n_test,
        seed=settings.seed,
    )
    made, skipped = _extract(bench, cast, questions, settings, chosen)
    vectors = {e.vector.id: e.vector for e in made}
    path = save_vectors(folder / "vectors.safetensors", vectors)
    kept = save_vectors(library_path(home(), bench.model.card), vectors, keep=True)
    paths = [str(built_in_casts().get(c, Path(c))) for c in settings.cast] if settings.recipe != "texts" else []
    files = [p for p in (settings.texts, settings.questions) if p]
    record = provenance([*paths, *files], seed=settings.seed) | {"model_card": bench.model.card.to_dict()}
    summary = {
        "command": NAME,
        "model": settings.model,
        "cast": cast.id if settings.recipe != "texts" else settings.texts,
        "recipe": settings.recipe,
        "n_questions": [len(questions.training), len(questions.test)],
        "vectors": [vector_json(e) for e in made],
        "skipped": skipped,
        "file": str(path),
        "kept": str(kept),
        "run": str(folder),
    }
    write_json(folder / "run.json", {"command": NAME, "settings": asdict(settings), **record, "result": summary})
    if settings.json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not settings.quiet:
        print_vectors(made, path)
    for line in skipped:
        say(f"note: {line}", quiet=settings.quiet)
    return 0


def vector_json(e: ExtractedVector) -> dict[str, object]:
    """What is known of a vector, as plain values; layers are block numbers."""
    tested, stable, layers = e.separation, e.repeatability, e.vector.layers
    return {
        "id": e.vector.id,
        "positive": e.vector.positive,
        "best_layer": e.vector.best_layer,
        "split_half": {
            "cosine": stable.cosine,
            "range": [stable.low, stable.high],
            "null_95": stable.null_high,
            "p": stable.p,
        },
        "separation": {
            "statistic": "correlation of projections with the pole, test questions and paraphrase",
            "value": tested.value,
            "layer": layers[tested.layer],
            "at_best_layer": tested.by_layer[layers.index(e.vector.best_layer)],
            "n": tested.n,
            "nulls": [asdict(n) for n in tested.nulls],
            "beats_every_null": tested.beats_every_null,
            "verdict": tested.verdict,
        },
        "n_training": e.n_training,
        "n_test": e.n_test,
        "note": e.note,
    }


def print_vectors(made: list[ExtractedVector], path: Path) -> None:
    """A line a vector: repeatability and separation, each beside what its nulls reach; then what did not beat them."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("vector", "layer", "halves", "null", "r", "permuted", "random", "others", "parts", ""):
        table.add_column(column, justify="left" if column in ("vector", "") else "right", no_wrap=True)
    for e in made:
        t = e.separation
        by_name = {n.name: n for n in t.nulls}
        others = by_name.get("other traits")
        table.add_row(
            Text(clean(e.vector.id)),
            str(e.vector.best_layer),
            f"{e.repeatability.cosine:.2f}",
            f"{e.repeatability.null_high:.2f}",
            f"{t.value:.3f}",
            f"{by_name['permuted labels'].high:.3f}",
            f"{by_name['random'].high:.3f}",
            "-" if others is None else f"{others.high:.3f}",
            f"{by_name['components'].high:.3f}",
            "*" if t.beats_every_null else "",
        )
    console.print(table)
    console.print(
        Text(
            "halves: cosine of vectors from two halves of the questions, beside the 95 % of permuted labels. r: "
            "projection against pole on held-out questions and paraphrase, largest over layers, beside the 97.5 % of "
            "permuted labels and of random directions like the data, and the largest of the other vectors and of the "
            "principal components. * beats them all.",
            style="dim",
        )
    )
    short = [e for e in made if not e.separation.beats_every_null]
    if short:
        console.print(
            Text(
                f"\n{len(short)} of {len(made)} do not beat every null: directions about something else separate "
                "their poles as well.",
                style="bold",
            )
        )
    for e in made:
        if e.note:
            console.print(Text(f"note: {clean(e.vector.id)}: {clean(e.note)}", style="dim"))
    console.print(Text(f"\nVectors: {path}"), soft_wrap=True)


def cast_of(names: tuple[str, ...], only: str | None) -> Cast:
    """The cast, or the part of it that --only names."""
    cast = load_casts(names)
    if only is None:
        return cast
    chosen = [n.strip() for n in only.split(",") if n.strip()]
    if not chosen:
        raise InvalidSettings("--only names no trait or role.", hint="`personae casts NAME` lists them.")
    return cast.select(chosen)


def asked_in(path: str | None) -> tuple[str, ...]:
    """What the user says in a file of episodes, last turns; nothing where no file is named."""
    if path is None:
        return ()
    episodes = read_episodes(path).require_clean().episodes
    return tuple(e.context[-1].text for e in episodes if e.context)


def texts_for(tokenizer: Tokenizer, asked: tuple[str, ...]) -> tuple[str, ...]:
    """The questions given, else the built-in ones; a closed vocabulary brings its own."""
    if asked:
        return asked
    closed = isinstance(tokenizer, KnowsPhrases) and tokenizer.phrases is not None
    return () if closed else tuple(text for script in load_openers(2) for text in script)


def _chosen(settings: Settings) -> ExtractSettings:
    if (settings.recipe == "texts") != (settings.texts is not None):
        raise InvalidSettings(
            "--recipe texts and --texts FILE go together.", hint="Rows: prompt, chosen (positive), rejected (negative)."
        )
    layers = None if settings.layers is None else parse_layers(settings.layers, "--layers")
    return ExtractSettings(settings.recipe, layers, settings.max_tokens, settings.seed)


def _extract(
    bench: Workbench, cast: Cast, questions: Questions, settings: Settings, chosen: ExtractSettings
) -> tuple[list[ExtractedVector], list[str]]:
    """Vectors, and a line for every trait that could not be had."""
    stage = Stage(bench.model, bench.renderer, home() / "transcripts", bench.space)
    extractor = Extractor(require_activations(bench.model), bench.renderer, stage, chosen)
    wanted = contrasts(cast)
    texts = ()
    if settings.texts is not None:
        from personae.protocols.vector_material import given_contrast

        wanted = (given_contrast(settings.name or Path(settings.texts).stem),)
        texts = read_episodes(settings.texts).require_clean().episodes
    material: list[Material] = []
    skipped: list[str] = []
    say(f"Reading {len(wanted)} traits and roles …", quiet=settings.quiet)
    with progress_bar("Reading", len(wanted), quiet=settings.quiet, unit="traits") as done:
        for contrast in wanted:
            try:
                material.append(extractor.read(contrast, questions, texts=texts, sampling=_told(settings.quiet)))
            except InvalidSettings as error:
                if len(wanted) == 1:
                    raise
                skipped.append(f"{error} {error.hint}")
            done(1)
    if not material:
        raise InvalidSettings("no vector could be made.", hint=skipped[0])
    population = extractor.population(questions)
    return make_vectors(material, population, chosen), skipped


def _told(quiet: bool) -> Callable[[int], Callable[[int], None]]:
    def sampling(n: int) -> Callable[[int], None]:
        if n:
            say(f"Sampling {n} replies …", quiet=quiet)
        return lambda _done: None

    return sampling
