"""Record of one frame -> sample: the frame in a clip of T frames of its video, with its boxes.

    ClipMapper    reads the frames and applies one drawn transform to all of them

Legend: T frames of a clip, M boxes of one image, H W pixels. Boxes are xyxy in px.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from fvcore.transforms.transform import BlendTransform
from jaxtyping import Bool, Float, UInt8

from v2idetr.data.augmentation import numpy_seeded
from v2idetr.data.frame_files import read_frame
from v2idetr.data.reference_sampler import ReferenceSampler, VideoFrames
from v2idetr.data.shared_frames import SharedFrames

Record = dict[str, Any]


@runtime_checkable
class Mapper(Protocol):
    """Record -> sample, for the loaders.

    Attributes:
        sampler: choice of a clip's frames.
        is_train: whether it is for training or for evaluation.
    """

    @property
    def sampler(self) -> ReferenceSampler: ...

    @property
    def is_train(self) -> bool: ...

    def __call__(
        self,
        record: Record,
        seed: int,
        video: Sequence[Record] | None = None,
        frames: VideoFrames | None = None,
    ) -> dict[str, Any]: ...


class FrameCache:
    """Cache of the `capacity` decoded frames read last from disk.

    First in, first out: for a video in order, 2 * window + 1 frames are enough to read each frame
    once, fewer than with least-recently-used eviction. Each worker of a loader has its own cache.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"cache_frames={capacity} must be 0 (none) or more")
        self.capacity = capacity
        self._frames: dict[str, np.ndarray] = {}

    def read(self, record: Record) -> UInt8[np.ndarray, "H W 3"]:
        """The frame of `record`, cached if possible; the array must not be written to."""
        path = record["file_name"]
        if path in self._frames:
            return self._frames[path]
        frame = read_frame(path, height=record["height"], width=record["width"])
        if self.capacity:
            frame.flags.writeable = False
            if len(self._frames) == self.capacity:
                del self._frames[next(iter(self._frames))]
            self._frames[path] = frame
        return frame

    def __len__(self) -> int:
        return len(self._frames)

    def __reduce__(self) -> tuple[type["FrameCache"], tuple[int]]:
        return FrameCache, (self.capacity,)


