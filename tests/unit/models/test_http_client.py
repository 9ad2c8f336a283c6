"""Patience with a server, and discretion about the key."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from personae.errors import InvalidSettings, ServerError
from personae.models.http_client import Malformed, Patience, Refused, Server, check_url

QUICK = Patience(tries=4, timeout=0.5, connect=0.5, first_wait=0.01, longest_wait=0.05, longest_asked=2.0)
SECRET = "sk-very-secret-0123456789"


class Script:
    """Answers in turn; an exception is raised as the transport would."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.seen = list(answers), []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def server_of(script: Script, patience: Patience = QUICK) -> Server:
    return Server("http://127.0.0.1:9/v1", patience, transport=httpx.MockTransport(script))


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PERSONAE_API_KEY", "OPENAI_API_KEY", "PERSONAE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


def good(**more: object) -> httpx.Response:
    return httpx.Response(200, json={"choices": [], **more})


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.Response(429, json={"error": {"message": "slow down"}}),
        httpx.Response(500),
        httpx.Response(503, text="<html>"),
        httpx.Response(200, text='{"choices": ['),
        httpx.Response(200, json=[1]),
        httpx.Response(200, json={"error": {"message": "overloaded"}}),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("dropped"),
        httpx.ReadError("reset"),
    ],
    ids=lambda t: type(t).__name__ + str(getattr(t, "status_code", "")),
)
def test_what_may_pass_is_tried_again(trouble: httpx.Response | Exception) -> None:
    script = Script(trouble, trouble, good(x=1))
    server = server_of(script)
    assert server.post("/completions", {"prompt": "a"}, lambda a: a["x"]) == 1
    assert (len(script.seen), server.n_retries) == (3, 2)
    assert len({r.read() for r in script.seen}) == 1


def test_an_answer_that_the_reader_rejects_is_asked_for_again_if_it_matters() -> None:
    def read(answer):
        if "x" not in answer:
            raise Malformed("no x")
        return answer["x"]

    assert server_of(Script(good(), good(x=2))).post("/c", {}, read) == 2
    with pytest.raises(ServerError, match=r"cannot: .*no x"):
        server_of(Script(good(), good(x=2))).post("/c", {}, read, insist=False)


def test_patience_ends_and_says_what_to_do() -> None:
    script = Script(*[httpx.Response(503)] * 4)
    with pytest.raises(ServerError, match="failed 4 times: it answered 503") as caught:
        server_of(script).post("/c", {}, dict)
    assert caught.value.retryable
    assert caught.value.exit_status == 3
    assert "goes on from here" in caught.value.hint


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422, 301])
def test_a_refusal_is_not_tried_again(status: int) -> None:
    script = Script(httpx.Response(status, json={"detail": "no"}))
    with pytest.raises(Refused, match=rf"refused \({status}\).*no") as caught:
        server_of(script).post("/c", {}, dict)
    assert (caught.value.status, len(script.seen)) == (status, 1)


def seconds_for(headers: dict[str, str]) -> float:
    script = Script(httpx.Response(429, headers=headers), good())
    began = time.monotonic()
    server_of(script).post("/c", {}, dict)
    return time.monotonic() - began


def test_retry_after_is_heeded_in_seconds_and_as_a_date_of_the_servers_clock() -> None:
    assert seconds_for({"retry-after": "0.4"}) >= 0.4
    dates = {"date": "Sat, 01 Jan 2000 00:00:00 GMT", "retry-after": "Sat, 01 Jan 2000 00:00:01 GMT"}
    assert 1.0 <= seconds_for(dates) < 2.0
    for nonsense in ("soon", "-5", "nan", "inf", ""):
        assert seconds_for({"retry-after": nonsense}) < 0.4


def test_a_server_that_wants_to_be_left_alone_for_long_ends_the_run() -> None:
    with pytest.raises(ServerError, match="left alone for 3600 seconds"):
        server_of(Script(httpx.Response(429, headers={"retry-after": "3600"}))).post("/c", {}, dict)


