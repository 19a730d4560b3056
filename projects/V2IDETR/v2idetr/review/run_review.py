"""Run folders of train_net.py -> review: detectors side by side on the run's splits.

The first run's config says which splits there are. Detectors of further runs are compared on the
same frames: a run whose split of that name holds other frames is refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import UInt8

from v2i_runtime.image_files import jpeg_thumbnail
from v2idetr.data.frame_files import path_below, read_frame
from v2idetr.data.ground_truth import GroundTruth, read_ground_truth
from v2idetr.evaluation.lesion_metrics import MATCHERS
from v2idetr.evaluation.predictions import read_predictions
from v2idetr.review.explanation import Explainer
from v2idetr.review.judged_split import JudgedSplit, What
from v2idetr.review.review import (
    ASSUMED_RATE_HZ,
    MOST_PIXELS_WIDE,
    QUALITY,
    NotThereError,
    Shown,
    pick,
)
from v2idetr.runs.reading import RunFiles, StageFiles, read_run
from v2idetr.runs.stage_folder import StageFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a detector's predictions come from."""

    run: RunFiles
    stage: StageFiles


class RunReview:
    """Detectors of one or several runs on the splits of the first one; see ``review.Review``.

    Args:
        folders: output folders of runs.
        fps: frame rate of all videos, Hz; None: that of the split's file.

    Raises:
        ValueError: no run, no predictions, or runs of different splits; names the file.
    """

    has_truth = True

    def __init__(self, folders: Sequence[Path], *, fps: float | None = None) -> None:
        runs = [read_run(folder) for folder in folders]
        self.title = ", ".join(str(folder) for folder in folders)
        self._sources = _sources(runs)
        if not self._sources:
            raise ValueError(
                f"{folders[0]}: no stage of it has been evaluated yet, so there are no predictions "
                "to look at; wait until the first one is, or run train_net.py --eval-only."
            )
        self.detectors = [_shown(name, source) for name, source in self._sources.items()]
        self._runs, self._fps = runs, fps
        data = runs[0].settings["data"]
        self._entries = {**data["test"], "val": data["val"]}
        self.splits = list(self._entries)
        self._judged: dict[str, JudgedSplit] = {}
        self._lock = Lock()
        self._explainers = {
            name: Explainer(source.run, source.stage) for name, source in self._sources.items()
        }

    def judged(self, split: int) -> JudgedSplit:
        """A split with its detections; read when it is first asked for."""
        name = pick(self.splits, split, "split")
        with self._lock:
            if name not in self._judged:
                self._judged[name] = self._read(name)
        return self._judged[name]

    def videos(self, split: int) -> list[dict[str, Any]]:
        judged = self.judged(split)
        videos = judged.truth.split.videos
        return [
            {
                "name": str(videos[video_id]["name"]),
                "group": str(videos[video_id].get("group") or ""),
                "frames": len(own),
            }
            for video_id, own in zip(judged.video_ids, judged.ranges, strict=True)
        ]

    def clip(self, split: int, video: int, start: int) -> dict[str, Any]:
        judged = self.judged(split)
        frames: range = pick(judged.ranges, video, "video")
        records = [judged.records[i] for i in frames]
        rate_hz = judged.truth.frame_rates_hz[judged.video_ids[video]]
        first = records[0]["frame_index"]
        return {
            "start": 0,
            "complete": True,
            "rate_hz": rate_hz,
            "times_s": [(r["frame_index"] - first) / (rate_hz or ASSUMED_RATE_HZ) for r in records],
            "sizes": [[record["width"], record["height"]] for record in records],
            "names": [os.path.basename(record["file_name"]) for record in records],
            "truth": judged.truth_of(video),
            "detectors": [
                judged.detections_of(shown.name, video, shown.floor) for shown in self.detectors
            ],
        }

    def jpeg(self, split: int, video: int, frame: int) -> bytes:
        pixels = self._pixels(split, video, frame)
        return jpeg_thumbnail(pixels, max_width=MOST_PIXELS_WIDE, quality=QUALITY)

    def metrics(self, split: int, video: int, thresholds: Sequence[float]) -> dict[str, Any]:
        judged = self.judged(split)
        pick(judged.ranges, video, "video")
        pairs = list(zip(self.detectors, thresholds, strict=True))
        return {
            "detectors": [
                {rule: judged.metrics(shown.name, rule, t, video) for rule in MATCHERS}
                for shown, t in pairs
            ],
            "events": [
                {rule: judged.events_by_video(shown.name, rule, t) for rule in MATCHERS}
                for shown, t in pairs
            ],
        }

    def jump(
        self,
        what: What,
        detector: int,
        rule: str,
        threshold: float,
        at: tuple[int, int, int],
        step: int,
    ) -> tuple[int, int] | None:
        judged = self.judged(at[0])
        pick(pick(judged.ranges, at[1], "video"), at[2], "frame")
        shown: Shown = pick(self.detectors, detector, "detector")
        if rule not in MATCHERS:
            raise NotThereError(f"there is no rule {rule!r}; the rules are {', '.join(MATCHERS)}")
        return judged.jump(what, shown.name, rule, threshold, at[1:], step)

    def explain(self, what: str, detector: int, at: tuple[int, int, int]) -> dict[str, Any]:
        shown: Shown = pick(self.detectors, detector, "detector")
        explainer = self._explainers[shown.name]
        judged = self.judged(at[0])
        own = pick(judged.ranges, at[1], "video")
        index = pick(own, at[2], "frame")
        if what == "mask":
            return explainer.mask(judged.records[index])
        return explainer.points(judged.records[index], [judged.records[i] for i in own])

    def close(self) -> None:
        pass

    def _pixels(self, split: int, video: int, frame: int) -> UInt8[np.ndarray, "H W 3"]:
        judged = self.judged(split)
        record = judged.records[pick(pick(judged.ranges, video, "video"), frame, "frame")]
        path = path_below(judged.truth.split.image_root, record["file_name"])
        return read_frame(path, height=record["height"], width=record["width"])

    def _read(self, name: str) -> JudgedSplit:
        logger.info("reading split %s: detections of %s detectors", name, len(self.detectors))
        truth = _truth(self._runs[0], name, self._fps)
        predictions = {}
        for detector, source in self._sources.items():
            if source.run is not self._runs[0]:
                _check_same_frames(truth, _truth(source.run, name, self._fps), source.run.folder)
            path = source.stage.predictions(name)
            if not path.is_file():
                raise ValueError(f"{path}: no such file; train_net.py --eval-only writes it again.")
            predictions[detector] = read_predictions(path, truth.split)
        return JudgedSplit(name, truth, predictions)


