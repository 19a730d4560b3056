"""Folders -> the videos in them: video files, and folders of frames.

find_videos       all below a folder, by name
numbered_videos   those directly in a folder, by number: video01.mp4, VID01/
numbered_files    files whose names fit a pattern, by number
check_numbering   numbers of a folder's frames without gaps
folders_below     all folders with their files
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from v2i_runtime.image_files import IMAGE_SUFFIXES, image_names, natural_key
from v2idetr.data.audit import Findings

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
VIDEO_SUFFIXES += (".ts", ".m2ts", ".mts", ".flv", ".vob", ".ogv", ".dv", ".h264")


@dataclass(frozen=True)
class VideoSource:
    """A video file or a folder of frames."""

    name: str
    path: Path

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()


def find_videos(source: Path, notes: Findings, *, leave_out: Path) -> list[VideoSource]:
    """Videos and folders of frames below a folder, in natural order of their paths.

    Their names are their paths with ``__`` between folders, without suffix. A video file stands for
    itself. Files that are neither video nor image are noted.

    Args:
        source: folder or video file.
        notes: receives what is left out.
        leave_out: folder to skip, such as an output folder inside `source`.

    Raises:
        ValueError: no such folder, no videos, a folder without files, or two videos of one name.
    """
    if source.is_file():
        return [VideoSource(source.stem, source)]
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder (--source)")
    found: list[VideoSource] = []
    for folder, files, has_folders in folders_below(source, leave_out.resolve()):
        relative = folder.relative_to(source)
        prefix = [*relative.parts]
        for name in files:
            suffix = Path(name).suffix.lower()
            if suffix in VIDEO_SUFFIXES:
                found.append(VideoSource("__".join([*prefix, Path(name).stem]), folder / name))
            elif suffix not in IMAGE_SUFFIXES:
                notes.add("file is neither video nor image", (relative / name).as_posix())
        is_empty = not files and not has_folders
        if is_empty or any(name.lower().endswith(IMAGE_SUFFIXES) for name in files):
            found.append(VideoSource("__".join(prefix) or source.resolve().name, folder))
    if not found:
        raise ValueError(
            f"{source}: holds no videos ({', '.join(VIDEO_SUFFIXES)}) and no folders of frames "
            f"({', '.join(IMAGE_SUFFIXES)})"
        )
    _check_names(found)
    return sorted(found, key=lambda video: natural_key(str(video.path)))


def folders_below(source: Path, leave_out: Path) -> Iterable[tuple[Path, list[str], bool]]:
    """Each folder with its visible files, and whether it has folders; links are followed once."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or real == str(leave_out):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield Path(folder), sorted(name for name in files if name[0] != "."), bool(folders)


def _check_names(found: Iterable[VideoSource]) -> None:
    names: dict[str, Path] = {}
    for video in found:
        first = names.setdefault(video.name, video.path)
        if first != video.path:
            raise ValueError(
                f"{first} and {video.path} are both a video {video.name!r}: rename one of them, or "
                "move it away if they are the same"
            )


def numbered_videos(folder: Path) -> dict[int, VideoSource]:
    """Video files and folders directly in `folder` by the last number of their names.

    Empty if there is no such folder.

    Raises:
        ValueError: two of one number.
    """
    videos: dict[int, VideoSource] = {}
    if not folder.is_dir():
        return videos
    for path in sorted(folder.iterdir()):
        is_video = path.suffix.lower() in VIDEO_SUFFIXES if path.is_file() else path.is_dir()
        digits = re.findall(r"\d+", path.stem if path.is_file() else path.name)
        if path.name[0] == "." or not is_video or not digits:
            continue
        number = int(digits[-1])
        if number in videos:
            raise ValueError(
                f"{videos[number].path} and {path} are both video {number}: move one of them away"
            )
        videos[number] = VideoSource(path.stem if path.is_file() else path.name, path)
    return videos


def numbered_files(folder: Path, pattern: str) -> dict[int, Path]:
    """Files directly in `folder` whose whole name fits a regular expression, by its group 1.

    Empty if there is no such folder.

    Raises:
        ValueError: two of one number.
    """
    files: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = re.fullmatch(pattern, path.name)
        if match is None or not path.is_file():
            continue
        first = files.setdefault(int(match[1]), path)
        if first != path:
            raise ValueError(f"{first} and {path} are both of video {int(match[1])}: remove one")
    return files


def check_numbering(source: VideoSource) -> None:
    """Check the frames of a folder for gaps, behind which labels would belong to other frames.

    The numbers at the end of the names have to rise by one step, such as 1 or 25; names without
    numbers are not checked. A video file has none.

    Raises:
        ValueError: names the first gap.
    """
    if not source.is_folder:
        return
    names = image_names(source.path)
    found = [re.search(r"(\d+)\.[^.]+$", name) for name in names]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) < 3 or len(numbers) != len(names):
        return
    steps = [after - before for before, after in pairwise(numbers)]
    for before, step, name in zip(names, steps, names[1:], strict=False):
        if step != min(steps):
            raise ValueError(
                f"{source.path}: frames are missing between {before} and {name}; the labels of "
                "later ones would not fit: extract the frames again"
            )
