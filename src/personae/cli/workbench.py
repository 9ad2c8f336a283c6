"""What scoring commands share: from names on the command line to model, cast, episodes and store.

Not here: any result. A `Workbench` is opened once a command's cheap checks have passed, so that bad input is
refused before a model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from personae.cli.edits import EditNames, edited_model, parse_edits
from personae.domain.persona import Cast
from personae.errors import InvalidSettings, PersonaeError
from personae.files.casts import built_in_casts, load_casts
from personae.files.episodes import Census, EpisodeSet, Refusal, read_episodes, take_census
from personae.instruments.describing import scoring_of
from personae.instruments.scoring import Scoring, Work, space_of
from personae.instruments.speaking import SpeakingModel
from personae.instruments.workers import Loader, PooledModel
from personae.models.catalogue import DEFAULT_MODEL, home, resolve
from personae.models.load import load_chat, load_model
from personae.models.protocol import GivesText, LanguageModel
from personae.models.rendering import Renderer
from personae.report.text import clean
from personae.running.executor import Executor, SerialExecutor, make_executor
from personae.running.kept_arrays import KeptArrays
from personae.running.progress import parts_bar, progress_bar
from personae.running.store import EvidenceStore

LARGE_CAST = 60


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """Settings of every command that scores; the fields are the options, and what `rerun` reads back."""

    data: str
    model: str = DEFAULT_MODEL
    cast: tuple[str, ...] = ("core",)
    only: str | None = None
    paraphrases: int | None = None
    out: str | None = None
    seed: int = 0
    limit: int | None = None
    turns: str = "last"
    json: bool = False
    quiet: bool = False
    device: str = "auto"
    dtype: str = "float32"
    truncate: bool = False
    skip_bad_rows: bool = False
    steer: tuple[str, ...] = ()
    cap: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    _: KW_ONLY
    executor: str = "serial"
    workers: int | None = None
    address: str | None = None
    gpus_per_worker: float = 0.0
    tokenizer: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain values for `run.json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What was read before any model is loaded; `whole` is the cast before --only and --paraphrases."""

    cast: Cast
    whole: Cast
    data: EpisodeSet
    notes: tuple[str, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Workbench:
    """A loaded model with its renderer, its store and the function that scores."""

    model: LanguageModel
    renderer: Renderer
    store: EvidenceStore
    scoring: Scoring
    space: str
    views: ExitStack  # keeps a steered view of the model open as long as the workbench lives
    executor: Executor = field(default_factory=SerialExecutor)

    def kept(self) -> KeptArrays:
        """Where what depends on this model alone is kept (gradients of traits)."""
        return KeptArrays(home() / "gradients", self.space)

    def scoring_of(self, reading: str) -> Scoring:
        """The function that scores, in the direction wanted ("reply": `scoring` itself)."""
        same = reading == "reply"
        return self.scoring if same else scoring_of(self.model, self.renderer, self.store, reading)

    def close(self) -> None:
        """Let the workers go, and end a steered view."""
        self.views.close()
        self.executor.close()


@dataclass(frozen=True, slots=True)
class Counted:
    """A cast, and a file that was read to the end without being kept."""

    cast: Cast
    whole: Cast
    census: Census
    notes: tuple[str, ...]
    paths: tuple[str, ...]


def read_inputs(settings: ScoringSettings) -> Inputs:
    """Cast and episodes, checked; refuses bad input before anything dear happens."""
    parse_edits(EditNames(settings.steer, settings.cap, settings.vectors))
    cast, whole, notes = _read_cast(settings)
    data = read_episodes(settings.data, turns=settings.turns, limit=settings.limit)
    if settings.skip_bad_rows:
        notes += _left_out(data.refused, len(data.refused), data.n_rows)
    if not settings.skip_bad_rows or not data.episodes:
        data.require_clean()
    return Inputs(cast, whole, data, tuple(notes), _paths(settings))


def count_inputs(settings: ScoringSettings) -> Counted:
    """The same checks for a file that is to be read part by part."""
    parse_edits(EditNames(settings.steer, settings.cap, settings.vectors))
    cast, whole, notes = _read_cast(settings)
    census = take_census(settings.data, turns=settings.turns, limit=settings.limit)
    if settings.skip_bad_rows:
        notes += _left_out(census.refused, census.n_refused, census.n_rows)
    if not settings.skip_bad_rows or not census.n_episodes:
        census.require_clean()
    return Counted(cast, whole, census, tuple(notes), _paths(settings))


def _read_cast(settings: ScoringSettings) -> tuple[Cast, Cast, list[str]]:
    cast = whole = load_casts(settings.cast)
    if settings.only is not None:
        chosen = [n.strip() for n in settings.only.split(",") if n.strip()]
        if not chosen:
            raise InvalidSettings("--only names no trait or role.", hint="`personae casts NAME` lists them.")
        cast = cast.select(chosen)
    notes: list[str] = []
    n = settings.paraphrases
    if n is None and cast.n_instructions > LARGE_CAST:
        n = 1
        notes.append(
            f"The cast has {cast.n_instructions} instructions; the first of each persona was used "
            "(--paraphrases N uses more and separates better)."
        )
    return (cast if n is None else cast.limit_paraphrases(n)), whole, notes


def _left_out(refused: Sequence[Refusal], n_refused: int, n_rows: int) -> list[str]:
    lines = ", ".join(str(r.line) for r in refused[:10])
    return [f"{n_refused} of {n_rows} rows could not be read and were left out (lines {lines})."] if refused else []


def _paths(settings: ScoringSettings) -> tuple[str, ...]:
    return (settings.data, *(str(built_in_casts().get(c, Path(c))) for c in settings.cast))


def open_workbench(settings: ScoringSettings) -> Workbench:
    """Load the settings' model, saying so, and open its store; with an executor, where its workers are."""
    source = resolve(settings.model)  # an unknown name is told before the message
    if settings.executor != "serial" and source.kind == "server":
        raise InvalidSettings(
            f"'{settings.model}' is a server, which spreads its own work; --executor {settings.executor} is for models "
            "that personae loads.",
            hint="--workers N sets how many requests a server gets at once.",
        )
    edits = EditNames(settings.steer, settings.cap, settings.vectors)
    if (edits.steer or edits.cap) and (source.kind == "server" or settings.executor != "serial"):
        raise InvalidSettings(
            "--steer and --cap change a model that this process holds; neither a server's nor a worker's.",
            hint="Leave --executor out, and name a model that personae loads.",
        )
    if source.kind == "server":
        say(f"Asking {settings.model} …", quiet=settings.quiet)
        return open_model(
            settings.model,
            dtype=settings.dtype,
            truncate=settings.truncate,
            tokenizer=settings.tokenizer,
            workers=settings.workers,
        )
    executor = make_executor(
        settings.executor,
        workers=settings.workers,
        address=settings.address,
        gpus_per_worker=settings.gpus_per_worker,
    )
    where = "" if executor.n_workers == 1 else f" in {executor.n_workers} workers"
    say(f"Loading {settings.model}{where} …", quiet=settings.quiet)
    return open_model(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        truncate=settings.truncate,
        edits=edits,
        executor=executor,
        tokenizer=settings.tokenizer,
    )


def open_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    truncate: bool = False,
    executor: Executor | None = None,
    tokenizer: str | None = None,
    workers: int | None = None,
    edits: EditNames = EditNames(),
) -> Workbench:
    """Load a model, here (edited where asked) or in an executor's workers, and open its store."""
    chosen, views = executor or SerialExecutor(), ExitStack()
    try:
        if isinstance(chosen, SerialExecutor):
            loaded = load_model(name, device=device, dtype=dtype, tokenizer=tokenizer, workers=workers)
            model = views.enter_context(edited_model(loaded, edits))
        else:
            model = PooledModel(Loader(name, device, dtype), chosen)
        renderer = Renderer(model.tokenizer, context_length=model.card.context_length, truncate=truncate)
        space = space_of(model.card)
        store = EvidenceStore(home() / "evidence", space)
    except PersonaeError:
        chosen.close()
        raise
    return Workbench(model, renderer, store, Scoring(model, renderer, store), space, views, chosen)