def where_it_is(path: str, run: Path) -> Path:
    """A relative path of a run's config: from here, or from a folder that the run is in.

    A run's config holds paths as they were given where it was started.
    """
    if not os.path.isabs(path) and not os.path.exists(path):
        for above in run.resolve().parents:
            if (above / path).exists():
                return above / path
    return Path(path)


def _sources(runs: Sequence[RunFiles]) -> dict[str, Source]:
    """Evaluated stages of all runs, by title; of several runs with the name of the run."""
    labels = _labels([run.folder.resolve() for run in runs])
    return {
        f"{stage.title} ({label})" if len(runs) > 1 else stage.title: Source(run, stage)
        for run, label in zip(runs, labels, strict=True)
        for stage in run.stages.values()
        if stage.name in run.evaluations
    }


def _labels(folders: Sequence[Path]) -> list[str]:
    """The last parts of paths, as many as it takes to tell them apart.

    Raises:
        ValueError: a folder is given twice.
    """
    for folder in folders:
        if folders.count(folder) > 1:
            raise ValueError(f"{folder}: is given twice; compare different runs.")
    parts = 1
    while len({folder.parts[-parts:] for folder in folders}) < len(folders):
        parts += 1
    return ["/".join(folder.parts[-parts:]) for folder in folders]


def _shown(name: str, source: Source) -> Shown:
    evaluation = source.stage.evaluation or {}
    try:
        thresholds = {r: float(t) for r, t in evaluation["thresholds"].items() if r in MATCHERS}
        class_names = list(map(str, evaluation["class_names"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        file = StageFolder(source.stage.folder).evaluation
        raise ValueError(
            f"{file}: is damaged ({error!r}); write it again with train_net.py --eval-only."
        ) from error
    missing = [rule for rule in MATCHERS if rule not in thresholds]
    remark = f"no threshold was chosen by {', '.join(missing)}" if missing else ""
    return Shown(name, class_names, thresholds, remark)


def _truth(run: RunFiles, name: str, fps: float | None) -> GroundTruth:
    data = run.settings["data"]
    entries = {**data["test"], "val": data["val"]}
    if name not in entries:
        raise ValueError(
            f"{run.folder}: has no split {name!r}, only {', '.join(entries)}; compare runs that "
            "were evaluated on the same splits."
        )
    entry = entries[name]
    return read_ground_truth(
        where_it_is(entry["json"], run.folder),
        where_it_is(entry["image_root"], run.folder),
        on_bad_box=data["on_bad_box"],
        fps=fps,
    )


def _check_same_frames(first: GroundTruth, other: GroundTruth, folder: Path) -> None:
    def frames(truth: GroundTruth) -> list[tuple[Any, ...]]:
        root = truth.split.image_root.resolve()
        return [
            (r["image_id"], os.path.relpath(r["file_name"], root), r["width"], r["height"])
            for r in truth.split.records
        ]

    if frames(first) != frames(other):
        raise ValueError(
            f"{folder}: was evaluated on other frames ({other.split.json_path}) than the first run "
            f"({first.split.json_path}); compare runs on the same frames."
        )
    if first.split.class_names != other.split.class_names:
        raise ValueError(
            f"{folder}: has classes {', '.join(other.split.class_names)}, but the first run "
            f"{', '.join(first.split.class_names)}; compare runs of the same classes."
        )
