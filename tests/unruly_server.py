"""A real server over a real model, on loopback, that misbehaves on demand.

It serves a world's closed form (or any `LanguageModel`) as an OpenAI-compatible server does: vLLM's way
(`prompt_logprobs`, token ids), the old echo, or text only. Faults are taken from a list, one a request, or by
chance from a seed; `Unruly.log` says what was asked and done.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from personae.errors import PersonaeError
from personae.models.protocol import LanguageModel, SamplingPlan, Scorable

FAULTS = ("stall", "drop", "429", "500", "half", "missing", "wrong order", "garbage")


@dataclass
class Manners:
    """How the server behaves.

    Attributes:
        style: "vllm" (ids, prompt_logprobs, tokenize), "echo" (ids, echo), "text" (echo of text), "chat" (no numbers).
        shift: Places by which echoed numbers are off: +1 reports for token i the number of token i + 1, and so on.
        repeats: Report for each token the probability that it is said again (llama-cpp-python without BOS).
        faults: Fault of each completion request in turn; "" for none.
        chance: Probability of a random fault, from `seed`, at most `most` in a row.
        key: Key that is demanded.
        answers_as: Name of the model in answers.
    """

    style: str = "vllm"
    shift: int = 0
    repeats: bool = False
    faults: list[str] = field(default_factory=list)
    chance: float = 0.0
    most: int = 3
    seed: int = 0
    stall: float = 1.0
    retry_after: str = "0"
    key: str = ""
    answers_as: str = ""
    root: str = ""
    lists_models: bool = True
    noise: float = 0.0
    message: dict[str, Any] | None = None  # of every chat answer, in place of what the model says


class Unruly:
    """A served model. Use as a context manager; `url` names it."""

    def __init__(self, model: LanguageModel, manners: Manners, *, port: int = 0, name: str = "tiny") -> None:
        self.model, self.manners, self.name = model, manners, name
        self.log: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self._rng, self._row, self._lock = random.Random(manners.seed), 0, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one piece, or each answer waits for an acknowledgement
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self, {})

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                outer.answer(self, json.loads(self.rfile.read(length) or b"{}"))

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that are killed leave broken pipes

        self._server = Quiet(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1#{self.name}"

    @property
    def n_completions(self) -> int:
        return sum(path.endswith("completions") for path, _ in self.log)

    def __enter__(self) -> Unruly:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        path = handler.path
        fault = self._next_fault() if path.endswith("completions") else ""
        with self._lock:
            self.log.append((path, fault))
            self.headers.append(dict(handler.headers.items()))
            self.bodies.append(body)
        if self.manners.key and handler.headers.get("authorization") != f"Bearer {self.manners.key}":
            said = {"error": {"message": f"bad key {handler.headers.get('authorization')}"}}
            self._send(handler, 401, said)
            return
        if fault == "stall":
            time.sleep(self.manners.stall)
        if fault == "drop":
            handler.connection.close()
            return
        if fault in ("429", "500"):
            headers = {"retry-after": self.manners.retry_after} if fault == "429" else {}
            self._send(handler, int(fault), {"error": {"message": "busy"}}, headers)
            return
        try:
            status, value = self._made(path, body)
        except (PersonaeError, LookupError, ValueError) as error:  # as servers do that are given what they do not know
            status, value = 500, {"error": {"message": str(error)}}
        if status == 200:
            value = _spoilt(value, fault)
        self._send(handler, status, value, half=fault == "half", garbage=fault == "garbage")

    def _next_fault(self) -> str:
        with self._lock:
            if self.manners.faults:
                return self.manners.faults.pop(0)
            if self._row < self.manners.most and self._rng.random() < self.manners.chance:
                self._row += 1
                return self._rng.choice(FAULTS)
            self._row = 0
            return ""

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        value: object,
        headers: dict[str, str] | None = None,
        *,
        half: bool = False,
        garbage: bool = False,
    ) -> None:
        data = b"<html>oops</html>" if garbage else json.dumps(value).encode()
        if half:
            data = data[: len(data) // 2]
        handler.send_response(status)
        for k, v in (headers or {}).items():
            handler.send_header(k, v)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        handler.wfile.flush()

    def _made(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path == "/v1/models":
            if not self.manners.lists_models:
                return 404, {"error": {"message": "no such address"}}
            row: dict[str, Any] = {"id": self.name}
            if self.manners.style == "vllm":
                row |= {"max_model_len": self.model.card.context_length, "root": self.manners.root}
            return 200, {"object": "list", "data": [row]}
        if path == "/tokenize" and self.manners.style == "vllm":
            return 200, {"tokens": self.model.tokenizer.encode_template(body["prompt"])}
        if body.get("model") != self.name:
            return 404, {"error": {"message": f"the model {body.get('model')} does not exist"}}
        if path == "/v1/chat/completions":
            return 200, self._chat(body)
        if path == "/v1/completions" and self.manners.style != "chat":
            return self._completions(body)
        return 404, {"detail": "Not Found"}

    def _completions(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt = body["prompt"]
        prompts = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], list | str) else [prompt]
        if self.manners.style == "text" and not all(isinstance(p, str) for p in prompts):
            return 422, {"detail": "prompt must be text"}
        room = self.model.card.context_length - int(body.get("max_tokens", 16))
        if any(len(p) > room for p in prompts if isinstance(p, list)):
            return 400, {"error": {"message": f"the prompt and its completion exceed {room} tokens"}}
        choices = [self._choice(p, body, k) for k, p in enumerate(prompts)]
        return 200, {"model": self.manners.answers_as or self.name, "choices": choices}

    def _choice(self, prompt: Any, body: dict[str, Any], k: int) -> dict[str, Any]:
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode_template(prompt) if isinstance(prompt, str) else list(prompt)
        plan = SamplingPlan(int(body.get("max_tokens", 16)), float(body.get("temperature", 1)), body.get("seed") or 0)
        (made,) = self.model.sample([tuple(ids)], plan)
        words = [tokenizer.decode([i]) for i in made.token_ids]
        choice: dict[str, Any] = {"index": k, "text": tokenizer.decode(made.token_ids), "finish_reason": "stop"}
        sampled = [float(v) for v in made.log_probs]
        if body.get("return_token_ids") and self.manners.style == "vllm":
            choice["token_ids"] = list(made.token_ids)
        if body.get("prompt_logprobs") is not None and self.manners.style == "vllm":
            entries = [None if v is None else {str(i): {"logprob": v, "decoded_token": tokenizer.decode([i])}}
                       for i, v in zip(ids, self._echoed(ids), strict=True)]  # fmt: skip
            choice["prompt_logprobs"] = entries
        if body.get("logprobs") is not None:
            texts, values = words, sampled
            if body.get("echo"):
                texts = [tokenizer.decode([i]) for i in ids] + words
                values = [*self._echoed(ids), *sampled]
            choice["logprobs"] = {"tokens": texts, "token_logprobs": values}
        return choice

    def _echoed(self, ids: Sequence[int]) -> list[float | None]:
        """What is reported for each token of a prompt; none for the first."""
        n = len(ids)
        if n == 1:
            return [None]
        right = [None, *self._scores(Scorable(tuple(ids), 1))]
        if self.manners.repeats:  # row i of the logits read at token i instead of token i + 1
            return [None, *(self._scores(Scorable((*ids[: i + 1], ids[i]), i + 1))[0] for i in range(1, n))]
        if self.manners.shift == 0:
            return right
        moved = [right[i + self.manners.shift] if 0 < i + self.manners.shift < n else -3.0 for i in range(n)]
        return [None, *moved[1:]]

    def _scores(self, item: Scorable) -> list[float]:
        values = self.model.score([item])[0].log_probs.astype(float)
        if self.manners.noise:
            values = values - np.abs(self._rng.gauss(0, self.manners.noise))
        return [max(float(v), -9999.0) for v in values]

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.manners.message is not None:
            choice = {"index": 0, "message": self.manners.message}
            return {"model": self.manners.answers_as or self.name, "choices": [choice]}
        text = self.model.tokenizer.apply_template(body["messages"], open_reply=True)
        ids = tuple(self.model.tokenizer.encode_template(text))
        plan = SamplingPlan(int(body.get("max_tokens", 16)), float(body.get("temperature", 1)), body.get("seed") or 0)
        (made,) = self.model.sample([ids], plan)
        said = self.model.tokenizer.decode([i for i in made.token_ids if i not in self.model.tokenizer.stop_ids])
        message = {"role": "assistant", "content": said}
        return {"model": self.manners.answers_as or self.name, "choices": [{"index": 0, "message": message}]}


def _spoilt(value: dict[str, Any], fault: str) -> dict[str, Any]:
    """An answer in which some numbers are missing, or choices stand in another order or are too few."""
    choices = value.get("choices", [])
    if fault == "missing":
        for choice in choices:
            rows = choice.get("prompt_logprobs") or (choice.get("logprobs") or {}).get("token_logprobs")
            if rows:
                rows[-1 if choice.get("prompt_logprobs") else -2] = None
    if fault == "wrong order" and len(choices) > 1:
        return value | {"choices": choices[::-1][:-1]}
    return value


Make = Callable[[LanguageModel, Manners], Unruly]
