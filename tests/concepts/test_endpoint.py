"""A server may answer anything; it gets no key of others, and no more time than it was given."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from basis_probe.concepts import Endpoint
from basis_probe.concepts import explain as module

KEY = "sk-0123456789"

Reply = Callable[[http.server.BaseHTTPRequestHandler], None]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.asked = reply, list[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Any

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.headers.get("Authorization"))
        with contextlib.suppress(OSError):
            self.server.reply(self)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], _Server]]:
    servers: list[_Server] = []

    def start(reply: Reply) -> _Server:
        servers.append(_Server(reply))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _answers(text: str, code: int = 200, **headers: str) -> Reply:
    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        handler.send_response(code, text if code != 200 else None)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_and_no_key_handed_on(serve: Any, code: int) -> None:
    thief = serve(_answers("stolen"))
    first = serve(_answers("moved", code, Location=thief.url + "/chat/completions"))
    with pytest.raises(OSError, match=r"redirect|status 30"):
        Endpoint(first.url, "m", key=KEY, timeout=10).chat("?")
    assert first.asked == [f"Bearer {KEY}"] and thief.asked == []


@pytest.mark.parametrize("code", [200, 401, 500])
def test_a_key_that_a_server_repeats_is_not_said(serve: Any, code: int) -> None:
    endpoint = Endpoint(serve(_answers(f"your key {KEY}", code)).url, "m", key=KEY, timeout=10)
    try:
        said = endpoint.chat("?")
    except OSError:
        said = traceback.format_exc()
    assert KEY not in said and KEY not in repr(endpoint)
    assert "your key" in said


@pytest.mark.parametrize("where", ["head", "body", "before"])
def test_a_slow_server_is_left_at_the_timeout(serve: Any, where: str) -> None:
    def trickle(handler: http.server.BaseHTTPRequestHandler) -> None:
        if where != "before":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"\r\n" * (where == "body"))
        for _ in range(60):
            handler.wfile.write(b" " if where == "body" else b"X-A: b\r\n" * (where == "head"))
            time.sleep(0.05)

    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"did not answer within 0.4 seconds"):
        Endpoint(serve(trickle).url, "m", timeout=0.4).chat("?")
    assert time.monotonic() - start < 2


def test_an_answer_without_end_is_cut_short(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 1 << 20)

    def flood(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x" * (1 << 18))

    with pytest.raises(ValueError, match="longer than 1 megabytes"):
        Endpoint(serve(flood).url, "m", timeout=10).chat("?")


@pytest.mark.sample(default=4)
@pytest.mark.parametrize(
    "body", [b"", b"[", b"[" * 50_000, b"null", b'{"choices": {}}', b"\xff\x00", b"HTTP/1.1 200"]
)
def test_what_is_no_answer_is_refused(serve: Any, body: bytes) -> None:
    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(body)

    with pytest.raises(ValueError, match="the endpoint answered"):
        Endpoint(serve(reply).url, "m", timeout=10).chat("?")


def test_a_status_line_that_is_none_is_refused(serve: Any) -> None:
    with pytest.raises(OSError, match="cannot be used"):
        Endpoint(serve(lambda h: h.wfile.write(b"hello\r\n\r\n")).url, "m", timeout=10).chat("?")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url": "file:///etc/passwd"}, "give an http address"),
        ({"url": "http://"}, "give an http address"),
        ({"url": "http://me:password@host/v1"}, "give what is secret as key"),
        ({"key": "sk-1\r\nX: y"}, "cannot be sent"),
        ({"key": "sk-é"}, "cannot be sent"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": float("nan")}, "timeout=nan"),
    ],
)
def test_what_makes_no_endpoint_is_refused_at_once(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        Endpoint(**({"url": "http://127.0.0.1/v1", "model": "m"} | given))
    assert "password" not in str(refused.value).replace("or a password", "")
    assert "sk-" not in str(refused.value)
