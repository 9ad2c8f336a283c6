"""`calibrate`: hold conversations whose persona is known, score them under the cast, fit eta to the labels.

    paraphrases 1..m of every persona    score                                  (as `screen` does)
    paraphrases m+1.. of every persona   put the model into the persona          (held out)

A conversation's persona is known because we asked for it, in words the scoring never saw. Its user turns come
from one half of the scripts or the other, so that what is fitted on one half is tested on prompts of its own.
Poles of traits are personas like roles. `plain` is the model as it is: it has no paraphrase to hold out, so it
scores its own words. Not here: the formulas (`inference.calibration`), where results are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from personae.domain.persona import PLAIN, Cast
from personae.errors import BackendError, InvalidSettings
from personae.inference.calibration import fit_temperature, mean_cllr, reliability, shrink_until_covered
from personae.inference.identifiability import class_indicators, merge_classes, pairwise_auc
from personae.inference.mixture import sum_by_group
from personae.instruments.sampling import Script, Stage, Transcript
from personae.instruments.scoring import Scoring, Work
from personae.models.protocol import SamplingPlan
from personae.models.rendering import Renderer
from personae.tables.calibration import Calibration, HeldOut, PersonaRecall

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """How labelled conversations are made.

    Attributes:
        conversations: For each persona.
        turns: User turns, and so replies, of a conversation.
        max_tokens: Of a reply.
        temperature: Of the sampler; 1 is the model's own distribution.
        seed: Of scripts and sampler.
    """

    conversations: int = 4
    turns: int = 2
    max_tokens: int = 40
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("conversations", "turns", "max_tokens"):
            if getattr(self, name) < 1:
                raise InvalidSettings(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1.")

    @property
    def sampling(self) -> SamplingPlan:
        """The sampler's part of the plan."""
        return SamplingPlan(self.max_tokens, self.temperature, self.seed)


