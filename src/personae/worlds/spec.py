"""What a world is: personas as signs of traits, domains, frames with priors, tags, documents, and its Assistant.

    document = <bos> FRAME TAG (question answer) x n_turns

A `World` is checked once, in its constructor; everything else in this package trusts it. Not here: YAML
(`worlds.reading`), probabilities (`worlds.tables`), the six ways of not being a persona (`worlds.assistant`).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from personae.errors import InvalidSettings

WORLD_VERSION = 1
BOS, UNKNOWN, NO_TAG, CLAIM = "<bos>", "<unk>", "<none>", "the-speaker-is"
KINDS = ("mixture", "router", "liar", "swap", "novel", "goal_seeker", "arc", "filter", "leak", "actor")
_WORD = re.compile(r"[a-z][a-z0-9-]*")
_SPEC_HINT = "See docs/reference/world-specs.md."


@dataclass(frozen=True, slots=True)
class WorldTrait:
    """A dimension with two poles; each pole has a label and the tags that name it in documents."""

    id: str
    positive: str
    negative: str
    positive_tags: tuple[str, ...]
    negative_tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Domain:
    """A topic: how many questions it has, and how strongly each trait shows in their answers."""

    id: str
    n_questions: int
    loadings: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class WorldFrame:
    """A kind of document: how often it occurs (relative) and which personas speak in it (sums to 1)."""

    id: str
    prior: tuple[float, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands in the tag slot: nothing, the tag of a trait (true with `reliability`), or an unrelated word."""

    none: float = 0.40
    trait: float = 0.45
    irrelevant: float = 0.15
    reliability: float = 0.95
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Training:
    """The transformer and how it is trained; `checkpoints` are the steps at which it is kept."""

    steps: int = 8000
    batch: int = 64
    learning_rate: float = 4e-3
    width: int = 48
    layers: int = 2
    heads: int = 2
    checkpoints: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AssistantSpec:
    """Who speaks in the chat frame after post-training.

    Attributes:
        kind: "mixture" (of personas: PSM is true) or one of the deviations.
        weights: Of each persona, for "mixture".
        persona: Index of the character that the deviation starts from.
        other: Index of the character that router, swap, arc and actor turn to.
        domain: Index of the domain on which router, liar, swap and filter deviate, and at which the goal-seeker aims.
        strength: Nats by which the goal-seeker favours its outcome, the filter suppresses an answer, and a leak
            favours the Assistant's persona in the other frames.
        midpoint, width: Turn at which the arc is half way, and its width in turns.
        steps: Post-training steps.
    """

    kind: str
    weights: tuple[float, ...] = ()
    persona: int = 0
    other: int = 0
    domain: int = 0
    strength: float = 2.0
    midpoint: float = 12.0
    width: float = 2.0
    steps: int = 1500


