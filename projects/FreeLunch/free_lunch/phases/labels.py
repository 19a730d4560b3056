"""Phase labels of a split: in its JSON, ``phases`` and the ``phase`` of every image."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from v2idetr.data.audit import Findings
from v2idetr.data.coco_vid import SplitData, by_video
from v2idetr.data.ground_truth import RATE_KEYS
from v2idetr.data.text_files import read_text


@dataclass(frozen=True)
class LabelledSplit:
    """A split with labels.

    Attributes:
        split: its records have ``phase``, an index.
        frame_rate: labelled frames per second.
    """

    split: SplitData
    frame_rate: float

    def videos(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Name and records of each video, in order."""
        groups = by_video(self.split.records)
        return [(str(self.split.videos[i]["name"]), records) for i, records in groups.items()]

    def first_videos(self, share: float) -> LabelledSplit:
        """The first videos, this share of all and at least one."""
        groups = list(by_video(self.split.records).values())
        kept = groups[: max(1, math.ceil(share * len(groups) - 1e-9))]
        records = [record for group in kept for record in group]
        return replace(self, split=replace(self.split, records=records))


def read_labels(split: SplitData, phases: Sequence[str]) -> LabelledSplit:
    """The split with the labels in its JSON.

    Args:
        phases: of ``data.phases``, in order.

    Raises:
        ValueError: names the file and all that is wrong: no labels, other phases than these, frames
            without a phase or of an unknown one, videos of different frame rates.
    """
    content = json.loads(read_text(split.json_path))
    problems = Findings()
    named = content.get("phases")
    if named is None:
        problems.add("no `phases`: its frames have no phase labels", str(split.json_path))
    elif named != list(phases):
        problems.add("phases differ from data.phases", f"{named}, not {list(phases)}")
    index = {name: number for number, name in enumerate(phases)}
    labels: dict[int, int] = {}
    for image in content["images"] if not problems else []:
        phase = image.get("phase")
        if phase in index:
            labels[image["id"]] = index[phase]
        elif phase is None:
            problems.add("frame without `phase`", str(image["file_name"]))
        else:
            near = difflib.get_close_matches(str(phase), phases, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.add("unknown phase", f"{phase} of {image['file_name']}{hint}")
    rates = {_rate_hz(video) for video in split.videos.values()}
    if len(rates) > 1:
        problems.add("videos have different frame rates", f"{sorted(rates)} Hz")
    problems.raise_if_any(str(split.json_path))
    records = [{**record, "phase": labels[record["image_id"]]} for record in split.records]
    return LabelledSplit(replace(split, records=records), rates.pop())


def _rate_hz(video: Mapping[str, Any]) -> float:
    """Frame rate of a video; 1 where its file says none, as Cholec80's converter does."""
    return next((float(video[key]) for key in RATE_KEYS if video.get(key)), 1.0)
