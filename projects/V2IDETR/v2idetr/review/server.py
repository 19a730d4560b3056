"""The page as a server on loopback."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from v2idetr.review.desk import Desk
from v2idetr.review.gate import Gate
from v2idetr.review.page import add_pages
from v2idetr.review.routes import add_routes

HOST = "127.0.0.1"
FORM_BYTES = 2**20  # what a form has beside the file that is uploaded


def application(desk: Desk) -> Gate:
    """The ASGI application; one in a process, see ``add_pages``."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(app, desk)
    add_pages(app, desk)
    return Gate(app, max_body_bytes=desk.max_upload_bytes + FORM_BYTES)


def listen(port: int) -> socket.socket:
    """A socket on loopback; port 0 for any that is free.

    Raises:
        ValueError: the port is taken.
    """
    own = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        own.bind((HOST, port))
        own.listen()  # so that a browser waits until the server runs
    except OSError as error:
        own.close()
        raise ValueError(
            f"--port {port}: cannot be used ({error.strerror}); take another one, or 0 for any"
        ) from error
    return own


def server(desk: Desk) -> uvicorn.Server:
    """A server that `run(sockets=[...])` starts."""
    return uvicorn.Server(
        uvicorn.Config(application(desk), log_level="warning", timeout_graceful_shutdown=2)
    )


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for all that is stored while the page runs, removed at the end.

    Parts of uploads, which libraries keep in temporary files, are in it, too.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="v2i_review_", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before
