"""Foreign hosts, other sites and large bodies do not reach the application."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from v2idetr.review.gate import MIB, Gate, is_loopback

LIMIT = 2 * MIB


class Reached:
    """An application that notes that it was called."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        if scope["type"] == "http":
            headers = [(b"X-Frame-Options", b"ALLOWALL"), (b"a", b"b")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"inside"})


def ask(
    *headers: tuple[str, str], method: str = "GET", kind: str = "http"
) -> tuple[int, list[dict[str, Any]]]:
    """Number of calls that reached the application, and the messages sent back."""
    app, sent = Reached(), []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing of a request may be read before it is let in")

    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": kind, "headers": raw, "path": "/"}
    if kind == "http":
        scope["method"] = method
    asyncio.run(Gate(app, max_body_bytes=LIMIT)(scope, receive, send))
    return app.calls, sent


OWN = ("host", "127.0.0.1:8080")
SAME = ("origin", "http://127.0.0.1:8080")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "LOCALHOST:1", "[::1]:8080"])
def test_loopback_is_answered(host: str) -> None:
    assert ask(("host", host))[0] == 1


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost@evil.example",
        "evil.example@localhost",
        "10.0.0.5",
        "0.0.0.0",
        "localhost:port",
        "localhost/evil",
        "[::1",
        "",
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_foreign_host_is_refused(host: str, kind: str) -> None:
    calls, sent = ask(("host", host), kind=kind)
    assert calls == 0
    if kind == "http":
        assert sent[0]["status"] == 421
    else:
        assert sent == [{"type": "websocket.close", "code": 1008, "reason": sent[0]["reason"]}]
    assert not is_loopback(host)


def test_a_request_with_no_host_or_two_is_refused() -> None:
    assert ask()[0] == 0
    assert ask(OWN, ("host", "evil.example"))[0] == 0


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:9999", "https://127.0.0.1:8080", "null"]
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_another_site_is_refused(origin: str, kind: str) -> None:
    assert ask(OWN, ("origin", origin), kind=kind)[0] == 0


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_the_page_itself_is_answered(kind: str) -> None:
    assert ask(OWN, SAME, ("sec-fetch-site", "same-origin"), kind=kind)[0] == 1


def test_what_another_site_embeds_is_refused_and_a_link_to_the_page_is_not() -> None:
    site = ("sec-fetch-site", "cross-site")
    assert ask(OWN, site, ("sec-fetch-mode", "no-cors"))[0] == 0
    assert ask(OWN, site, ("sec-fetch-mode", "navigate"))[0] == 1
    length = ("content-length", "1")
    assert ask(OWN, site, ("sec-fetch-mode", "navigate"), length, method="POST")[0] == 0


def test_a_body_above_the_limit_is_refused_with_the_limit_and_the_remedy() -> None:
    assert ask(OWN, ("content-length", str(LIMIT)), method="POST")[0] == 1
    calls, sent = ask(OWN, ("content-length", str(LIMIT + 1)), method="POST")
    assert (calls, sent[0]["status"]) == (0, 413)
    assert "at most 2 MiB" in sent[1]["body"].decode()
    assert "--max-upload-mib" in sent[1]["body"].decode()


@pytest.mark.parametrize("length", [None, "-1", "1e3", "", "٣"])
def test_a_body_of_unknown_length_is_refused(length: str | None) -> None:
    headers = [OWN] if length is None else [OWN, ("content-length", length)]
    calls, sent = ask(*headers, method="POST")
    assert (calls, sent[0]["status"]) == (0, 411)


def test_every_answer_forbids_frames_and_what_is_from_outside() -> None:
    for headers in ([OWN], [("host", "evil.example")]):
        names = [name.lower() for name, _ in ask(*headers)[1][0]["headers"]]
        answer = dict(ask(*headers)[1][0]["headers"])
        assert b"default-src 'self'" in answer[b"content-security-policy"]
        assert answer[b"x-frame-options"] == b"DENY"
        assert names.count(b"x-frame-options") == 1
