r"""A chat template taken apart around the persona's instruction.

    before(instruction)            after(episode)
    <|im_start|>system\nYou ...    <|im_end|>\n<|im_start|>user\n...<|im_start|>assistant\n

The template is run with markers in the place of all outside text, so that what the template wrote and what
came from a file can be told apart. Asked rather than assumed: whether it knows a system turn and writes it
first (if not, the instruction opens the first user turn), whether it trims text, whether a reply may stand
without a question, and whether the frame stays the same once the reply is added.

Not here: token ids (`models.rendering`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from personae.domain.episode import Episode, Turn
from personae.errors import RenderingError, UnstablePrefix
from personae.models.protocol import Tokenizer

# Private-use characters: no template writes them and none trims them.
_MARK = "\ue000{}\ue001"
_MARKS = re.compile("\ue000(\\d+)\ue001")
_KEPT = 32_768  # of pieces: framed and not, of the episodes that a renderer keeps
_QUESTION_FOR_DOCUMENTS = "Write a short text."
_HINT = "Some templates know no system turn or drop earlier turns; rewrite the row or use another model."


@dataclass(frozen=True, slots=True)
class Piece:
    """Text and whether it comes from outside, and so must not form special tokens."""

    text: str
    is_content: bool


class ChatTemplate:
    """The chat template of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._knows_system = self._system_comes_first()
        self._reply_stands_alone = self._accepts([("assistant", _MARK.format(0))], marks=1)
        self.trims = "\ue000 " not in self._run([("user", "\ue000 ")], open_reply=False)
        self._check_stable()
        # A request goes over its episodes once for every frame.
        self._split_once = lru_cache(maxsize=_KEPT)(self._split)

    def before(self, instruction: str) -> list[Piece]:
        """Pieces up to the end of the instruction; none where there is no instruction."""
        if not instruction:
            return []
        probe = Episode("probe", (Turn("user", "a"),), "b")
        return [*self._split_once(probe, framed=True)[0], Piece(instruction, is_content=True)]

    def after(self, episode: Episode, *, framed: bool) -> list[Piece]:
        """Pieces from the end of the instruction (or from the start) to where the reply begins."""
        return self._split_once(episode, framed=framed)[1]

    def cut_is_hard(self, episode: Episode, *, framed: bool) -> bool:
        """Whether a special token follows the instruction, so that ids on both sides are independent."""
        if not framed:
            return True
        first = self.after(episode, framed=True)[0]
        text = first.text
        return not first.is_content and self._tokenizer.encode(text)[:1] != self._tokenizer.encode_template(text)[:1]

    def _split(self, episode: Episode, *, framed: bool) -> tuple[list[Piece], list[Piece]]:
        """Pieces before and after the instruction's mark (mark 0); before is empty when not framed."""
        contents = [""]  # mark 0 is the instruction
        messages: list[tuple[str, str]] = []
        for turn in self._turns(episode):
            contents.append(turn.text.strip() if self.trims else turn.text)
            messages.append((turn.speaker, _MARK.format(len(contents) - 1)))
        if framed:
            messages = self._with_instruction(messages)
        contents.append("")
        reply = _MARK.format(len(contents) - 1)
        try:
            text = self._run([*messages, ("assistant", reply)], open_reply=False)
        except RenderingError as error:
            raise RenderingError(f"{place_of(episode)}: {error}", hint=_HINT) from error
        if reply not in text:
            raise RenderingError(f"the chat template leaves out the assistant's reply of {place_of(episode)}.")
        if _MARKS.findall(text[: text.index(reply)]) != [str(k) for k in range(0 if framed else 1, len(contents) - 1)]:
            raise RenderingError(
                f"the chat template leaves out, repeats or moves turns of {place_of(episode)}.", hint=_HINT
            )
        pieces: list[Piece] = []
        cut = 0
        for index, part in enumerate(_MARKS.split(text[: text.index(reply)])):
            if index % 2 == 0:
                pieces.append(Piece(part, is_content=False))
            elif part == "0":
                cut = len(pieces)
            else:
                pieces.append(Piece(contents[int(part)], is_content=True))
        kept = [p for p in pieces[cut:] if p.text]
        return [p for p in pieces[:cut] if p.text], kept

    def _turns(self, episode: Episode) -> tuple[Turn, ...]:
        if any(t.speaker == "user" for t in episode.context) or self._reply_stands_alone:
            return episode.context
        return (*episode.context, Turn("user", _QUESTION_FOR_DOCUMENTS))

    def _with_instruction(self, messages: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Mark 0 opens the system turn; or the first user turn where the template knows no system turn."""
        host = "system" if self._knows_system else "user"
        for index, (speaker, text) in enumerate(messages):
            if speaker == host:
                joined = (host, f"{_MARK.format(0)}\n\n{text}")
                return [*messages[:index], joined, *messages[index + 1 :]]
        return [(host, _MARK.format(0)), *messages]

    def _run(self, messages: Sequence[tuple[str, str]], *, open_reply: bool) -> str:
        named = [{"role": speaker, "content": text} for speaker, text in messages]
        return self._tokenizer.apply_template(named, open_reply=open_reply)

    def _system_comes_first(self) -> bool:
        """Whether system text is written once and before all turns, also when turns and a reply follow.

        Some templates put it into the last user turn, or leave it out once there is a reply.
        """
        speakers = ("system", "user", "assistant", "user", "assistant")
        turns = [(speaker, _MARK.format(k)) for k, speaker in enumerate(speakers)]
        for length in (3, 5):
            try:
                marks = _MARKS.findall(self._run(turns[:length], open_reply=False))
            except RenderingError:
                return False
            if marks[:1] != ["0"] or marks.count("0") > 1:
                return False
        return True

    def _accepts(self, messages: Sequence[tuple[str, str]], *, marks: int) -> bool:
        try:
            text = self._run(messages, open_reply=False)
        except RenderingError:
            return False
        return all(text.count(_MARK.format(k)) == 1 for k in range(marks))

    def _check_stable(self) -> None:
        """The prompt with an open reply must open the same prompt with the reply in it."""
        question = [("user", "a")]
        opened = self._run(question, open_reply=True)
        closed = self._run([*question, ("assistant", _MARK.format(0))], open_reply=False)
        if not closed.startswith(opened):
            raise UnstablePrefix(
                "the chat template writes the prompt differently once the reply is added.",
                hint="Scores under such a template would not be those of training; use another template.",
            )


def place_of(episode: Episode) -> str:
    """How an episode is called in a message."""
    return f"episode '{episode.id}'" + (f" (line {episode.line})" if episode.line else "")
