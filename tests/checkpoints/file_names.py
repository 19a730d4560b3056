"""What the files of other code bases hold, written down from their sources: names and shapes.

Nothing here comes from our own tables. Sources: the official codes of DETR (29901c5), Deformable
DETR (11169a6) and SAM-DETR (df4e567), and detrex (e244e6c).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Size:
    """How large a detector is; by default as published with a ResNet-50 on COCO."""

    d: int = 256
    ffn: int = 1024
    encoder: int = 6
    decoder: int = 6
    heads: int = 8
    points: int = 4
    queries: int = 300
    classes: int = 91
    levels: int = 4  # 4: strides 8 to 64; 3: to 32; 1: 32 alone
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    stem: int = 64
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    bottleneck: bool = True

    @property
    def sources(self) -> tuple[int, ...]:
        """Channels of the backbone's maps that are projected."""
        return self.widths[-1:] if self.levels == 1 else self.widths[-3:]


TINY = Size(
    d=32,
    ffn=48,
    encoder=2,
    decoder=2,
    queries=7,
    classes=5,
    blocks=(1, 1, 1, 1),
    stem=8,
    widths=(8, 12, 16, 24),
    bottleneck=False,
)


def tensors(shapes: Shapes, second_names: dict[str, str] | None = None) -> dict[str, Tensor]:
    """Noise of these shapes; under second names the tensors of the first ones again."""
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    for second, first in (second_names or {}).items():
        for name in shapes:
            if name.startswith(second):
                state[name] = state[first + name.removeprefix(second)].clone()
    return state


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, d: int) -> Shapes:
    return {f"{name}.weight": (d,), f"{name}.bias": (d,)}


def _frozen(name: str, channels: int) -> Shapes:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}": (channels,) for kind in kinds}


def _multihead(name: str, d: int) -> Shapes:
    shapes: Shapes = {f"{name}.in_proj_weight": (3 * d, d), f"{name}.in_proj_bias": (3 * d,)}
    return shapes | _linear(f"{name}.out_proj", d, d)


def _deformable(name: str, size: Size) -> Shapes:
    reads = size.heads * size.levels * size.points
    return (
        _linear(f"{name}.sampling_offsets", 2 * reads, size.d)
        | _linear(f"{name}.attention_weights", reads, size.d)
        | _linear(f"{name}.value_proj", size.d, size.d)
        | _linear(f"{name}.output_proj", size.d, size.d)
    )


def _mlp(name: str, d: int, out: int, layers: int = 3) -> Shapes:
    shapes: Shapes = {}
    for index in range(layers):
        shapes |= _linear(f"{name}.layers.{index}", out if index == layers - 1 else d, d)
    return shapes


def torchvision_resnet(size: Size, prefix: str = "") -> Shapes:
    shapes: Shapes = {f"{prefix}conv1.weight": (size.stem, 3, 7, 7)}
    shapes |= _frozen(f"{prefix}bn1", size.stem)
    into = size.stem
    for stage, (blocks, out) in enumerate(zip(size.blocks, size.widths, strict=True), start=1):
        for index in range(blocks):
            block = f"{prefix}layer{stage}.{index}."
            inner = out // 4 if size.bottleneck else out
            convs = [(inner, into, 3), (out, inner, 3)]
            if size.bottleneck:
                convs = [(inner, into, 1), (inner, inner, 3), (out, inner, 1)]
            for number, (a, b, kernel) in enumerate(convs, start=1):
                shapes[f"{block}conv{number}.weight"] = (a, b, kernel, kernel)
                shapes |= _frozen(f"{block}bn{number}", a)
            if index == 0 and (stage > 1 or into != out):
                shapes[f"{block}downsample.0.weight"] = (out, into, 1, 1)
                shapes |= _frozen(f"{block}downsample.1", out)
            into = out
    return shapes


