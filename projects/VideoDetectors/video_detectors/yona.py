"""YONA (Jiang et al., MICCAI 2023): CenterNet, aligned with one frame before the current one.

F_t and F_p are CenterNet's summed maps of the current frame and of the one before it, m the mask of
the boxes in the latter: ground truth in training, the detector's own detections otherwise, nothing
at the start of a video. With means over m, and products cell by cell and channel by channel::

    foreground temporal alignment  w = cos(mean_m F_p, mean_m F_t)
                                   G = F_t + m w F_t (mean_m F_p - 1)
    background dynamic alignment   Z = D(G), offsets = conv(G - F_p), modulator = 2 sigmoid(conv(G))

D is a modulated deformable 3 x 3 convolution. CenterNet's head reads Z in place of F_t, with its
losses. In training, the box-assisted contrast of frames is added. For the 2B frames of B clips, f_i
is the mean of frame i's upsampled map over its boxes and b_i that over the rest, both of length 1::

    cross-frame contrast           L_c = -mean_i log(e_i / (e_i + sum_j exp(f_i.b_j / T)))
                                   e_i = exp(f_i.f_k(i) / T),  k a random permutation

with T = 0.2. Then L = L_CenterNet + 0.3 L_c.

The formulae are those of the released code (github.com/yuncheng97/YONA), which differs in these
points. The convolutions of offsets and modulator are set to zero, then drawn at random after all
(``zero_init``). Boxes are drawn into the masks of training at a quarter of their scale, into those
of evaluation in pixels of the original frame (``released_masks``). The first frame of a video is
aligned with the last one of another. Frames without a lesion are zero vectors f_i in the contrast,
and left out here. Its moving average of the weights is never used, and missing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from jaxtyping import Bool, Float
from torch import Tensor, nn

from v2idetr.data.reference_sampler import ReferenceSampler
from v2idetr.modeling.trainable import Sample
from video_detectors.centernet import STRIDE, CenterNet
from video_detectors.deformable_conv import DeformConv2d
from video_detectors.detector import VideoDetector, in_original_pixels

TAPS = 9  # of the deformable 3 x 3 convolution
TEMPERATURE = 0.2
RELEASED_SCALE = 1 / STRIDE


class YONA(VideoDetector):
    """Detector of the second frame of clips of two.

    Args:
        net: the single-frame detector, a CenterNet.
        contrast_weight: weight of the contrast; 0 for none.
        previous_score: smallest score of a detection whose box aligns the next frame.
        zero_init: offsets start at 0 and modulators at 1.
        released_masks: boxes where the released code draws them.
        detector: see :class:`VideoDetector`.

    Raises:
        ValueError: the network is no CenterNet, or a sampler chooses other clips.
    """

    _found: tuple[int, Tensor] | None = None  # image_id of a frame, and its boxes

    def __init__(
        self,
        *,
        net: nn.Module,
        contrast_weight: float = 0.3,
        previous_score: float = 0.3,
        zero_init: bool = True,
        released_masks: bool = False,
        **detector: Any,
    ) -> None:
        if not isinstance(net, CenterNet):
            raise ValueError(
                f"net: {type(net).__name__} is no CenterNet, whose map YONA aligns: set "
                "net._target_=video_detectors.centernet.CenterNet, as configs/models/yona.py does."
            )
        super().__init__(net=net, **detector)
        for name in ("reference_sampler", "evaluation_sampler"):
            _check_clips(name, getattr(self, name))
        self.contrast_weight, self.previous_score = contrast_weight, previous_score
        self.released_masks = released_masks
        self.background = BackgroundAlignment(net.head.cls_score.in_channels, zero_init=zero_init)

    def align(
        self,
        current: Float[Tensor, "B d h w"],
        previous: Float[Tensor, "B d h w"],
        boxes: Sequence[Float[Tensor, "_ 4"]],
    ) -> Float[Tensor, "B d h w"]:
        """Both alignments.

        Args:
            current, previous: maps of the frames.
            boxes: of each previous frame, xyxy in pixels of the network's input.
        """
        mask = box_masks(boxes, (current.shape[2], current.shape[3]), stride=STRIDE)
        # In float32, also under autocast: half precision resolves far cells too coarsely.
        with torch.autocast(current.device.type, enabled=False):
            current, previous = current.float(), previous.float()
            return self.background(align_foreground(current, previous, mask), previous)

    # ------------------------------------------------------------------ training

    def losses(self, batched_inputs: list[Sample]) -> dict[str, Tensor]:
        """CenterNet's losses of the current frames, and the contrast of all frames."""
        net: CenterNet = self.net
        device = net.pixel_mean.device
        previous, current = zip(*(sample["clip"] for sample in batched_inputs), strict=True)
        frames = [*current, *previous]
        images = net.preprocess(frames)
        features = net.features(images.tensor)
        lesions = [frame["instances"].to(device) for frame in frames]
        boxes = [frame.gt_boxes.tensor for frame in lesions]
        if self.released_masks:
            boxes = [of_frame * RELEASED_SCALE for of_frame in boxes]
        known = [
            of_frame if has_previous(sample) else of_frame[:0]
            for sample, of_frame in zip(batched_inputs, boxes[len(current) :], strict=True)
        ]
        now, before = features.chunk(2)
        losses = net.losses(net.head(self.align(now, before, known)), lesions[: len(current)])
        if self.contrast_weight:
            size = images.tensor.shape[2], images.tensor.shape[3]
            whole = [boxes[0].new_tensor([[0, 0, w, h]]) for h, w in images.image_sizes]
            foreground, inside = box_masks(boxes, size), box_masks(whole, size)
            contrast = contrast_loss(features, foreground, inside & ~foreground)
            losses["loss_contrast"] = self.contrast_weight * contrast
        return losses

    # ------------------------------------------------------------------ evaluation

    def encode(self, frames: list[Sample]) -> list[Float[Tensor, "1 d h w"]]:
        """CenterNet's summed map of each frame."""
        net: CenterNet = self.net
        return list(net.features(net.preprocess(frames).tensor).split(1))

    def detect(self, sample: Sample, states: list[Float[Tensor, "1 d h w"]]) -> Instances:
        """Detections of the current frame, aligned with what was detected before it."""
        net: CenterNet = self.net
        previous, current = states
        boxes = self._boxes_before(sample).to(current.device)
        predictions = net.head(self.align(current, previous, [boxes]))
        size = tuple(sample["image"].shape[-2:])
        (found,) = net.detections(predictions, [size])
        carried = found[found.scores >= self.previous_score].pred_boxes.tensor  # copy: scaled next
        found = in_original_pixels(found, sample)
        if self.released_masks:
            carried = found[found.scores >= self.previous_score].pred_boxes.tensor
        self._found = sample["image_id"], carried
        return found

    def _boxes_before(self, sample: Sample) -> Float[Tensor, "_ 4"]:
        """Boxes detected in the previous frame of a clip."""
        image_id, boxes = self._found or (None, torch.zeros(0, 4))
        known = has_previous(sample) and image_id == sample["clip"][0]["image_id"]
        return boxes if known else boxes[:0]

    def forget(self) -> None:
        self._found = None


