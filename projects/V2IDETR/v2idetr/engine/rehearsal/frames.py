"""The eight labelled frames that a stage has to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from v2idetr.config.load import build
from v2idetr.data.clip_mapper import ClipMapper, is_lesion_free
from v2idetr.data.coco_vid import SplitData
from v2idetr.data.loader import ClipDataset
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stage import Stage, StageModels

COUNT = 8


@dataclass(frozen=True)
class EightFrames:
    """Frames of a training split in the forms that training and evaluation need.

    Attributes:
        split: the split with these frames alone.
        batch: samples to train on: with boxes, without augmentation.
        seen: samples to detect in.
    """

    split: SplitData
    batch: list[dict[str, Any]]
    seen: list[dict[str, Any]]

    @property
    def boxes(self) -> int:
        """Lesions of all frames."""
        return sum(len(record["annotations"]) for record in self.split.records)


def eight_frames(run: RunContext, stage: Stage, models: StageModels) -> EightFrames:
    """Choose the frames of a stage and prepare them, see :func:`chosen`."""
    whole, detector = stage.training_split(run), models.model
    places = chosen(whole.records, COUNT)
    learnt = _dataset(run, whole, stage.clip_user(models), is_train=True)
    seen = _dataset(run, whole, detector, is_train=False)
    return EightFrames(
        replace(whole, records=[whole.records[place] for place in places]),
        [learnt[place, place] for place in places],
        # A detector with a memory sees each of them as the first frame of a video.
        [{**seen[place, place], "starts_video": True} for place in places],
    )


def chosen(records: Sequence[dict[str, Any]], count: int) -> list[int]:
    """Places of frames with lesions: of every class, then evenly over the split.

    Rare classes come first; where there are more classes than frames, some are left out.
    """
    by_class: dict[int, list[int]] = {}
    for place, record in enumerate(records):
        if not is_lesion_free(record):
            for label in {a["category_id"] for a in record["annotations"]}:
                by_class.setdefault(label, []).append(place)
    found: list[int] = []
    for places in sorted(by_class.values(), key=len):
        if len(found) < count and not set(places) & set(found):
            found.append(places[len(places) // 2])
    rest = sorted({place for places in by_class.values() for place in places} - set(found))
    wanted = min(count - len(found), len(rest))
    found += [rest[(2 * k + 1) * len(rest) // (2 * wanted)] for k in range(wanted)]
    return sorted(found)


def _dataset(run: RunContext, split: SplitData, user: nn.Module, *, is_train: bool) -> ClipDataset:
    """Samples at the size of evaluation."""
    mapper = ClipMapper(
        sampler=run.reference_sampler(user, is_train=is_train),
        augmentations=build(run.config, "data.augmentations.test"),
        is_train=is_train,
        min_visible=run.config.data.min_visible,
    )
    return ClipDataset(split.records, mapper)
