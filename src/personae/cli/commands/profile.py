"""`personae profile`: which distribution over personas is this model?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from personae.cli import options as opt
from personae.cli.profile_inputs import OTHER_SEED, Brief, Panel, ProfileOptions, open_panel, power_of, read_brief
from personae.cli.profile_labels import known_speakers
from personae.cli.profile_output import (
    card_json,
    print_profile,
    profile_json,
    write_evidence,
    write_first_words,
    write_reach,
    write_transcripts,
)
from personae.cli.workbench import announced, say
from personae.domain.probe_prompt import ProbePrompt
from personae.errors import InputError
from personae.files.openers import load_openers
from personae.inference.persona_mix import PersonaMix, persona_mix
from personae.instruments.judging import CastJudge, WorldJudge
from personae.instruments.sampling import Stage
from personae.instruments.speaking import Interview, SpeakingModel
from personae.models.catalogue import home
from personae.models.protocol import GivesFullDistribution, GivesText, SamplingPlan
from personae.protocols.beliefs import CAST_LEVELS, CastBeliefs, WorldBeliefs
from personae.protocols.favour import Known, favour_of, without_favour
from personae.protocols.first_words import MOST_PROMPTS, diagnostic, first_dialogue, read_first_words, white_box
from personae.protocols.profile import DEFAULT_FDR, Listened, ProfileSettings, listen, profile, versus
from personae.protocols.profile_limits import with_limits
from personae.protocols.reach import BeliefReader, reach
from personae.running.progress import progress_bar
from personae.running.run import make_run_folder, provenance, write_json, write_text
from personae.tables.persona_profile import Profile
from personae.tables.transcripts import Transcripts
from personae.worlds.asking import single_questions

NAME = "profile"
Settings = ProfileOptions
_QUICK_FIRST_WORDS = 4
_REACH_PROBES = 6


def command(
    target: Annotated[
        str, typer.Argument(help="Model or server to profile (see `personae models`), or a file of what one said.")
    ],
    scorer: Annotated[
        str | None,
        typer.Option(
            help="Model that judges. Default: the target's own base, else the target; smollm2 for a server or a file."
        ),
    ] = None,
    cast: opt.CastNames = None,
    only: opt.Only = None,
    paraphrases: opt.Paraphrases = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Your own prompts: rows with 'prompt' or 'turns', and 'topic'. Default: built in."),
    ] = None,
    system: Annotated[str, typer.Option(help="System turn under which the target speaks.")] = "",
    versus: Annotated[
        str | None, typer.Option(help="Another model, server or transcripts file: what moved, prompt by prompt.")
    ] = None,
    reach: Annotated[
        bool, typer.Option("--reach", help="Also how many turns of its behaviour bring each persona to one half.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts and shorter replies: wider intervals.")] = False,
    n: Annotated[int, typer.Option("--n", min=1, help="Conversations from every prompt.")] = 1,
    labels: Annotated[
        int,
        typer.Option(
            "--labels",
            min=0,
            help="Conversations held as every persona by the scorer, to take out whom it favours. Default: none.",
        ),
    ] = 0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a reply. Default: 20, or 12 with --quick.")
    ] = None,
    eta: Annotated[
        float | None, typer.Option(help="Power on the likelihood. Default: as calibrated, else 0.25; 1 in a world.")
    ] = None,
    fdr: Annotated[float, typer.Option(help="False discovery rate of what moved.")] = DEFAULT_FDR,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask at most this many prompts, spread over topics.")] = None,
    out: opt.Out = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    workers: Annotated[int | None, typer.Option(min=1, help="Requests at once to a server. Default: 8.")] = None,
    tokenizer: opt.TokenizerName = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> int:
    """Say which distribution over personas a model is, how it varies, and how far other personas are."""
    return execute(
        Settings(
            target=target,
            scorer=scorer,
            cast=tuple(cast or ()),
            only=only,
            paraphrases=paraphrases,
            prompts=prompts,
            system=system,
            versus=versus,
            n=n,
            labels=labels,
            limit=limit,
            max_tokens=max_tokens,
            quick=quick,
            reach=reach,
            eta=eta,
            fdr=fdr,
            out=out,
            seed=seed,
            json=as_json,
            quiet=quiet,
            device=device,
            dtype=dtype,
            workers=workers,
            tokenizer=tokenizer,
        )
    )


def execute(settings: Settings) -> int:
    """Profile a target and give the exit status."""
    from personae.report.profile_page import render_card, render_profile  # charts are slow to import

    chosen = ProfileSettings(eta=settings.eta or 1.0, fdr=settings.fdr, seed=settings.seed)
    if settings.eta is not None:
        chosen = ProfileSettings(settings.eta, "given with --eta", settings.fdr, settings.seed)
    brief = read_brief(settings)
    folder = make_run_folder(settings.out, NAME)
    panel = open_panel(settings, brief)
    eta, source, calibration = power_of(settings, brief, panel)
    chosen = replace(chosen, eta=eta, eta_source=source)
    said, asked = _said(brief.said, panel.target, brief, settings, brief.plan)
    write_transcripts(folder, "transcripts", said)
    if not _hidden(panel):
        panel.judge.expect([first_dialogue(p) for p in _probes(brief, panel, settings)])
    listened = _judge(said, panel, "Scoring", settings)
    write_evidence(folder, "evidence", listened, panel.judge)
    known = known_speakers(settings, brief, panel) if settings.labels else None
    favour = None
    if known is not None:
        favour = favour_of(known, listened, panel.judge, seed=settings.seed)
        listened = without_favour(listened, known)
        source = f"fitted to {len(known.label)} conversations of known speakers (--labels)"
        chosen = chosen if settings.eta is not None else replace(chosen, eta=known.bias.eta, eta_source=source)
    notes = (*brief.notes, *asked)
    result, mix = profile(listened, panel.judge, brief.prompts, settings=chosen, system=settings.system, notes=notes)
    result = _first_words(replace(result, favour=favour), mix, brief, panel, settings, folder)
    if settings.versus is not None:
        result = _versus(result, listened, mix, brief, panel, settings, chosen, folder, known)
    if settings.reach:
        result = _reach(result, brief, panel, settings, folder)
    card = panel.judge.card
    result = with_limits(result, n_parameters=card.n_parameters if card else None, calibration=calibration)
    made = provenance(brief.paths, seed=settings.seed) | _cards(panel)
    result = replace(result, provenance=made)
    _write(folder, result, settings, render_profile(result), render_card(result))
    if settings.json:
        typer.echo(json.dumps(profile_json(result, folder=folder), allow_nan=False))
    elif not settings.quiet:
        print_profile(result, folder)
    return 0


def _write(folder: Path, result: Profile, settings: Settings, page: str, card: str) -> None:
    write_text(folder / "report.html", page)
    write_text(folder / "card.html", card)
    write_json(folder / "card.json", card_json(result))
    summary = profile_json(result, folder=folder)
    run = {"command": NAME, "settings": settings.to_dict(), **result.provenance, "result": summary}
    write_json(folder / "run.json", run)


def _cards(panel: Panel) -> dict[str, object]:
    cards: dict[str, object] = {}
    if isinstance(panel.target, SpeakingModel):
        cards["target_card"] = panel.target.model.card.to_dict()
    if panel.judge.card is not None:
        cards["scorer_card"] = panel.judge.card.to_dict()
    return cards


def _said(
    given: Transcripts | None, target: GivesText | None, brief: Brief, settings: Settings, plan: SamplingPlan
) -> tuple[Transcripts, tuple[str, ...]]:
    """What is given, or what a target says now, with a note on what was asked of one that only gives text."""
    if given is not None:
        return given, ()
    assert target is not None
    total = sum(len(p.turns) for p in brief.prompts) * settings.n
    sampled: list[int] = []
    with progress_bar("Asking", total, quiet=settings.quiet, unit="turns") as told:

        def started(turns: int) -> Callable[[int], None]:
            sampled.append(turns)
            told(total - turns)
            if turns:
                say(f"Asking {target.name}: {turns:,} replies to sample", quiet=settings.quiet)
            return told

        said = Interview(target, home() / "transcripts").hold(
            brief.prompts, plan, n_samples=settings.n, started=started
        )
    if isinstance(target, SpeakingModel):
        return said, ()
    counts = f"{sum(sampled)} sampled now, {total - sum(sampled)} kept from before"
    return said, (f"{target.name} was asked for {total} replies ({counts}); {said.n_empty} are empty.",)


def _judge(said: Transcripts, panel: Panel, label: str, settings: Settings) -> Listened:
    with announced(label, quiet=settings.quiet) as started:
        return listen(said, panel.judge, started=started)


def _probes(brief: Brief, panel: Panel, settings: Settings) -> tuple[ProbePrompt, ...]:
    n = _QUICK_FIRST_WORDS if settings.quick else MOST_PROMPTS
    return single_questions(panel.exact) if panel.exact is not None else diagnostic(brief.prompts, n)


def _hidden(panel: Panel) -> str:
    """Why first words cannot be read, or empty."""
    if panel.target is None:
        return "the target is a file of transcripts, of which only the texts are known"
    if not isinstance(panel.target, SpeakingModel):
        return f"{panel.target.name} is a server, of which only the texts are known"
    if not panel.target.gives_distribution:
        return f"{panel.target.name} does not give its distribution"
    card = panel.judge.card
    if card is not None and card.tokenizer_digest != panel.target.model.card.tokenizer_digest:
        return f"{panel.target.name} and {panel.judge.scorer} have different tokenizers"
    return ""


def _first_words(
    result: Profile, mix: PersonaMix, brief: Brief, panel: Panel, settings: Settings, folder: Path
) -> Profile:
    reason = _hidden(panel)
    probes = _probes(brief, panel, settings)
    if not reason and len(probes) < 2:
        reason = "there is only one prompt"
    if reason:
        return replace(result, white_box_reason=reason)
    assert isinstance(panel.target, SpeakingModel)
    judge = panel.judge
    with progress_bar("First words", judge.n_frames * len(probes), quiet=settings.quiet, unit="prompts") as told:
        words = read_first_words(panel.target, judge, probes, advance=told)
    if words is None:
        return replace(result, white_box_reason=f"{judge.scorer} does not give its distribution")
    write_first_words(folder, words, judge)
    try:
        return replace(result, white_box=white_box(words, judge, mix, seed=settings.seed))
    except InputError as error:  # the rest of the profile does not depend on it
        return replace(result, white_box_reason=str(error).rstrip("."))


def _versus(
    result: Profile,
    listened: Listened,
    mix: PersonaMix,
    brief: Brief,
    panel: Panel,
    settings: Settings,
    chosen: ProfileSettings,
    folder: Path,
    known: Known | None,
) -> Profile:
    plan = replace(brief.plan, seed=brief.plan.seed + OTHER_SEED)
    said, asked = _said(brief.other_said, panel.other, brief, settings, plan)
    write_transcripts(folder, "transcripts-other", said)
    other = _judge(said, panel, "Scoring the other", settings)
    write_evidence(folder, "evidence-other", other, panel.judge)
    other = other if known is None else without_favour(other, known)
    other_mix = persona_mix(
        other.heard.log_likelihood, panel.judge.log_prior, prompt=other.prompt, eta=chosen.eta, seed=chosen.seed
    )
    moved = versus(listened, other, panel.judge, (mix, other_mix), settings=chosen)
    return replace(result, versus=moved, notes=(*result.notes, *asked))


def _reach(result: Profile, brief: Brief, panel: Panel, settings: Settings, folder: Path) -> Profile:
    reason = _unreachable(panel)
    if reason:
        return replace(result, reach_reason=reason)
    reader = _reader(brief, panel, settings)
    with progress_bar("Reach", len(reader.components), quiet=settings.quiet, unit="personas") as told:
        found, raw = reach(reader, seed=settings.seed, advance=told)
    write_reach(folder, raw)
    return replace(result, reach=found)


def _unreachable(panel: Panel) -> str:
    """Why reach cannot be measured, or empty: outside worlds it compares first words of target and scorer."""
    if panel.exact is not None:
        return ""
    if panel.scorer is not None and not isinstance(panel.scorer.model, GivesFullDistribution):
        return f"{panel.judge.scorer} does not give its distribution"
    return _hidden(panel)


def _reader(brief: Brief, panel: Panel, settings: Settings) -> BeliefReader:
    target, judge = panel.target, panel.judge
    assert isinstance(target, SpeakingModel)
    if isinstance(judge, WorldJudge):
        assert panel.exact is not None
        base = panel.base.model if panel.base is not None else None
        return WorldBeliefs(target.model, panel.exact, judge, base=base, seed=settings.seed)
    assert isinstance(judge, CastJudge)
    assert panel.scorer is not None
    bench = panel.scorer
    stage = Stage(bench.model, bench.renderer, home() / "transcripts", bench.space)
    roles = [c for c in judge.components if c.kind == "role"]
    personas = roles or [c for c in judge.components if c.kind == "pole"]
    return CastBeliefs(
        target,
        judge,
        bench.renderer,
        stage,
        personas,
        diagnostic(brief.prompts, _REACH_PROBES),
        load_openers(CAST_LEVELS[-1]),
        base=panel.base,
        seed=settings.seed,
    )
