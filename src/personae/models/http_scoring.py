"""Ways to get the log-probabilities of given text out of a server, and the law that each must pass first.

    prompt_logprobs   vLLM's extension: token ids in, one number for every id out
    echo, ids         OpenAI's old completions: the prompt is sent back with numbers; sent as token ids
    echo, text        the same for servers that take text only; refused wherever they split it otherwise

A way is believed only after the greedy token and the number reported while sampling it were found again by
scoring prompt and token (sample = score, one token at a time). Some servers report every number one place off
(llama-cpp-python for models without an opening token): if the same shift mends every probe it is corrected, else the
way is refused. Not here: HTTP itself (`models.http_client`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from personae.errors import RenderingError, ServerError
from personae.models.http_client import Json, Malformed, Refused, Server
from personae.models.protocol import Scorable, Tokenizer

Logs = NDArray[np.float32]
_SHIFTS = (0, -1, 1)
_IMPOSSIBLE = -9999.0  # what vLLM writes for minus infinity, which JSON cannot hold
_PROBES = ("The capital of", "\nWhat is the capital of France?\n", "one two three four five six")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to score.

    Attributes:
        name: What it is called in a model's card.
        by_ids: Whether prompts are sent as token ids; else as text.
        echo: Whether numbers come back as an echo; else as `prompt_logprobs`.
        shift: Where the number of token i stands: at i + shift of the echoed list.
        many: Whether several prompts may go into one request.
    """

    name: str
    by_ids: bool
    echo: bool
    many: bool
    shift: int = 0


