"""Progress is a bar on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from v2i_runtime.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets tqdm's clock go on by so many seconds."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def wait_s(seconds: float) -> None:
        now[0] += seconds

    return wait_s


def test_without_a_terminal_a_line_comes_every_half_minute(wait: Callable[[float], None]) -> None:
    said: list[str] = []
    for _ in progress_bar(range(7), desc="evaluation", unit="batch", say=said.append):
        wait(10.0)
    assert said == [
        "evaluation: batch 3 of 7, about 00:40 left",
        "evaluation: batch 6 of 7, about 00:10 left",
    ]


def test_without_a_total_a_line_counts(wait: Callable[[float], None]) -> None:
    said: list[str] = []
    with progress_bar(total=None, desc="camera", unit="frame", say=said.append) as bar:
        for _ in range(4):
            wait(10.0)
            bar.update()
    assert said == ["camera: frame 3"]


def test_the_last_line_stays_where_the_bar_does(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(total=4, initial=2, desc="plain", unit="step", leave=True) as bar:
        for _ in range(2):
            wait(29.0)
            bar.set_postfix_str("loss 1.5", refresh=False)
            bar.update()
    assert capsys.readouterr().out.splitlines() == [
        "plain: step 4 of 4, loss 1.5, about 00:00 left",
        "plain: step 4 of 4, loss 1.5, about 00:00 left",
    ]


def test_on_a_terminal_there_is_a_bar_and_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, said = Terminal(), []
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress_bar(range(3), desc="evaluation", say=said.append)) == [0, 1, 2]
    assert "evaluation:   0%|" in terminal.getvalue() and not said
