"""Who may talk to the page, and how much they may send.

The page listens on loopback, but every site that is open in the browser can send requests there:

    DNS rebinding       a foreign name that points to 127.0.0.1: its Host header is refused
    cross-site request  Origin or Sec-Fetch-Site name another site: refused, websockets too
    large uploads       refused by their Content-Length, before anything is stored
    framing, injection  headers: no frames, and nothing from outside this page
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOSTS = ("localhost", "127.0.0.1", "::1")
MIB = 2**20
# NiceGUI's own page has scripts in it, and Vue compiles its templates in the browser.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Gate:
    """ASGI application in front of another one.

    Args:
        app: the application.
        max_body_bytes: largest body of a request.
    """

    def __init__(self, app: App, *, max_body_bytes: int) -> None:
        self.app, self._max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        status, words = self._fault(scope)
        if not status:
            await self.app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": words})
        else:
            await _refuse(send, status, words)

    def _fault(self, scope: Scope) -> tuple[int, str]:
        """Status and reason of a refusal; (0, "") for none."""
        headers = _Headers(scope)
        host = headers.one("host")
        if host is None or not is_loopback(host):
            return 421, "This page answers to localhost and 127.0.0.1 alone."
        origin = headers.one("origin")
        if headers.many("origin") and (origin is None or origin != f"http://{host}"):
            return 403, "This page answers to its own requests alone, not to those of other sites."
        site, mode = headers.one("sec-fetch-site"), headers.one("sec-fetch-mode")
        if site in ("cross-site", "same-site") and not (
            mode == "navigate" and scope.get("method") == "GET"
        ):
            return 403, "This page answers to its own requests alone, not to those of other sites."
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            return self._fault_of_body(headers)
        return 0, ""

    def _fault_of_body(self, headers: _Headers) -> tuple[int, str]:
        length = headers.one("content-length")
        if length is None or not length.isascii() or not length.isdigit():
            return 411, "A request with a body needs its Content-Length."
        if int(length) > self._max_body_bytes:
            return 413, (
                f"The upload has {int(length) / MIB:.0f} MiB, and at most "
                f"{self._max_body_bytes / MIB:.0f} MiB are taken; start the page with a larger "
                "--max-upload-mib, or give it the path of the video."
            )
        return 0, ""


class _Headers:
    def __init__(self, scope: Scope) -> None:
        self._all = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]]

    def many(self, name: str) -> list[str]:
        return [value for n, value in self._all if n == name]

    def one(self, name: str) -> str | None:
        """The value of a header that is there exactly once."""
        values = self.many(name)
        return values[0] if len(values) == 1 else None


def is_loopback(host: str) -> bool:
    """Whether a Host header names this machine's loopback, with any port."""
    try:
        parts = urlsplit(f"//{host}")
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return port_is_fine and parts.hostname in HOSTS and parts.netloc == host and "@" not in host


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in HEADERS}
            others = [(n, v) for n, v in message.get("headers", []) if n.lower() not in names]
            message = {**message, "headers": [*others, *HEADERS]}
        await send(message)

    return sending


async def _refuse(send: Send, status: int, words: str) -> None:
    body = words.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *HEADERS,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
