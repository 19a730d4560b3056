"""Labels of clips -> the videos of a converter, frames of video files decoded once.

choose_frames    which frames of each clip are used, and what they hold
build_videos     their files, as videos of a converter
label_step       distance of labelled frames
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import Literal, get_args

from v2idetr.data.audit import Findings
from v2idetr.prepare.annotations import Frame, Lesion, Video
from v2idetr.prepare.frame_cache import CacheSettings, cached_frames
from v2idetr.prepare.labels.label_set import LabelledBox
from v2idetr.prepare.labels.matching import Labels
from v2idetr.prepare.labels.media import Clip
from v2idetr.wording import counted

LesionFree = Literal["none", "listed", "all"]
Boxes = dict[int, list[LabelledBox]]  # by frame number, ascending


def choose_frames(
    labels: Labels,
    usable: Labels,
    clips: Sequence[Clip],
    notes: Findings,
    *,
    lesion_free: LesionFree = "none",
    every: int = 1,
) -> dict[str, Boxes]:
    """Frames of each clip that are used; clips without any are left out.

    A frame without a box is lesion-free only if somebody has looked at it.

    Args:
        labels: labels of all frames, see `match_frames`.
        usable: those of them whose boxes are known, see `usable_frames`.
        clips: media.
        notes: receives what is left out.
        lesion_free: frames that are known to be lesion-free: "none", those that the labels "listed"
            without a box, or "all" without a box, also those that no label file lists.
        every: of the frames so far, use every ``every``-th.

    Raises:
        ValueError: "all" for a video whose number of frames is not known.
    """
    assert lesion_free in get_args(LesionFree), lesion_free
    chosen: dict[str, Boxes] = {}
    for clip in clips:
        listed = labels.get(clip.name)
        if not listed:
            if lesion_free != "all":
                notes.add("video without labels is left out", clip.name)
                continue
            listed = {}
        known = usable.get(clip.name, {})
        boxes = {number: frame.boxes for number, frame in known.items()}
        if lesion_free == "none":
            for number in [number for number, lesions in boxes.items() if not lesions]:
                kind = "frame that is listed without a box is not known to be lesion-free: left out"
                notes.add(f"{kind} (--lesion-free)", str(known[number]))
                del boxes[number]
        elif lesion_free == "all":
            boxes |= {n: [] for n in _numbers(clip) if n not in listed}
        used = dict(sorted(boxes.items())[::every])
        if len(used) < len(boxes):
            thinned = f"{clip.name}: {len(used)} of {len(boxes)}"
            notes.add(f"of {every} frames one is used (--every {every})", thinned)
        if used:
            chosen[clip.name] = used
        elif listed:
            notes.add("video without a usable labelled frame is left out", clip.name)
    return chosen


def _numbers(clip: Clip) -> Sequence[int]:
    if clip.source is None:
        return clip.numbers
    if clip.num_frames is None:
        raise ValueError(
            f"{clip.source.path}: does not say how many frames it has, so that --lesion-free all "
            "cannot list them; convert it to .mp4 first"
        )
    return range(clip.num_frames)


def build_videos(
    chosen: Mapping[str, Boxes],
    clips: Sequence[Clip],
    *,
    source: Path,
    frames: Path,
    class_names: Sequence[str],
    patients: Mapping[str, str],
    sizes: Mapping[str, Mapping[int, tuple[int, int] | None]],
) -> tuple[dict[str, Video], Path]:
    """Videos by name, and the folder that their file names are relative to.

    Chosen frames of video files are decoded into ``frames``; images stay where they are.

    Args:
        chosen: see `choose_frames`.
        clips: media.
        source: folder of the media.
        frames: folder of the frame cache.
        class_names: names of categories 1..K.
        patients: patient by video.
        sizes: (width, height) that the labels are for, if they say, by video and frame.

    Raises:
        ValueError: a video that is damaged, or shorter than it states.
        Interrupted: see `cached_frames`.
    """
    by_name = {clip.name: clip for clip in clips}
    files = {name: by_name[name] for name in chosen if by_name[name].source is not None}
    root = frames if files else source
    paths = {
        name: {n: os.path.relpath(source / path, root) for n, path in by_name[name].images.items()}
        for name in chosen
        if name not in files
    }
    settings = CacheSettings(rate=None, short_side=None)
    sources = [clip.source for clip in files.values() if clip.source is not None]
    numbers = {name: list(chosen[name]) for name in files}
    for cached in cached_frames(sources, frames, settings, chosen=numbers) if sources else ():
        paths[cached.name] = dict(zip(numbers[cached.name], cached.files, strict=True))
    categories = {name: k for k, name in enumerate(class_names, start=1)}
    videos: dict[str, Video] = {}
    for name, boxes in chosen.items():
        rate = by_name[name].frame_rate
        further = {"patient": patients[name]} if patients[name] != name else {}
        videos[name] = Video(
            name,
            [
                Frame(
                    paths[name][number],
                    [_lesion(box, categories) for box in lesions],
                    frame_index=number,
                    boxes_for=sizes.get(name, {}).get(number),
                )
                for number, lesions in boxes.items()
            ],
            further={**further, **({"frame_rate": float(rate)} if rate else {})},
        )
    return videos, root


def _lesion(box: LabelledBox, categories: Mapping[str, int]) -> Lesion:
    assert box.xywh is not None
    return Lesion(box.xywh, categories[box.class_name], instance_id=box.track)


def label_step(chosen: Mapping[str, Boxes]) -> int:
    """Usual distance between a labelled frame and the next one; 1 where there is none."""
    steps = [
        after - before
        for boxes in chosen.values()
        for before, after in zip(list(boxes), list(boxes)[1:], strict=False)
    ]
    return median_low(steps) if steps else 1


def density(chosen: Mapping[str, Boxes], clips: Sequence[Clip]) -> str:
    """How many of the videos' frames are used, in one line."""
    by_name = {clip.name: clip for clip in clips}
    lengths = [len(by_name[n].images) or by_name[n].num_frames or 0 for n in chosen]
    used = sum(map(len, chosen.values()))
    step = label_step(chosen)
    rest = f" of {sum(lengths)}" if all(lengths) else ""
    every = "" if step == 1 else f", mostly {step} frames apart"
    return f"{counted(used, 'labelled frame')}{rest} in {counted(len(chosen), 'video')}{every}"
