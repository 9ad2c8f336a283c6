"""JSON over HTTP to one OpenAI-compatible server, with patience: retries, back-off, deadlines, and no secrets told.

What is tried again: refused or dropped connections, timeouts, 408, 409, 429 and 5xx (as long as Retry-After says,
else twice as long each time), and answers that are not what was promised (half a JSON, numbers left out). Waiting is
measured on the monotonic clock, so a clock that jumps changes nothing. The key comes from the environment
(PERSONAE_API_KEY, else OPENAI_API_KEY), goes into one header and is cut out of every message.

Not here: what is asked (`models.http_scoring`, `models.http_chat`).
"""

from __future__ import annotations

import email.utils
import os
import random
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from personae.errors import InvalidSettings, ServerError

Read = TypeVar("Read")
Json = Mapping[str, object]

KEYS = ("PERSONAE_API_KEY", "OPENAI_API_KEY")
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_QUOTED = 300


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server is waited for; seconds."""

    tries: int = 8
    timeout: float = 300.0
    connect: float = 10.0
    first_wait: float = 0.5
    longest_wait: float = 60.0
    longest_asked: float = 600.0

    @classmethod
    def from_environment(cls) -> Patience:
        """The default, with PERSONAE_TIMEOUT seconds for one answer where that is set.

        Raises:
            InvalidSettings: If it is not a positive number.
        """
        given = os.environ.get("PERSONAE_TIMEOUT", "")
        if not given:
            return cls()
        try:
            seconds = float(given)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise InvalidSettings(f"PERSONAE_TIMEOUT is '{given}'; it must be a number of seconds above 0.")
        return cls(timeout=seconds)


class Malformed(Exception):
    """An answer came that is not what was promised; never leaves `models`."""


class _Trouble(Exception):
    """A failure that may pass; with the seconds to wait, and the status where there was an answer."""

    def __init__(self, text: str, wait: float, status: int = 0) -> None:
        super().__init__(text)
        self.wait, self.status = wait, status


class Refused(ServerError):
    """The server does not do this (4xx); carries the status."""

    def __init__(self, message: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


def check_url(url: str) -> str:
    """The address without a closing slash.

    Raises:
        InvalidSettings: If it is none, or holds a user, a password or a query, where keys do not belong.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidSettings(
            f"'{url}' is not the address of a server.", hint="For example http://localhost:8000/v1#NAME"
        )
    if parts.username or parts.password or parts.query:
        raise InvalidSettings(
            "the server's address holds a user, a password or a query; it would stand in every report.",
            hint=f"Leave it out and put the key into {KEYS[0]}.",
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


class Server:
    """One server.

    Args:
        url: Its base, usually ending in /v1.
        patience: How long it is waited for.
        transport: For tests of the transport itself.
    """

    def __init__(self, url: str, patience: Patience, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = check_url(url)
        self._patience = patience
        self._key = next((v for k in KEYS if (v := os.environ.get(k, "").strip())), "")
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=64)
        timeout = httpx.Timeout(patience.timeout, connect=patience.connect, pool=None)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(
            timeout=timeout, limits=limits, headers=headers, transport=transport, follow_redirects=False
        )
        weakref.finalize(self, self._client.close)
        self._stopped = threading.Event()
        self._jitter = random.Random(0)
        self.n_retries = 0

    def get(self, path: str, read: Callable[[Json], Read]) -> Read:
        """What `read` makes of the JSON at `path` below the base; see `post` for what is raised."""
        return self._ask("GET", self.url + path, None, read, insist=True)

    def post(self, path: str, body: Json, read: Callable[[Json], Read], *, insist: bool = True) -> Read:
        """What `read` makes of the answer to `body`.

        Args:
            path: Below the base; "//PATH" is below the host.
            body: Sent as JSON.
            read: Raises `Malformed` for an answer that cannot be used.
            insist: Ask again for an answer that cannot be used; else that, or a second 5xx, is a refusal (some
                servers answer 500 to what they do not know).

        Raises:
            Refused: If the server does not do this; not tried again.
            ServerError: If it failed as often as patience lasts.
        """
        parts = urlsplit(self.url)
        below = f"{parts.scheme}://{parts.netloc}{path[1:]}" if path.startswith("//") else self.url + path
        return self._ask("POST", below, body, read, insist=insist)

    def stop(self) -> None:
        """Give up what is waited for, in every thread."""
        self._stopped.set()
        self._client.close()

    def _ask(self, method: str, url: str, body: Json | None, read: Callable[[Json], Read], *, insist: bool) -> Read:
        trouble, tried = _Trouble("", 0.0), 0
        while tried < self._patience.tries:
            if tried:
                self.n_retries += 1
                if self._stopped.wait(trouble.wait):
                    break
            tried += 1
            try:
                return self._once(method, url, body, read, self._back_off(tried - 1))
            except Malformed as error:
                trouble = _Trouble(f"it sent an answer that cannot be used: {error}", self._back_off(tried - 1), 200)
            except _Trouble as error:
                trouble = error
            if not insist and (trouble.status == 200 or (trouble.status >= 500 and tried > 1)):
                raise Refused(f"the server {self.url} cannot: {self.clean(str(trouble))}", status=trouble.status)
        raise ServerError(
            f"the server {self.url} failed {tried} times: {self.clean(str(trouble))}.",
            hint="What was scored is kept: when the server is well again, the same command goes on from here.",
            retryable=True,
        )

    def _once(self, method: str, url: str, body: Json | None, read: Callable[[Json], Read], wait: float) -> Read:
        try:
            response = self._client.request(method, url, json=body)
        except httpx.TimeoutException as error:
            raise _Trouble(f"it did not answer in time ({type(error).__name__})", wait) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Trouble(f"the connection failed ({type(error).__name__}: {error})", wait) from error
        except RuntimeError as error:
            if self._stopped.is_set():  # what a closed client raises
                raise ServerError(f"the server {self.url} is no longer asked.") from error
            raise
        self._close_if_late(response)
        if response.status_code in _AGAIN:
            said = f"it answered {response.status_code}{self._said(response)}"
            raise _Trouble(said, self._asked_wait(response, wait), response.status_code)
        return read(self._good(response))

    def _close_if_late(self, response: httpx.Response) -> None:
        """Close a connection that was still being made when the client was closed: its pool no longer knows it."""
        stream = response.extensions.get("network_stream")
        if self._stopped.is_set() and stream is not None:
            stream.close()

    def _good(self, response: httpx.Response) -> Json:
        if response.status_code >= 300:
            raise self._refusal(response)
        return _object(response)

    def _back_off(self, attempt: int) -> float:
        """Seconds to wait after a failure: doubled each time, half of it by chance."""
        full = min(self._patience.longest_wait, self._patience.first_wait * 2**attempt)
        return full * (0.5 + 0.5 * self._jitter.random())

    def _asked_wait(self, response: httpx.Response, otherwise: float) -> float:
        """Seconds that Retry-After asks for: a number, or a date against the server's own clock."""
        text = response.headers.get("retry-after", "")
        try:
            seconds = float(text)
        except ValueError:
            until, now = (email.utils.parsedate_tz(t) for t in (text, response.headers.get("date", "")))
            if until is None or now is None:
                return otherwise
            seconds = float(email.utils.mktime_tz(until) - email.utils.mktime_tz(now))
        if not 0 <= seconds < float("inf"):
            return otherwise
        if seconds > self._patience.longest_asked:
            raise ServerError(
                f"the server {self.url} asks to be left alone for {seconds:.0f} seconds.",
                hint="What was scored is kept: the same command goes on from here later.",
                retryable=True,
            )
        return max(seconds, otherwise if seconds == 0 else 0.0)

    def _refusal(self, response: httpx.Response) -> Refused:
        hints = {
            401: f"Put the key into {KEYS[0]}.",
            403: f"The key in {KEYS[0]} may not use this.",
            404: "Is the address right (it usually ends in /v1), and the model's name after '#'?",
        }
        code = response.status_code
        hint = hints.get(code, "" if code >= 400 else "Give the address that it redirects to.")
        return Refused(f"the server {self.url} refused ({code}){self._said(response)}", hint=hint, status=code)

    def _said(self, response: httpx.Response) -> str:
        """The server's own words, shortened and without the key."""
        try:
            value = response.json()
        except (ValueError, UnicodeDecodeError):
            value = response.text
        found = value.get("error", value) if isinstance(value, dict) else value
        text = found.get("message", found) if isinstance(found, dict) else found
        words = " ".join(str(text).split())
        return f": {self.clean(words)[:_QUOTED]}" if words else ""

    def clean(self, text: str) -> str:
        """Text without the key."""
        return text.replace(self._key, "***") if self._key else text


def _object(response: httpx.Response) -> Json:
    try:
        value = response.json()
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"no whole JSON ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise Malformed("the JSON is no object")
    if value.get("error") and "choices" not in value:
        raise Malformed(str(value["error"]))
    return value