class BackgroundAlignment(nn.Module):
    """Modulated deformable convolution of a map, where it differs from the map before it.

    Args:
        d: width.
        zero_init: see :class:`YONA`.
    """

    def __init__(self, d: int, *, zero_init: bool = True) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(d, 2 * TAPS, 3, padding=1)
        self.modulator = nn.Conv2d(d, TAPS, 3, padding=1)
        self.convolution = DeformConv2d(d, d, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.convolution.weight, nonlinearity="relu")
        for layer in (self.offsets, self.modulator):
            if zero_init:
                nn.init.zeros_(layer.weight)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(
        self, aligned: Float[Tensor, "B d h w"], previous: Float[Tensor, "B d h w"]
    ) -> Float[Tensor, "B d h w"]:
        offsets = self.offsets(aligned - previous)
        return self.convolution(aligned, offsets, 2 * self.modulator(aligned).sigmoid())


def align_foreground(
    current: Float[Tensor, "B d h w"],
    previous: Float[Tensor, "B d h w"],
    mask: Bool[Tensor, "B h w"],
) -> Float[Tensor, "B d h w"]:
    """Channels inside the mask, scaled as in the previous frame's foreground; see the module."""
    before, now = mean_inside(previous, mask), mean_inside(current, mask)
    change = F.cosine_similarity(before, now)[:, None] * (before - 1)
    return current + mask[:, None] * change[:, :, None, None] * current