class ClipMapper:
    """Record -> sample, a dict of the current frame and its clip.

    Args:
        sampler: choice of a clip's frames, random only in training.
        augmentations: drawn once per clip, on the current frame, and applied to every frame and its
            boxes. In evaluation they may only resize, because predicted boxes are scaled back to
            the original image.
        is_train: whether frames carry `instances`.
        min_visible: smallest share of a box's area inside the image; boxes below it are removed,
            the others clipped.
        cache_frames: decoded frames kept in memory by each process; 0 for training, 2 * window + 1
            for evaluation in order.
        shared: all frames of the split in shared memory, in place of a cache.

    A sample has the keys of the current frame: `image` (uint8 RGB tensor (3, H, W)), those of its
    record (`height`, `width` in original px, `file_name`, `image_id`, `video_id`, `frame_index`,
    `scene_id`) and, in training, `instances` with `gt_boxes` (xyxy px of the transformed image) and
    `gt_classes`. `clip` holds the same for each of the T frames, in the sampler's order, all of one
    size; `clip[clip_index]` is the current frame; `seed` is the seed of the sample's random
    draws, also for later ones. Crowd annotations are not instances, as in Detectron2.
    """

    def __init__(
        self,
        *,
        sampler: ReferenceSampler,
        augmentations: Sequence[T.Augmentation],
        is_train: bool,
        min_visible: float = 0.25,
        cache_frames: int = 0,
        shared: SharedFrames | None = None,
    ) -> None:
        if not 0 <= min_visible <= 1:
            raise ValueError(f"min_visible={min_visible} must lie in [0, 1]")
        self.sampler, self.is_train = sampler, is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.min_visible = min_visible
        self.cache = FrameCache(cache_frames) if shared is None else shared

    def __call__(
        self,
        record: Record,
        seed: int,
        video: Sequence[Record] | None = None,
        frames: VideoFrames | None = None,
    ) -> dict[str, Any]:
        """The sample of `record`; the same arguments always give the same sample.

        Args:
            record: dataset dict of the current frame.
            seed: seed of all random draws of this sample.
            video: records of the same video in temporal order, including `record`, to choose the
                references from. Required unless T = 1.
            frames: frame numbers of `video`, to avoid unpacking all its records.
        """
        clip_records = self._clip_records(record, seed, video, frames)
        clip_index = self.sampler.clip_index
        self._check_one_size(clip_records)
        with numpy_seeded(seed):
            current = T.AugInput(self.cache.read(record), boxes=_boxes_xyxy(record))
            transforms = self.augmentations(current)
        assert isinstance(current.image, np.ndarray)
        self._check_transforms(transforms, record, current.image)
        seen = {record["image_id"]: self._frame(record, current.image, transforms)}
        for other in clip_records:
            if other["image_id"] not in seen:
                image = transforms.apply_image(self.cache.read(other))
                seen[other["image_id"]] = self._frame(other, image, transforms)
        clip = [dict(seen[r["image_id"]]) for r in clip_records]
        return {**clip[clip_index], "clip": clip, "clip_index": clip_index, "seed": seed}

    def _clip_records(
        self,
        record: Record,
        seed: int,
        video: Sequence[Record] | None,
        frames: VideoFrames | None,
    ) -> list[Record]:
        if self.sampler.num_frames == 1:
            return [record]
        if video is None:
            raise ValueError(
                f"a clip of num_frames={self.sampler.num_frames} needs the video around the frame: "
                "pass video=, as build_train_loader and build_eval_loader do"
            )
        position = bisect_left(video, record["frame_index"], key=lambda r: r["frame_index"])
        assert video[position]["image_id"] == record["image_id"], "record is not part of the video"
        if frames is None:
            scene = run_around(run_bounds(video, "scene_id"), position)
            frames = VideoFrames([r["frame_index"] for r in video], scene)
        rng = np.random.default_rng(seed) if self.is_train else None
        return [video[p] for p in self.sampler(frames, position, rng)]

    def _frame(self, record: Record, image: np.ndarray, transforms: T.TransformList) -> Record:
        """Dict of one frame after the transforms."""
        frame = {key: value for key, value in record.items() if key != "annotations"}
        # Always a copy: the array may belong to the cache or be a flipped view.
        frame["image"] = torch.from_numpy(image.transpose(2, 0, 1).copy())
        if self.is_train:
            H, W = image.shape[:2]
            frame["instances"] = self._instances(record, (H, W), transforms)
        return frame

    def _instances(
        self, record: Record, size: tuple[int, int], transforms: T.TransformList
    ) -> Instances:
        boxes, visible = clip_boxes(
            transforms.apply_box(_boxes_xyxy(record)), size, self.min_visible
        )
        classes = [a["category_id"] for a in _lesions(record)]
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.from_numpy(boxes[visible]))
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)[torch.from_numpy(visible)]
        return instances

    def _check_transforms(
        self, transforms: T.TransformList, record: Record, image: np.ndarray
    ) -> None:
        """Reject transforms that are wrong for other frames of a clip, or in evaluation."""
        for transform in transforms.transforms:
            if isinstance(transform, BlendTransform) and np.ndim(vars(transform)["src_image"]) > 1:
                raise ValueError(
                    "data.augmentations: one of them blends pixels of the current frame into the "
                    "others (T.RandomSaturation does); use v2idetr.data.augmentation.color_jitter"
                )
        if self.is_train:
            return
        corners = np.array([[0, 0], [record["width"], record["height"]]], dtype=np.float64)
        (x0, y0), (x1, y1) = transforms.apply_coords(corners)
        H, W = image.shape[:2]
        if max(abs(x0), abs(y0), abs(x1 - W), abs(y1 - H)) > 1e-3:
            raise ValueError(
                "data.augmentations: in evaluation they may only resize (predicted boxes are "
                "scaled back to the original image), but they map its corners to "
                f"({x0:g}, {y0:g}) and ({x1:g}, {y1:g}) of a {W} x {H} px image"
            )

    @staticmethod
    def _check_one_size(records: Sequence[Record]) -> None:
        first = records[0]
        for other in records[1:]:
            if (other["height"], other["width"]) != (first["height"], first["width"]):
                raise ValueError(
                    f"{first['file_name']} is {first['width']} x {first['height']} px, but "
                    f"{other['file_name']} of the same clip is {other['width']} x "
                    f"{other['height']}; all frames of a clip must have one size"
                )


def run_bounds(records: Sequence[Record], *keys: str) -> list[int]:
    """First index of each run of records that agree in these keys, and the number of records."""
    runs = groupby(range(len(records)), key=lambda i: [records[i][key] for key in keys])
    return [*(next(run) for _, run in runs), len(records)]


def run_around(bounds: Sequence[int], index: int) -> range:
    """The run that contains an index."""
    run = bisect_right(bounds, index)
    return range(bounds[run - 1], bounds[run])


def clip_boxes(
    boxes_xyxy_px: Float[np.ndarray, "M 4"], size: tuple[int, int], min_visible: float
) -> tuple[Float[np.ndarray, "M 4"], Bool[np.ndarray, " M"]]:
    """Boxes clipped to an image of size (H, W), and a mask of the visible ones.

    A box is visible with at least `min_visible` of its area inside the image; a box entirely
    outside never is, even for min_visible = 0.
    """
    H, W = size
    clipped = np.clip(boxes_xyxy_px, 0, np.array([W, H, W, H], dtype=boxes_xyxy_px.dtype))
    area, left = _area(boxes_xyxy_px), _area(clipped)
    # Rounding in float32 must not remove a box that is entirely inside.
    return clipped, (left > 0) & (left >= min_visible * area * (1 - 1e-5))


def _area(boxes_xyxy_px: np.ndarray) -> np.ndarray:
    return np.prod(np.clip(boxes_xyxy_px[:, 2:] - boxes_xyxy_px[:, :2], 0, None), axis=1)


def _lesions(record: Record) -> list[dict[str, Any]]:
    """A record's annotations without crowds."""
    return [a for a in record["annotations"] if not a.get("iscrowd", 0)]


def _boxes_xyxy(record: Record) -> Float[np.ndarray, "M 4"]:
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in _lesions(record)]
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)


def is_lesion_free(record: Record) -> bool:
    """Whether a frame has no lesion."""
    return not _lesions(record)
