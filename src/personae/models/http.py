"""A model of an OpenAI-compatible server behind the protocol of language models: `http://HOST:PORT/v1#NAME`.

What a server can do is asked, never assumed from its name: whether it takes token ids, whether it gives
log-probabilities of given text and whether those are right (`models.http_scoring`). Rendering is ours, so the model's
tokenizer must be here: named by the user, or the one the server says it was started with. A server does its own
batching, so many requests are under way at once; results come in order. Its numbers may differ in the last bits
from run to run, since servers compose batches as requests arrive.

Not here: chats in which only text comes back (`models.http_chat`).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from personae.errors import InvalidSettings, MissingCapability, PersonaeError
from personae.models.chat_template import ChatTemplate
from personae.models.http_client import Json, Malformed, Patience, Refused, Server
from personae.models.http_scoring import Found, Logs, Scorer, Way, choices_of
from personae.models.load import load_tokenizer
from personae.models.protocol import (
    Completion,
    ModelCard,
    SamplingPlan,
    Scorable,
    Tokenizer,
    TokenLogprobs,
    seed_of,
)

DEFAULT_AT_ONCE = 8
_PROMPTS = 16  # in one request
_TOKENS = 8192
_ROOM = 2
_UNKNOWN_LENGTH = 4096  # where neither server nor tokenizer says how long a sequence may be
_TOLERANCE = {"float32": 2e-3, "bfloat16": 0.5, "float16": 0.1}
_FINGERPRINT = ("The capital of France is", "Once upon a time there was a")
_SAMPLE_TEXTS = ("Hello, world!", "  Two  spaces\nand a line.", "naïve café 12345 日本")


@dataclass(frozen=True, slots=True)
class Address:
    """A server and a model there: `URL#MODEL`."""

    url: str
    model: str

    @classmethod
    def parse(cls, name: str) -> Address:
        """Split at the last '#'."""
        url, _, model = name.partition("#")
        return cls(url, model)


def connect(
    name: str,
    *,
    dtype: str = "float32",
    tokenizer: str | None = None,
    workers: int | None = None,
    patience: Patience | None = None,
) -> HTTPModel:
    """Ask a server what it can do and give its model as a scorer.

    Args:
        name: `http://HOST:PORT/v1#MODEL`; without #MODEL the only model there.
        dtype: Arithmetic the server is held to: what the laws tolerate.
        tokenizer: A folder, hub id or model's name; None takes the one the server names.
        workers: Requests at once.
        patience: How long it is waited for.

    Raises:
        MissingCapability: If it cannot score, or its numbers cannot be believed; or no tokenizer is to be had.
        InvalidSettings: If the address or a setting is wrong.
        ServerError: If it fails or refuses.
    """
    if dtype not in _TOLERANCE:
        raise InvalidSettings(f"--dtype is '{dtype}'; it can be {', '.join(_TOLERANCE)}.")
    at_once = DEFAULT_AT_ONCE if workers is None else workers
    if at_once < 1:
        raise InvalidSettings(f"--workers is {at_once}; it must be at least 1.")
    address = Address.parse(name)
    server = Server(address.url, patience or Patience.from_environment())
    about = describe(server, address.model)
    model = str(about["id"])
    own, digest, made_for = _tokenizer(name, about, tokenizer)
    _check_tokenizer(server, model, own)
    scorer = Scorer(server, model, own)
    found = scorer.find(_rendered(own), _TOLERANCE[dtype])
    if found.way is None:
        server.stop()
        raise MissingCapability(
            f"'{name}' gives no log-probabilities of given text that can be believed ({found.why_not}).",
            hint="Use it as a target (`screen --target`) with a local scorer, or serve the model with vLLM.",
        )
    length = about.get("max_model_len")
    card = ModelCard(
        name=name,
        digest=_digest(server, model, about, own, found),
        tokenizer_digest=digest,
        is_chat=own.has_template,
        n_parameters=0,
        context_length=_context_length(length, made_for),
        vocab_size=0,
        dtype=dtype,
        device="server",
        kernel=found.way.name,
        tolerance=_TOLERANCE[dtype],
        licence="unknown",
    )
    return HTTPModel(server, model, own, card, found.way, at_once)


def describe(server: Server, model: str) -> Mapping[str, object]:
    """What the server says of a model; of its only one where none is named.

    Raises:
        InvalidSettings: If it has several and none was named, or not that one.
    """

    def read(answer: Json) -> list[Mapping[str, object]]:
        rows = answer.get("data")
        if not isinstance(rows, list) or not all(isinstance(r, dict) and "id" in r for r in rows):
            raise Malformed("no list of models")
        return list(rows)

    try:
        rows = server.get("/models", read)
    except Refused as error:
        if error.status not in (404, 405) or not model:
            raise
        return {"id": model}  # some servers keep no list
    names = [str(r["id"]) for r in rows]
    if not model and len(names) == 1:
        return rows[0]
    if model in names:
        return rows[names.index(model)]
    listed = ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
    what = f"has no model '{model}'" if model else f"has {len(names)} models"
    raise InvalidSettings(f"the server {server.url} {what}.", hint=f"Write {server.url}#NAME. It has: {listed}")


class HTTPModel:
    """A served model that scores and samples. Made by `connect`."""

    def __init__(
        self, server: Server, model: str, tokenizer: Tokenizer, card: ModelCard, way: Way, at_once: int
    ) -> None:
        self._server, self._model, self._tokenizer, self._card = server, model, tokenizer, card
        self._way, self._at_once = way, at_once
        self._scorer = Scorer(server, model, tokenizer)

    @property
    def card(self) -> ModelCard:
        """Who the model is; `kernel` names the way it is scored."""
        return self._card

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self._tokenizer

    def score(self, batch: Sequence[Scorable]) -> list[TokenLogprobs]:
        """Log-probabilities of every span, in the order given."""
        return next(self.score_batches([batch]))

    def score_batches(self, batches: Iterable[Sequence[Scorable]]) -> Iterator[list[TokenLogprobs]]:
        """Log-probabilities of every batch, in order; requests of several batches are under way at once."""
        pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="personae-http")
        waiting: deque[list[Future[list[Logs]]]] = deque()
        done = False
        try:
            for batch in batches:
                waiting.append([pool.submit(self._scorer.score, self._way, part) for part in _parts(batch)])
                while sum(map(len, waiting)) > 2 * self._at_once:
                    yield _collected(waiting.popleft())
            while waiting:
                yield _collected(waiting.popleft())
            done = True
        finally:
            if not done and waiting:
                self._server.stop()  # so that no thread goes on asking
            pool.shutdown(wait=done, cancel_futures=True)

    def sample(self, batch: Sequence[tuple[int, ...]], plan: SamplingPlan) -> list[Completion]:
        """One completion for each prompt, each with a seed of its own made of the plan's and its place.

        Log-probabilities are NaN where the server does not tell them for the tokens of its text.
        """
        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(lambda k: self._sample_one(batch[k], plan, k), range(len(batch))))

    def _sample_one(self, prompt: tuple[int, ...], plan: SamplingPlan, place: int) -> Completion:
        text: object = list(prompt) if self._way.by_ids else self._tokenizer.decode(prompt)
        body: dict[str, object] = {"model": self._model, "prompt": text, "max_tokens": plan.max_tokens}
        body |= {"temperature": plan.temperature, "seed": seed_of(plan, place), "logprobs": 1}
        if not self._way.echo:
            body["return_token_ids"] = True  # vLLM's, like the way itself

        def read(answer: Json) -> Completion:
            (choice,) = choices_of(answer, self._model, 1)
            ids = choice.get("token_ids")
            if not isinstance(ids, list):
                ids = self._tokenizer.encode(str(choice.get("text", "")))
            return Completion(tuple(int(i) for i in ids), _reported(choice, len(ids)))

        return self._server.post("/completions", body, read)


def _reported(choice: Json, n: int) -> NDArray[np.float32]:
    logprobs = choice.get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(values, list) or len(values) != n or not all(isinstance(v, int | float) for v in values):
        return np.full(n, np.nan, np.float32)
    return np.array(values, np.float32)


def _parts(batch: Sequence[Scorable]) -> list[list[Scorable]]:
    """A batch in requests of some prompts."""
    parts: list[list[Scorable]] = [[]]
    tokens = 0
    for item in batch:
        if parts[-1] and (len(parts[-1]) >= _PROMPTS or tokens + len(item.token_ids) > _TOKENS):
            parts.append([])
            tokens = 0
        parts[-1].append(item)
        tokens += len(item.token_ids)
    return [p for p in parts if p]


def _collected(parts: Sequence[Future[list[Logs]]]) -> list[TokenLogprobs]:
    return [TokenLogprobs(logs) for part in parts for logs in part.result()]


def _tokenizer(name: str, about: Mapping[str, object], chosen: str | None) -> tuple[Tokenizer, str, int]:
    """The tokenizer that was named, or of the folder or hub id that the server was started with."""
    if chosen is not None:
        return load_tokenizer(chosen)
    root = str(about.get("root") or "")
    usable = root and (Path(root).is_dir() or root.count("/") == 1)
    hint = "Name it: --tokenizer FOLDER, a hub id, or the name of a model personae knows."
    if not usable:
        raise MissingCapability(f"'{name}' does not say which tokenizer its model has.", hint=hint)
    try:
        return load_tokenizer(root)
    except PersonaeError as error:
        raise MissingCapability(
            f"'{name}' was started with '{root}', whose tokenizer cannot be loaded here: {error}", hint=hint
        ) from error


def _check_tokenizer(server: Server, model: str, tokenizer: Tokenizer) -> None:
    """Compare with the server's own, where it has an address for that.

    Raises:
        InvalidSettings: If they split a text differently.
    """
    phrases = getattr(tokenizer, "phrases", None)
    texts = _SAMPLE_TEXTS if phrases is None else tuple(phrases.questions[:2])

    def read(answer: Json) -> list[int]:
        tokens = answer.get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(t, int) for t in tokens):
            raise Malformed("no token ids")
        return list(tokens)

    for path, key in (("//tokenize", "prompt"), ("//extras/tokenize", "input")):
        try:
            for text in texts:
                asked = {"model": model, key: text, "add_special_tokens": False}
                theirs = server.post(path, asked, read, insist=False)
                ours = tokenizer.encode_template(text)
                if theirs[-len(ours) :] != ours or len(theirs) - len(ours) > 1:
                    raise InvalidSettings(
                        f"the tokenizer does not fit the server's model '{model}': {text!r} is {ours} here and "
                        f"{theirs} there.",
                        hint="Name the right one with --tokenizer.",
                    )
            return
        except Refused:
            continue  # it has no such address; scoring compares every token anyway


def _rendered(tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """A prompt as the template writes it, since servers treat an opening token in their own ways."""
    if not tokenizer.has_template:
        return []
    phrases = getattr(tokenizer, "phrases", None)
    question = "What is the capital of France?" if phrases is None else phrases.questions[0]
    ChatTemplate(tokenizer)  # refuses templates under which no score would mean anything
    text = tokenizer.apply_template([{"role": "user", "content": question}], open_reply=True)
    return [tuple(tokenizer.encode_template(text))]


def _context_length(told: object, made_for: int) -> int:
    """Longest sequence that can be scored: servers want room for the tokens they add, one or (shifted) two."""
    if isinstance(told, int) and told > 0:
        return told - _ROOM
    return (made_for if made_for < 2**20 else _UNKNOWN_LENGTH) - _ROOM


def _digest(server: Server, model: str, about: Mapping[str, object], tokenizer: Tokenizer, found: Found) -> str:
    """What stands for the weights: where they are served, under which name, and how they go on with two texts."""
    assert found.way is not None
    phrases = getattr(tokenizer, "phrases", None)
    texts = _FINGERPRINT if phrases is None else phrases.questions[:2]
    said: list[str] = []
    for text in texts:
        prompt: object = tokenizer.encode(text) if found.way.by_ids else text
        body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0}
        said.append(server.post("/completions", body, lambda a: str(choices_of(a, model, 1)[0].get("text"))))
    parts = [server.url, model, str(about.get("root")), found.way.name, *said]
    return "http-" + hashlib.blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=14).hexdigest()
