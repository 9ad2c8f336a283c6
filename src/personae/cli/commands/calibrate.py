"""`personae calibrate`: how far can this model's likelihoods be believed about this cast?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from personae.cli import options as opt
from personae.cli.power import calibrations, model_digest
from personae.cli.workbench import LARGE_CAST, Workbench, announced, open_model, say
from personae.domain.persona import Cast
from personae.files.casts import built_in_casts, load_casts
from personae.files.openers import load_openers, openers_of
from personae.instruments.sampling import Stage
from personae.models.catalogue import home, require_target
from personae.models.rendering import RENDERING_VERSION
from personae.protocols.calibrate import Labelled, LabelPlan, calibrate, label_conversations, split_paraphrases
from personae.report.text import clean
from personae.running.progress import progress_bar
from personae.running.run import make_run_folder, provenance, write_json, write_text
from personae.tables.calibration import Calibration
from personae.worlds.asking import single_questions
from personae.worlds.exact import ExactWorld
from personae.worlds.spec import World

NAME = "calibrate"
_IN_ALL = 160
_TOKENS, _WORLD_TOKENS = 40, 1  # a world's answer is one token
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a calibration; the fields are the options, and what `rerun` reads back."""

    model: str
    cast: tuple[str, ...]
    conversations: int | None = None
    turns: int = 2
    max_tokens: int | None = None
    paraphrases: int | None = None
    out: str | None = None
    seed: int = 0
    json: bool = False
    quiet: bool = False
    device: str = "auto"
    dtype: str = "float32"

    def to_dict(self) -> dict[str, object]:
        """Plain values for `run.json`."""
        return asdict(self)


