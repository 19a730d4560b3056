"""The folder of a stage: names of its files, and its log of metrics.

output_dir/<stage>/  config.yaml  metrics.jsonl  last.pth  best.pth  final.pth  evaluation.json
                     predictions_<split>.json.gz

A line of metrics.jsonl has "iteration" and the means of training steps, with "time_s", or the
metrics of an evaluation, named "val/<metric>".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2idetr.atomic_file import write_text_atomically

LAST, BEST, FINAL = "last.pth", "best.pth", "final.pth"


@dataclass(frozen=True)
class StageFolder:
    """Paths of a stage's files; none of them need exist yet."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def last(self) -> Path:
        """Checkpoint that a training is resumed from."""
        return self.path / LAST

    @property
    def final(self) -> Path:
        """Weights after the last step; there once the training has ended."""
        return self.path / FINAL

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    def predictions(self, split: str) -> Path:
        """Detections on a split."""
        return self.path / f"predictions_{split}.json.gz"


def append_metrics(path: Path, line: dict[str, Any]) -> None:
    """Write one line of a log; a value that is not finite becomes null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a log in order of iteration; a line that was cut off in writing is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("iteration"), int):
            lines.append(line)
    return sorted(lines, key=lambda line: line["iteration"])


def truncate_metrics(path: Path, iteration: int) -> None:
    """Drop the lines of a log after an iteration, and a last line that was cut off in writing."""
    if path.exists():
        kept = [line for line in read_metrics(path) if line["iteration"] <= iteration]
        write_text_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
