"""Real-time detectors of transformers, as modules with the contract of exported students."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torchvision.ops import box_convert

TOPK = 100
QUANTIZED = ("net.model.backbone", "net.model.encoder", "net.model.decoder_input_proj")


def rt_detr_r18(size: tuple[int, int]) -> Any:
    """RT-DETR with a ResNet-18, one class, for images of one size in pixels."""
    import transformers

    library: Any = transformers  # its configs take keywords that are not in their signatures
    backbone = library.RTDetrResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        out_indices=[2, 3, 4],
    )
    config = library.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[128, 256, 512],
        hidden_expansion=0.5,
        decoder_layers=3,
        num_labels=1,
        anchor_image_size=list(size),
    )
    return library.RTDetrForObjectDetection(config)


def d_fine_n(size: tuple[int, int]) -> Any:
    """D-FINE-N, one class, for images of one size in pixels."""
    import transformers

    library: Any = transformers  # as above
    backbone = library.HGNetV2Config(
        hidden_sizes=[128, 256, 512, 1024],
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 64, 256, 512],
        stage_mid_channels=[16, 32, 64, 128],
        stage_out_channels=[64, 256, 512, 1024],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[3, 3, 3, 3],
        use_learnable_affine_block=True,
        out_indices=[3, 4],
    )
    config = library.DFineConfig(
        backbone_config=backbone,
        d_model=128,
        feat_strides=[16, 32],
        num_feature_levels=2,
        encoder_in_channels=[512, 1024],
        encoder_hidden_dim=128,
        encoder_ffn_dim=512,
        encode_proj_layers=[1],
        hidden_expansion=0.34,
        depth_mult=0.5,
        decoder_in_channels=[128, 128],
        decoder_ffn_dim=512,
        decoder_n_points=[6, 6],
        decoder_layers=3,
        num_labels=1,
        anchor_image_size=list(size),
    )
    return library.DFineForObjectDetection(config)


REAL_TIME: dict[str, Callable[[tuple[int, int]], Any]] = {
    "transformers RT-DETR R18": rt_detr_r18,
    "transformers D-FINE-N": d_fine_n,
}


class RealTimeDetector(nn.Module):
    """Frames -> scores, classes and boxes of the best queries, as ``ImageDetector``."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.net(images.permute(0, 3, 1, 2) / 255)
        scores, query = out.logits.squeeze(-1).sigmoid().topk(TOPK)
        boxes = out.pred_boxes.gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
        return scores, torch.zeros_like(query), box_convert(boxes, "cxcywh", "xyxy").clamp(0, 1)

    def reads(self) -> int:
        """Operations of the decoder's reads for one frame, counted as in ``cost.flops``."""
        config = self.net.config
        points, levels = config.decoder_n_points, config.num_feature_levels
        per_head = sum(points) if isinstance(points, list) else points * levels
        return 2 * 4 * per_head * config.d_model * config.num_queries * config.decoder_layers


def trace_one(module: RealTimeDetector, size: tuple[int, int]) -> ExportedProgram:
    """The network as a graph for one frame; these networks take no free number of frames."""
    frame = torch.zeros(1, *size, 3, dtype=torch.uint8)
    # torch.onnx.export rejects their checks.
    with mock.patch.dict(os.environ, TRANSFORMERS_DISABLE_TORCH_CHECK="1"), torch.no_grad():
        return torch.export.export(module, (frame,), strict=False)
