"""A transformers tokenizer behind the small protocol that rendering uses.

Text from data sets is encoded with special tokens split as ordinary text, so that a row which contains
`<|im_end|>` cannot close the turn it stands in. Only text that the template wrote is encoded with its
special tokens alive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from jinja2 import TemplateError
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase

from personae.errors import RenderingError
from personae.models.protocol import Phrases
from personae.worlds.language import CLOSED_HINT, unknown_word


class HFTokenizer:
    """A fast tokenizer of transformers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._bos = _bos_ids(tokenizer)
        self._stop_ids = frozenset(_stop_ids(tokenizer))
        self._is_closed = isinstance(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), WordLevel)

    @property
    def wrapped(self) -> PreTrainedTokenizerBase:
        """The tokenizer of transformers itself."""
        return self._tokenizer

    @property
    def phrases(self) -> Phrases | None:
        """What may be said in a closed vocabulary, as kept with the tokenizer; None where any text may be."""
        kept = self._tokenizer.init_kwargs.get("personae_phrases") if self._is_closed else None
        return None if kept is None else Phrases(*(tuple(kept[k]) for k in ("instructions", "questions", "replies")))

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    @property
    def bos_ids(self) -> tuple[int, ...]:
        """Tokens that open every sequence written without the chat template."""
        return self._bos

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply: the tokenizer's own end, and the ends of turn its vocabulary knows."""
        return self._stop_ids

    @property
    def vocab_size(self) -> int:
        """Number of entries, added tokens included."""
        return len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; a special token's spelling is split like any other text.

        Raises:
            RenderingError: If the vocabulary is closed and lacks a word, or keeps it for its template.
        """
        if self._is_closed:
            for word in text.split():
                if word in self._tokenizer.all_special_tokens:
                    raise RenderingError(f"the word '{word}' may only be written by the template.", hint=CLOSED_HINT)
            return self._known(text)
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def encode_template(self, text: str) -> list[int]:
        """Token ids of text the template wrote; special tokens count."""
        if self._is_closed:
            return self._known(text)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _known(self, text: str) -> list[int]:
        """Ids of the words of a closed vocabulary."""
        words = text.split()
        ids = self._tokenizer.convert_tokens_to_ids(words)
        assert isinstance(ids, list)
        for word, at in zip(words, ids, strict=True):
            if at == self._tokenizer.unk_token_id:
                raise RenderingError(unknown_word(word), hint=CLOSED_HINT)
        return ids

    def apply_template(self, messages: Sequence[dict[str, str]], *, open_reply: bool) -> str:
        """The chat template's text for `messages`.

        Raises:
            RenderingError: If the template refuses the messages (no system turn, roles out of order).
        """
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=open_reply
            )
        except TemplateError as error:
            raise RenderingError(f"the model's chat template refused these turns: {error}") from error
        assert isinstance(text, str)
        return text

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens shown."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def digest(self) -> str:
        """Hash of vocabulary, merges, normaliser and chat template."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        body = backend.to_str() if backend is not None else repr(sorted(self._tokenizer.get_vocab().items()))
        template = getattr(self._tokenizer, "chat_template", None) or ""
        return hashlib.blake2b(f"{body}\0{template}".encode(), digest_size=16).hexdigest()


def _bos_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer itself puts before text. Asked, not guessed: many name a bos they never write."""
    with_special = list(tokenizer("a")["input_ids"])
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for cut in range(len(with_special) + 1):
        if with_special[cut : cut + len(plain)] == plain:
            return tuple(with_special[:cut])
    return ()


def _stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    vocabulary = tokenizer.get_vocab()
    return ids + [vocabulary[t] for t in ("<|im_end|>", "<|endoftext|>", "<end_of_turn>", "<eos>") if t in vocabulary]
