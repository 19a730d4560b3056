"""Trained detector of lesions for images and video: the interface for people.

Programs that have frames already, and want all detections, call a ``FrameDetector`` itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from v2i_runtime.detections import FrameDetector, checked_frame
from v2i_runtime.frame_detections import FrameDetections
from v2i_runtime.image_files import IMAGE_SUFFIXES, read_image
from v2i_runtime.output_files import check_outputs
from v2i_runtime.sources import DEFAULT_RATE, SourceFrame, open_source

if TYPE_CHECKING:
    from v2i_runtime.video_run import Outcome

PathLike = str | os.PathLike[str]


class LesionDetector:
    """Detections of at least a score threshold, in images and videos.

    Args:
        detector: detector of frames.
        score_threshold: least score of a detection; None for the detector's own.
        name: name of the model, for messages and files.

    Attributes:
        detector: detector of frames, which gives detections of any score.
        class_names: class names by index.
        score_threshold: least score of a detection; None if unknown.

    Raises:
        ValueError: the threshold is not in [0, 1].
    """

    def __init__(
        self,
        detector: FrameDetector,
        *,
        score_threshold: float | None = None,
        name: str = "detector",
    ) -> None:
        if score_threshold is None:
            score_threshold = detector.score_threshold
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold={score_threshold} is not in [0, 1]")
        self.detector, self.score_threshold = detector, score_threshold
        self.class_names, self._name = list(detector.class_names), name

    def __repr__(self) -> str:
        known = self.score_threshold is not None
        threshold = f"{self.score_threshold:.3f}" if known else "unknown"
        return f"{self._name}: {', '.join(self.class_names)}; score threshold {threshold}"

    def __call__(self, image: np.ndarray | PathLike) -> FrameDetections:
        """Detections of one image.

        Args:
            image: RGB array (H, W, 3) of uint8, or path of an image file. Images of OpenCV are BGR:
                ``cv2.cvtColor(image, cv2.COLOR_BGR2RGB)`` first.

        Raises:
            ValueError: no image, or no known threshold.
        """
        threshold = self._threshold()
        if isinstance(image, str | os.PathLike):
            path = Path(image)
            if path.exists() and path.suffix.lower() not in IMAGE_SUFFIXES:
                raise ValueError(
                    f"{path}: is no image file ({', '.join(IMAGE_SUFFIXES)}); frames(...) takes a "
                    "video, a folder or a pattern"
                )
            frame = SourceFrame(read_image(path), Fraction(0), path.name)
        else:
            frame = SourceFrame(checked_frame(image, "the image"), Fraction(0), "")
        return self._detect(frame, threshold)

    def frames(
        self, source: PathLike, *, image_rate: Fraction | float = DEFAULT_RATE
    ) -> Iterator[FrameDetections]:
        """Detections of every frame of a video, one by one; memory does not grow with its length.

        Args:
            source: video file, folder of images, pattern or image.
            image_rate: frame rate of image files, Hz.

        Raises:
            ValueError: at once: no such source, or no known threshold; during iteration: a damaged
                video, or a frame that the detector does not take.
        """
        threshold, frames = self._threshold(), open_source(source, image_rate=Fraction(image_rate))
        return (self._detect(frame, threshold) for frame in frames)

    def write_video(
        self,
        source: PathLike,
        output: PathLike,
        *,
        json: PathLike | None = None,
        csv: PathLike | None = None,
        overwrite: bool = False,
        **settings: Any,
    ) -> Outcome:
        """Write a video with boxes, as ``tools/predict_video.py`` does.

        Args:
            source: video file, folder of images, pattern or image.
            output: video to write, ``.mp4``.
            json, csv: files for the detections; None for none.
            overwrite: replace existing files.
            settings: fields of ``video_run.Settings`` other than the threshold, such as ``every``.

        Returns:
            numbers, files and notes, see ``video_run.Outcome``.

        Raises:
            ValueError: no such source, no known threshold, a name or file that cannot be written,
                or damage in the video; files are then complete up to there.
            KeyboardInterrupt: interrupted; files are complete up to there.
        """
        from v2i_runtime.video_file import check_encoder
        from v2i_runtime.video_run import Settings, predict_video

        wanted = Settings(self._threshold(), **settings)
        given = {"output": output, "json": json, "csv": csv}
        paths = {kind: Path(path) for kind, path in given.items() if path is not None}
        if paths["output"].suffix.lower() != ".mp4":
            raise ValueError(f"output {output}: must end in .mp4")
        for path in paths.values():
            if path.exists() and not overwrite:
                raise ValueError(f"{path}: exists; choose another name, or give overwrite=True")
        check_encoder()
        outputs = check_outputs(paths, {"source": os.fspath(source)}, overwrite=overwrite)
        outputs["video"] = outputs.pop("output")
        name = os.path.basename(os.path.normpath(source))
        frames = open_source(source)
        outcome = predict_video(frames, self.detector, wanted, outputs, name=name, model=self._name)
        if outcome.error is not None:
            raise outcome.error
        if outcome.stopped_by is not None:
            raise KeyboardInterrupt(outcome.summary())
        return outcome

    def _threshold(self) -> float:
        if self.score_threshold is None:
            raise ValueError(
                f"{self._name}: its score threshold is unknown, because no evaluation of these "
                "weights is beside or in it; give one: load(..., score_threshold=0.5)"
            )
        return self.score_threshold

    def _detect(self, frame: SourceFrame, threshold: float) -> FrameDetections:
        found = self.detector([frame.pixels])[0].above(threshold)
        return FrameDetections(
            found.scores, found.classes, found.boxes_xyxy_px, frame, self.class_names
        )
