"""Augmentations for clips, for a config's `data.augmentations`.

Each factory returns a Detectron2 `Augmentation`. `ClipMapper` draws it once, on the current frame
of a clip, and applies the drawn transform to every frame, so a transform must not contain pixels of
the current frame. Detectron2's `RandomSaturation` does (it blends in the grey image of the frame)
and is replaced by `color_jitter`; the rest is Detectron2's.

Images are (H, W, 3) uint8 RGB arrays, boxes xyxy in px.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import PadTransform
from jaxtyping import UInt8
from PIL import Image


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Run a block with numpy's global generator seeded, then restore its state.

    Detectron2 draws its augmentations from the global generator. Seeded for each draw, they depend
    on `seed` alone, not on workers, prefetching or other draws in this process.
    """
    state = np.random.get_state()
    np.random.seed(np.random.SeedSequence(seed).generate_state(8))
    try:
        yield
    finally:
        np.random.set_state(state)


def horizontal_flip(probability: float = 0.5) -> T.Augmentation:
    """Mirror left and right with this probability."""
    _check_probability("horizontal_flip", probability)
    return T.RandomFlip(prob=probability, horizontal=True, vertical=False)


def vertical_flip(probability: float = 0.5) -> T.Augmentation:
    """Mirror up and down with this probability; for endoscopy, not for ultrasound."""
    _check_probability("vertical_flip", probability)
    return T.RandomApply(_VerticalFlip(), probability)


class _VerticalFlip(T.Augmentation):
    def get_transform(self, image: np.ndarray) -> T.Transform:
        return _NumpyVFlip(image.shape[0])


