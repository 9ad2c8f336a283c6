"""From the options of `profile` to who is asked, what is asked, and who judges.

    TARGET   a model (its base scores), a truth world (its own personas judge), a server or a file of transcripts, of
             which only the texts are known (another model scores them)

Not here: any result. Cheap checks come first; `open_panel` loads models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from personae.cli.power import calibrations, choose_power, model_digest
from personae.cli.workbench import LARGE_CAST, Workbench, open_model, say
from personae.domain.persona import Cast
from personae.domain.probe_prompt import ProbePrompt, spread
from personae.errors import InputError, InvalidSettings
from personae.files.casts import built_in_casts, load_casts
from personae.files.prompts import built_in_prompts, read_prompts
from personae.files.transcripts import is_transcripts, read_transcripts
from personae.inference.moved import LEAST_PROMPTS
from personae.inference.persona_mix import LEAST_CONVERSATIONS
from personae.instruments.judging import CastJudge, Judge, WorldJudge
from personae.instruments.speaking import Instructed, SpeakingModel
from personae.models.catalogue import DEFAULT_MODEL, require_target, resolve
from personae.models.load import load_chat
from personae.models.protocol import GivesText, SamplingPlan
from personae.models.rendering import RENDERING_VERSION
from personae.protocols.calibrate import split_paraphrases
from personae.protocols.profile import DEFAULT_FDR
from personae.tables.transcripts import Transcripts
from personae.worlds.asking import CONVERSATIONS, world_prompts
from personae.worlds.exact import ExactWorld
from personae.worlds.spec import World

MAX_TOKENS, QUICK_TOKENS = 20, 12
QUICK_PROMPTS, QUICK_CONVERSATIONS = 20, 150  # two prompts of each topic
OTHER_SEED = 7_919  # the other arm of --versus is sampled anew, or a model against itself would say the same words


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """All settings of a profile; the fields are the options, and what `rerun` reads back."""

    target: str
    scorer: str | None = None
    cast: tuple[str, ...] = ()
    only: str | None = None
    paraphrases: int | None = None
    prompts: str | None = None
    system: str = ""
    versus: str | None = None
    n: int = 1
    labels: int = 0
    limit: int | None = None
    max_tokens: int | None = None
    quick: bool = False
    reach: bool = False
    eta: float | None = None
    fdr: float = DEFAULT_FDR
    out: str | None = None
    seed: int = 0
    json: bool = False
    quiet: bool = False
    device: str = "auto"
    dtype: str = "float32"
    workers: int | None = None
    tokenizer: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain values for `run.json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Brief:
    """What is known before any model is loaded.

    Attributes:
        said: The target's transcripts, where it is a file.
        other_said: The same of --versus.
        world: The world whose personas judge, if they do.
        cast, whole: The cast that judges, cut and as loaded; None in a world.
        scorer: Name of the scoring model; empty in a world.
        prompts: What is asked; empty where the transcripts say it.
        plan: How replies are sampled.
        notes: Sentences to carry into the result.
        paths: Files whose content counts.
        held_out: With --labels, instructions of every persona that do not score.
    """

    said: Transcripts | None
    other_said: Transcripts | None
    world: World | None
    cast: Cast | None
    whole: Cast | None
    scorer: str
    prompts: tuple[ProbePrompt, ...]
    plan: SamplingPlan
    notes: tuple[str, ...]
    paths: tuple[str, ...]
    held_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Panel:
    """Loaded: the judge, the targets that can be asked, and the scorer's workbench.

    Attributes:
        judge: Who judges.
        target, other: Who is asked; None where transcripts are given (or there is no other).
        scorer: The scoring model's workbench; None in a world.
        base: The scorer as a target, where it is another model than the target or speaks under another system turn;
            None where the target's own likelihoods are out of reach.
        exact: The world's closed form, in a world.
    """

    judge: Judge
    target: GivesText | None
    other: GivesText | None
    scorer: Workbench | None
    base: SpeakingModel | None
    exact: ExactWorld | None


def base_of(name: str) -> str:
    """The model that scores a target unless told otherwise: its own base where its name says one, else itself."""
    if name.startswith("world:"):
        which, *stages = name.removeprefix("world:").split("/")
        return "/".join([f"world:{which}", "base", *(["exact"] if "exact" in stages else [])])
    if "://" in name:
        return DEFAULT_MODEL  # of a server only the texts are known
    if "+" in name and not Path(name).exists():
        return name.split("+", 1)[0]
    return name


def gives_only_text(name: str, scorer: str) -> bool:
    """Whether a model is asked as one that only gives text: a server, unless it is the scorer as well."""
    return name != scorer and not is_transcripts(name) and resolve(name).kind == "server"


def read_brief(options: ProfileOptions) -> Brief:
    """Everything that can be checked without a model.

    Raises:
        InvalidSettings: If options contradict each other.
        InputError: If a file cannot be used.
        ModelNotFound: If a model is not here.
    """
    said = read_transcripts(options.target) if is_transcripts(options.target) else None
    other = options.versus
    other_said = read_transcripts(other) if other and is_transcripts(other) else None
    if said is not None:
        _refuse(options, "a file of transcripts has been asked already", prompts=options.prompts, system=options.system)
        if options.reach:
            raise InvalidSettings("--reach asks the target, and a file of transcripts cannot be asked.")
    source = None if said is not None else require_target(options.target)
    if other and other_said is None:
        require_target(other)
    world = source.world if source is not None else None
    notes: list[str] = []
    paths = [p for p in (options.prompts, *(x for x in (options.target, other) if x and is_transcripts(x))) if p]
    scorer, cast, whole = "", None, None
    held_out: dict[str, tuple[str, ...]] = {}
    if world is None or options.cast or options.scorer:
        scorer = options.scorer or (DEFAULT_MODEL if said is not None else base_of(options.target))
        _check_scorer(options, scorer, notes)
        names = options.cast or ("core",)
        whole = load_casts(names)
        cast = _cut(whole, options, notes)
        if options.labels:
            cast, held_out = split_paraphrases(_chosen(whole, options), _n_scoring(options, cast))
        paths += [str(built_in_casts().get(c, Path(c))) for c in names]
        judged = None
    else:
        _refuse(options, "the world's own personas judge; name a --cast as well", only=options.only)
        judged = world.base
        if options.labels:
            raise InvalidSettings("--labels is for scorers; a world's likelihoods are exact.")
    if options.reach and world is not None and judged is None:
        raise InvalidSettings(
            "--reach in a world is measured for the world's own personas.", hint="Leave --cast and --scorer out."
        )
    tokens = options.max_tokens or (1 if world is not None else QUICK_TOKENS if options.quick else MAX_TOKENS)
    prompts = _asked_of_file(said) if said is not None else _prompts(options, world)
    _check_enough(options, prompts, said)
    plan = SamplingPlan(tokens, 1.0, options.seed)
    return Brief(said, other_said, judged, cast, whole, scorer, prompts, plan, tuple(notes), tuple(paths), held_out)


def _check_scorer(options: ProfileOptions, scorer: str, notes: list[str]) -> None:
    """Refuse a scorer that is not here, or a tokenizer that it does not need; say whose choice it was."""
    served = require_target(scorer).kind == "server"
    if options.tokenizer is not None and not served:
        raise InvalidSettings(
            f"--tokenizer is for a server that scores; the scorer is '{scorer}'.", hint="Leave --tokenizer out."
        )
    if options.scorer is None and gives_only_text(options.target, scorer):
        notes.append(f"No --scorer was named, and of a server only the texts are known: {scorer} judges them.")


def _check_enough(options: ProfileOptions, prompts: Sequence[ProbePrompt], said: Transcripts | None) -> None:
    """Refuse what is too little before anything dear happens."""
    n = len(prompts) * options.n if said is None else len({r.conversation for r in said.spoken})
    if said is not None and not said.spoken:
        raise InputError(
            f"{options.target} said nothing: all {len(said.replies)} replies are empty.",
            hint="A target that ends every reply at once has no profile.",
        )
    if n < LEAST_CONVERSATIONS:
        raise InvalidSettings(
            f"there are only {n} conversations; a distribution over personas needs at least {LEAST_CONVERSATIONS}.",
            hint="Ask more prompts, or raise --n.",
        )
    if options.versus is not None and len(prompts) < LEAST_PROMPTS:
        raise InvalidSettings(
            f"there are only {len(prompts)} prompts; --versus compares prompt by prompt and needs {LEAST_PROMPTS}.",
            hint="Ask more prompts.",
        )


def _refuse(options: ProfileOptions, why: str, **given: str | None) -> None:
    for name, value in given.items():
        if value:
            raise InvalidSettings(f"--{name} cannot be used with {options.target}: {why}.")


def _cut(whole: Cast, options: ProfileOptions, notes: list[str]) -> Cast:
    """The cast after --only and --paraphrases; large ones use one paraphrase, as `screen` does."""
    cast = _chosen(whole, options)
    n = options.paraphrases
    if n is None and cast.n_instructions > LARGE_CAST:
        n = 1
        notes.append(
            f"The cast has {cast.n_instructions} instructions; the first of each persona was used "
            "(--paraphrases N uses more and separates better)."
        )
    return cast if n is None else cast.limit_paraphrases(n)


def _chosen(whole: Cast, options: ProfileOptions) -> Cast:
    """The cast after --only."""
    if options.only is None:
        return whole
    chosen = [n.strip() for n in options.only.split(",") if n.strip()]
    if not chosen:
        raise InvalidSettings("--only names no trait or role.", hint="`personae casts NAME` lists them.")
    return whole.select(chosen)


def _n_scoring(options: ProfileOptions, cut: Cast) -> int | None:
    """Instructions that score beside those held out: as asked for, else one in a large cast, else all but the last."""
    if options.paraphrases is not None:
        return options.paraphrases
    return 1 if all(len(p.instructions) <= 1 for p in cut.personas) else None


def _prompts(options: ProfileOptions, world: World | None) -> tuple[ProbePrompt, ...]:
    if options.prompts is not None:
        found = read_prompts(options.prompts)
    elif world is not None:
        n = QUICK_CONVERSATIONS if options.quick else CONVERSATIONS
        return world_prompts(ExactWorld(world.base), min(n, options.limit or n), seed=options.seed)
    else:
        found = built_in_prompts()
    n = min(len(found), QUICK_PROMPTS if options.quick else len(found), options.limit or len(found))
    return spread(found, n)


def _asked_of_file(said: Transcripts) -> tuple[ProbePrompt, ...]:
    """The prompts that a file of transcripts answers, so that another target can be asked the same."""
    turns: dict[str, dict[int, str]] = {}
    topic: dict[str, str] = {}
    for reply in said.replies:
        turns.setdefault(reply.prompt, {}).setdefault(reply.turn, reply.asked)
        topic.setdefault(reply.prompt, reply.topic)
    return tuple(ProbePrompt(p, topic[p], tuple(t[k] for k in sorted(t))) for p, t in turns.items())


def open_panel(options: ProfileOptions, brief: Brief) -> Panel:
    """Load what is needed, each model once."""
    benches: dict[str, Workbench] = {}

    def bench(name: str) -> Workbench:
        if name not in benches:
            served = resolve(name).kind == "server"
            say(f"{'Asking' if served else 'Loading'} {name} …", quiet=options.quiet)
            benches[name] = open_model(
                name,
                device=options.device,
                dtype=options.dtype,
                tokenizer=options.tokenizer if served else None,
                workers=options.workers if served else None,
            )
        return benches[name]

    def speaker(name: str, system: str = "") -> SpeakingModel:
        b = bench(name)
        return SpeakingModel(b.model, b.renderer, b.space, system=system, name=_shown(name, system))

    def asked(name: str, system: str = "") -> GivesText:
        if not gives_only_text(name, brief.scorer):
            return speaker(name, system)
        chat = load_chat(name, workers=options.workers)
        return Instructed(chat, system, _shown(name, system)) if system.strip() else chat

    target = None if brief.said is not None else asked(options.target, options.system)
    asks_other = options.versus is not None and brief.other_said is None
    other = asked(options.versus) if asks_other and options.versus else None
    exact = ExactWorld(brief.world) if brief.world is not None else None
    if exact is not None:
        base_name = base_of(options.target)
        needs_base = options.reach and base_name != options.target
        base = speaker(base_name) if needs_base else None
        return Panel(WorldJudge(exact), target, other, None, base, exact)
    assert brief.cast is not None
    b = bench(brief.scorer)
    judge = CastJudge(b.scoring, b.model, b.renderer, brief.cast, brief.scorer)
    differs = isinstance(target, SpeakingModel) and (brief.scorer != options.target or bool(options.system))
    return Panel(judge, target, other, b, speaker(brief.scorer) if differs else None, None)


def _shown(name: str, system: str) -> str:
    """What a reader calls a target."""
    return f"{name} (with a system turn)" if system else name


def power_of(options: ProfileOptions, brief: Brief, panel: Panel) -> tuple[float, str, Mapping[str, object] | None]:
    """eta, where it comes from, and the calibration behind it if there is one."""
    record = None
    if panel.judge.card is None:
        eta, source = 1.0, "the world's likelihoods are exact"
    else:
        assert brief.whole is not None
        eta, source = choose_power(panel.judge.card, brief.whole)
        record = calibrations().find(model_digest(panel.judge.card), RENDERING_VERSION, brief.whole)
    if options.eta is not None:
        eta, source = options.eta, "given with --eta"
    return eta, source, record
