"""Labelled frames + media -> the frame of a clip that each of them labels.

match_frames     labelled frames by clip and frame number
usable_frames    boxes in px; frames with a shape that gives no box are left out
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from v2i_runtime.image_files import ImageFileError, image_size
from v2idetr.data.audit import Findings, clip_box
from v2idetr.prepare.annotations import in_threads
from v2idetr.prepare.labels.label_set import LabelledBox, LabelledFrame, LabelSet
from v2idetr.prepare.labels.media import GENERIC, Clip
from v2idetr.prepare.labels.media_names import (
    leads_out,
    number_at_end,
    parts_of,
    without_upload_prefix,
)

Labels = dict[str, dict[int, LabelledFrame]]  # clip name -> frame number -> labels
Size = tuple[int, int]
Item = TypeVar("Item")
CLOSE = 0.01  # by which a tool's number of frames may differ from the video's


class _Index:
    """Clips and images by the stem of their name, and the best of several.

    Args:
        clips: media.
        notes: receives images that are found by their name alone.
    """

    def __init__(self, clips: Sequence[Clip], notes: Findings) -> None:
        self._notes = notes
        self.videos: defaultdict[str, list[Clip]] = defaultdict(list)
        self.images: defaultdict[str, list[tuple[Clip, int, list[str]]]] = defaultdict(list)
        for clip in clips:
            stems = {clip.name, clip.name.rpartition("__")[2]}
            for stem in stems | ({clip.source.path.stem} if clip.source else set()):
                self.videos[stem].append(clip)
            for number, path in clip.images.items():
                parts = parts_of(path)
                self.images[parts[-1]].append((clip, number, parts))

    def image(self, frame: LabelledFrame) -> tuple[Clip, int] | None:
        """The image of a frame's name; ValueError if several fit equally well."""
        parts = parts_of(frame.name)
        if not parts:
            return None
        known = self.images.get(parts[-1])
        if not known:
            parts[-1] = without_upload_prefix(parts[-1])
            known = self.images.get(parts[-1], [])
        clip_parts = {part for hint in frame.hints for part in parts_of(hint)} | {frame.video}
        best = _best(known, lambda one: (_common(one[2], parts), len(clip_parts & {*one[2]})))
        if len(best) > 1:
            listed = ", ".join(one[0].images[one[1]] for one in best[:3])
            raise ValueError(f"{frame}: may be any of {listed}")
        if not best:
            return None
        clip, number, image_parts = best[0]
        any_video = _is_generic(number_at_end(parts[-1])[0])  # a name such as 000012
        # Where the name has no folder, that of the label file counts.
        folders = parts[:-1] or (frame.hints[:-1] if any_video else ())
        if _are_others(folders, image_parts[:-1]):
            if any_video:
                return None
            kind = "image is found by its name alone, in a folder of another name"
            self._notes.add(kind, f"{frame}: {clip.images[number]}")
        return clip, number

    def video(self, frame: LabelledFrame) -> Clip | None:
        """The video of a frame; ValueError if several fit equally well."""
        *folders, stem = parts_of(frame.name) or [""]
        before = number_at_end(stem)[0]
        names = [frame.video, before, *reversed(folders), *reversed(frame.hints)]
        for name in filter(None, names):
            parts = parts_of(name)
            if not parts:
                continue
            last = without_upload_prefix(parts[-1])
            known = self.videos.get(parts[-1]) or self.videos.get(last) or []
            best = _best(known, lambda clip, p=parts: _common(_path_parts(clip), p))
            if len(best) > 1:
                listed = ", ".join(str(clip.source and clip.source.path) for clip in best[:3])
                raise ValueError(f"{frame}: may be of any of the videos {listed}")
            if best:
                return best[0]
        return None


def _are_others(folders: Sequence[str], image_folders: Sequence[str]) -> bool:
    """Whether both have names that say something, and share none."""
    told, own = ({f for f in some if not _is_generic(f)} for some in (folders, image_folders))
    return bool(told and own) and not told & own


def _is_generic(part: str) -> bool:
    return not part or part.lower() in GENERIC


def _path_parts(clip: Clip) -> list[str]:
    return parts_of(clip.source.path.as_posix()) if clip.source else clip.name.split("__")


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the common end of two paths."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def _best(items: Sequence[Item], score: Callable[[Item], Any]) -> list[Item]:
    scores = [score(item) for item in items]
    best = max(scores, default=None)
    return [item for item, s in zip(items, scores, strict=True) if s == best]


