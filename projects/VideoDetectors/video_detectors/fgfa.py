"""FGFA (Zhu et al., ICCV 2017): a frame's features, averaged with those of others along the flow.

With f_i the map c4 of frame i, M_ij the flow from the current frame i to frame j, and E a small
network of three convolutions, at each cell p::

    warping        f_j->i(p) = f_j(p + M_ij(p)), bilinear; f_i->i = f_i
    weights        w_j(p) = softmax_j cos(E(f_j->i)(p), E(f_i)(p))
    aggregation    F_i(p) = sum_j w_j(p) f_j->i(p)

Region proposals and boxes are those of Faster R-CNN on F_i. The authors have R-FCN instead; here it
is Faster R-CNN as in github.com/Scalsol/mega.pytorch, which also states the networks' widths and
the options below. That code warps the current frame, too, along the flow to itself. Padding of a
batch is not masked; the code trains one clip at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from jaxtyping import Float
from torch import Tensor, nn

from v2idetr.data.reference_sampler import ReferenceSampler
from v2idetr.modeling.trainable import Sample
from video_detectors.c4_backbone import C4Backbone
from video_detectors.detector import VideoDetector, in_original_pixels
from video_detectors.flownet import FlowNetS, flow_input, load_flow_weights


class Embedding(nn.Sequential):
    """Features -> embeddings whose cosine says how alike two cells are.

    Args:
        channels, hidden, out: widths; 1024, 512 and 2048 in the paper.
    """

    def __init__(self, channels: int, hidden: int, out: int) -> None:
        super().__init__(
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, out, 1),
        )
        for index in (0, 2, 4):
            weight_init.c2_xavier_fill(self[index])


@dataclass(frozen=True)
class Frames:
    """Frames of clips, each seen alone.

    Attributes:
        c4: features.
        pixels: see ``flow_input``.
        embeddings: of the features as they are; None where those of the warped ones are used.
    """

    c4: Float[Tensor, "*frames channels h w"]
    pixels: Float[Tensor, "*frames 3 h2 w2"]
    embeddings: Float[Tensor, "*frames e h w"] | None

    def map(self, change: Callable[[Tensor], Tensor]) -> Frames:
        """A change of every tensor."""
        embeddings = None if self.embeddings is None else change(self.embeddings)
        return Frames(change(self.c4), change(self.pixels), embeddings)

    @staticmethod
    def stack(frames: Sequence[Frames]) -> Frames:
        """Single frames together."""
        embeddings = [frame.embeddings for frame in frames if frame.embeddings is not None]
        return Frames(
            torch.stack([frame.c4 for frame in frames]),
            torch.stack([frame.pixels for frame in frames]),
            torch.stack(embeddings) if embeddings else None,
        )


class FGFA(VideoDetector):
    """Detector of the current frame of a clip.

    Args:
        net: the single-frame detector, with a :class:`C4Backbone`.
        class_names, reference_sampler, evaluation_sampler, weights: see :class:`VideoDetector`.
        flownet: of the stride of the backbone.
        embedding: of the width of ``c4``.
        flow_weights: see ``load_flow_weights``; not read with ``weights=None``.
        current_in_training: whether the current frame's own features are in the sum, as in the
            paper. Released code: not in training, always in evaluation.
        warp_embeddings: in evaluation, warp embeddings with the features instead of computing them
            of the warped features, as the released code does.

    Raises:
        ValueError: the network has another backbone, of another stride than the flow; there is
            nothing to sum.
    """

    net: GeneralizedRCNN

    def __init__(
        self,
        *,
        net: nn.Module,
        class_names: Sequence[str],
        reference_sampler: ReferenceSampler,
        flownet: FlowNetS,
        embedding: Embedding,
        evaluation_sampler: ReferenceSampler | None = None,
        weights: str | None = None,
        flow_weights: str = "",
        current_in_training: bool = True,
        warp_embeddings: bool = False,
    ) -> None:
        super().__init__(
            net=net,
            class_names=class_names,
            reference_sampler=reference_sampler,
            evaluation_sampler=evaluation_sampler,
            weights=weights,
        )
        self.flownet, self.embedding = flownet, embedding
        if weights is not None:
            load_flow_weights(flownet, flow_weights, key="video.model.flow_weights")
        self.current_in_training, self.warp_embeddings = current_in_training, warp_embeddings
        if flownet.stride != self.backbone.stride:
            raise ValueError(
                f"flownet.stride={flownet.stride} must be net.backbone.stride="
                f"{self.backbone.stride}."
            )
        if reference_sampler.num_frames == 1 and not current_in_training:
            raise ValueError(
                "reference_sampler gives no reference, and current_in_training=false leaves out "
                "the current frame: there is nothing to detect lesions in."
            )

    @property
    def backbone(self) -> C4Backbone:
        """Of the single-frame detector.

        Raises:
            ValueError: it is of another kind.
        """
        backbone = getattr(self.net, "backbone", None)
        if not isinstance(self.net, GeneralizedRCNN) or not isinstance(backbone, C4Backbone):
            raise ValueError(
                f"net: {type(self.net).__name__} with {type(backbone).__name__} has no map c4 to "
                "mix: use Faster R-CNN with video_detectors.c4_backbone.C4Backbone, as "
                "configs/models/faster_rcnn_c4.py does."
            )
        return backbone

    def losses(self, batched_inputs: list[Sample]) -> dict[str, Tensor]:
        """Faster R-CNN's losses of the current frames."""
        T = self.num_frames
        frames, sizes = self.seen([frame for s in batched_inputs for frame in s["clip"]])
        clips = frames.map(lambda x: x.unflatten(0, (-1, T)))
        maps = self.backbone.deep(self.aggregated(clips, self.reference_sampler.clip_index))
        lesions = [sample["instances"].to(self.net.device) for sample in batched_inputs]
        images = ImageList(maps["c4"], sizes[::T])  # their sizes alone are needed
        proposals, losses = self.net.proposal_generator(images, maps, lesions)
        _, box_losses = self.net.roi_heads(images, maps, proposals, lesions)
        return losses | box_losses

    def encode(self, frames: list[Sample]) -> list[Frames]:
        """Features and pixels of each frame."""
        seen, _ = self.seen(frames)
        return [seen.map(lambda x, b=b: x[b]) for b in range(len(frames))]

    def detect(self, sample: Sample, states: list[Frames]) -> Instances:
        """Detections of the current frame after non-maximum suppression."""
        clip = Frames.stack(states).map(lambda x: x[None])
        c4 = self.aggregated(clip, sample["clip_index"])
        maps = self.backbone.deep(c4)
        height, width = sample["image"].shape[-2:]
        images = ImageList(c4, [(height, width)])
        proposals, _ = self.net.proposal_generator(images, maps, None)
        (found,), _ = self.net.roi_heads(images, maps, proposals, None)
        return in_original_pixels(found, sample)

    def seen(self, frames: list[Sample]) -> tuple[Frames, list[tuple[int, int]]]:
        """Frames of any clips, and their sizes (height, width) without padding."""
        images = self.net.preprocess_image(frames)
        c4 = self.backbone.shallow(images.tensor)
        warped = self.warp_embeddings and not self.training
        return Frames(
            c4, flow_input(images.tensor, self.pixel_std), self.embedding(c4) if warped else None
        ), images.image_sizes

    def aggregated(self, clips: Frames, current: int) -> Float[Tensor, "C channels h w"]:
        """Features of the current frames, averaged with those of their references.

        Args:
            clips: C clips of T frames.
            current: place of the current frame.
        """
        C, T = clips.c4.shape[:2]
        own = clips.c4[:, current]
        others = [place for place in range(T) if place != current]
        if not others:
            return own
        pixels = clips.pixels[:, others]
        flow = self.flownet(
            clips.pixels[:, current, None].expand_as(pixels).flatten(0, 1), pixels.flatten(0, 1)
        )

        def warp_others(maps: Tensor) -> Tensor:
            return warped(maps[:, others].flatten(0, 1), flow).unflatten(0, (C, -1))

        features = torch.cat([own[:, None], warp_others(clips.c4)], 1)
        if clips.embeddings is None:
            embeddings = self.embedding(features.flatten(0, 1)).unflatten(0, (C, -1))
        else:
            first = clips.embeddings[:, current, None]
            embeddings = torch.cat([first, warp_others(clips.embeddings)], 1)
        alike = F.cosine_similarity(embeddings, embeddings[:, :1], dim=2)
        if self.training and not self.current_in_training:
            features, alike = features[:, 1:], alike[:, 1:]
        return torch.einsum("ctxy,ctdxy->cdxy", alike.softmax(1), features)


def warped(
    maps: Float[Tensor, "B channels h w"], flow: Float[Tensor, "B 2 h w"]
) -> Float[Tensor, "B channels h w"]:
    """Maps at the cells that the flow leads to, bilinear; beyond the border that of the border.

    In float32, also under autocast: bfloat16 resolves positions only to 1/256.

    Args:
        flow: (x, y) in cells.
    """
    h, w = maps.shape[-2:]
    with torch.autocast(maps.device.type, enabled=False):
        flow = flow.float()
        x = torch.arange(w, device=flow.device) + flow[:, 0]
        y = torch.arange(h, device=flow.device)[:, None] + flow[:, 1]
        size = flow.new_tensor([w, h])
        grid = (2 * torch.stack([x, y], -1) + 1) / size - 1
        return F.grid_sample(maps.float(), grid, padding_mode="border", align_corners=False)
