"""What the page asks of anything it shows: a run on its splits, or a video being processed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from v2idetr.evaluation.lesion_metrics import FALLBACK_THRESHOLD, MATCHERS
from v2idetr.review.judged_split import What

# Detections below are neither sent nor drawn, unless a chosen threshold is as low.
LOWEST_SCORE = 0.05
ASSUMED_RATE_HZ = 25.0  # for playing, where a video has no frame rate
MOST_PIXELS_WIDE = 1600  # of a frame on the page
QUALITY = 90


class NotThereError(ValueError):
    """A split, video, frame or detector that does not exist."""


@dataclass(frozen=True)
class Shown:
    """A detector on the page.

    Attributes:
        name: title, unique on the page.
        class_names: class names by index.
        thresholds: score threshold by rule, chosen on validation data; empty where unknown.
        remark: what a reader has to know, such as why there is no chosen threshold.
    """

    name: str
    class_names: Sequence[str] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    remark: str = ""

    def threshold(self, rule: str) -> float:
        """The threshold at which the page starts."""
        return self.thresholds.get(rule, FALLBACK_THRESHOLD)

    @property
    def floor(self) -> float:
        """The lowest score that is shown."""
        return min(LOWEST_SCORE, *(self.threshold(rule) / 2 for rule in MATCHERS))

    def as_dict(self) -> dict[str, Any]:
        """For the page."""
        return {
            "name": self.name,
            "class_names": list(self.class_names),
            "thresholds": {rule: self.threshold(rule) for rule in MATCHERS},
            "chosen": bool(self.thresholds),
            "floor": self.floor,
            "remark": self.remark,
        }


@runtime_checkable
class Review(Protocol):
    """Videos with the detections of some detectors.

    Positions in ``splits``, in the videos of a split and in the frames of a video stand for them
    everywhere: the page knows no path. Methods raise NotThereError for a position that does not
    exist.

    Attributes:
        title: heading.
        detectors: in the order of the page.
        splits: names of splits; [""] for a single video.
        has_truth: whether there is ground truth.
    """

    title: str
    detectors: list[Shown]
    splits: list[str]
    has_truth: bool

    def videos(self, split: int) -> list[dict[str, Any]]:
        """Name, group and number of frames of each video."""
        ...

    def clip(self, split: int, video: int, start: int) -> dict[str, Any]:
        """Times, sizes, lesions and detections of the frames from ``start`` on."""
        ...

    def jpeg(self, split: int, video: int, frame: int) -> bytes:
        """A frame; raises ValueError where it cannot be read."""
        ...

    def metrics(self, split: int, video: int, thresholds: Sequence[float]) -> dict[str, Any]:
        """Figures at a threshold for each detector."""
        ...

    def jump(
        self,
        what: What,
        detector: int,
        rule: str,
        threshold: float,
        at: tuple[int, int, int],
        step: int,
    ) -> tuple[int, int] | None:
        """See ``JudgedSplit.jump``; ``at``: split, video and frame."""
        ...

    def explain(self, what: str, detector: int, at: tuple[int, int, int]) -> dict[str, Any]:
        """See ``explanation.py``; ``what`` is "mask" or "points"."""
        ...

    def close(self) -> None:
        """Stop what is going on, and remove what was stored."""
        ...


def pick(sequence: Sequence[Any], position: int, kind: str) -> Any:
    """An element by its position; raises NotThereError."""
    if not 0 <= position < len(sequence):
        raise NotThereError(f"there is no {kind} {position} here; there are {len(sequence)}")
    return sequence[position]