def test_waiting_does_not_look_at_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1e9, 0.0, 2e9, -1e9] * 100)
    monkeypatch.setattr(time, "time", lambda: next(times))
    script = Script(httpx.Response(500), httpx.ReadTimeout("slow"), good())
    began = time.monotonic()
    server_of(script).post("/c", {}, dict)
    assert time.monotonic() - began < 1.0


def test_waits_grow_and_stay_below_their_bound() -> None:
    server = server_of(Script(), Patience(first_wait=1.0, longest_wait=8.0))
    waits = [server._back_off(k) for k in range(8)]
    assert all(0.5 * min(8, 2**k) <= w <= min(8, 2**k) for k, w in enumerate(waits))


@pytest.mark.parametrize("variable", ["PERSONAE_API_KEY", "OPENAI_API_KEY"])
def test_the_key_goes_into_its_header_and_into_no_message(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, SECRET)
    for answer in (
        httpx.Response(401, json={"error": {"message": f"wrong key {SECRET}"}}),
        httpx.Response(500, text=f"key was {SECRET}"),
        httpx.Response(404, json={"detail": {"headers": {"authorization": f"Bearer {SECRET}"}}}),
        httpx.ConnectError(f"proxy said {SECRET}"),
    ):
        script = Script(*[answer] * 4)
        with pytest.raises(ServerError) as caught:
            server_of(script).post("/c", {}, dict)
        assert script.seen[0].headers["authorization"] == f"Bearer {SECRET}"
        assert SECRET not in f"{caught.value}{caught.value.hint}{caught.value.args}"


def test_without_a_key_no_header_is_sent() -> None:
    script = Script(good())
    server_of(script).post("/c", {}, dict)
    assert "authorization" not in script.seen[0].headers


@pytest.mark.parametrize(
    "url", ["http://user:pw@host/v1", "http://host/v1?key=a", "ftp://host", "http://", "host:8000/v1"]
)
def test_addresses_that_cannot_be(url: str) -> None:
    with pytest.raises(InvalidSettings):
        check_url(url)


def test_an_address_may_end_in_a_slash_and_paths_may_lie_above_it() -> None:
    script = Script(good(), good())
    server = Server("http://127.0.0.1:9/v1/", QUICK, transport=httpx.MockTransport(script))
    server.post("/completions", {}, dict)
    server.post("//tokenize", {}, dict)
    assert [str(r.url) for r in script.seen] == ["http://127.0.0.1:9/v1/completions", "http://127.0.0.1:9/tokenize"]


def test_the_time_for_an_answer_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAE_TIMEOUT", "12.5")
    assert Patience.from_environment().timeout == 12.5
    for bad in ("0", "-1", "soon", "inf", "nan"):
        monkeypatch.setenv("PERSONAE_TIMEOUT", bad)
        with pytest.raises(InvalidSettings, match="PERSONAE_TIMEOUT"):
            Patience.from_environment()


def test_a_stopped_server_is_asked_no_more() -> None:
    server = server_of(Script(good()))
    server.stop()
    with pytest.raises(ServerError, match="no longer asked"):
        server.post("/c", {}, dict)


class _Polite(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_connection_that_is_made_while_the_server_is_given_up_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    connecting, go, made = threading.Event(), threading.Event(), []
    connect = socket.create_connection

    def slowly(*where: object, **how: object) -> socket.socket:
        connecting.set()
        assert go.wait(10)
        made.append(connect(*where, **how))  # type: ignore[arg-type]
        return made[-1]

    with ThreadingHTTPServer(("127.0.0.1", 0), _Polite) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        server = Server(f"http://127.0.0.1:{listener.server_port}/v1", QUICK)
        monkeypatch.setattr(socket, "create_connection", slowly)

        def ask() -> None:
            with contextlib.suppress(ServerError):
                server.get("/models", lambda answer: answer)

        asking = threading.Thread(target=ask)
        asking.start()
        assert connecting.wait(10)
        server.stop()
        go.set()
        asking.join(10)
        listener.shutdown()
    assert [s.fileno() for s in made] == [-1]