class _NumpyVFlip(T.VFlipTransform):
    """Vertical flip without torch, through which fvcore's warns of read-only arrays."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.flip(img, axis=0)


def resize_fixed(width: int, height: int, size_divisor: int = 1) -> T.Augmentation:
    """Resize every image to width x height px, both multiples of `size_divisor`."""
    _check_size("resize_fixed", width, height, size_divisor)
    return T.Resize((height, width))


class ResizeShortEdge(T.ResizeShortestEdge):
    """Resize the short edge to one of `short_edges` px (drawn), the long to at most `max_size`.

    The aspect ratio is kept, save for rounding both sides to the nearest multiple of
    `size_divisor`.
    """

    def __init__(
        self, short_edges: int | Sequence[int], max_size: int, size_divisor: int = 1
    ) -> None:
        edges = [short_edges] if isinstance(short_edges, int) else [int(e) for e in short_edges]
        if not edges or size_divisor < 1 or min(edges) < size_divisor or max(edges) > max_size:
            raise ValueError(
                f"ResizeShortEdge: short_edges={edges} must be one or more sizes in px, none above "
                f"max_size={max_size} or below size_divisor={size_divisor}, which must be 1 or more"
            )
        super().__init__(edges, max_size, sample_style="choice")
        self.short_edges, self.max_size, self.size_divisor = edges, max_size, size_divisor

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a short edge and return the resize of an image of this size."""
        H, W = image.shape[:2]
        short_edge = int(np.random.choice(self.short_edges))
        sides = self.get_output_shape(H, W, short_edge, self.max_size)
        # Nearest multiple, but never past max_size and never zero.
        d = self.size_divisor
        new_h, new_w = (d * max(1, min(int(side / d + 0.5), self.max_size // d)) for side in sides)
        return T.ResizeTransform(H, W, new_h, new_w, Image.Resampling.BILINEAR)


def resize_or_crop_resize(
    resize: T.Augmentation, *, min_fraction: float = 0.6, probability: float = 0.5
) -> T.Augmentation:
    """`resize`, with this probability after a random crop.

    Height and width of the crop are drawn separately, each between `min_fraction` and 1 of the
    image. As DETR's `RandomSelect(resize, resize + RandomSizeCrop + resize)`, with the crop in
    fractions, for every resolution (DETR: 384 to 600 px of a short edge of 400 to 600 px).
    """
    _check_probability("resize_or_crop_resize", probability)
    if not 0 < min_fraction <= 1:
        raise ValueError(f"resize_or_crop_resize: min_fraction={min_fraction} must lie in (0, 1]")
    crop = T.RandomCrop("relative_range", (min_fraction, min_fraction))
    return T.AugmentationList([T.RandomApply(crop, probability), resize])


class ScaleJitter(T.Augmentation):
    """Resize to width x height px with a zoom factor s drawn from `scale`.

    s > 1 enlarges a random crop (1/s of each side); s < 1 places the shrunk image at random on a
    canvas of grey level `fill`; s = 1 is exactly `resize_fixed`, as in evaluation.
    """

    def __init__(
        self,
        width: int,
        height: int,
        scale: Sequence[float] = (0.8, 1.5),
        *,
        fill: int = 0,
        size_divisor: int = 1,
    ) -> None:
        super().__init__()
        _check_size("ScaleJitter", width, height, size_divisor)
        low, high = (float(s) for s in scale)
        if not 0 < low <= high:
            raise ValueError(
                f"ScaleJitter: scale={[low, high]} must be [low, high] with 0 < low <= high"
            )
        self.width, self.height, self.scale = width, height, (low, high)
        self.fill, self.size_divisor = fill, size_divisor

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw zoom and position; return a crop or padding and a resize."""
        H, W = image.shape[:2]
        zoom = np.random.uniform(*self.scale)
        new_h, new_w = max(1, round(H / zoom)), max(1, round(W / zoom))
        y = np.random.randint(abs(H - new_h) + 1)
        x = np.random.randint(abs(W - new_w) + 1)
        if zoom >= 1:
            place = T.CropTransform(x, y, new_w, new_h, W, H)
        else:
            right, bottom = new_w - W - x, new_h - H - y
            place = PadTransform(x, y, right, bottom, W, H, pad_value=self.fill)
        return T.TransformList(
            [
                place,
                T.ResizeTransform(new_h, new_w, self.height, self.width, Image.Resampling.BILINEAR),
            ]
        )


def color_jitter(
    brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2, hue: float = 0.02
) -> T.Augmentation:
    """Scale brightness, contrast and saturation by factors from [1 - x, 1 + x]; shift the hue.

    The four are drawn in this order. The hue shift, a fraction of the colour circle, is drawn from
    [-hue, hue]; keep it small, as mucosa is red.
    """
    for name, amount, most in (
        ("brightness", brightness, 1.0),
        ("contrast", contrast, 1.0),
        ("saturation", saturation, 1.0),
        ("hue", hue, 0.5),
    ):
        if not 0 <= amount <= most:
            raise ValueError(f"color_jitter: {name}={amount} must lie in [0, {most}]")
    return _ColorJitter(brightness, contrast, saturation, hue)


class _ColorJitter(T.Augmentation):
    """One draw of four numbers; a frame is changed without pixels of other frames."""

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        super().__init__()
        self.limits = brightness, contrast, saturation
        self.hue = hue

    def get_transform(self, image: UInt8[np.ndarray, "H W 3"]) -> T.Transform:
        light, contrast, color = (np.random.uniform(1 - x, 1 + x) for x in self.limits)
        turn = round(256 * np.random.uniform(-self.hue, self.hue))
        levels = np.arange(256) * light
        grey = float(image.mean()) * light  # of the current frame, for all frames of its clip
        levels = grey + contrast * (levels - grey)
        table = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
        return T.ColorTransform(lambda frame: _recolor(frame, table, color, turn))


def _recolor(
    frame: UInt8[np.ndarray, "H W 3"], table: UInt8[np.ndarray, "256"], color: float, turn: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Map levels by a table, scale the saturation, shift the hue by `turn` / 256 circles."""
    frame = cv2.LUT(frame, table)
    grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    frame = cv2.addWeighted(frame, color, grey, 1 - color, 0)
    if turn == 0:
        return frame
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(turn % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _check_probability(factory: str, probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"{factory}: probability={probability} must lie in [0, 1]")


def _check_size(factory: str, width: int, height: int, size_divisor: int) -> None:
    if size_divisor < 1:
        raise ValueError(f"{factory}: size_divisor={size_divisor} must be at least 1")
    if width < 1 or height < 1 or width % size_divisor or height % size_divisor:
        up = [max(1, round(side / size_divisor)) * size_divisor for side in (width, height)]
        raise ValueError(
            f"{factory}: width={width}, height={height} must be positive multiples of "
            f"size_divisor={size_divisor}; nearest: {up[0]} x {up[1]}"
        )
