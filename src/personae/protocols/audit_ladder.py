"""The ladder of explanations: conversations of the post-trained model, read by every rung.

    R0 base   R1 its temperature   R2 another frame   R3 best single persona   R4 mixture of personas
    R5 + replies of the target shown as examples   R6 soft prompt   R7 another seed of the same post-training
    rivals: the mixture with other weights for each topic, turn, cue, or once a topic was mentioned

Null: the base against itself (no finding). Positive: a persona, a table no persona has, a temperature.
Not here: the numbers (`inference.exhaustiveness`), intervals (`inference.ladder`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from personae.domain.episode import Turn
from personae.errors import ContextOverflow, InvalidSettings
from personae.inference.exhaustiveness import TEMPERED_BASE, Conversation, Explained, Keeper, Rung, explain, halves
from personae.inference.ladder import FEWEST_CLUSTERS
from personae.instruments.keeping import Shelf
from personae.instruments.scoring import space_of
from personae.instruments.voices import Held, Voice
from personae.models.protocol import Scorable, TokenDistributions
from personae.models.rendering import Frame
from personae.models.soft_prompt import SoftPromptPlan
from personae.protocols.audit_parties import Parties
from personae.protocols.audit_soft import can_learn, soft_voices
from personae.running.pieces import name_of

ALONE = "personas"  # the mixture at temperature 1, as persona selection states it; not nested in the ladder
RIVALS = ("topic", "turn", "cue")
_TURN_BINS = 4

Started = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True, slots=True, eq=False)
class LadderRun:
    """A ladder with what it was measured on.

    Attributes:
        held: Conversations that got a reply.
        components: Labels of the components by id, the base first.
        rungs: The rungs, in order.
        explained: KL of every token under each.
        notes: What a reader must know.
    """

    held: tuple[Held, ...]
    components: tuple[str, ...]
    rungs: tuple[Rung, ...]
    explained: Explained
    notes: tuple[str, ...]


def run_ladder(
    taking_part: Parties,
    held: Sequence[Held],
    *,
    n_shots: int = 4,
    rivals: Sequence[str] = RIVALS,
    soft: SoftPromptPlan | None = None,
    seed: int = 0,
    started: Started = lambda label, total: lambda amount: None,
    shelf: Shelf | None = None,
) -> LadderRun:
    """Measure every rung on conversations that the target held.

    Args:
        taking_part: Who is compared.
        held: What the target said.
        n_shots: Examples of the target's replies for R5; 0 leaves the rung out.
        rivals: Partitions by which a rival may choose weights; one that has a single part is left out.
        soft: How the soft prompt of R6 is learned; None leaves the rung out, as does a base without gradients.
        seed: Of the halves.
        started: Called with a label and a total before each part; gives a function told of progress.
        shelf: Where passes are kept, so that a killed run goes on.

    Raises:
        InvalidSettings: If there are too few prompts.
    """
    held = [h for h in held if h.n_tokens]
    clusters = [h.talk.cluster for h in held]
    if len(set(clusters)) < FEWEST_CLUSTERS:
        raise InvalidSettings(
            f"{len(set(clusters))} prompts got a reply; a ladder that is fitted on one half and judged on the other "
            f"needs at least {FEWEST_CLUSTERS}.",
            hint="Give more --prompts.",
        )
    half = halves(clusters, seed)
    known: dict[tuple[int, Frame, tuple[Turn, ...]], list[Scorable]] = {}
    target = _read_all(taking_part.post, held, known)
    voices, counts, notes = _explainers(taking_part, held, target, half, n_shots, soft, started, shelf)
    advance = started("Reading", len(voices) * len(held))
    parts: list[list[list[TokenDistributions]]] = []
    for pair in voices:
        parts.append(_read_all(pair[0], held, known) if pair[0] is pair[1] else _read_by(pair, held, half))
        advance(len(held))
    keys = _keys(taking_part.post, voices, held, half) if shelf is not None else [""] * len(held)
    conversations = [
        _conversation(h, target[i], [p[i] for p in parts], taking_part.post.model.card.vocab_size, keys[i])
        for i, h in enumerate(held)
    ]
    topics = sorted({t for h in held for t in h.talk.topics})
    labels = [reply_labels(h, topics) for h in held]
    rungs = _rungs(1 + len(taking_part.frames), *counts, len(voices))
    everyone = tuple(range(counts[0]))
    for name in [*rivals, *_mentions(held, rivals)]:
        if len({x for label in labels for x in label[name]}) > 1:
            rungs.append(Rung(f"by {name}", everyone, partition=name))
    advance = started("Ladder", 2 * len(held))
    keeper: Keeper = (lambda name, make: make()) if shelf is None else shelf.passing
    result = explain(conversations, rungs, clusters=clusters, labels=labels, seed=seed, advance=advance, keeper=keeper)
    return LadderRun(tuple(held), tuple(pair[0].id for pair in voices), tuple(rungs), result, tuple(notes))


def _explainers(
    taking_part: Parties,
    held: Sequence[Held],
    target: list[list[TokenDistributions]],
    half: NDArray[np.int64],
    n_shots: int,
    soft: SoftPromptPlan | None,
    started: Started,
    shelf: Shelf | None,
) -> tuple[list[tuple[Voice, Voice]], tuple[int, int, int], list[str]]:
    """Every component as its voices for the two halves; how many R4, R5 and R6 may use; and notes."""
    voices: list[tuple[Voice, Voice]] = [(v, v) for v in taking_part.components]
    n_fixed, notes = len(voices), []
    if n_shots:
        shown = _shot_voices(taking_part.base, held, half, n_shots)
        try:
            for side in (0, 1):
                shown[side].distributions([h for h, s in zip(held, half, strict=True) if s == side][:1])
            voices.append(shown)
        except ContextOverflow:
            notes.append("Examples of the target's replies do not fit the context: rung R5 was left out.")
    n_shown = len(voices)
    reason = can_learn(taking_part.base) if soft is not None else ""
    if reason:
        notes.append(f"Rung R6, the soft prompt, was left out: {reason}")
    elif soft is not None:
        advance = started("Soft prompt", 2 * soft.steps)
        voices.append(soft_voices(taking_part, held, target, half, soft, shelf=shelf, advance=advance))
    n_extra = len(voices)
    if taking_part.again is not None:
        voices.append((taking_part.again, taking_part.again))
    return voices, (n_fixed, n_shown, n_extra), notes


def _keys(
    post: Voice, voices: Sequence[tuple[Voice, Voice]], held: Sequence[Held], half: NDArray[np.int64]
) -> list[str]:
    """For each conversation a name of everything that its distributions are made from."""
    keys: list[str] = []
    for h, side in zip(held, half.tolist(), strict=True):
        read = [(v.model.card, r) for v in (post, *(pair[side] for pair in voices)) for r in v.requests([h])]
        keys.append(name_of([(space_of(card), r.start, r.token_ids) for card, r in read]))
    return keys


def _rungs(n_frames: int, n_fixed: int, n_shown: int, n_extra: int, n_all: int) -> list[Rung]:
    rungs = [
        Rung("R0", (0,), tempered=False),
        Rung(TEMPERED_BASE, (0,)),
        Rung("R2", tuple(range(n_frames)), single=True),
        Rung("R3", tuple(range(n_fixed)), single=True),
        Rung("R4", tuple(range(n_fixed))),
        Rung(ALONE, tuple(range(n_fixed)), tempered=False),
    ]
    if n_shown > n_fixed:
        rungs.append(Rung("R5", tuple(range(n_shown))))
    if n_extra > n_shown:
        rungs.append(Rung("R6", tuple(range(n_extra))))
    if n_all > n_extra:
        rungs.append(Rung("R7", (n_extra,), tempered=False))
    return rungs


def _shot_voices(base: Voice, held: Sequence[Held], half: NDArray[np.int64], n: int) -> tuple[Voice, Voice]:
    """The base shown replies of the target, always of the half that a conversation does not belong to."""
    made: list[Voice] = []
    for side in (0, 1):
        others = [h for h, s in zip(held, half, strict=True) if s != side and h.talk.in_chat and h.texts and h.texts[0]]
        turns: list[Turn] = []
        for h in others[:n]:
            turns += [Turn("user", h.talk.asks[0]), Turn("assistant", h.texts[0])]
        made.append(replace(base, id="shots", shots=tuple(turns), label=f"the base shown {len(turns) // 2} replies"))
    return made[0], made[1]


def _read_all(
    voice: Voice, held: Sequence[Held], known: dict[tuple[int, Frame, tuple[Turn, ...]], list[Scorable]]
) -> list[list[TokenDistributions]]:
    """As `Voice.distributions`, each way of rendering done once."""
    if voice.rendering not in known:
        known[voice.rendering] = voice.requests(held)
    return voice.distributions(held, known[voice.rendering])


def _read_by(
    pair: tuple[Voice, Voice], held: Sequence[Held], half: NDArray[np.int64]
) -> list[list[TokenDistributions]]:
    """Each half read by the voice of its side."""
    out: list[list[TokenDistributions]] = [[] for _ in held]
    for side in (0, 1):
        mine = [i for i, s in enumerate(half) if s == side]
        for i, made in zip(mine, pair[side].distributions([held[i] for i in mine]), strict=True):
            out[i] = made
    return out


def _conversation(
    held: Held, target: list[TokenDistributions], parts: list[list[TokenDistributions]], vocab_size: int, key: str
) -> Conversation:
    ends = np.cumsum([len(r) for r in held.replies])

    def read(start: int, stop: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        return _joined(target, ends, start, stop), np.stack([_joined(p, ends, start, stop) for p in parts])

    reply = np.repeat(np.arange(len(held.replies)), [len(r) for r in held.replies])
    return Conversation(np.array([i for r in held.replies for i in r]), reply, read, vocab_size, key)


def _joined(parts: list[TokenDistributions], ends: NDArray[np.int64], start: int, stop: int) -> NDArray[np.floating]:
    """Log-probabilities at places of the joined replies."""
    pieces: list[NDArray[np.floating]] = []
    first = 0
    for part, end in zip(parts, ends.tolist(), strict=True):
        low, high = max(start, first), min(stop, end)
        if low < high:
            pieces.append(part.log_probs(low - first, high - first))
        first = end
    return np.concatenate(pieces)


def reply_labels(held: Held, everywhere: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """The parts that each reply of a conversation belongs to, by partition; `everywhere` names all topics."""
    n, topics = len(held.replies), held.talk.topics
    most = max(len(held.talk.asks), _TURN_BINS)
    labels = {
        "topic": tuple(topics[:n]),
        "turn": tuple(str(min(t * _TURN_BINS // most, _TURN_BINS - 1)) for t in range(n)),
        "cue": ("cue" if held.talk.cue else "no cue",) * n,
    }
    for topic in everywhere or set(topics):
        labels[f"mention of {topic}"] = tuple("after" if topic in topics[: t + 1] else "before" for t in range(n))
    return labels


def _mentions(held: Sequence[Held], rivals: Sequence[str]) -> list[str]:
    """A partition for each topic where every conversation runs through several; else none."""
    if "topic" not in rivals or min(len(h.replies) for h in held) < 4:
        return []
    return [f"mention of {t}" for t in sorted({t for h in held for t in h.talk.topics})]
