"""How far a demo or an ablation is and how long it will still take, from the files it writes."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

TITLES = {"teacher": "teacher", "plain": "plain student", "student": "V2I student"}

# Seconds on two cores without a GPU. What counts is how they compare: the machine's own speed
# comes in with the first steps.
SECONDS_A_FRAME = 0.03
SECONDS_A_STEP = {"teacher": 1.0, "plain": 0.5, "student": 1.1}
SECONDS_OTHERWISE = {"annotations": 5.0, "evaluation": 15.0, "report": 15.0}
TRUST_S = 60.0  # so many seconds count for the figures above before this machine outweighs them

LINE_PERIOD_S = 30.0  # where there is no terminal
LAST_COUNT = re.compile(r"(\d+)/(\d+) \[")


@dataclass(frozen=True)
class Part:
    """A part of a step: seconds it usually takes, the share that is done, name and count."""

    step: str
    seconds: float
    done: float
    name: str = ""
    count: str = ""


class Progress:
    """One line about the whole: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._done_before = 0.0
        self._last_line = ""
        self._last_time = 0.0
        self._bar: Any = None

    def show(self, step: str, title: str, parts: Sequence[Part]) -> None:
        """Say how far it is; may be called often.

        Args:
            step, title: what is running.
            parts: of all steps.
        """
        now = time.monotonic()
        total = sum(part.seconds for part in parts)
        done = sum(part.seconds * part.done for part in parts)
        if self._start is None:  # what an earlier session did says nothing about speed
            self._start, self._done_before = now, done
        left = remaining(total - done, done - self._done_before, now - self._start)
        part = next((p for p in parts if p.step == step and p.done < 1), None)
        doing = ": ".join(filter(None, [title, part.name if part else ""]))
        line = ", ".join(filter(None, [doing, part.count if part else ""]))
        if sys.stderr.isatty():
            self._draw(line, done / total, left)
        elif doing != self._last_line or now - self._last_time > LINE_PERIOD_S:
            self._last_line, self._last_time = doing, now
            print(f"[{done / total:4.0%}] {line}, about {clock(left)} left", flush=True)

    def close(self) -> None:
        """Leave the line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, line: str, share: float, left: float) -> None:
        if self._bar is None:
            form = "{percentage:3.0f} % |{bar:20}| {desc}"
            self._bar = tqdm(total=1.0, bar_format=form, leave=False)
        self._bar.n = min(share, 1.0)
        self._bar.set_description_str(f"{line}, about {clock(left)} left")


def remaining(seconds_left: float, seconds_done: float, elapsed_s: float) -> float:
    """Seconds to go: what is usual, times how slow this machine has been in this session.

    Args:
        seconds_left, seconds_done: usual seconds of what is to do, and was done in this session.
        elapsed_s: seconds of this session.
    """
    return seconds_left * (elapsed_s + TRUST_S) / (seconds_done + TRUST_S)


def data_part(data: Path, log: Path) -> Part:
    """Rendering of the frames, from the count in its log."""
    counts = LAST_COUNT.findall(log.read_text(errors="replace")) if log.exists() else []
    frames, total = (int(n) for n in counts[-1]) if counts else (0, 2600)
    done = 1.0 if (data / "generator.json").exists() else min(frames / max(total, 1), 0.99)
    count = f"frame {frames} of {total}" if counts else ""
    return Part("data", total * SECONDS_A_FRAME, done, count=count)


def run_parts(run: Path, config: Path) -> list[Part]:
    """Training and evaluation of every stage of a run.

    Args:
        run: its folder; it may not exist yet.
        config: file whose number of steps counts until the run has its own.
    """
    settings = _yaml(run / "config.yaml") or _yaml(config)
    train, teacher = settings.get("train") or {}, settings.get("teacher") or {}
    parts = []
    for stage in train.get("stages") or list(TITLES):
        steps = train.get("max_iter") or 1
        if stage == "teacher":
            steps = teacher.get("max_iter") or steps
        parts += stage_parts("training", run / stage, stage, steps, TITLES[stage])
    return parts


def stage_parts(step: str, folder: Path, stage: str, steps: int, name: str) -> list[Part]:
    """Training and evaluation of a stage.

    Args:
        step, name: of the parts.
        folder: of the stage; it may not exist yet.
        stage: teacher, plain or student.
        steps: of its training.
    """
    done = _steps_done(folder)
    finished = (folder / "evaluation.json").exists()
    trained = finished or (folder / "final.pth").exists()
    share = 1.0 if trained else min(done / steps, 0.99)
    count = f"step {min(done, steps)} of {steps}"
    evaluation = SECONDS_OTHERWISE["evaluation"]
    return [
        Part(step, steps * SECONDS_A_STEP[stage], share, name, count),
        Part(step, evaluation, float(finished), name, "evaluation"),
    ]


def clock(seconds: float) -> str:
    """A length of time as a person says it."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _steps_done(stage: Path) -> int:
    """The last step in metrics.jsonl, 0 where there is none."""
    try:
        lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return max(int(json.loads(line)["iteration"]) for line in lines if line[-1:] == "}")
    except (OSError, ValueError, KeyError):
        return 0


def _yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