def open_target(name: str, settings: ScoringSettings, bench: Workbench) -> GivesText:
    """A target: a chat server, the scorer itself, or another model.

    Raises:
        MissingCapability, ModelNotFound, ServerError: If it cannot be had.
    """
    if resolve(name).kind == "server":
        return load_chat(name, workers=settings.workers)
    if name == settings.model:
        return SpeakingModel(bench.model, bench.renderer, bench.space)
    other = open_model(name, device=settings.device, dtype=settings.dtype)
    return SpeakingModel(other.model, other.renderer, other.space)


@contextmanager
def counted(label: str, *, quiet: bool) -> Iterator[Callable[[int], Callable[[int], None]]]:
    """A `started` callback that opens a bar for a number of replies."""
    with ExitStack() as stack:
        yield lambda n: stack.enter_context(progress_bar(label, n, quiet=quiet, unit="replies"))


@contextmanager
def announced(label: str, *, quiet: bool) -> Iterator[Callable[[Work], Callable[[int], None]]]:
    """A `started` callback that opens a progress bar for the work it is told of."""
    with ExitStack() as stack:

        def started(work: Work) -> Callable[[int], None]:
            if work.n_pairs and not sys.stderr.isatty():
                say(f"{label}: {work.n_pairs:,} pairs to score, {work.n_tokens:,} tokens", quiet=quiet)
            return stack.enter_context(progress_bar(label, work.n_tokens, quiet=quiet))

        yield started


@contextmanager
def announced_parts(
    label: str, n_parts: int, *, quiet: bool, passes: int = 1
) -> Iterator[Callable[[int], Callable[[Work], Callable[[int], None]]]]:
    """Give a `started` callback for each part (by its place), called `passes` times; all parts share one bar."""
    with parts_bar(label, n_parts * passes, quiet=quiet) as begin:

        def of_part(k: int) -> Callable[[Work], Callable[[int], None]]:
            where = "" if n_parts == 1 else f" (part {k + 1} of {n_parts})"

            def started(work: Work) -> Callable[[int], None]:
                if work.n_pairs and not sys.stderr.isatty():
                    say(f"{label}{where}: {work.n_pairs:,} pairs to score, {work.n_tokens:,} tokens", quiet=quiet)
                return begin(work.n_tokens)

            return started

        yield of_part


def say(text: str, *, quiet: bool) -> None:
    """A line on standard error, where results never go."""
    if not quiet:
        Console(stderr=True, highlight=False, soft_wrap=True).print(clean(text), markup=False)