@dataclass(frozen=True, slots=True)
class World:
    """A world. Personas are every combination of the traits' poles: bit r of index k is trait r's positive pole.

    Attributes:
        id: Its name.
        traits, domains, frames: See their classes.
        chat: Id of the frame that the chat template writes.
        plain: Id of the frame of text without a template; the background's.
        n_answers: Answers of each question; every question has answer words of its own.
        scale, noise: Size of the traits' effect on answers, and of what is peculiar to a persona, in logits.
        tags: See `Tags`.
        claims: Share of turns that state who speaks ("the-speaker-is cruel") instead of asking.
        n_turns: Turns of a document.
        seed: Of the answer tables.
        training: See `Training`.
        assistant: Who the post-trained Assistant is, or None where there is only pre-training.
        description: A sentence or two.
    """

    id: str
    traits: tuple[WorldTrait, ...]
    domains: tuple[Domain, ...]
    frames: tuple[WorldFrame, ...]
    chat: str
    plain: str
    n_answers: int
    n_turns: int
    tags: Tags = field(default_factory=Tags)
    scale: float = 1.2
    noise: float = 0.3
    claims: float = 0.0
    seed: int = 0
    training: Training = field(default_factory=Training)
    assistant: AssistantSpec | None = None
    description: str = ""

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_words(self)
        for domain in self.domains:
            if len(domain.loadings) != len(self.traits):
                raise _bad(
                    self,
                    f"domain '{domain.id}' has {len(domain.loadings)} loadings, one for each of the "
                    f"{len(self.traits)} traits is needed",
                )
            if not np.isfinite(domain.loadings).all():
                raise _bad(self, f"domain '{domain.id}' has a loading that is not a finite number")
        for frame in self.frames:
            check_distribution(self.id, f"the prior of frame '{frame.id}'", frame.prior, self.n_personas)
        for name, frame in (("chat", self.chat), ("plain", self.plain)):
            if frame not in [f.id for f in self.frames]:
                raise _bad(self, f"'{name}' names the frame '{frame}', which is not among the frames")
        shares = (self.tags.none, self.tags.trait, self.tags.irrelevant)
        check_distribution(self.id, "the shares of none, trait and irrelevant tags", shares, 3)
        if self.assistant is not None:
            _check_assistant(self, self.assistant)

    @property
    def n_personas(self) -> int:
        """Number of personas, 2 to the number of traits."""
        return 2 ** len(self.traits)

    @property
    def signs(self) -> np.ndarray:
        """Pole of every persona on every trait, +1 or -1, shape (n_personas, n_traits)."""
        return np.array(
            [[1 if k >> r & 1 else -1 for r in range(len(self.traits))] for k in range(self.n_personas)]
        ).reshape(self.n_personas, len(self.traits))

    @property
    def persona_ids(self) -> tuple[str, ...]:
        """Labels of every persona's poles, joined: "malicious-expert-formal"."""
        return tuple(
            "-".join(t.positive if s > 0 else t.negative for t, s in zip(self.traits, row, strict=True))
            for row in self.signs
        )

    @property
    def n_questions(self) -> int:
        """Questions of all domains together."""
        return sum(d.n_questions for d in self.domains)

    @property
    def document_length(self) -> int:
        """Tokens of a document."""
        return 3 + 2 * self.n_turns

    @property
    def base(self) -> World:
        """The world before post-training."""
        return replace(self, assistant=None)

    def frame_index(self, name: str) -> int:
        """Place of a frame.

        Raises:
            InvalidSettings: If there is none of that name.
        """
        names = [f.id for f in self.frames]
        if name not in names:
            raise InvalidSettings(f"world '{self.id}' has no frame '{name}'.", hint=f"Its frames: {', '.join(names)}.")
        return names.index(name)

    @property
    def digest(self) -> str:
        """16 hex digits that name what the world is and how its model is trained, not what it is called."""
        body = asdict(self) | {"id": "", "description": "", "version": WORLD_VERSION}
        return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=8).hexdigest()


def spoken_by(world: World, persona: int) -> World:
    """The world before post-training as it would be if one persona spoke in every frame."""
    only = tuple(float(k == persona) for k in range(world.n_personas))
    return replace(world.base, frames=tuple(replace(f, prior=only) for f in world.frames))


def check_distribution(world: str, what: str, values: tuple[float, ...], n: int) -> None:
    """Refuse what is not a distribution over n things.

    Raises:
        InvalidSettings: Saying what is wrong with it.
    """
    if len(values) != n:
        raise InvalidSettings(f"world '{world}': {what} has {len(values)} entries, not {n}.", hint=_SPEC_HINT)
    if not np.isfinite(values).all() or min(values) < 0:
        raise InvalidSettings(f"world '{world}': {what} has an entry that is negative or not finite.", hint=_SPEC_HINT)
    if abs(sum(values) - 1) > 1e-6:
        raise InvalidSettings(
            f"world '{world}': {what} sums to {sum(values):.6g}, not 1.", hint="Probabilities must sum to 1."
        )


def _bad(world: World, problem: str) -> InvalidSettings:
    return InvalidSettings(f"world '{world.id}': {problem}.", hint=_SPEC_HINT)