def command(
    model: Annotated[str, typer.Argument(help="Model to calibrate: see `personae models`.")],
    cast: Annotated[list[str], typer.Argument(help="Built-in cast, YAML file or folder; several are joined.")],
    conversations: Annotated[
        int | None, typer.Option(min=1, help="Conversations of each persona. Default: about 160 in all, at least 2.")
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="Replies in a conversation.")] = 2,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a reply. Default: 40, in a world 1.")
    ] = None,
    paraphrases: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Instructions of each persona that score; the others are held out and speak. "
            "Default: all but one, or 1 for casts above 60 instructions.",
        ),
    ] = None,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Fit the power eta for a model and a cast, on conversations whose persona is known."""
    return execute(
        Settings(
            model,
            tuple(cast),
            conversations,
            turns,
            max_tokens,
            paraphrases,
            out,
            seed,
            as_json,
            quiet,
            device,
            dtype,
        )
    )


def execute(settings: Settings) -> int:
    """Calibrate, keep the result for `screen`, and give the exit status."""
    cast = load_casts(settings.cast)
    n = settings.paraphrases
    if n is None and cast.n_instructions > LARGE_CAST:
        n = 1
    scorers, _ = split_paraphrases(cast, n)  # refuses a cast that cannot be held out before a model is loaded
    count = settings.conversations or max(2, round(_IN_ALL / len(cast.personas)))
    source = require_target(settings.model)
    tokens = settings.max_tokens or (_TOKENS if source.world is None else _WORLD_TOKENS)
    plan = LabelPlan(count, settings.turns, tokens, seed=settings.seed)
    folder = make_run_folder(settings.out, NAME)
    say(f"Loading {settings.model} …", quiet=settings.quiet)
    bench = open_model(settings.model, device=settings.device, dtype=settings.dtype)
    labelled = _label(bench, source.world, cast, plan, n, quiet=settings.quiet)
    say("Fitting eta …", quiet=settings.quiet)
    result = calibrate(
        labelled,
        model=settings.model,
        cast=cast.id,
        turns=settings.turns,
        n_paraphrases=max(len(p.instructions) for p in scorers.personas),
        seed=settings.seed,
    )
    paths = [str(built_in_casts().get(c, Path(c))) for c in settings.cast]
    made = provenance(paths, seed=settings.seed) | {
        "model_card": bench.model.card.to_dict(),
        "rendering_version": RENDERING_VERSION,
    }
    found = _plain(result)
    record = {**found, **made, "settings": settings.to_dict()}
    stored = calibrations().put(model_digest(bench.model.card), RENDERING_VERSION, cast, record)
    write_text(folder / "conversations.jsonl", _spoken(labelled))
    summary = {"command": NAME, **found, "stored": str(stored), "run": str(folder)}
    write_json(folder / "run.json", {"command": NAME, "settings": settings.to_dict(), **made, "result": summary})
    if settings.json:
        typer.echo(json.dumps(summary, allow_nan=False))
    elif not settings.quiet:
        _print(result, stored)
    return 0


def _label(
    bench: Workbench, world: World | None, cast: Cast, plan: LabelPlan, n: int | None, *, quiet: bool
) -> Labelled:
    stage = Stage(bench.model, bench.renderer, home() / "transcripts", bench.space)
    with (
        announced("Scoring", quiet=quiet) as started,
        progress_bar(
            "Talking", len(cast.personas) * plan.conversations * plan.turns, quiet=quiet, unit="turns"
        ) as told,
    ):

        def sampling(turns: int) -> Callable[[int], None]:
            told(len(cast.personas) * plan.conversations * plan.turns - turns)
            say(f"Talking: {turns:,} turns to sample", quiet=quiet)
            return told

        return label_conversations(
            stage,
            bench.scoring,
            bench.renderer,
            cast,
            _openers(world, plan.turns),
            plan,
            n_scoring=n,
            sampling=sampling,
            started=started,
        )


def _openers(world: World | None, turns: int) -> tuple[tuple[str, ...], ...]:
    if world is None:
        return load_openers(turns)
    asked = [prompt.turns[0] for prompt in single_questions(ExactWorld(world.base))]
    return openers_of(asked, turns)


def _plain(result: Calibration) -> dict[str, object]:
    """The result as plain values; `held_out` nested."""
    return asdict(result)


def _spoken(labelled: Labelled) -> str:
    """One line a conversation: who spoke and what was said. Its rows can be given to `score`."""
    rows: list[str] = []
    for t in labelled.transcripts:
        for episode in t.episodes:
            turns = [{"role": x.speaker, "content": x.text} for x in episode.context]
            messages = [*turns, {"role": "assistant", "content": episode.completion}]
            rows.append(
                json.dumps(
                    {"id": episode.id, "group": episode.group, "persona": t.script.persona, "messages": messages}
                )
            )
    return "".join(f"{row}\n" for row in rows)


def _print(result: Calibration, stored: Path) -> None:
    console = Console(highlight=False)
    h = result.held_out
    console.print()
    console.print(
        Text(
            f"eta {result.eta:.3g} for {clean(result.model)} and the cast {clean(result.cast)} "
            f"(fitted {result.eta_fitted:.3g}, 90% {result.eta_low:.3g} to {result.eta_high:.3g}; "
            f"its 90% intervals cover {result.coverage:.0%}).",
            style="bold",
        ),
        soft_wrap=True,
    )
    console.print()
    figures = {
        "right persona": f"{h.accuracy:.0%} of held-out conversations (chance {h.chance:.0%})",
        "reliability slope": f"{h.slope:.2f} ({h.slope_low:.2f} to {h.slope_high:.2f}); 1 is calibrated",
        "calibration error": f"{h.error:.1%} ({h.error_low:.1%} to {h.error_high:.1%})",
        "Cllr": f"{h.cllr:.2f} bits, {h.cllr_min:.2f} at best; 0 is perfect, 1 is nothing learnt",
        "log-loss": f"{h.log_loss:.2f} nats ({h.log_loss_uniform:.2f} knowing nothing)",
    }
    for name, value in figures.items():
        console.print(Text(f"{name:<18} {value}"), soft_wrap=True)
    worst = sorted(result.recall, key=lambda r: r.right / r.n)[:_SHOWN]
    console.print(Text("\nHardest to tell:"))
    for r in worst:
        taken = ", ".join(f"{clean(p)} {c}" for p, c in list(r.taken_for.items())[:3])
        console.print(Text(f"  {clean(r.persona)}: {r.right} of {r.n}" + (f"; taken for {taken}" if taken else "")))
    for members in result.classes:
        console.print(Text(f"Cannot be told apart: {', '.join(map(clean, members))}. Add up their weights."))
    for note in result.notes:
        console.print(Text(f"note: {note}", style="dim"))
    console.print(Text(f"\nKept for `personae screen`: {stored}"), soft_wrap=True)
