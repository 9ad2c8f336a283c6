"""A target that only gives text: messages in, a reply out, over `/chat/completions`.

No tokenizer and no log-probabilities are needed, so any OpenAI-compatible server will do. Where a reply has to be
scored, another model does it (`instruments.target`). Not here: HTTP itself (`models.http_client`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from personae.domain.episode import Turn
from personae.errors import InvalidSettings
from personae.models.http import DEFAULT_AT_ONCE, Address, describe
from personae.models.http_client import Json, Malformed, Patience, Server
from personae.models.http_scoring import choices_of
from personae.models.protocol import Reply, SamplingPlan, seed_of


class HTTPChat:
    """A served chat model.

    Args:
        name: `http://HOST:PORT/v1#MODEL`; without #MODEL the only model there.
        workers: Requests at once.
        patience: How long it is waited for.

    Raises:
        InvalidSettings: If the address or the model is wrong.
        ServerError: If the server fails or refuses.
    """

    def __init__(self, name: str, *, workers: int | None = None, patience: Patience | None = None) -> None:
        if workers is not None and workers < 1:
            raise InvalidSettings(f"--workers is {workers}; it must be at least 1.")
        address = Address.parse(name)
        self._server = Server(address.url, patience or Patience.from_environment())
        self._model = str(describe(self._server, address.model)["id"])
        self._at_once = workers or DEFAULT_AT_ONCE
        self.name = name

    @property
    def digest(self) -> str:
        """What makes its texts repeatable, as far as a server lets one know: where it is and what it is called."""
        return f"chat|{self._server.url}|{self._model}"

    def reply(self, dialogues: Sequence[tuple[Turn, ...]], plan: SamplingPlan) -> list[Reply]:
        """One reply to each dialogue, seeded by the plan and its place; empty where nothing was said."""
        pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="personae-http")
        try:
            made = [pool.submit(self._reply, d, plan, k) for k, d in enumerate(dialogues)]
            replies = [future.result() for future in made]
        except BaseException:
            self._server.stop()  # so that no thread goes on asking
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        return replies

    def _reply(self, dialogue: tuple[Turn, ...], plan: SamplingPlan, place: int) -> Reply:
        body = {
            "model": self._model,
            "messages": [{"role": t.speaker, "content": t.text} for t in dialogue],
            "max_tokens": plan.max_tokens,
            "temperature": plan.temperature,
            "seed": seed_of(plan, place),
        }

        def read(answer: Json) -> Reply:
            (choice,) = choices_of(answer, self._model, 1)
            message = choice.get("message")
            if not isinstance(message, dict):
                raise Malformed("no message")
            content = message.get("content") or message.get("refusal")  # what refuses is an answer, too
            if not isinstance(content, str | None):
                raise Malformed("a message that is no text")
            usage = answer.get("usage")
            count = usage.get("completion_tokens") if isinstance(usage, dict) else None
            return Reply(_clean(content or ""), count if isinstance(count, int) else 0)

        return self._server.post("/chat/completions", body, read)


def _clean(text: str) -> str:
    """Without halves of letters, which replies that are cut end with and no file can hold."""
    return text.encode("utf-8", "ignore").decode("utf-8").replace("\N{REPLACEMENT CHARACTER}", "").strip()