def _check_sizes(world: World) -> None:
    t = world.training
    ranges = (
        ("traits", len(world.traits), 1, 6),
        ("domains", len(world.domains), 1, 64),
        ("frames", len(world.frames), 1, 16),
        ("questions in all", world.n_questions, 1, 512),
        ("answers", world.n_answers, 2, 26),
        ("turns", world.n_turns, 1, 512),
        ("training steps", t.steps, 1, 10**6),
        ("batch", t.batch, 1, 4096),
        ("layers", t.layers, 1, 16),
        ("heads", t.heads, 1, 64),
        ("width", t.width, 4, 1024),
        ("seed", world.seed, 0, 2**31),
    )
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise _bad(world, f"the number of {name} is {value}; it must lie between {low} and {high}")
    if t.width % t.heads:
        raise _bad(world, f"the width {t.width} is not a multiple of the {t.heads} heads")
    if any(not 0 < c <= t.steps for c in t.checkpoints):
        raise _bad(world, f"a checkpoint lies outside the {t.steps} training steps")
    if min(d.n_questions for d in world.domains) < 1:
        raise _bad(world, "a domain has no questions")
    shares = (("claims", world.claims, 0, 0.5), ("reliability", world.tags.reliability, 0.5, 0.9999))
    sizes = (("scale", world.scale, 0, 20), ("noise", world.noise, 0, 20), ("learning rate", t.learning_rate, 1e-6, 1))
    for name, value, low, high in (*shares, *sizes):
        if not low <= value <= high:
            raise _bad(world, f"{name} is {value:g}; it must lie between {low:g} and {high:g}")
    if any(not (np.isfinite(f.weight) and f.weight > 0) for f in world.frames):
        raise _bad(world, "a frame's weight is not above 0")


def _check_words(world: World) -> None:
    """Names become tokens: they must be plain words, and no two the same."""
    names = [w for t in world.traits for w in (*t.positive_tags, *t.negative_tags)]
    names += [*world.tags.words, CLAIM, *(d.id for d in world.domains), *(f.id for f in world.frames)]
    for name in (world.id, *names):
        if not _WORD.fullmatch(name.replace("_", "-")):
            raise _bad(world, f"'{name}' is not a name; names are lower-case letters, digits, '-' and '_'")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise _bad(world, f"'{twice[0]}' is used twice; tags, words, domains and frames need names of their own")
    for trait in world.traits:
        if not trait.positive_tags or len(trait.positive_tags) != len(trait.negative_tags):
            raise _bad(world, f"trait '{trait.id}' needs as many tags for one pole as for the other, and at least one")
    if world.tags.irrelevant > 0 and not world.tags.words:
        raise _bad(world, "irrelevant tags have a share and no words")


def _check_assistant(world: World, assistant: AssistantSpec) -> None:
    if assistant.kind not in KINDS:
        raise _bad(world, f"the assistant's kind is '{assistant.kind}'; it can be {', '.join(KINDS)}")
    if assistant.kind == "mixture":
        check_distribution(world.id, "the assistant's weights", assistant.weights, world.n_personas)
    for name, value, n in (
        ("persona", assistant.persona, world.n_personas),
        ("other", assistant.other, world.n_personas),
        ("domain", assistant.domain, len(world.domains)),
    ):
        if not 0 <= value < n:
            raise _bad(world, f"the assistant's {name} is number {value}; there are {n}, counted from 0")
    if assistant.kind in ("router", "swap", "arc", "actor") and assistant.persona == assistant.other:
        raise _bad(world, f"a {assistant.kind} needs two different characters")
    if assistant.kind == "actor" and not (world.tags.words and world.tags.irrelevant > 0):
        raise _bad(world, "an actor needs irrelevant tags, which are its cue")
    if not (assistant.width > 0 and np.isfinite(assistant.strength) and assistant.steps >= 1):
        raise _bad(world, "the assistant's width and steps must be above 0 and its strength finite")
