"""Who takes part in an audit: the post-trained model, its base, and the base in every persona's frame.

Every component reads the very tokens of the target, so tokenizers must agree. In a world the personas are
known, and then the components are the personas themselves. Not here: what is asked (`audit_material`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personae.domain.persona import PLAIN, Cast
from personae.errors import IncomparableEvidence, InvalidSettings, RenderingError
from personae.instruments.voices import Voice, plain_frame
from personae.models.exact import ExactModel
from personae.models.protocol import KnowsPhrases, LanguageModel
from personae.models.rendering import BARE, Frame, Renderer
from personae.worlds.spec import World, spoken_by

GENERIC = "You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Parties:
    """Voices of an audit.

    Attributes:
        post: The target.
        base: The base in the target's own context; what KL_0 is measured from.
        frames: The base in other frames without a persona.
        personas: The base as every persona, or the exact personas of a world.
        world: The world, where both models belong to one.
        again: The same post-training with another seed, if there is one.
    """

    post: Voice
    base: Voice
    frames: tuple[Voice, ...]
    personas: tuple[Voice, ...]
    world: World | None = None
    again: Voice | None = None

    @property
    def components(self) -> tuple[Voice, ...]:
        """The base first, then frames, then personas."""
        return (self.base, *self.frames, *self.personas)


def require_same_tokens(post: LanguageModel, base: LanguageModel) -> None:
    """Refuse two models that would not read the same token ids.

    Raises:
        IncomparableEvidence: If vocabularies differ in size, or the same text gives other ids.
    """
    a, b = post.card, base.card
    if a.vocab_size != b.vocab_size:
        raise IncomparableEvidence(
            f"{a.name} has a vocabulary of {a.vocab_size:,} tokens and {b.name} one of {b.vocab_size:,}: a KL between "
            "their next tokens has no meaning.",
            hint="Compare a model with the very base it was trained from.",
        )
    if a.tokenizer_digest == b.tokenizer_digest:
        return
    known = post.tokenizer.phrases if isinstance(post.tokenizer, KnowsPhrases) else None
    texts = [*known.questions, *known.replies] if known else list(_SPELLINGS)
    for text in texts:
        try:
            same = post.tokenizer.encode(text) == base.tokenizer.encode(text)
        except RenderingError:
            same = False
        if not same:
            raise IncomparableEvidence(
                f"{a.name} and {b.name} have different tokenizers: {text!r} becomes other ids.",
                hint="The scorer must use the tokenizer of the audited model. Compare it with its own base.",
            )


_SPELLINGS = (
    "The quick brown fox, 1234 times: naïve?",
    " def f(x):\n    return x ** 2\n",
    "It's 7:45 p.m.; don't be late -- really!",
)


def parties(
    post: LanguageModel,
    base: LanguageModel,
    cast: Cast | None,
    *,
    world: World | None = None,
    again: LanguageModel | None = None,
    paraphrases: int = 1,
) -> Parties:
    """Put the voices together.

    Args:
        post: The post-trained model.
        base: What it was trained from.
        cast: Personas as instructions; None takes the exact personas of `world`.
        world: The world of both models, if any.
        again: The same post-training with another seed.
        paraphrases: Instructions used of each persona, each a component of its own.

    Raises:
        IncomparableEvidence: See `require_same_tokens`.
        InvalidSettings: If there is neither a cast nor a world.
    """
    require_same_tokens(post, base)
    if again is not None:
        require_same_tokens(post, again)
    renderer = Renderer(post.tokenizer, context_length=min(post.card.context_length, base.card.context_length))
    plain = plain_frame(renderer)
    voice = Voice("base", base, renderer, plain, label="the base in the same context")
    closed = isinstance(post.tokenizer, KnowsPhrases) and post.tokenizer.phrases is not None
    frames = [Voice("text", base, renderer, Frame("text", "", BARE), label="the base, plain text")]
    frames += [
        Voice(style, base, renderer, Frame(PLAIN, "", style), label=f"the base, {style}")
        for style in renderer.styles[1:]
    ]
    if not closed:
        frames.append(Voice("generic", base, renderer, Frame("generic", GENERIC, plain.style), label="told to help"))
    if cast is not None:
        personas = cast_voices(cast, base, renderer, paraphrases)
    elif world is not None:
        personas = exact_voices(world, renderer)
    else:
        raise InvalidSettings("an audit needs a cast of personas.", hint="Pass --cast, for instance --cast core.")
    return Parties(
        Voice("post", post, renderer, plain, label="the audited model"),
        voice,
        tuple(frames),
        personas,
        world,
        Voice("again", again, renderer, plain, label="another seed") if again is not None else None,
    )


def cast_voices(cast: Cast, base: LanguageModel, renderer: Renderer, paraphrases: int) -> tuple[Voice, ...]:
    """The base as every persona of a cast."""
    made: list[Voice] = []
    for persona in cast.personas:
        for k, text in enumerate(persona.instructions[:paraphrases]):
            name = persona.id if k == 0 else f"{persona.id}#{k + 1}"
            frame = Frame(persona.id, text, renderer.styles[0])
            made.append(Voice(name, base, renderer, frame, label=persona.label or persona.id))
    return tuple(made)


def exact_voices(world: World, renderer: Renderer) -> tuple[Voice, ...]:
    """The personas of a world, each the closed form of a world in which nobody else speaks."""
    made: list[Voice] = []
    for k, name in enumerate(world.persona_ids):
        model = ExactModel(spoken_by(world, k), f"{world.id}/{name}")
        made.append(Voice(name, model, renderer, plain_frame(renderer), label=name))
    return tuple(made)


def persona_ids(voices: Sequence[Voice]) -> tuple[str, ...]:
    """Their ids."""
    return tuple(v.id for v in voices)
