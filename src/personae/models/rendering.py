"""Dialogue + persona frame -> token ids and the exact span of the completion.

    [ frame: instruction ........ ][ rest: earlier turns ........ ][ completion ]
      shared by all episodes         shared by all personas          scored

The completion is encoded once per episode, so its ids are equal under every frame by construction. What a
template writes after it (end of turn, newline) is never scored. Text from data sets is encoded with the
spelling of special tokens split up, so a row cannot close its own turn.

Not here: anything about likelihoods. Three kinds of frame: the model's own chat template; for base models
plain-text frames (`BASE_STYLES`), which differ in the words around the same turns; and `BARE`, the turns one
after another with no word about who speaks, which is the background's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from personae.domain.episode import Episode
from personae.domain.persona import BACKGROUND, Persona
from personae.errors import ContextOverflow, RenderingError
from personae.models.chat_template import ChatTemplate, Piece, place_of
from personae.models.protocol import Scorable, Tokenizer

# Part of every store key: raise it whenever the same input would give other token ids.
RENDERING_VERSION = 1
# Episodes whose token ids are kept: a request goes over all its episodes once for every frame, so fewer than there are
# in a request would be none.
_KEPT = 16_384


@dataclass(frozen=True, slots=True)
class BaseStyle:
    """Words around the turns for a model without a chat template.

    `header` holds `{instruction}`; the speakers' names open their turns and end where the text begins.
    """

    header: str
    user: str
    assistant: str


BASE_STYLES = {
    "dialogue": BaseStyle("{instruction}\n\n", "Question:", "Answer:"),
    "interview": BaseStyle(
        "Below is an interview. Notes on the speaker: {instruction}\n\n", "Interviewer:", "Speaker:"
    ),
    "story": BaseStyle(
        'A character in a story is described like this: "{instruction}"\n\n', "Someone said:", "The character replied:"
    ),
}


BARE = "bare"


@dataclass(frozen=True, slots=True)
class Frame:
    """One way to put a model into a persona: an instruction in a style. Empty instruction: no persona."""

    persona: str
    instruction: str
    style: str

    @property
    def digest(self) -> bytes:
        """16 bytes that name the frame whatever the persona is called."""
        text = f"{RENDERING_VERSION}\0{self.style}\0{self.instruction}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Renderer:
    """Renders episodes for one tokenizer.

    Args:
        tokenizer: Whose ids are wanted.
        context_length: Most tokens in one sequence.
        truncate: Cut a completion that does not fit instead of refusing the episode.
        base_styles: Styles used for a model without a chat template.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        context_length: int,
        truncate: bool = False,
        base_styles: Sequence[str] = ("dialogue",),
    ) -> None:
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._truncate = truncate
        self._template = ChatTemplate(tokenizer) if tokenizer.has_template else None
        self._styles = ("chat",) if self._template else tuple(base_styles)
        self._longest_prefix = 0
        # Keyed by the content, since ids are only unique in one set.
        self._prefix_ids = lru_cache(maxsize=4096)(self._encode_prefix)
        self._rest_ids = lru_cache(maxsize=4 * _KEPT)(self._encode_rest)
        self._completion = lru_cache(maxsize=_KEPT)(self._encode_completion)
        self._longest = lru_cache(maxsize=_KEPT)(self._longest_context)
        self._is_hard = lru_cache(maxsize=2 * _KEPT)(self._cut_is_hard)

    @property
    def tokenizer(self) -> Tokenizer:
        """Whose ids it gives."""
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens in one sequence."""
        return self._context_length

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles in which every instruction is written."""
        return self._styles

    def frames(self, persona: Persona) -> tuple[Frame, ...]:
        """Every frame of a persona: each instruction in each style."""
        if persona.id == BACKGROUND:
            return (Frame(BACKGROUND, "", BARE),)
        texts = persona.instructions or ("",)
        return tuple(Frame(persona.id, text, style) for text in texts for style in self._styles)

    def reserve(self, frames: Sequence[Frame]) -> None:
        """Learn the longest frame, so that truncation leaves the same tokens under every frame."""
        self._longest_prefix = max((len(self._prefix_ids(f)) for f in frames), default=0)
        self._longest.cache_clear()

    def completion_ids(self, episode: Episode) -> tuple[int, ...]:
        """Ids of the scored tokens, equal under every frame.

        Raises:
            ContextOverflow: If frame, context and completion do not fit and truncation was not asked for.
            RenderingError: If the completion has no tokens.
        """
        ids = self._completion(episode)
        if not ids:
            raise RenderingError(f"{place_of(episode)}: the completion has no tokens.")
        context = self._longest(episode)
        room = self._context_length - context
        if len(ids) <= room:
            return ids
        if not self._truncate or room < 1:
            what = "its context alone fills" if room < 1 else "context and completion exceed"
            raise ContextOverflow(
                f"{place_of(episode)} is too long: {what} the model's {self._context_length} tokens "
                f"(longest persona with context {context}, completion {len(ids)}).",
                hint="Shorten or remove the row, or pass --truncate to score the part of the reply that fits.",
            )
        return ids[:room]

    def kept_of_cut(self, episode: Episode) -> int:
        """How many tokens are left of a completion that truncation cuts; 0 where the completion is whole."""
        kept = len(self.completion_ids(episode))
        return kept if kept < len(self._completion(episode)) else 0

    def render(self, frame: Frame, episode: Episode) -> Scorable:
        """Token ids of an episode under a frame, with the completion as the span."""
        completion = self.completion_ids(episode)
        if frame.style == BARE:
            context = (*self._opening(), *self._rest_ids(episode, BARE, False))
            return Scorable((*context, *completion), len(context))
        prefix = self._prefix_ids(frame)
        if not self._is_hard(episode, bool(frame.instruction)):
            context = self._joint(frame, episode)
            shared = _common_length(prefix, context)
        else:
            context = (*prefix, *self._rest_ids(episode, frame.style, bool(frame.instruction)))
            shared = len(prefix)
        return Scorable((*context, *completion), len(context), min(shared, len(context) - 1))

    def windows(self, episode: Episode, n_tokens: int) -> list[Scorable]:
        """A document without a frame, in pieces of at most `n_tokens` that begin as the document does.

        What fits is one piece, equal to `render` with the background's frame.

        Raises:
            RenderingError: If the document has no tokens.
        """
        opening, ids = self._opening(), self._completion(episode)
        if not ids:
            raise RenderingError(f"{place_of(episode)}: the text has no tokens.")
        room = max(1, n_tokens - len(opening))
        return [Scorable((*opening, *ids[at : at + room]), len(opening)) for at in range(0, len(ids), room)]

    def completion_text(self, episode: Episode) -> list[str]:
        """The scored tokens as text, one string a token; they join to the completion."""
        ids = self.completion_ids(episode)
        ends = [self._tokenizer.decode(ids[: k + 1]) for k in range(len(ids))]
        # A token may end inside a character; the replacement sign waits for the token that completes it.
        shown = [*(e.rstrip("\ufffd") for e in ends[:-1]), ends[-1]]
        return [b[len(a) :] for a, b in zip(["", *shown[:-1]], shown, strict=True)]

    def _longest_context(self, episode: Episode) -> int:
        """Most tokens before the completion under any frame: of a persona, of none, of the background.

        A template's default instruction may be longer than those of the cast, so all three are asked.
        """
        framed = self._longest_prefix + max(len(self._rest_ids(episode, style, True)) for style in self._styles)
        alone = 0 if self._template is None else len(self._rest_ids(episode, self._styles[0], False))
        return max(framed, alone, len(self._opening()) + len(self._rest_ids(episode, BARE, False)))

    def _cut_is_hard(self, episode: Episode, framed: bool) -> bool:
        return self._template is None or self._template.cut_is_hard(episode, framed=framed)

    def _opening(self) -> tuple[int, ...]:
        return self._tokenizer.bos_ids or tuple(self._tokenizer.encode("\n"))

    def _encode_prefix(self, frame: Frame) -> tuple[int, ...]:
        if frame.style == BARE or (self._template is None and not frame.instruction):
            return self._opening()
        if self._template is not None:
            return tuple(self._encode(self._template.before(frame.instruction)))
        header = BASE_STYLES[frame.style].header.format(instruction=frame.instruction)
        return (*self._tokenizer.bos_ids, *self._encode([Piece(header, is_content=True)]))

    def _encode_rest(self, episode: Episode, style: str, framed: bool) -> tuple[int, ...]:
        if style == BARE:
            turns = [Piece(t.text.strip() + "\n\n", is_content=True) for t in episode.context]
            return tuple(self._encode(turns))
        if self._template is not None:
            return tuple(self._encode(self._template.after(episode, framed=framed)))
        return tuple(self._encode(_base_pieces(BASE_STYLES[style], episode)))

    def _joint(self, frame: Frame, episode: Episode) -> tuple[int, ...]:
        assert self._template is not None
        after = self._template.after(episode, framed=bool(frame.instruction))
        return tuple(self._encode([*self._template.before(frame.instruction), *after]))

    def _encode_completion(self, episode: Episode) -> tuple[int, ...]:
        text = episode.completion
        if self._template is not None:
            text = text.strip() if self._template.trims else text
        elif not episode.is_document:
            text = " " + text.lstrip()
        return tuple(self._tokenizer.encode(text))

    def _encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Template text with its special tokens, outside text without.

        Everything is joined and encoded in one go, as a trainer would, unless outside text spells a
        special token: then the pieces are encoded apart.
        """
        joined = "".join(p.text for p in pieces)
        outside = [p.text for p in pieces if p.is_content and p.text]
        if all(self._tokenizer.encode(t) == self._tokenizer.encode_template(t) for t in outside):
            return self._tokenizer.encode_template(joined)
        ids: list[int] = []
        for piece in pieces:
            encode = self._tokenizer.encode if piece.is_content else self._tokenizer.encode_template
            ids += encode(piece.text) if piece.text else []
        return ids


def _base_pieces(style: BaseStyle, episode: Episode) -> list[Piece]:
    opening = {"user": style.user + " ", "assistant": style.assistant + " ", "system": ""}
    pieces: list[Piece] = []
    for turn in episode.context:
        pieces.append(Piece(opening[turn.speaker], is_content=False))
        pieces.append(Piece(turn.text.strip(), is_content=True))
        pieces.append(Piece("\n\n", is_content=False))
    if not episode.is_document:
        pieces.append(Piece(style.assistant, is_content=False))
    return pieces


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