WAYS = (
    Way("prompt_logprobs", by_ids=True, echo=False, many=True),
    Way("echo", by_ids=True, echo=True, many=True),
    Way("echo of text", by_ids=False, echo=True, many=False),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a server was found to do.

    Attributes:
        way: The way to score; None if it has none that may be believed.
        why_not: Why the others were left, in words.
        takes_ids: Whether prompts may be token ids.
    """

    way: Way | None
    why_not: str
    takes_ids: bool


class Scorer:
    """Scores through a server in one way.

    Args:
        server: Where.
        model: Its name there.
        tokenizer: The model's own.
    """

    def __init__(self, server: Server, model: str, tokenizer: Tokenizer) -> None:
        self._server, self._model, self._tokenizer = server, model, tokenizer

    def score(self, way: Way, items: Sequence[Scorable], *, insist: bool = True) -> list[Logs]:
        """Log-probabilities of every span, nats, from one request (or one each where `way` takes one prompt).

        With `insist` an answer without the numbers is asked for again.

        Raises:
            ServerError: If the server fails, or leaves out or misplaces numbers however often it is asked.
            RenderingError: If it splits a text otherwise than the tokenizer does.
        """
        if not way.many and len(items) > 1:
            return [logs for item in items for logs in self.score(way, [item], insist=insist)]
        prompts: list[object] = [self._prompt(way, _sent(way, item)) for item in items]
        body: dict[str, object] = {"model": self._model, "prompt": prompts if way.many else prompts[0]}
        body |= {"max_tokens": 1, "temperature": 0}
        body |= {"echo": True, "logprobs": 1} if way.echo else {"prompt_logprobs": 0}

        def read(answer: Json) -> list[Logs]:
            choices = choices_of(answer, self._model, len(items))
            one = self._read_echo if way.echo else self._read_prompt
            return [one(way, item, choice) for item, choice in zip(items, choices, strict=True)]

        return self._server.post("/completions", body, read, insist=insist)

    def greedy(self, prompt: Sequence[int], way: Way) -> tuple[int, float] | None:
        """The likeliest next token and the log-probability reported for it, nats; None if its id cannot be told.

        Raises:
            Refused: If the server reports none.
        """
        text = self._prompt(way, prompt)
        body = {"model": self._model, "prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 1}
        if not way.echo:
            body["return_tokens_as_token_ids"] = True  # vLLM's, like the way itself

        def read(answer: Json) -> tuple[int, float] | None:
            (choice,) = choices_of(answer, self._model, 1)
            logprobs = choice.get("logprobs")
            tokens = logprobs.get("tokens") if isinstance(logprobs, dict) else None
            values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
            if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != 1 or len(values) != 1:
                raise Malformed("no log-probability of the sampled token")
            token = self._id_of(str(tokens[0]))
            return None if token is None else (token, _number(values[0], "the sampled token"))

        return self._server.post("/completions", body, read, insist=False)

    def _id_of(self, token: str) -> int | None:
        if token.startswith("token_id:"):
            return int(token.removeprefix("token_id:"))
        for encode in (self._tokenizer.encode_template, self._tokenizer.encode):
            try:
                ids = encode(token)
            except RenderingError:
                continue
            if len(ids) == 1 and self._tokenizer.decode(ids) == token:
                return ids[0]
        return None  # a piece of a character, which no text is

    def _prompt(self, way: Way, token_ids: Sequence[int]) -> object:
        return list(token_ids) if way.by_ids else self._tokenizer.decode(token_ids)

    def _read_prompt(self, way: Way, item: Scorable, choice: Json) -> Logs:
        rows = choice.get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) != len(item.token_ids):
            raise Malformed("no log-probability for every token of the prompt")
        values: list[float] = []
        for at in range(item.start, len(item.token_ids)):
            row, token = rows[at], item.token_ids[at]
            entry = row.get(str(token)) if isinstance(row, dict) else None
            if not isinstance(entry, dict):
                raise Malformed(f"token {at} of the prompt has no log-probability")
            shown = entry.get("decoded_token")
            if isinstance(shown, str) and not _same_text(shown, self._tokenizer.decode([token])):
                raise _other_tokenizer(self._tokenizer.decode([token]), shown)
            values.append(_number(entry.get("logprob"), f"token {at}"))
        return np.array(values, np.float32)

    def _read_echo(self, way: Way, item: Scorable, choice: Json) -> Logs:
        logprobs = choice.get("logprobs")
        tokens = logprobs.get("tokens") if isinstance(logprobs, dict) else None
        values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
            raise Malformed("the echo has no log-probabilities")
        sent = _sent(way, item)
        lacking = self._opening_left_out(sent, tokens)
        n = len(sent)
        if len(tokens) + lacking < n:
            raise Malformed(f"the echo has {len(tokens)} tokens of {n}")
        for at in range(lacking, n):
            ours, theirs = sent[at], str(tokens[at - lacking])
            same = theirs == f"token_id:{ours}" or _same_text(theirs, self._tokenizer.decode([ours]))
            if not same:
                if way.by_ids:
                    raise _other_tokenizer(self._tokenizer.decode([ours]), theirs)
                raise RenderingError(
                    f"the server splits a text otherwise than the tokenizer does: {theirs!r} where it has "
                    f"{self._tokenizer.decode([ours])!r}.",
                    hint="This server takes text only. Use one that takes token ids, or leave the row out.",
                )
        places = [at - lacking + way.shift for at in range(item.start, len(item.token_ids))]
        if places[0] < 0:
            raise Malformed("the echo begins too late")
        return np.array([_number(values[p], f"token {p}") for p in places], np.float32)

    def _opening_left_out(self, ours: Sequence[int], tokens: Sequence[object]) -> int:
        """1 where the server does not echo the token that opens a sequence."""
        if len(ours) < 2 or not tokens:
            return 0
        first, second = (self._tokenizer.decode([i]) for i in ours[:2])
        return int(not _same_text(str(tokens[0]), first) and _same_text(str(tokens[0]), second))

    def find(self, prompts: Sequence[Sequence[int]], tolerance: float) -> Found:
        """The first way that the server has and that passes its law.

        Args:
            prompts: Rendered prompts to probe with, besides plain ones.
            tolerance: Largest disagreement, nats.
        """
        reasons: list[str] = []
        opening = self._tokenizer.bos_ids
        probes = [*((*opening, *self._tokenizer.encode(t)) for t in self._probe_texts()), *map(tuple, prompts)]
        takes_ids = False
        for way in WAYS:
            if way.by_ids and not (takes_ids or self._takes_ids(probes[0])):
                continue
            takes_ids = takes_ids or way.by_ids
            try:
                found, reason = self._check(way, probes, tolerance)
            except Refused as error:
                if error.status in (401, 403):
                    raise
                found, reason = None, str(error).partition(": ")[2] or f"refused ({error.status})"
            except RenderingError as error:
                found, reason = None, str(error)
            if found is not None:
                return Found(found, "", takes_ids)
            reasons.append(f"{way.name}: {reason}")
        return Found(None, "; ".join(reasons), takes_ids)

    def _probe_texts(self) -> tuple[str, ...]:
        phrases = getattr(self._tokenizer, "phrases", None)
        return _PROBES if phrases is None else tuple(phrases.questions[:2])

    def _takes_ids(self, prompt: Sequence[int]) -> bool:
        body = {"model": self._model, "prompt": list(prompt), "max_tokens": 1, "temperature": 0}
        try:
            self._server.post("/completions", body, lambda answer: choices_of(answer, self._model, 1), insist=False)
        except Refused as error:
            if error.status in (401, 403):
                raise
            return False
        return True

    def _check(self, way: Way, probes: Sequence[tuple[int, ...]], tolerance: float) -> tuple[Way | None, str]:
        """The way with the shift under which every probe agrees with sampling; or why there is none."""
        self.score(way, [Scorable(probes[0], 1)], insist=False)
        sampled = [(probe, self.greedy(probe, way)) for probe in probes]
        truth = [(Scorable((*probe, told[0]), len(probe)), told[1]) for probe, told in sampled if told is not None]
        if len(truth) < min(2, len(probes)):
            return None, "it names no sampled token by which its numbers could be checked"
        gaps: list[float] = []
        for shift in _SHIFTS if way.echo else (0,):
            shifted = replace(way, shift=shift)
            off = [abs(self._one(shifted, item) - value) for item, value in truth]
            gaps.append(max((gap for gap in off if np.isfinite(gap)), default=np.inf))
            if max(off) <= tolerance:
                name = way.name if shift == 0 else f"{way.name}, shifted by {shift:+d} and corrected"
                return replace(shifted, name=name), ""
        elsewhere = "; places to the left and right do not fit either" if way.echo else ""
        return None, (
            f"its log-probabilities of given text are not those of sampling (off by {gaps[0]:.3g} nats{elsewhere})"
        )

    def _one(self, way: Way, item: Scorable) -> float:
        """The number of the last token; infinitely far off where there is none."""
        try:
            value = float(self.score(way, [item], insist=False)[0][-1])
        except Refused:
            return float("inf")
        return value if np.isfinite(value) else float("inf")


def _sent(way: Way, item: Scorable) -> tuple[int, ...]:
    """What is sent: one token more where the last number stands a place to the right."""
    return (*item.token_ids, item.token_ids[-1]) if way.shift > 0 else item.token_ids


def choices_of(answer: Json, model: str, n: int) -> list[Json]:
    """The choices of an answer, in the order of the prompts.

    Raises:
        Malformed: If there are not `n`, or they come twice.
        ServerError: If another model answered.
    """
    who = answer.get("model")
    if isinstance(who, str) and who != model and not who.startswith(model):
        raise ServerError(f"the server was asked for the model '{model}' and '{who}' answered.")
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != n or not all(isinstance(c, dict) for c in choices):
        raise Malformed(f"not one choice for each of {n} prompts")
    by_place = {c.get("index", k): c for k, c in enumerate(choices)}
    if sorted(by_place) != list(range(n)):
        raise Malformed("choices without their places")
    return [by_place[k] for k in range(n)]


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or np.isnan(value) or value > 1e-3:
        raise Malformed(f"the log-probability of {what} is {value!r}")
    return -np.inf if value <= _IMPOSSIBLE else min(0.0, float(value))


def _same_text(a: str, b: str) -> bool:
    """Whether two spellings of a token agree; half a character is written in several ways."""
    return a == b or "\ufffd" in a or "\ufffd" in b or a.startswith("bytes:")


def _other_tokenizer(ours: str, theirs: str) -> RenderingError:
    return RenderingError(
        f"the tokenizer does not fit the server's model: an id is {ours!r} here and {theirs!r} there.",
        hint="Name the right one with --tokenizer.",
    )