def mean_inside(
    maps: Float[Tensor, "B d h w"], mask: Bool[Tensor, "B h w"]
) -> Float[Tensor, "B d"]:
    """Mean over the mask's cells; 0 without any."""
    count = mask.sum((1, 2)).clamp(min=1)
    return (maps * mask[:, None]).sum((2, 3)) / count[:, None]


def box_masks(
    boxes: Sequence[Float[Tensor, "_ 4"]], size: tuple[int, int], *, stride: int = 1
) -> Bool[Tensor, "B h w"]:
    """Cells whose centre lies in a box, frame by frame.

    Args:
        boxes: of each frame, xyxy in pixels.
        size: (h, w) of the masks in cells.
        stride: length of a cell in pixels.
    """

    def inside(length: int, low: Tensor, high: Tensor) -> Tensor:
        centres = (torch.arange(length, device=low.device) + 0.5) * stride
        return (centres >= low[:, None]) & (centres < high[:, None])

    masks = []
    for of_frame in boxes:
        x0, y0, x1, y1 = of_frame.unbind(1)
        rows, columns = inside(size[0], y0, y1), inside(size[1], x0, x1)
        masks.append((rows[:, :, None] & columns[:, None]).any(0))
    return torch.stack(masks)


# ---------------------------------------------------------------------------- contrast


def contrast_loss(
    features: Float[Tensor, "B d h w"],
    foreground: Bool[Tensor, "B H W"],
    background: Bool[Tensor, "B H W"],
) -> Float[Tensor, ""]:
    """Contrast of the means over masks in pixels of the upsampled maps; 0 without foreground."""
    with torch.autocast(features.device.type, enabled=False):
        lesions, others = (
            F.normalize(pooled(features.float(), mask)[mask.any(2).any(1)])
            for mask in (foreground, background)
        )
        partners = lesions[torch.randperm(len(lesions)).to(lesions.device)]
        positive = (lesions * partners).sum(1, keepdim=True)
        logits = torch.cat([positive, lesions @ others.T], 1) / TEMPERATURE
        return (logits.logsumexp(1) - logits[:, 0]).sum() / max(1, len(lesions))


def pooled(
    features: Float[Tensor, "B d h w"], masks: Bool[Tensor, "B H W"]
) -> Float[Tensor, "B d"]:
    """Mean over a mask in pixels of features upsampled bilinearly; 0 without any.

    The sum over the pixels of the upsampled features is one of the features, weighted by the mask
    that the transposed upsampling brings down: d maps of full size are never made.
    """
    rows, columns = (
        _upsampling(cells, pixels).to(features.device)
        for cells, pixels in zip(features.shape[2:], masks.shape[1:], strict=True)
    )
    weights = torch.einsum("byx,yh,xw->bhw", masks.float(), rows, columns)
    count = masks.sum((1, 2)).clamp(min=1)
    return torch.einsum("bdhw,bhw->bd", features, weights) / count[:, None]


def _upsampling(cells: int, pixels: int) -> Float[Tensor, "pixels cells"]:
    """Weights of the cells in each pixel, along one side."""
    each = torch.eye(cells)[:, None]
    return F.interpolate(each, size=pixels, mode="linear")[:, 0].T


# ---------------------------------------------------------------------------- clips


def has_previous(sample: Sample) -> bool:
    """False at the start of a scene, where the clip has its current frame twice."""
    return sample["clip"][0]["image_id"] != sample["image_id"]


def _check_clips(name: str, sampler: ReferenceSampler | None) -> None:
    if sampler is None:
        return
    have = sampler.num_frames, sampler.clip_index, sampler.num_global
    if have != (2, 1, 0):
        raise ValueError(
            f"{name} must choose one earlier frame, then the current one: "
            "AdjacentSampler(before=1, after=0). Here it chooses clips of "
            f"{have[0]}, with the current frame at place {have[1]}."
        )
