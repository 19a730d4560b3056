"""Predictions -> a COCO results file and a table, written as they come.

JSON, an object in the layout of COCO:

    info         program, model, input and options; complete: false if the run was interrupted
    videos       [{id, name, width, height, frame_rate}], one
    images       [{id, video_id, file_name, frame_index, time_s, width, height}]: the frames that
                 the detector saw, also those without a detection
    annotations  [{id, image_id, category_id, bbox, area, score}], with track_id if lesions are
                 tracked (null until a lesion is confirmed)
    categories   [{id, name}]

Ids count from 1, frames from 0. ``bbox`` is [x, y, width, height] in pixels of the frame, ``score``
in [0, 1], ``time_s`` the frame's own time in the source in seconds. ``annotations`` alone is what
``loadRes`` of pycocotools takes.

CSV: a row per detection, with the columns ``frame`` (from 0), ``time_s``, ``x1_px``, ``y1_px``,
``x2_px``, ``y2_px``, ``score``, ``class`` and, if lesions are tracked, ``track``.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from v2i_runtime.output_files import errors_name, temporary_name
from v2i_runtime.predictor import FramePrediction
from v2i_runtime.tracking import NO_ID

VIDEO_ID = 1


class _Table:
    """A text file with a temporary name until it is complete."""

    def __init__(self, path: Path) -> None:
        self.path, self._temporary = path, temporary_name(path)
        with errors_name(path):
            self._file = open(self._temporary, "w", encoding="utf-8", newline="")  # noqa: SIM115

    def discard(self) -> None:
        """Leave nothing behind; raises nothing."""
        _close(self._file)
        with contextlib.suppress(OSError):
            self._temporary.unlink()

    def _complete(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)


class CsvFile(_Table):
    """The CSV, see the module.

    Args:
        path: file to write.
        class_names: class names by index.
        with_ids: whether to write ids of lesions.
    """

    def __init__(self, path: Path, class_names: Sequence[str], *, with_ids: bool) -> None:
        super().__init__(path)
        self._names, self._with_ids = list(class_names), with_ids
        self._writer = csv.writer(self._file, lineterminator="\n")
        columns = ["frame", "time_s", "x1_px", "y1_px", "x2_px", "y2_px", "score", "class"]
        self._writer.writerow([*columns, *(["track"] if with_ids else [])])

    def write(self, prediction: FramePrediction) -> None:
        """Add the detections of a frame."""
        if not prediction.detected:
            return
        time_s = float(prediction.frame.time_s)
        with errors_name(self.path):
            for box, score, label, lesion in _rows(prediction):
                row = [prediction.index, time_s, *box, score, self._names[label]]
                track = [lesion if lesion != NO_ID else ""] if self._with_ids else []
                self._writer.writerow([*row, *track])

    def finish(self, info: Mapping[str, Any]) -> None:
        """Give the file its name."""
        with errors_name(self.path):
            self._complete()


class JsonFile(_Table):
    """The JSON, see the module. Memory does not grow with the number of frames.

    Args:
        path: file to write.
        class_names: class names by index.
        video: name, width, height and frame_rate.
        with_ids: whether to write ids of lesions.
    """

    def __init__(
        self, path: Path, class_names: Sequence[str], video: Mapping[str, Any], *, with_ids: bool
    ) -> None:
        with errors_name(path):
            # The frames wait in a file of their own until the annotations are complete.
            self._frames = tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent)  # noqa: SIM115
        super().__init__(path)
        self._size = {key: video[key] for key in ("width", "height")}
        self._with_ids, self._annotations, self._images = with_ids, 0, 0
        categories = [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)]
        beginning = (
            f'{{"videos": {json.dumps([{"id": VIDEO_ID, **video}])},\n'
            f'"categories": {json.dumps(categories)},\n"annotations": ['
        )
        with errors_name(path):
            self._file.write(beginning)

    def write(self, prediction: FramePrediction) -> None:
        """Add a frame and its detections."""
        if not prediction.detected:
            return
        self._images += 1
        image = {
            "id": prediction.index + 1,
            "video_id": VIDEO_ID,
            "file_name": prediction.frame.name,
            "frame_index": prediction.index,
            "time_s": float(prediction.frame.time_s),
            **self._size,
        }
        with errors_name(self.path):
            self._frames.write((",\n" if self._images > 1 else "\n") + json.dumps(image))
            for box, score, label, lesion in _rows(prediction):
                self._annotations += 1
                x1, y1, x2, y2 = box
                width, height = round(x2 - x1, 3), round(y2 - y1, 3)
                result: dict[str, Any] = {
                    "id": self._annotations,
                    "image_id": image["id"],
                    "category_id": label + 1,
                    "bbox": [x1, y1, width, height],
                    "area": round(width * height, 3),
                    "score": score,
                }
                if self._with_ids:
                    result["track_id"] = lesion if lesion != NO_ID else None
                first = self._annotations == 1
                self._file.write(("\n" if first else ",\n") + json.dumps(result))

    def finish(self, info: Mapping[str, Any]) -> None:
        """Complete the file and give it its name.

        Args:
            info: facts about the run.
        """
        with errors_name(self.path):
            self._file.write('\n],\n"images": [')
            self._frames.seek(0)
            shutil.copyfileobj(self._frames, self._file)
            self._frames.close()
            self._file.write(f'\n],\n"info": {json.dumps(dict(info))}}}\n')
            self._complete()

    def discard(self) -> None:
        """Leave nothing behind; raises nothing."""
        super().discard()
        _close(self._frames)


def _close(file: IO[str]) -> None:
    with contextlib.suppress(OSError):  # what waits does not fit on the disk
        file.close()


def _rows(prediction: FramePrediction) -> list[tuple[list[float], float, int, int]]:
    """(box, score, class, id) of each detection, rounded to a thousandth px and a millionth."""
    found = prediction.detections
    return [
        ([round(v, 3) for v in box], round(score, 6), int(label), int(lesion))
        for box, score, label, lesion in zip(
            found.boxes_xyxy_px.tolist(),
            found.scores.tolist(),
            found.classes.tolist(),
            prediction.ids.tolist(),
            strict=True,
        )
    ]