def detectron2_resnet(size: Size, prefix: str) -> Shapes:
    shapes: Shapes = {}
    for name, shape in torchvision_resnet(size).items():
        name = name if name.startswith("layer") else f"stem.{name}"
        for number in (1, 2, 3, 4):
            name = name.replace(f"layer{number}", f"res{number + 1}")
            name = name.replace(f"bn{number}", f"conv{number}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        shapes[prefix + name] = shape
    return shapes


# ------------------------------------------------------------------------- official


def official_detr(size: Size) -> Shapes:
    """458 tensors with a ResNet-50."""
    d = size.d
    shapes = torchvision_resnet(size, "backbone.0.body.")
    for index in range(size.encoder):
        layer = f"transformer.encoder.layers.{index}"
        shapes |= _multihead(f"{layer}.self_attn", d)
        shapes |= _linear(f"{layer}.linear1", size.ffn, d) | _linear(
            f"{layer}.linear2", d, size.ffn
        )
        shapes |= _norm(f"{layer}.norm1", d) | _norm(f"{layer}.norm2", d)
    for index in range(size.decoder):
        layer = f"transformer.decoder.layers.{index}"
        shapes |= _multihead(f"{layer}.self_attn", d) | _multihead(f"{layer}.multihead_attn", d)
        shapes |= _linear(f"{layer}.linear1", size.ffn, d) | _linear(
            f"{layer}.linear2", d, size.ffn
        )
        for number in (1, 2, 3):
            shapes |= _norm(f"{layer}.norm{number}", d)
    shapes |= _norm("transformer.decoder.norm", d)
    shapes |= _linear("class_embed", size.classes + 1, d) | _mlp("bbox_embed", d, 4)
    shapes["query_embed.weight"] = (size.queries, d)
    shapes["input_proj.weight"] = (d, size.widths[-1], 1, 1)
    shapes["input_proj.bias"] = (d,)
    return shapes


def official_deformable(
    size: Size, *, refine: bool = False, two_stage: bool = False
) -> tuple[Shapes, dict[str, str]]:
    """Names and shapes, and which of them are second names."""
    d = size.d
    shapes = torchvision_resnet(size, "backbone.0.body.") | _projections("input_proj", size)
    for index in range(size.encoder):
        layer = f"transformer.encoder.layers.{index}"
        shapes |= _deformable(f"{layer}.self_attn", size)
        shapes |= _linear(f"{layer}.linear1", size.ffn, d) | _linear(
            f"{layer}.linear2", d, size.ffn
        )
        shapes |= _norm(f"{layer}.norm1", d) | _norm(f"{layer}.norm2", d)
    for index in range(size.decoder):
        layer = f"transformer.decoder.layers.{index}"
        shapes |= _deformable(f"{layer}.cross_attn", size) | _multihead(f"{layer}.self_attn", d)
        shapes |= _linear(f"{layer}.linear1", size.ffn, d) | _linear(
            f"{layer}.linear2", d, size.ffn
        )
        for number in (1, 2, 3):
            shapes |= _norm(f"{layer}.norm{number}", d)
    shapes["transformer.level_embed"] = (size.levels, d)
    second = _heads(shapes, size, refine=refine, two_stage=two_stage)
    if two_stage:
        shapes |= _linear("transformer.enc_output", d, d) | _norm("transformer.enc_output_norm", d)
        shapes |= _linear("transformer.pos_trans", 2 * d, 2 * d)
        shapes |= _norm("transformer.pos_trans_norm", 2 * d)
    else:
        shapes["query_embed.weight"] = (size.queries, 2 * d)
        shapes |= _linear("transformer.reference_points", 2, d)
    return shapes, second


def official_sam(
    size: Size, *, norm: bool = True, smca: bool = False, multi_scale: bool = False
) -> tuple[Shapes, dict[str, str]]:
    """Names and shapes, and which of them are second names. ``size.levels`` is 1 or 3."""
    d, heads, linear = size.d, size.heads, _linear
    shapes = torchvision_resnet(size, "backbone.0.body.")
    shapes |= _projections("input_proj", size, norm=norm)
    for index in range(size.encoder):
        layer = f"transformer.encoder.layers.{index}"
        ffn = size.ffn // 2 if multi_scale else size.ffn
        attention = f"{layer}.self_attn"
        shapes |= _deformable(attention, size) if multi_scale else _multihead(attention, d)
        shapes |= linear(f"{layer}.linear1", ffn, d) | linear(f"{layer}.linear2", d, ffn)
        shapes |= _norm(f"{layer}.norm1", d) | _norm(f"{layer}.norm2", d)
    for index in range(size.decoder):
        layer = f"transformer.decoder.layers.{index}"
        for name in ("qcontent", "qpos", "kcontent", "kpos", "v"):
            shapes |= linear(f"{layer}.sa_{name}_proj", d, d)
        for name in ("qcontent", "kcontent", "v"):
            shapes |= linear(f"{layer}.ca_{name}_proj", d, d)
        for name in ("qpos", "kpos"):
            shapes |= _mlp(f"{layer}.ca_{name}_sine_proj", d, d, layers=2)
        for name in ("self_attn", "cross_attn"):
            shapes |= linear(f"{layer}.{name}.out_proj", d, d)
        shapes[f"{layer}.point1.0.weight"] = (d // 4, d, 1, 1)
        shapes[f"{layer}.point1.0.bias"] = (d // 4,)
        # 256 and 512 are written into the official code, for d 256
        widths = [d // 4 * 49, d, 2 * d, 2 * d, heads * (4 if smca else 2)]
        for number, (into, out) in enumerate(itertools.pairwise(widths)):
            shapes |= linear(f"{layer}.point2.{2 * number}", out, into)
        shapes |= linear(f"{layer}.attn1", heads * d, d) | linear(f"{layer}.attn2", heads * d, d)
        shapes |= linear(f"{layer}.linear1", size.ffn, d) | linear(f"{layer}.linear2", d, size.ffn)
        for number in (1, 2, 3):
            shapes |= _norm(f"{layer}.norm{number}", d)
    if multi_scale:
        shapes["transformer.level_embed"] = (size.levels, d)
    shapes["query_embed.weight"] = (size.queries, 4)
    second = {}
    for index in range(size.decoder):
        shapes |= linear(f"class_embed.{index}", size.classes, d)
        shapes |= _mlp(f"bbox_embed.{index}", d, 4)
        shapes |= _mlp(f"transformer.decoder.bbox_embed.{index}", d, 4)
        second[f"transformer.decoder.bbox_embed.{index}."] = f"bbox_embed.{index}."
    return shapes, second


def _projections(name: str, size: Size, *, norm: bool = True) -> Shapes:
    """Conv 1x1 for each map of the backbone, conv 3x3 beyond, each with a group norm."""
    shapes: Shapes = {}
    for index in range(size.levels):
        own = index < len(size.sources)
        into, kernel = (size.sources[index], 1) if own else (size.sources[-1], 3)
        shapes[f"{name}.{index}.0.weight"] = (size.d, into, kernel, kernel)
        shapes[f"{name}.{index}.0.bias"] = (size.d,)
        if norm:
            shapes |= _norm(f"{name}.{index}.1", size.d)
    return shapes


def _heads(shapes: Shapes, size: Size, *, refine: bool, two_stage: bool) -> dict[str, str]:
    """Add the heads of Deformable DETR, as the official code and detrex name them."""
    second = {}
    for index in range(size.decoder + two_stage):
        shapes |= _linear(f"class_embed.{index}", size.classes, size.d)
        shapes |= _mlp(f"bbox_embed.{index}", size.d, 4)
        if not refine and index:
            second |= {f"{kind}.{index}.": f"{kind}.0." for kind in ("class_embed", "bbox_embed")}
        if refine:
            shapes |= _mlp(f"transformer.decoder.bbox_embed.{index}", size.d, 4)
            second[f"transformer.decoder.bbox_embed.{index}."] = f"bbox_embed.{index}."
        if two_stage:
            shapes |= _linear(f"transformer.decoder.class_embed.{index}", size.classes, size.d)
            second[f"transformer.decoder.class_embed.{index}."] = f"class_embed.{index}."
    return second


# ------------------------------------------------------------------------- detrex


def detrex_detr(size: Size) -> Shapes:
    d = size.d
    shapes = detectron2_resnet(size, "backbone.")
    for index in range(size.encoder):
        layer = f"transformer.encoder.layers.{index}"
        shapes |= _multihead(f"{layer}.attentions.0.attn", d) | _detrex_layer(layer, size, norms=2)
    for index in range(size.decoder):
        layer = f"transformer.decoder.layers.{index}"
        shapes |= _multihead(f"{layer}.attentions.0.attn", d)
        shapes |= _multihead(f"{layer}.attentions.1.attn", d) | _detrex_layer(layer, size, norms=3)
    shapes |= _norm("transformer.decoder.post_norm_layer", d)
    shapes |= _linear("class_embed", size.classes + 1, d) | _mlp("bbox_embed", d, 4)
    shapes["query_embed.weight"] = (size.queries, d)
    shapes["input_proj.weight"] = (d, size.widths[-1], 1, 1)
    shapes["input_proj.bias"] = (d,)
    return shapes


def detrex_deformable(
    size: Size, *, refine: bool = False, two_stage: bool = False
) -> tuple[Shapes, dict[str, str]]:
    """Names and shapes, and which of them are second names."""
    d = size.d
    shapes = detectron2_resnet(size, "backbone.")
    for name, shape in _projections("neck", size).items():
        _, level, part, kind = name.split(".")
        own = int(level) < len(size.sources)
        stack = f"convs.{level}" if own else f"extra_convs.{int(level) - len(size.sources)}"
        shapes[f"neck.{stack}.{'norm' if part == '1' else 'conv'}.{kind}"] = shape
    for index in range(size.encoder):
        layer = f"transformer.encoder.layers.{index}"
        shapes |= _deformable(f"{layer}.attentions.0", size) | _detrex_layer(layer, size, norms=2)
    for index in range(size.decoder):
        layer = f"transformer.decoder.layers.{index}"
        shapes |= _multihead(f"{layer}.attentions.0.attn", d)
        shapes |= _deformable(f"{layer}.attentions.1", size) | _detrex_layer(layer, size, norms=3)
    shapes["transformer.level_embeds"] = (size.levels, d)
    second = _heads(shapes, size, refine=refine, two_stage=two_stage)
    if two_stage:
        shapes |= _linear("transformer.enc_output", d, d) | _norm("transformer.enc_output_norm", d)
        shapes |= _linear("transformer.pos_trans", 2 * d, 2 * d)
        shapes |= _norm("transformer.pos_trans_norm", 2 * d)
    else:
        shapes["query_embedding.weight"] = (size.queries, 2 * d)
        shapes |= _linear("transformer.reference_points", 2, d)
    return shapes, second


def _detrex_layer(layer: str, size: Size, *, norms: int) -> Shapes:
    shapes = _linear(f"{layer}.ffns.0.layers.0.0", size.ffn, size.d)
    shapes |= _linear(f"{layer}.ffns.0.layers.1", size.d, size.ffn)
    for index in range(norms):
        shapes |= _norm(f"{layer}.norms.{index}", size.d)
    return shapes
