"""Teach a scorer to tell who would say what: an adapter trained on texts of known traits, judged on traits left out.

    cast with items --> steps: a trait, one paraphrase of its poles, some texts of either --> adapter
    traits left out --> AUROC of the ratio before and after, over traits

What is learnt is the use of an instruction, not the traits: whether it carries over is measured on traits that no step
saw. The result is a scorer (`MODEL+ADAPTER` for `screen` and `score`), never a target: it no longer is the model whose
personas one would study. Not here: the loss (`models.hf_contrast`), the loop (`models.hf_training`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from personae.domain.diagnostic import DiagnosticSet
from personae.domain.episode import Episode, Turn
from personae.domain.persona import Cast, Persona, Trait
from personae.errors import InvalidSettings, NumericsError
from personae.instruments.trainable import require_trainable
from personae.models.examples import Contrast
from personae.models.protocol import KnowsPhrases
from personae.models.rendering import BASE_STYLES, RENDERING_VERSION, Frame, Renderer
from personae.numerics.clustered import Estimate, cluster_mean
from personae.numerics.statistics import auroc
from personae.running.held import held

if TYPE_CHECKING:
    from personae.models.hf import HFModel

Floats = NDArray[np.float64]
SHARPENING_VERSION = 2
# What a statement about oneself answers; the first is the one that separates best unsharpened (NOTES.md, 2026-11-21).
QUESTIONS = (
    "Say one sentence that this person would say about themselves.",
    "Tell me something about yourself.",
    "What do you think?",
    "Describe yourself in one sentence.",
)
_FIRST_SHARE = 0.6  # of steps that ask the first question
_WARM_UP_SHARE = 0.05
_LEAST_TRAITS = 4
_JUDGED = 8  # texts of either pole of a trait left out
_PASSES = 2  # over the traits, unless steps are given

Text = tuple[str, str, bool]  # prompt, what is said, whether it is the positive pole's
OnStep = Callable[[int], Callable[[int, float], None]]


@dataclass(frozen=True, slots=True)
class SharpeningSettings:
    """How to sharpen.

    Attributes:
        steps: Each is one trait; None: twice the number of traits trained on.
        learning_rate: At its height, after a warm-up and before a linear fall to 0.
        rank: Of the adapter; its scale is twice the rank.
        texts: Most texts of either pole in a step; none that the instruction of the step quotes.
        held_out: Share of the traits that no step sees and that judge the result; at least two.
        seed: Of everything random.
    """

    steps: int | None = None
    learning_rate: float = 3e-4
    rank: int = 16
    texts: int = 5
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, holds, range_ in (
            ("steps", self.steps is None or self.steps >= 1, "at least 1"),
            ("learning-rate", 0 < self.learning_rate < float("inf"), "above 0"),
            ("rank", self.rank >= 1, "at least 1"),
            ("texts", self.texts >= 1, "at least 1"),
            ("held-out", 0 < self.held_out < 1, "above 0 and below 1"),
        ):
            if not holds:
                value = getattr(self, name.replace("-", "_"))
                raise InvalidSettings(f"--{name} is {value}; it must be {range_}.")


@dataclass(frozen=True, slots=True, eq=False)
class Skill:
    """How well a model's ratio tells the texts of traits left out, in the dtype of the training.

    Attributes:
        traits: Traits left out.
        auroc: Of each, over its texts, the ratio averaged over paraphrases; shape (n_traits,).
        log_loss: Mean of -log sigmoid(+-ratio) over the texts of each, nats; log 2 knows nothing; shape (n_traits,).
    """

    traits: tuple[str, ...]
    auroc: Floats
    log_loss: Floats


@dataclass(frozen=True, slots=True, eq=False)
class SharpeningRecord:
    """What a sharpening did; intervals are 90%, over traits left out.

    Attributes:
        model, adapter, use: Names of the base, of the adapter's folder, and of the scorer.
        n_traits, n_texts: Trained on.
        n_steps, n_tokens: Steps, and tokens run in them.
        first_loss, last_loss: Mean loss of the first and last tenth of the steps, nats a text.
        seconds: Of the steps.
        resumed_from: Step from which an interrupted sharpening went on.
        before, after: Skill on traits left out.
        gain: Of the AUROC, after less before.
        base_digest: Of the weights it was made for.
        settings: As used.
        notes: What was left out.
    """

    model: str
    adapter: str
    use: str
    n_traits: int
    n_texts: int
    n_steps: int
    n_tokens: int
    first_loss: float
    last_loss: float
    seconds: float
    resumed_from: int
    before: Skill
    after: Skill
    gain: Estimate
    base_digest: str
    settings: dict[str, object]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for `run.json`."""
        about = {name: getattr(self, name) for name in self.__slots__ if name not in ("before", "after", "gain")}
        return about | {
            "held_out": [
                {"trait": t, "auroc_before": b, "auroc_after": a, "log_loss_before": lb, "log_loss_after": la}
                for t, b, a, lb, la in zip(
                    self.after.traits,
                    *(v.round(4).tolist() for v in (self.before.auroc, self.after.auroc)),
                    *(v.round(4).tolist() for v in (self.before.log_loss, self.after.log_loss)),
                    strict=True,
                )
            ],
            "auroc_before": float(self.before.auroc.mean()),
            "auroc_after": float(self.after.auroc.mean()),
            "gain": {"value": self.gain.value, "ci": [self.gain.low, self.gain.high]},
        }