@dataclass(frozen=True, slots=True)
class Written:
    """A conversation to be held: its script, the half it belongs to, and the opener of its user turns."""

    script: Script
    half: int
    opener: str


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Conversations whose persona is known, scored under every component.

    Attributes:
        components: Ids of the columns: personas of the cast, `plain`, `background`.
        log_likelihood: Nats a conversation, shape (n_conversations, n_components).
        label: Column of the persona that spoke, shape (n_conversations,).
        half: 0 or 1, by the script of the user's turns, shape (n_conversations,).
        cluster: Script of each conversation: equal questions are not independent.
        n_tokens: Scored tokens of each conversation.
        transcripts: What was said.
        n_silent: Conversations that got no reply and were left out.
    """

    components: tuple[str, ...]
    log_likelihood: Floats
    label: NDArray[np.int64]
    half: NDArray[np.int64]
    cluster: tuple[str, ...]
    n_tokens: NDArray[np.int64]
    transcripts: tuple[Transcript, ...]
    n_silent: int


def split_paraphrases(cast: Cast, n_scoring: int | None) -> tuple[Cast, dict[str, tuple[str, ...]]]:
    """The cast that scores, and what is held out of every persona for the speaking.

    Args:
        cast: With all its paraphrases.
        n_scoring: Paraphrases that score; by default all but the last of the persona with the fewest.

    Raises:
        InvalidSettings: If a persona has no paraphrase left to hold out.
    """
    personas = [p for p in cast.personas if p.id != PLAIN]
    fewest = min(personas, key=lambda p: len(p.instructions))
    n = len(fewest.instructions) - 1 if n_scoring is None else n_scoring
    short = next((p for p in personas if len(p.instructions) <= max(n, 1)), None)
    if short is not None or n < 1:
        culprit = short or fewest
        raise InvalidSettings(
            f"'{culprit.id}' of cast '{cast.id}' has {len(culprit.instructions)} paraphrase"
            f"{'s' if len(culprit.instructions) != 1 else ''}, and {max(n, 1)} would score: none is left to hold out "
            "for generating. A persona scored by the words it was asked with would look too easy to tell.",
            hint="Give every persona at least two paraphrases, or lower --paraphrases.",
        )
    return cast.limit_paraphrases(n), {p.id: p.instructions[n:] for p in personas}


def write_scripts(
    cast: Cast,
    held_out: dict[str, tuple[str, ...]],
    renderer: Renderer,
    openers: Sequence[tuple[str, ...]],
    plan: LabelPlan,
) -> list[Written]:
    """What every conversation is to be.

    Even conversations of a persona (odd ones of the next persona) take openers of one half, the others of the
    other, in an order drawn anew for every persona.
    """
    rng = np.random.default_rng(plan.seed)
    halves = (list(range(0, len(openers), 2)), list(range(1, len(openers), 2)))
    made: list[Written] = []
    for k, persona in enumerate(cast.personas):
        orders = [rng.permutation(h) for h in halves]
        texts = held_out.get(persona.id, ("",))
        for j in range(plan.conversations):
            half = (k + j) % 2
            opener = int(orders[half][(j // 2) % len(orders[half])])
            speaking = replace(persona, instructions=(texts[j % len(texts)],) if persona.id != PLAIN else ())
            frames = renderer.frames(speaking)
            script = Script(f"{persona.id}#{j}", persona.id, frames[j % len(frames)], openers[opener])
            made.append(Written(script, half, f"opener-{opener}"))
    return made


def label_conversations(
    stage: Stage,
    scoring: Scoring,
    renderer: Renderer,
    cast: Cast,
    openers: Sequence[tuple[str, ...]],
    plan: LabelPlan,
    *,
    n_scoring: int | None = None,
    sampling: Callable[[int], Callable[[int], None]],
    started: Callable[[Work], Callable[[int], None]],
) -> Labelled:
    """Hold labelled conversations and score them.

    Args:
        stage: Where conversations are held.
        scoring: Scores for the same model.
        renderer: The renderer of both.
        cast: With all its paraphrases.
        openers: Scripts of the user's turns, at least two, each at least `plan.turns` long.
        plan: How many, how long.
        n_scoring: Paraphrases that score; see `split_paraphrases`.
        sampling: Told of the turns to sample before it begins.
        started: Told of the scoring before it begins.

    Raises:
        InvalidSettings: If a persona has no paraphrase to hold out.
        BackendError: If the model gives (almost) only empty replies.
    """
    scorers, held_out = split_paraphrases(cast, n_scoring)
    written = write_scripts(scorers, held_out, renderer, openers, plan)
    sampler = plan.sampling
    transcripts = stage.hold([w.script for w in written], sampler, started=sampling)
    if len(transcripts) < max(4, len(written) // 4):
        raise BackendError(
            f"only {len(transcripts)} of {len(written)} conversations got a reply; that is too few to calibrate on.",
            hint="The model ends most replies at once; `personae check-model` tests it.",
        )
    return score_transcripts(scoring, scorers, written, transcripts, started=started)


def score_transcripts(
    scoring: Scoring,
    scorers: Cast,
    written: Sequence[Written],
    transcripts: Sequence[Transcript],
    *,
    started: Callable[[Work], Callable[[int], None]],
) -> Labelled:
    """Score held conversations under every component of a cast.

    Args:
        scoring: Scores for the model that spoke.
        scorers: The cast with the paraphrases that score.
        written: The scripts of the conversations, and of others that got no reply.
        transcripts: What was said.
        started: Told of the scoring before it begins.
    """
    evidence = scoring.evidence(scorers, [e for t in transcripts for e in t.episodes], started=started)
    components = scorers.component_ids
    table = sum_by_group(evidence.matrix(components), evidence.group, evidence.weight)
    tokens = sum_by_group(evidence.n_tokens[:, None].astype(np.float64), evidence.group, evidence.weight)
    about = {w.script.id: w for w in written}
    return Labelled(
        components,
        table,
        np.array([components.index(t.script.persona) for t in transcripts]),
        np.array([about[t.script.id].half for t in transcripts]),
        tuple(about[t.script.id].opener for t in transcripts),
        tokens[:, 0].astype(np.int64),
        tuple(transcripts),
        len(written) - len(transcripts),
    )


_LEAST_TO_MERGE = 4


def calibrate(
    labelled: Labelled,
    *,
    model: str,
    cast: str,
    turns: int,
    n_paraphrases: int,
    seed: int = 0,
    notes: Sequence[str] = (),
    advance: Callable[[int], None] = lambda amount: None,
) -> Calibration:
    """Fit and judge eta on labelled conversations.

    Args:
        labelled: From `label_conversations`.
        model: Its name, for the result.
        cast: Its name, for the result.
        turns: Of a conversation, for the result.
        n_paraphrases: That scored, for the result.
        seed: Of bootstraps.
        notes: Sentences to carry into the result.
        advance: Told of every power whose coverage was tried.
    """
    personas = labelled.log_likelihood[:, :-1]  # the background cannot speak, so labels say nothing about it
    label = labelled.label
    fitted = fit_temperature(personas, label, labelled.cluster, seed=seed)
    held_out = _held_out(labelled, personas, fitted.eta, seed)
    enough = bool((np.bincount(label)[np.unique(label)] >= _LEAST_TO_MERGE).all())
    auc = pairwise_auc(personas, label) if enough else np.full((personas.shape[1],) * 2, np.nan)
    classes = merge_classes(auc)
    indicators = np.hstack([class_indicators(classes), np.zeros((classes.max() + 1, 1))])
    shrunk = shrink_until_covered(
        labelled.log_likelihood, label, fitted.eta, functionals=indicators, seed=seed, advance=advance
    )
    names = np.array(labelled.components[:-1])
    said = [*notes]
    if not enough:
        said.append(
            f"Some personas have fewer than {_LEAST_TO_MERGE} conversations: which of them cannot be told apart was "
            "not looked at (--conversations)."
        )
    if not shrunk.reached:
        said.append(
            f"No power made intervals cover as they should: at eta {shrunk.eta:.3g} they cover {shrunk.coverage:.0%} "
            "of the time instead of 90%. Read weights as rough."
        )
    if labelled.n_silent:
        said.append(f"{labelled.n_silent} conversations got no reply and were left out.")
    return Calibration(
        model,
        cast,
        shrunk.eta,
        fitted.eta,
        fitted.low,
        fitted.high,
        shrunk.coverage,
        shrunk.reached,
        len(label),
        turns,
        int(labelled.n_tokens.sum()),
        labelled.n_silent,
        n_paraphrases,
        held_out,
        _recall(personas, label, names),
        tuple(tuple(names[classes == c].tolist()) for c in range(classes.max() + 1) if (classes == c).sum() > 1),
        enough,
        tuple(said),
    )


def _held_out(labelled: Labelled, personas: Floats, eta: float, seed: int) -> HeldOut:
    """Figures of each half under the other half's eta (of all under the common one where a half is too small)."""
    label, half = labelled.label, labelled.half
    tempered = eta * personas
    for h in (0, 1):
        train, test = half != h, half == h
        if train.sum() > 1 and test.any():
            other = [c for c, used in zip(labelled.cluster, train, strict=True) if used]
            tempered[test] = fit_temperature(personas[train], label[train], other, n_draws=1).eta * personas[test]
    cost, least = mean_cllr(tempered, label)
    told = reliability(tempered, label, labelled.cluster, seed=seed)
    own = tempered[np.arange(len(label)), label]
    k = personas.shape[1]
    return HeldOut(
        float((personas.argmax(axis=1) == label).mean()),
        1 / k,
        float((np.asarray(logsumexp(tempered, axis=1)) - own).mean()),
        float(np.log(k)),
        cost,
        least,
        told.slope,
        told.slope_low,
        told.slope_high,
        told.error,
        told.error_low,
        told.error_high,
    )


def _recall(personas: Floats, label: NDArray[np.int64], names: NDArray[np.str_]) -> tuple[PersonaRecall, ...]:
    given = personas.argmax(axis=1)
    rows: list[PersonaRecall] = []
    for k in np.unique(label):
        counts = np.bincount(given[label == k], minlength=len(names))
        wrong = {str(names[j]): int(counts[j]) for j in np.argsort(-counts, kind="stable") if counts[j] and j != k}
        rows.append(PersonaRecall(str(names[k]), int(counts.sum()), int(counts[k]), wrong))
    return tuple(rows)
