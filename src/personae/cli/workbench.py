"""What scoring commands share: from names on the command line to model, cast, episodes and store.

Not here: any result. A `Workbench` is opened once a command's cheap checks have passed, so that bad input is
refused before a model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from personae.domain.persona import Cast
from personae.errors import InvalidSettings, PersonaeError
from personae.files.casts import built_in_casts, load_casts
from personae.files.episodes import EpisodeSet, read_episodes
from personae.instruments.scoring import Scoring, Work, space_of
from personae.instruments.workers import Loader, PooledModel
from personae.models.catalogue import DEFAULT_MODEL, home, resolve
from personae.models.load import load_model
from personae.models.protocol import LanguageModel
from personae.models.rendering import Renderer
from personae.report.text import clean
from personae.running.executor import Executor, SerialExecutor, make_executor
from personae.running.progress import progress_bar
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
    executor: Executor = field(default_factory=SerialExecutor)

    def close(self) -> None:
        """Let the workers go."""
        self.executor.close()


def read_inputs(settings: ScoringSettings) -> Inputs:
    """Cast and episodes, checked; refuses bad input before anything dear happens."""
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
    if n is not None:
        cast = cast.limit_paraphrases(n)
    data = read_episodes(settings.data, turns=settings.turns, limit=settings.limit)
    if settings.skip_bad_rows:
        if data.refused:
            lines = ", ".join(str(r.line) for r in data.refused[:10])
            notes.append(
                f"{len(data.refused)} of {data.n_rows} rows could not be read and were left out (lines {lines})."
            )
        if not data.episodes:
            data.require_clean()
    else:
        data.require_clean()
    paths = [settings.data, *(str(built_in_casts().get(c, Path(c))) for c in settings.cast)]
    return Inputs(cast, whole, data, tuple(notes), tuple(paths))


def open_workbench(settings: ScoringSettings) -> Workbench:
    """Load the settings' model, saying so, and open its store; with an executor, where its workers are."""
    source = resolve(settings.model)  # an unknown name is told before the message
    if settings.executor != "serial" and source.kind == "server":
        raise InvalidSettings(
            f"'{settings.model}' is a server, which spreads its own work; --executor {settings.executor} is for models "
            "that personae loads.",
            hint="--workers N sets how many requests a server gets at once.",
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
) -> Workbench:
    """Load a model, here or in an executor's workers, and open its store."""
    chosen = executor or SerialExecutor()
    try:
        if isinstance(chosen, SerialExecutor):
            model = load_model(name, device=device, dtype=dtype, tokenizer=tokenizer, workers=workers)
        else:
            model = PooledModel(Loader(name, device, dtype), chosen)
        renderer = Renderer(model.tokenizer, context_length=model.card.context_length, truncate=truncate)
        space = space_of(model.card)
        store = EvidenceStore(home() / "evidence", space)
    except PersonaeError:
        chosen.close()
        raise
    return Workbench(model, renderer, store, Scoring(model, renderer, store), space, chosen)


@contextmanager
def announced(label: str, *, quiet: bool) -> Iterator[Callable[[Work], Callable[[int], None]]]:
    """A `started` callback that opens a progress bar for the work it is told of."""
    with ExitStack() as stack:

        def started(work: Work) -> Callable[[int], None]:
            if work.n_pairs and not sys.stderr.isatty():
                say(f"{label}: {work.n_pairs:,} pairs to score, {work.n_tokens:,} tokens", quiet=quiet)
            return stack.enter_context(progress_bar(label, work.n_tokens, quiet=quiet))

        yield started


def say(text: str, *, quiet: bool) -> None:
    """A line on standard error, where results never go."""
    if not quiet:
        Console(stderr=True, highlight=False, soft_wrap=True).print(clean(text), markup=False)
