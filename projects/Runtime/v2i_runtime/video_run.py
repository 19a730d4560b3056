"""Source of frames + detector -> video with boxes, JSON and CSV, in one pass."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from v2i_runtime.detections import FrameDetector
from v2i_runtime.excerpt import Excerpt
from v2i_runtime.overlay import Overlay
from v2i_runtime.pipeline import run_pipeline
from v2i_runtime.prediction_files import CsvFile, JsonFile
from v2i_runtime.predictor import FramePrediction, Predictor
from v2i_runtime.progress import progress_bar
from v2i_runtime.sources import FrameSource
from v2i_runtime.stop_signals import StopSignals
from v2i_runtime.tracking import BoxSmoother, ByteTrack, OverlapLinks, Tracker
from v2i_runtime.video_facts import VideoFacts, facts_of
from v2i_runtime.video_file import VideoWriter

RATE_OVER_S = 2.0  # the rate in the corner is a mean over this time
RATE_OTHERWISE = Fraction(25)  # Hz, where the source has none


@dataclass(frozen=True)
class Settings:
    """How a video is predicted.

    Attributes:
        score_threshold: least score.
        every: the detector sees every Nth frame.
        start_s, end_s: excerpt, on the clock of the source.
        track: give lesions ids by ByteTrack.
        smooth: number of frames over which a lesion's boxes are averaged; 1 for raw boxes.
        show_time: show each frame's time in the video.

    Raises:
        ValueError: every or smooth is below 1, or the excerpt does not end after its start.
    """

    score_threshold: float
    every: int = 1
    start_s: Fraction | None = None
    end_s: Fraction | None = None
    track: bool = False
    smooth: int = 1
    show_time: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "smooth"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        start_s, end_s = self.start_s, self.end_s
        if start_s is not None and end_s is not None and end_s <= start_s:
            raise ValueError(f"end_s is {end_s}, but must be after start_s, {start_s}")


@dataclass
class Outcome:
    """What a run has done.

    Attributes:
        frames: number of frames processed.
        detections: number of detections on frames that the detector saw.
        seconds: length of the excerpt, s.
        wall_s: time it took.
        files: files written.
        notes: what a user should know: sound left out, frames dropped.
        error: what ended the run early; None if nothing did.
        stopped_by: signal that ended the run early; None if none did.
    """

    frames: int = 0
    detections: int = 0
    seconds: float = 0.0
    wall_s: float = 0.0
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: BaseException | None = None
    stopped_by: int | None = None

    def summary(self) -> str:
        """One line with the numbers."""
        wall_s = max(self.wall_s, 1e-9)
        frames, found = _counted(self.frames, "frame"), _counted(self.detections, "detection")
        return (
            f"{frames}, {self.seconds:.2f} s of video in {self.wall_s:.1f} s "
            f"({self.seconds / wall_s:.2f} x real time, {self.frames / wall_s:.1f} frames/s), "
            f"{found}: {', '.join(map(str, self.files)) or 'nothing written'}"
        )


def predict_video(
    source: FrameSource,
    detector: FrameDetector,
    settings: Settings,
    outputs: Mapping[str, Path],
    *,
    name: str,
    model: str,
) -> Outcome:
    """Predict a video; complete the files whatever happens on the way.

    Args:
        source: frames.
        detector: detector.
        settings: see there.
        outputs: files to write, checked before, by kind: "video", "json", "csv"; folders that
            they need are created.
        name: name of the input, for the JSON.
        model: name of the model, for the JSON.

    Raises:
        ValueError: a package is missing, or frames are too large for H.264.
        OSError: a file cannot be created.
    """
    run = _Run(source, detector, settings, outputs, name=name, model=model)
    with StopSignals() as signals:
        return run(signals)


class _Run:
    def __init__(
        self,
        source: FrameSource,
        detector: FrameDetector,
        settings: Settings,
        outputs: Mapping[str, Path],
        *,
        name: str,
        model: str,
    ) -> None:
        self._source, self._facts = source, facts_of(source)
        self._settings, self._detector, self._names = settings, detector, detector.class_names
        self._excerpt = Excerpt(source, self._facts, settings.start_s, settings.end_s)
        self._outputs, self._name, self._model = outputs, name, model
        self._outcome = Outcome(notes=_notes(source, self._facts, "video" in outputs))
        self._predict = self._predictor()
        self._overlay = self._new_overlay() if "video" in outputs else None
        self._video: VideoWriter | None = None
        self._tables: list[JsonFile | CsvFile] = []
        self._times: deque[float] = deque()
        self._dropped = 0
        self._last_s: Fraction | None = None
        self._first_s: Fraction | None = None

    def __call__(self, signals: StopSignals) -> Outcome:
        outcome, start = self._outcome, time.monotonic()
        try:
            self._open()
        except BaseException:
            self._discard()
            raise
        total = self._excerpt.num_frames
        with progress_bar(total=total, desc=self._name, unit="frame") as self._progress:
            try:
                run_pipeline(
                    self._excerpt.frames(),
                    lambda item: self._predict(*item),
                    self._write,
                    stop=signals.event,
                    on_drop=self._drop if getattr(self._source, "live", False) else None,
                )
            except BaseException as error:
                outcome.error = error
        outcome.stopped_by = signals.received
        if self._dropped:
            frames = _counted(self._dropped, "frame")
            outcome.notes.append(f"{frames} of the camera came too fast: dropped")
        self._finish()
        outcome.wall_s = time.monotonic() - start
        return outcome

    def _predictor(self) -> Predictor:
        settings = self._settings
        rate_hz = float((self._source.frame_rate or RATE_OTHERWISE) / settings.every)
        tracker: Tracker | None = None
        if settings.track:
            tracker = ByteTrack(rate_hz, settings.score_threshold)
        elif settings.smooth > 1 or "video" in self._outputs:
            tracker = OverlapLinks()
        smoother = BoxSmoother(settings.smooth) if settings.smooth > 1 else None
        return Predictor(
            self._detector,
            settings.score_threshold,
            every=settings.every,
            tracker=tracker,
            smoother=smoother,
        )

    def _new_overlay(self) -> Overlay:
        return Overlay(
            self._source.size,
            self._names,
            show_ids=self._settings.track,
            show_time=self._settings.show_time,
        )

    def _open(self) -> None:
        facts, source = self._facts, self._source
        for path in self._outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        if "video" in self._outputs:
            self._video = VideoWriter(
                self._outputs["video"],
                source.size,
                time_base=facts.time_base,
                frame_rate=source.frame_rate,
                pixel_aspect=facts.pixel_aspect,
            )
        with_ids, (width, height) = self._settings.track, source.size
        if "json" in self._outputs:
            rate = float(source.frame_rate) if source.frame_rate else None
            video = {"name": self._name, "width": width, "height": height, "frame_rate": rate}
            path = self._outputs["json"]
            self._tables.append(JsonFile(path, self._names, video, with_ids=with_ids))
        if "csv" in self._outputs:
            self._tables.append(CsvFile(self._outputs["csv"], self._names, with_ids=with_ids))

    def _write(self, prediction: FramePrediction) -> None:
        outcome = self._outcome
        if self._video is not None and self._overlay is not None:
            pixels = self._overlay.draw(prediction, self._rate_hz())
            self._video.write(pixels, prediction.frame.time_s)
        for table in self._tables:
            table.write(prediction)
        self._last_s = prediction.frame.time_s
        self._first_s = self._last_s if self._first_s is None else self._first_s
        outcome.frames += 1
        outcome.detections += len(prediction.detections) if prediction.detected else 0
        self._progress.update()

    def _drop(self) -> None:
        self._dropped += 1

    def _rate_hz(self) -> float | None:
        """Frames per second of this program, lately."""
        now, times = time.monotonic(), self._times
        times.append(now)
        while now - times[0] > RATE_OVER_S:
            times.popleft()
        return (len(times) - 1) / (now - times[0]) if len(times) > 1 else None

    def _finish(self) -> None:
        outcome = self._outcome
        if outcome.frames == 0:
            self._discard()
            if outcome.error is None and outcome.stopped_by is None:
                outcome.error = NoFrameError(self._no_frame())
            return
        complete = outcome.error is None and outcome.stopped_by is None
        end_s = self._excerpt.last_ends_s if complete else None
        assert self._first_s is not None and self._last_s is not None
        if end_s is None or end_s <= self._last_s:
            end_s = self._last_s + 1 / (self._source.frame_rate or RATE_OTHERWISE)
        outcome.seconds = float(end_s - self._first_s)
        if self._video is not None:
            self._finish_video(self._video, end_s)
        for table in self._tables:
            self._finish_table(table, complete)
        if self._video is not None and self._video.late:
            outcome.notes.append(
                f"{self._video.late} frames had a time that was not after the one before, and were "
                "moved behind it"
            )

    def _finish_table(self, table: JsonFile | CsvFile, complete: bool) -> None:
        outcome = self._outcome
        try:
            table.finish(self._info(complete))
        except OSError as error:
            table.discard()
            outcome.error = outcome.error or error
            outcome.notes.append(f"{table.path}: not written ({error.strerror})")
        else:
            outcome.files.append(table.path)

    def _finish_video(self, video: VideoWriter, end_s: Fraction) -> None:
        outcome = self._outcome
        try:
            outcome.notes += video.finish(end_s, self._facts.audio)
        except (OSError, ValueError) as error:
            # An error of the pipeline was likely this one: a full disk.
            outcome.error = outcome.error or error
            outcome.notes.append(
                f"{video.path}: kept as far as it was written, without sound: "
                f"{video.kept} of {_counted(outcome.frames, 'frame')}"
            )
            outcome.files += [video.path] if video.kept else []
        else:
            outcome.files.append(video.path)

    def _discard(self) -> None:
        for output in (self._video, *self._tables):
            if output is not None:
                with suppress(OSError):
                    output.discard()

    def _no_frame(self) -> str:
        seen = self._excerpt.seen_s
        assert seen is not None  # a source has at least one frame
        first, last = (float(time_s) for time_s in seen)
        return (
            f"{self._name}: no frame between --start and --end; its frames begin at {first:.3f} s, "
            f"and it was read until {last:.3f} s"
        )

    def _info(self, complete: bool) -> dict[str, Any]:
        settings = asdict(self._settings)
        for key in ("start_s", "end_s"):
            settings[key] = None if settings[key] is None else float(settings[key])
        return {
            "description": "detections of v2i-predict-video",
            "model": self._model,
            "input": self._name,
            "complete": complete,
            "frames": self._outcome.frames,
            **settings,
        }


class NoFrameError(ValueError):
    """The excerpt is empty."""


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _notes(source: FrameSource, facts: VideoFacts, has_video: bool) -> list[str]:
    notes = []
    width, height = source.size
    if has_video and (width % 2 or height % 2):
        notes.append(
            f"frames of {width} x {height} px are padded by a copy of their last column or row: "
            "H.264 needs even sizes; boxes stay as they are"
        )
    if facts.interlaced:
        notes.append(
            "the video is interlaced: both fields of a frame are seen together, as they are stored"
        )
    return notes
