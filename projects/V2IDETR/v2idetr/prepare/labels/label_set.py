"""What a reader of label files returns: frames as the file names them, with their boxes.

LabelledBox     class, box, and the shape that it comes from
LabelledFrame   one frame: its name or its video and number, and its boxes
LabelSet        frames of all files, names of the classes, and notes
number_of, whole_number_of, frame_number_of   text of a label file -> a number, or an error
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from v2idetr.data.audit import Findings

MOST_FRAMES = 2_000_000  # of a video, nine hours at 60 Hz; a damaged number would fill the memory


@dataclass
class LabelledBox:
    """A lesion as labelled.

    Attributes:
        class_name: its class, as the file names it.
        xywh: box [x, y, w, h]; None for a shape that has no box, such as a point.
        track: number of its track in the video, if it has one.
        kind: shape in the file, for messages.
    """

    class_name: str
    xywh: list[float] | None
    track: int | None = None
    kind: str = "box"


@dataclass
class LabelledFrame:
    """A frame that a label file lists.

    Attributes:
        source: label file, for messages.
        name: path or name of its image in the file, with "/" between folders; "" for none.
        video: name of its video in the file; "" for none.
        number: number of the frame in the video, from 0, as the file states it; None for none.
        size: (width, height) for which the boxes were made, px; None if the file does not say.
        boxes: its lesions; [] where the file lists the frame and no lesion.
        relative: whether boxes are in shares of the frame's size instead of px.
        hints: further names that may be the video's: of the task, of the file and its folders.
        frames_counted: number of frames that the tool counted in the whole video; None if the file
            does not say.
    """

    source: str
    name: str = ""
    video: str = ""
    number: int | None = None
    size: tuple[int, int] | None = None
    boxes: list[LabelledBox] = field(default_factory=list)
    relative: bool = False
    hints: tuple[str, ...] = ()
    frames_counted: int | None = None

    def __str__(self) -> str:
        frame = self.name or f"frame {self.number} of {self.video or self.hints[-1]}"
        return f"{frame} ({self.source})"


@dataclass
class LabelSet:
    """All that was read.

    Attributes:
        frames: frames in the order of the files.
        class_names: names that the files list, in their order, also without boxes.
        notes: what was converted or left out.
        problems: what makes a file unusable.
    """

    frames: list[LabelledFrame] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    notes: Findings = field(default_factory=Findings)
    problems: Findings = field(default_factory=Findings)

    def add_class(self, name: str) -> None:
        """List a class name unless it is listed."""
        if name not in self.class_names:
            self.class_names.append(name)


def number_of(value: Any, where: str) -> float:
    """A number of a label file.

    Raises:
        ValueError: it is missing, text, or not finite; names ``where`` it stands.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where} is {value!r}, not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{where} is {value!r}, not a finite number")
    return number


def whole_number_of(value: Any, where: str) -> int:
    """A whole number of a label file, at least 0.

    Raises:
        ValueError: it is something else; names ``where`` it stands.
    """
    number = number_of(value, where)
    if number < 0 or number != int(number):
        raise ValueError(f"{where} is {value!r}, not a whole number from 0")
    return int(number)


def frame_number_of(value: Any, where: str) -> int:
    """Number of a frame in a video.

    Raises:
        ValueError: it is something else, or larger than MOST_FRAMES.
    """
    number = whole_number_of(value, where)
    if number > MOST_FRAMES:
        raise ValueError(f"{where} is {number}, which is more frames than a video has")
    return number
