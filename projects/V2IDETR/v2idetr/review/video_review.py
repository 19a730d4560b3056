"""A video file and some detectors -> review that grows while the video is processed.

Decoding, detection and storing of the frames run in threads (``v2i_runtime.pipeline``); the page
shows what is ready. Every frame is kept as a JPEG in one file, since browsers neither decode all
formats nor stop at a frame exactly.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Literal

import numpy as np
from PIL import Image

from v2i_runtime.detections import Detections, FrameDetector
from v2i_runtime.image_files import jpeg_thumbnail
from v2i_runtime.pipeline import run_pipeline
from v2i_runtime.sources import FrameSource, SourceFrame, open_source
from v2idetr.deploy.loading import load_detector
from v2idetr.evaluation.lesion_metrics import MATCHERS
from v2idetr.evaluation.predictions import FramePrediction
from v2idetr.review.explanation import WeightsExplainer
from v2idetr.review.frame_store import FrameStore
from v2idetr.review.judged_split import What, detection_rows
from v2idetr.review.review import (
    MOST_PIXELS_WIDE,
    QUALITY,
    NotThereError,
    Shown,
    pick,
)

State = Literal["loading", "running", "done", "failed", "stopped"]
RATE_OVER_S = 3.0  # the rate on the page is a mean over this time


class VideoReview:
    """Detectors on a video without ground truth; see ``review.Review``.

    Processing starts with :meth:`start`.

    Args:
        video: video file, folder of images or image.
        title: its name for the reader.
        models: files of detectors, by their titles.
        folder: gets the stored frames.
        remove: whether the video is ours, and removed by `close`.

    Raises:
        ValueError: the video cannot be read; names the file.
    """

    has_truth = False

    def __init__(
        self,
        video: Path,
        title: str,
        models: dict[str, Path],
        folder: Path,
        *,
        remove: bool = False,
    ) -> None:
        self.title, self.splits = title, [""]
        self.detectors: list[Shown] = [Shown(name) for name in models]
        self._source: FrameSource = open_source(video)
        self._video, self._models, self._remove = video, models, remove
        self._explainers = [WeightsExplainer(path) for path in models.values()]
        self._store = FrameStore(folder / f"frames_{time.monotonic_ns()}.jpegs")
        self._rows: list[list[list[list[Any]]]] = [[] for _ in models]
        self._times_s: list[float] = []
        self._names: list[str] = []
        self._lock, self._stop = Lock(), Event()
        self._state: State = "loading"
        self._words = ""
        self._lately: deque[float] = deque()
        self._thread = Thread(target=self._run, name="video", daemon=True)

    def start(self) -> None:
        """Begin to process the video."""
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the end of processing."""
        self._thread.join(timeout_s)

    def stop(self) -> None:
        """End processing at the next frame; what is there stays."""
        self._stop.set()

    def close(self) -> None:
        self.stop()
        if self._thread.is_alive():
            self._thread.join()
        self._store.close()
        if self._remove:
            self._video.unlink(missing_ok=True)

    @property
    def state(self) -> State:
        """How far processing is."""
        return self._state

    # ------------------------------------------------------------------ for the page

    def videos(self, split: int) -> list[dict[str, Any]]:
        pick(self.splits, split, "split")
        return [{"name": self.title, "group": "", "frames": len(self._times_s)}]

    def clip(self, split: int, video: int, start: int) -> dict[str, Any]:
        self._check(split, video)
        with self._lock:
            start = min(max(start, 0), len(self._times_s))
            new = slice(start, len(self._times_s))
            rate = self._source.frame_rate
            return {
                "start": start,
                "complete": self._state not in ("loading", "running"),
                "rate_hz": float(rate) if rate else None,
                "times_s": self._times_s[new],
                "sizes": [list(self._source.size)] * len(self._times_s[new]),
                "names": self._names[new],
                "truth": None,
                "detectors": [{"frames": rows[new], "found": None} for rows in self._rows],
                "shown": [shown.as_dict() for shown in self.detectors],
                "status": self._status(),
            }

    def jpeg(self, split: int, video: int, frame: int) -> bytes:
        self._check(split, video)
        if not 0 <= frame < len(self._store):
            raise NotThereError(f"frame {frame} is not there; {len(self._store)} are ready")
        return self._store.read(frame)

    def metrics(self, split: int, video: int, thresholds: Sequence[float]) -> dict[str, Any]:
        self._check(split, video)
        return {"detectors": [], "events": []}

    def jump(
        self,
        what: What,
        detector: int,
        rule: str,
        threshold: float,
        at: tuple[int, int, int],
        step: int,
    ) -> tuple[int, int] | None:
        self._check(at[0], at[1])
        return None  # nothing is known to be missed or false

    def explain(self, what: str, detector: int, at: tuple[int, int, int]) -> dict[str, Any]:
        explainer: WeightsExplainer = pick(self._explainers, detector, "detector")
        jpeg = self.jpeg(*at)
        if what == "mask":
            return {"words": "TFD's mask is made of ground truth, which this video does not have."}
        return explainer.points(np.array(Image.open(io.BytesIO(jpeg)).convert("RGB")))

    def _check(self, split: int, video: int) -> None:
        pick(self.splits, split, "split")
        pick([self.title], video, "video")

    def _status(self) -> dict[str, Any]:
        done, total, lately = len(self._times_s), self._source.num_frames, self._lately
        rate = (len(lately) - 1) / (lately[-1] - lately[0]) if len(lately) > 1 else None
        left = max(0, total - done) if total and self._state == "running" else None
        return {
            "state": self._state,
            "words": self._words,
            "done": done,
            "total": total,
            "rate_hz": rate if self._state == "running" else None,
            "remaining_s": left / rate if left is not None and rate else None,
        }

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        try:
            detectors = [load_detector(path) for path in self._models.values()]
            names = [_shown(name, d) for name, d in zip(self._models, detectors, strict=True)]
            with self._lock:
                self.detectors, self._state = names, "running"
            run_pipeline(
                (frame for frame in self._source),
                lambda frame: (frame, [detector([frame.pixels])[0] for detector in detectors]),
                lambda item: self._keep(*item),
                stop=self._stop,
            )
            end: State = "stopped" if self._stop.is_set() else "done"
            words = ""
        except Exception as error:  # of a decoder or a runtime; the page has to say it
            end, words = "failed", str(error).replace(str(self._video), self.title)
            if not isinstance(error, ValueError | OSError):
                words = f"{type(error).__name__}: {words}"
        with self._lock:
            self._state, self._words = end, words

    def _keep(self, frame: SourceFrame, found: Sequence[Detections]) -> None:
        jpeg = jpeg_thumbnail(frame.pixels, max_width=MOST_PIXELS_WIDE, quality=QUALITY)
        self._store.append(jpeg)
        now, index = time.monotonic(), len(self._times_s)
        rows = [
            detection_rows(_prediction(index, one), shown.floor)
            for one, shown in zip(found, self.detectors, strict=True)
        ]
        with self._lock:
            self._times_s.append(float(frame.time_s))
            self._names.append(frame.name if self._video.is_dir() else "")
            for own, new in zip(self._rows, rows, strict=True):
                own.append(new)
            self._lately.append(now)
            while now - self._lately[0] > RATE_OVER_S:
                self._lately.popleft()


def _prediction(index: int, found: Detections) -> FramePrediction:
    return FramePrediction(
        index, found.boxes_xyxy_px.astype(float), found.scores.astype(float), found.classes
    )


def _shown(name: str, detector: FrameDetector) -> Shown:
    names, threshold = list(detector.class_names), detector.score_threshold
    if threshold is None:
        return Shown(name, names, remark="no threshold was chosen on validation data")
    return Shown(name, names, dict.fromkeys(MATCHERS, threshold))