def sharpen(
    model: str,
    cast: Cast,
    items: DiagnosticSet,
    *,
    folder: Path,
    settings: SharpeningSettings,
    device: str = "auto",
    dtype: str = "float32",
    started: OnStep = lambda n: lambda step, loss: None,
    say: Callable[[str], None] = lambda text: None,
) -> SharpeningRecord:
    """Train an adapter that makes instructions count, or go on with a training that was interrupted.

    Args:
        model: To be sharpened; see `models.load`.
        cast: Traits with their instructions.
        items: Texts of these traits; traits without any are left out.
        folder: Gets `adapter/`, and the state of an unfinished training.
        settings: How.
        device: See `models.load`.
        dtype: Of the frozen weights while training; the adapter is float32.
        started: Given the number of steps, gives what is told of each.
        say: Told what is going on before and after the steps.

    Raises:
        InvalidSettings: If fewer than four traits have texts of both poles, or the model's vocabulary is closed.
        MissingCapability: If the model cannot be trained here.
        NumericsError, StorageError, OutOfMemory: As `models.hf_training.fine_tune`.
    """
    source = require_trainable(model)
    known = texts_of(cast, items)
    trained, left_out = split_traits(list(known), settings)
    os.environ.setdefault("TQDM_DISABLE", "1")
    from personae.models.hf_load import load_unpacked
    from personae.models.hf_training import Job, Recipe, fine_tune

    loaded = load_unpacked(source, device=device, dtype=dtype)
    tokenizer = loaded.tokenizer
    if isinstance(tokenizer, KnowsPhrases) and tokenizer.phrases is not None:
        raise InvalidSettings(f"{model} knows the words of its world alone.", hint="Sharpen a language model.")
    styles = tuple(BASE_STYLES) if not tokenizer.has_template else ("dialogue",)
    renderer = Renderer(tokenizer, context_length=loaded.card.context_length, base_styles=styles)
    n_steps = settings.steps or _PASSES * len(trained)
    steps = list(plan_steps([known[t] for t in trained], renderer, settings, n_steps))
    held_steps = {t: held_out_contrasts(known[t], renderer) for t in left_out}
    recipe = Recipe(
        "contrast", False, settings.rank, 2.0 * settings.rank, 0.0, settings.learning_rate, "linear",
        round(_WARM_UP_SHARE * n_steps), 1.0, settings.seed, (), 0, 0,
    )  # fmt: skip
    resolved: dict[str, object] = {**asdict(settings), "steps": n_steps}
    key = _key(loaded, steps, resolved)
    with held(folder):
        say(f"Asking about {len(left_out)} traits left out, before …")
        before = _skill(loaded, held_steps)
        on_step = started(n_steps)
        job = Job(steps, [[k] for k in range(n_steps)], (), recipe, key)
        done = fine_tune(loaded, job, folder, on_step=on_step)
        say(f"Asking about {len(left_out)} traits left out, after …")
        after = _skill(loaded, held_steps)
    done.forget()
    losses = [row[1] for row in done.progress.rows]
    tenth = max(1, len(losses) // 10)
    gain = cluster_mean(after.auroc - before.auroc, after.traits, level=0.9)
    return SharpeningRecord(
        loaded.card.name, str(done.result), f"{loaded.card.name}+{done.result}", len(trained),
        sum(len(known[t].texts) for t in trained), n_steps, sum(row[3] for row in done.progress.rows),
        sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth, done.progress.seconds, done.resumed_from,
        before, after, gain, loaded.card.digest, resolved, unmatched(cast, items, known),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TraitTexts:
    """A trait and what its poles say.

    Attributes:
        trait: With the instructions of its poles.
        texts: Prompt (empty: a statement about oneself), text, and whether it belongs to the positive pole.
    """

    trait: Trait
    texts: tuple[Text, ...]

    @property
    def n_paraphrases(self) -> int:
        """Pairs of instructions."""
        return min(len(self.trait.pos.instructions), len(self.trait.neg.instructions))

    @property
    def usable(self) -> list[int]:
        """Paraphrases that leave texts of either pole unquoted."""
        return [k for k in range(self.n_paraphrases) if self.n_unquoted([k])]

    @property
    def judging(self) -> list[int]:
        """The two paraphrases that quote fewest texts; one alone where the two leave none between them."""
        best = sorted(sorted(self.usable, key=lambda k: (-self.n_unquoted([k]), k))[:2])
        return best if self.n_unquoted(best) else best[:1]

    def n_unquoted(self, paraphrases: Sequence[int]) -> int:
        """Texts of the pole that has fewer which stand in none of these instructions."""
        return min(len(self.unquoted(paraphrases, pole)) for pole in (True, False))

    def unquoted(self, paraphrases: Sequence[int], pole: bool) -> list[Text]:
        """Texts of a pole that stand in none of these instructions."""
        told = [p.instructions[k] for p in (self.trait.pos, self.trait.neg) for k in paraphrases]
        return [t for t in self.texts if t[2] == pole and not any(t[1] in instruction for instruction in told)]


def texts_of(cast: Cast, items: DiagnosticSet) -> dict[str, TraitTexts]:
    """Texts by trait, for the traits of the cast that have some of both poles which some instruction does not quote.

    Raises:
        InvalidSettings: If fewer than four have.
    """
    found: dict[str, TraitTexts] = {}
    for trait in cast.traits:
        mine = [i for i in items.items if i.trait == trait.id]
        texts = [(i.prompt, i.pos, True) for i in mine if i.pos.strip()]
        texts += [(i.prompt, i.neg, False) for i in mine if i.neg.strip()]
        made = TraitTexts(trait, tuple(dict.fromkeys(texts)))
        if made.usable:
            found[trait.id] = made
    if len(found) < _LEAST_TRAITS:
        raise InvalidSettings(
            f"only {len(found)} traits of the cast '{cast.id}' have texts of both poles in '{items.name}'; a "
            f"sharpening needs {_LEAST_TRAITS}, since some are left out to judge it.",
            hint="Give more traits, and items for them with --items FILE.",
        )
    return found


def unmatched(cast: Cast, items: DiagnosticSet, known: Collection[str]) -> tuple[str, ...]:
    """What of a cast and of its texts does not go together, in words."""
    bare = [t.id for t in cast.traits if t.id not in known]
    strange = [t for t in items.traits if t not in {x.id for x in cast.traits}]
    notes = [f"{len(bare)} traits of the cast have no usable texts and teach nothing: {_few(bare)}."] if bare else []
    if strange:
        notes.append(f"Texts of {len(strange)} traits that the cast does not have were left out: {_few(strange)}.")
    return tuple(notes)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def split_traits(traits: Sequence[str], settings: SharpeningSettings) -> tuple[list[str], list[str]]:
    """Traits that are trained on, and those left out (at least two of each), drawn by the seed."""
    n = min(len(traits) - 2, max(2, round(settings.held_out * len(traits))))
    aside = set(np.random.default_rng([settings.seed, 0]).permutation(len(traits))[:n].tolist())
    return [t for k, t in enumerate(traits) if k not in aside], [t for k, t in enumerate(traits) if k in aside]


def plan_steps(
    traits: Sequence[TraitTexts], renderer: Renderer, settings: SharpeningSettings, n_steps: int
) -> Iterator[Contrast]:
    """What every step sees: the traits in turn, in a new order each round, each with other words and texts."""
    order: list[int] = []
    for step in range(n_steps):
        rng = np.random.default_rng([settings.seed, 1, step])
        order = order or np.random.default_rng([settings.seed, 2, step]).permutation(len(traits)).tolist()
        chosen = traits[order.pop()]
        usable = chosen.usable
        paraphrase = usable[int(rng.integers(len(usable)))]
        texts = [t for pole in (True, False) for t in _some(chosen, [paraphrase], pole, settings.texts, rng)]
        question = QUESTIONS[0 if rng.random() < _FIRST_SHARE else int(rng.integers(len(QUESTIONS)))]
        style = renderer.styles[int(rng.integers(len(renderer.styles)))]
        yield contrast_of(chosen.trait, paraphrase, style, texts, question, renderer)


def _some(of: TraitTexts, paraphrases: Sequence[int], pole: bool, most: int, rng: np.random.Generator) -> list[Text]:
    """Texts of a pole that the instructions do not quote, or copying would do."""
    mine = of.unquoted(paraphrases, pole)
    return [mine[k] for k in rng.permutation(len(mine))[:most]]


def held_out_contrasts(of: TraitTexts, renderer: Renderer) -> list[Contrast]:
    """Some texts of a trait under the two paraphrases that quote fewest of them; none that either quotes."""
    rng = np.random.default_rng(0)
    texts = [t for pole in (True, False) for t in _some(of, of.judging, pole, _JUDGED, rng)]
    return [contrast_of(of.trait, k, renderer.styles[0], texts, QUESTIONS[0], renderer) for k in of.judging]


def contrast_of(
    trait: Trait, paraphrase: int, style: str, texts: Sequence[Text], question: str, renderer: Renderer
) -> Contrast:
    """Texts under one paraphrase of both poles."""
    episodes = [Episode(f"{trait.id} {k}", (Turn("user", p or question),), t) for k, (p, t, _) in enumerate(texts)]
    frames = [_frame(pole, paraphrase, style) for pole in (trait.pos, trait.neg)]
    renderer.reserve(frames)
    pos, neg = (tuple(renderer.render(frame, e) for e in episodes) for frame in frames)
    return Contrast(pos, neg, tuple(is_pos for _, _, is_pos in texts), trait.id)


def _frame(persona: Persona, paraphrase: int, style: str) -> Frame:
    return Frame(persona.id, persona.instructions[paraphrase], style)


def _skill(loaded: HFModel, contrasts: dict[str, list[Contrast]]) -> Skill:
    from personae.models.hf_contrast import MEMORY_HINT, contrast_ratios
    from personae.models.hf_memory import memory_errors

    loaded.module.eval()
    aurocs, losses = [], []
    for items in contrasts.values():
        with memory_errors("the texts of a trait", hint=MEMORY_HINT):
            found = contrast_ratios(loaded.module, items)
        ratio = np.mean([r.double().numpy() for r in found], axis=0)
        if not np.isfinite(ratio).all():
            raise NumericsError(
                f"{loaded.card.name} gives a text of '{items[0].group}' a ratio that is not a finite number.",
                hint="Try --dtype float32, or a lower --learning-rate.",
            )
        is_pos = np.array(items[0].is_pos)
        aurocs.append(auroc(ratio, is_pos))
        losses.append(float(np.logaddexp(0.0, np.where(is_pos, -ratio, ratio)).mean()))
    return Skill(tuple(contrasts), np.array(aurocs), np.array(losses))


def _key(loaded: HFModel, steps: Sequence[Contrast], resolved: dict[str, object]) -> str:
    """Names everything a step depends on."""
    digest = hashlib.blake2b(digest_size=16)
    card = loaded.card
    about = [SHARPENING_VERSION, RENDERING_VERSION, card.digest, card.tokenizer_digest, card.dtype, resolved]
    digest.update(json.dumps(about, sort_keys=True).encode())
    for item in steps:
        digest.update(repr(item).encode())
    return digest.hexdigest()
