"""Videos and images below a folder, by name and frame.

Clip        a video file, or images that are the frames of one video
find_media  folder -> clips
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PurePosixPath

from v2i_runtime.image_files import image_names, natural_key
from v2i_runtime.sources import VideoFile
from v2idetr.data.audit import Findings
from v2idetr.prepare.labels.media_names import number_at_end, parts_of
from v2idetr.prepare.video_sources import VideoSource, find_videos

# Folders and beginnings of names that say nothing about the video.
GENERIC = {"images", "labels", "annotations", "train", "val", "valid", "validation", "test"}
GENERIC |= {"jpegimages", "data", "default", "frames", "frame", "image", "imgs", "img"}
GENERIC |= {"obj_train_data", "obj_valid_data"}


@dataclass
class Clip:
    """One video.

    Attributes:
        name: its name, unique.
        source: the video file; None for images.
        images: path of each image below the source folder by frame number; empty for a file.
        size: (width, height) of the frames of a file, px; None for images, which are read later.
        num_frames: frames that a file states; None if unknown, or for images.
        frame_rate: Hz; None if unknown.
    """

    name: str
    source: VideoSource | None = None
    images: dict[int, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    num_frames: int | None = None
    frame_rate: Fraction | None = None

    @cached_property
    def numbers(self) -> list[int]:
        """Frame numbers of the images, ascending."""
        return sorted(self.images)


def find_media(
    source: Path,
    notes: Findings,
    *,
    leave_out: Path,
    image_rate: Fraction | None = None,
    pattern: str | None = None,
) -> list[Clip]:
    """Clips below a folder, in natural order.

    Args:
        source: folder, or one video file.
        notes: receives what cannot be told from the names.
        leave_out: folder to skip, such as the output.
        image_rate: frame rate of images, Hz; None if unknown.
        pattern: regular expression that is looked for in an image's path without suffix: its group
            ``video``, or the first one, is the video's name, its group ``frame`` the number. None:
            folders and the name before the number at its end are the video.

    Raises:
        ValueError: nothing there, two videos of one name, two images of one number, a video that
            cannot be read, or a pattern that does not fit.
    """
    found = find_videos(source, Findings(), leave_out=leave_out)
    clips: list[Clip] = []
    by_name: dict[str, Clip] = {}
    place_of = _by_pattern(pattern) if pattern else _by_name(source, notes)
    for item in found:
        if not item.is_folder:
            opened = VideoFile(item.path)
            clips.append(
                Clip(item.name, item, {}, opened.size, opened.num_frames, opened.frame_rate)
            )
            continue
        folder = item.path.relative_to(source)
        for name in image_names(item.path):
            path = (folder / name).as_posix()
            video, number = place_of(path)
            clip = by_name.setdefault(video, Clip(video, frame_rate=image_rate))
            first = clip.images.setdefault(number, path)
            if first != path:
                raise ValueError(
                    f"{source}: {first} and {path} would both be frame {number} of a video "
                    f"{video!r}; say which part of a path names the video by --video-pattern, such "
                    "as '(?P<video>case[0-9]+)/(?P<frame>[0-9]+)'"
                )
    clips += by_name.values()
    names = [clip.name for clip in clips]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{source}: a video file and images are both a video {twice!r}; move one of them away, "
            "or rename it"
        )
    return sorted(clips, key=lambda clip: natural_key(clip.name))


def _by_pattern(pattern: str) -> Callable[[str], tuple[str, int]]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--video-pattern {pattern}: is no regular expression ({error})") from None
    if not expression.groups:
        raise ValueError(
            f"--video-pattern {pattern}: needs a group for the video's name, such as "
            "'(?P<video>case[0-9]+)/(?P<frame>[0-9]+)'"
        )

    def place_of(path: str) -> tuple[str, int]:
        match = expression.search(PurePosixPath(path).with_suffix("").as_posix())
        groups = match.groupdict() if match else {}
        video = groups.get("video", match[1] if match else None)
        number = groups.get("frame") or number_at_end(PurePosixPath(path).stem)[1]
        if not video or number is None or not str(number).isdecimal():
            raise ValueError(
                f"--video-pattern {pattern}: {path} does not fit, or has no number of the frame"
            )
        return video, int(number)

    return place_of


def _by_name(source: Path, notes: Findings) -> Callable[[str], tuple[str, int]]:
    def place_of(path: str) -> tuple[str, int]:
        *folders, stem = parts_of(path)
        before, number = number_at_end(stem)
        if number is None:
            notes.add("image without a number is a video of its own", path)
        named = [part for part in (*folders, before) if part and part.lower() not in GENERIC]
        return "__".join(named) or source.resolve().name, number or 0

    return place_of
