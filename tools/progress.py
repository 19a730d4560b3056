"""Progress and remaining time of a demo or an ablation, from the files that it writes."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from v2i_runtime.progress import progress_bar
from v2idetr.config.yaml_text import parse_yaml
from v2idetr.runs.stage_folder import StageFolder, read_metrics

TITLES = {"teacher": "teacher", "plain": "plain student", "student": "V2I student"}

# Seconds on two cores without a GPU; only their ratios matter once the first steps are measured.
SECONDS_A_FRAME = 0.03
SECONDS_A_STEP = {"teacher": 1.0, "plain": 0.5, "student": 1.1}
DEFAULT_SECONDS_A_STEP = 1.0  # of a stage of your own
STEPS = 400  # of configs/v2i_synthetic.yaml, until the run has a config
SECONDS_OTHERWISE = {"annotations": 5.0, "evaluation": 15.0, "report": 15.0}
TRUST_S = 60.0  # weight of the values above against measured time

TEXT = "{desc}, about {remaining} left"
BAR, LINE = "{percentage:3.0f} % |{bar:20}| " + TEXT, "[{percentage:3.0f}%] " + TEXT
LAST_COUNT = re.compile(r"(\d+)/(\d+) \[")


@dataclass(frozen=True)
class Part:
    """A part of a step: expected seconds, finished share, name and count."""

    step: str
    seconds: float
    done: float
    name: str = ""
    count: str = ""


class Progress:
    """Overall progress: a bar on a terminal, lines of text elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._doing = ""

    def show(self, step: str, title: str, parts: Sequence[Part]) -> None:
        """Show the progress; may be called often.

        Args:
            step, title: the running step.
            parts: parts of all steps.
        """
        total = sum(part.seconds for part in parts)
        done = sum(part.seconds * part.done for part in parts)
        part = next((p for p in parts if p.step == step and p.done < 1), None)
        doing = ": ".join(filter(None, [title, part.name if part else ""]))
        if self._bar is None:
            # As if TRUST_S of work had taken its expected time: the estimate starts from expected
            # times and adapts to the measured speed of this session.
            settings = {"initial": done - TRUST_S, "delay": TRUST_S, "bar_format": BAR}
            self._bar = progress_bar(line=LINE, **settings)
            self._bar.start_t -= TRUST_S
            self._bar.n = done
        self._bar.total = total
        self._bar.desc = ", ".join(filter(None, [doing, part.count if part else ""]))
        if doing == self._doing:
            self._bar.update(done - self._bar.n)
        else:  # at once
            self._doing, self._bar.n = doing, done
            self._bar.refresh()

    def write(self, text: str) -> None:
        """Print above the bar."""
        tqdm.write(text)
        sys.stdout.flush()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def data_part(data: Path, log: Path) -> Part:
    """Rendering of frames; progress from the count in its log."""
    counts = LAST_COUNT.findall(log.read_text(errors="replace")) if log.exists() else []
    frames, total = (int(n) for n in counts[-1]) if counts else (0, 2600)
    done = 1.0 if (data / "generator.json").exists() else min(frames / max(total, 1), 0.99)
    count = f"frame {frames} of {total}" if counts else ""
    return Part("data", total * SECONDS_A_FRAME, done, count=count)


def run_parts(run: Path) -> list[Part]:
    """Training and evaluation of every stage of a run, whose folder may not exist yet."""
    config = run / "config.yaml"
    settings = _settings(config, config.stat().st_mtime_ns) if config.exists() else {}
    train, stages = settings.get("train") or {}, settings.get("stages") or {}
    parts = []
    for stage in train.get("stages") or list(TITLES):
        own = settings.get((stages.get(stage) or {}).get("settings") or "train") or {}
        steps = own.get("max_iter") or train.get("max_iter") or STEPS
        name = TITLES.get(stage, stage)
        parts += stage_parts("training", run / stage, stage, steps, name)
    return parts


def stage_parts(step: str, folder: Path, stage: str, steps: int, name: str) -> list[Part]:
    """Training and evaluation of a stage.

    Args:
        step, name: step and name of the parts.
        folder: folder of the stage; it may not exist yet.
        stage: teacher, plain, student or a stage of your own.
        steps: number of training steps.
    """
    files = StageFolder(folder)
    done = max((line["iteration"] for line in read_metrics(files.metrics)), default=0)
    finished = files.evaluation.exists()
    trained = finished or files.final.exists()
    share = 1.0 if trained else min(done / steps, 0.99)
    count = f"step {min(done, steps)} of {steps}"
    seconds = steps * SECONDS_A_STEP.get(stage, DEFAULT_SECONDS_A_STEP)
    evaluation = SECONDS_OTHERWISE["evaluation"]
    return [
        Part(step, seconds, share, name, count),
        Part(step, evaluation, float(finished), name, "evaluation"),
    ]


def clock(seconds: float) -> str:
    """A duration, such as "45 s", "3 min" or "2 h 5 min"."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@functools.lru_cache(maxsize=1)
def _settings(config: Path, _changed_ns: int) -> dict[str, Any]:
    """A run's config; read again only when it has changed."""
    content = parse_yaml(config.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