def match_frames(
    found: LabelSet, clips: Sequence[Clip], *, first_number: int = 0, allow_missing: bool = False
) -> Labels:
    """Labels by clip and frame.

    A path in a file is compared by as much of its end as fits; it is never opened.

    Args:
        found: labels; receives notes.
        clips: media.
        first_number: number of the first frame in names of frames of a video file.
        allow_missing: note labels without media instead of refusing them.

    Raises:
        ValueError: lists labels without media or with several that fit, frames beyond the end of
            their video, frames that are labelled twice, and boxes for another size.
    """
    index = _Index(clips, found.notes)
    labels: Labels = {}
    problems = Findings()
    missing = found.notes if allow_missing else problems
    for frame in found.frames:
        if leads_out(frame.name) or leads_out(frame.video):
            kind = "path leads out of the folder: it is compared by the end of its name alone"
            found.notes.add(kind, str(frame))
        try:
            place = index.image(frame) or _frame_of_video(index, frame, first_number)
        except ValueError as error:
            problems.add(
                "several videos or images fit; rename them, or give their folders", str(error)
            )
            continue
        if place is None:
            missing.add("labels of a video or image that is not there", str(frame))
            continue
        clip, number = place
        if _is_counted_otherwise(frame, clip):
            kind = "labels count other frames than the video has (another frame rate in the tool?)"
            problems.add(
                kind, f"{frame}: of {frame.frames_counted}, {clip.name} has {_length(clip)}"
            )
        elif not _is_in(clip, number) and not frame.boxes and clip.source is None:
            kind = "more frames are listed than there are images (were some removed?)"
            missing.add(kind, f"{frame}: {clip.name} has {_length(clip)} images")
        elif not _is_in(clip, number) and not frame.boxes:
            found.notes.add("frame without a box beyond the end of its video", str(frame))
        elif not _is_in(clip, number):
            kind = "frame beyond the end of its video (do names count from 1? --first-frame 1)"
            problems.add(kind, f"{frame}: {clip.name} has {_length(clip)} frames")
        elif clip.size and frame.size and clip.size != frame.size:
            kind = "labels are for another size than the video's (was it resized?)"
            problems.add(kind, f"{frame}: {frame.size}, {clip.name} is {clip.size}")
        else:
            first = labels.setdefault(clip.name, {}).setdefault(number, frame)
            if first is not frame:
                problems.add("frame is labelled twice", f"{first}; {frame}")
    hint = "Labels without media are left out with --allow-missing." if missing is problems else ""
    problems.raise_if_any("labels and media do not fit", hint)
    return labels


def _frame_of_video(
    index: _Index, frame: LabelledFrame, first_number: int
) -> tuple[Clip, int] | None:
    """Clip and number of a frame that is found by its video; one outside the clip's where it ends.

    A task of images counts them, so that its number is a position. Where the frame has a name, its
    image is missing: by position, or by a number that its name does not have, it would get the
    labels of another.
    """
    clip = index.video(frame)
    named = number_at_end((parts_of(frame.name) or [""])[-1])[1]
    number, first = frame.number, 0
    if number is None:
        number, first = named, first_number
    if clip is None or number is None:
        return None
    if clip.source is not None:
        return clip, number - first
    if frame.name:
        return (clip, number) if number == named and number in clip.images else None
    return clip, clip.numbers[number] if number < len(clip.numbers) else clip.numbers[-1] + 1


def _is_in(clip: Clip, number: int) -> bool:
    if clip.source is None:
        return number in clip.images
    return number >= 0 and (clip.num_frames is None or number < clip.num_frames)


def _is_counted_otherwise(frame: LabelledFrame, clip: Clip) -> bool:
    """Whether a tool that counts frames by a rate of its own has another one than the video."""
    if frame.frames_counted is None or clip.num_frames is None:
        return False
    return abs(frame.frames_counted - clip.num_frames) > max(2, CLOSE * clip.num_frames)


def _length(clip: Clip) -> int:
    return len(clip.images) if clip.source is None else clip.num_frames or 0


def usable_frames(labels: Labels, clips: Iterable[Clip], source: Path, notes: Findings) -> Labels:
    """The frames whose boxes are all known, in px.

    A frame with a shape that gives no box in it is left out and noted: with the others alone, the
    detector would learn that there is no lesion.

    Args:
        labels: see `match_frames`; boxes of its frames are changed to px.
        clips: media, all those of `labels`.
        source: folder of the media.
        notes: receives the frames that are left out.
    """
    by_name = {clip.name: clip for clip in clips}
    sizes = _sizes(labels, by_name, source)
    usable: Labels = {}
    for name, frames in labels.items():
        for number, frame in frames.items():
            size = sizes.get((name, number)) or frame.size
            if size is None:
                notes.add("image that cannot be read: its frame is left out", str(frame))
                continue
            if frame.relative:
                for box in frame.boxes:
                    box.xywh = None if box.xywh is None else in_px(box.xywh, size)
                frame.relative = False
            faulty = [box for box in frame.boxes if not _is_usable(box, size)]
            for box in faulty[:1]:
                what = "without width, height or overlap with the frame" if box.xywh else ""
                kind = f"{box.kind} {what}".strip() + ": its frame is left out"
                notes.add(kind, f"{frame}: {box.class_name} {box.xywh or ''}".rstrip())
            if not faulty:
                usable.setdefault(name, {})[number] = frame
    return usable


def in_px(shares: Sequence[float], size: Size) -> list[float]:
    """A box in shares of the frame's size in px."""
    x, y, w, h = shares
    return [x * size[0], y * size[1], w * size[0], h * size[1]]


def _is_usable(box: LabelledBox, size: Size) -> bool:
    return box.xywh is not None and clip_box(box.xywh, width=size[0], height=size[1]) is not None


def _sizes(labels: Labels, clips: Mapping[str, Clip], source: Path) -> dict[tuple[str, int], Size]:
    """Size of each frame whose file can be read."""

    def size_of(place: tuple[str, int]) -> Size | None:
        clip = clips[place[0]]
        if clip.source is not None:
            return clip.size
        try:
            return image_size(source / clip.images[place[1]])
        except ImageFileError:
            return None

    places = [(name, number) for name, frames in labels.items() for number in frames]
    sizes = in_threads(size_of, places, "sizes of frames")
    return {place: size for place, size in zip(places, sizes, strict=True) if size is not None}
