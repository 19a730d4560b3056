"""The page as a person has it: a server in a thread, and Debian's Chromium."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
MAX_UPLOAD_BYTES = 3 * 2**20
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 390, "height": 844}


@dataclass
class Served:
    """A page that is served: its address, and the desk behind it."""

    port: int
    desk: Any

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="session")
def served(
    finished_run: Path, run_review: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    pytest.importorskip("nicegui", reason="requirements-app.txt is not installed")
    from v2idetr.review.choices import look_for
    from v2idetr.review.desk import Desk
    from v2idetr.review.server import listen, own_folder, server

    with own_folder() as folder, listen(0) as own:
        desk = Desk(look_for(finished_run.parent), folder, MAX_UPLOAD_BYTES)
        desk.reviews["run"] = run_review
        page = server(desk)
        thread = threading.Thread(target=page.run, kwargs={"sockets": [own]}, daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while not page.started and time.monotonic() < until:
            time.sleep(0.02)
        assert page.started
        yield Served(own.getsockname()[1], desk)
        page.should_exit = True
        thread.join(20)
        desk.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there: apt-get install -y chromium")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """A new tab; errors on it, and requests to elsewhere, fail the test."""
    tab = browser.new_page(viewport=WIDE)
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
    tab.on(
        "request",
        lambda request: (
            request.url.startswith((served.address, "data:", "blob:"))
            or faults.append(f"outside: {request.url}")
        ),
    )
    tab.set_default_timeout(30_000)
    yield tab
    tab.close()
    assert not faults
