"""Image backbones, and exclusion of padding from their features.

A backbone is a module that maps (B, 3, H, W) to ``{name: (B, channels, h, w)}`` and has
``output_shape() -> {name: shape}`` whose values have ``channels`` and ``stride``: Detectron2's
backbones directly, timm's through :class:`TimmBackbone`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from v2idetr.modeling.folded_norm import fold_norm
from v2idetr.modeling.interface import Images

logger = logging.getLogger(__name__)

Norm = Literal["FrozenBN", "BN"]
# Names of the first stage in timm's models; "blocks" has all stages.
FIRST_STAGES = {"layer1", "blocks", "blocks_0", "stages_0", "s1"}


@dataclass(frozen=True)
class FeatureShape:
    """Channels and stride, in pixels, of one output of a backbone."""

    channels: int
    stride: int


class TimmBackbone(nn.Module):
    """Feature maps of a timm model.

    Args:
        name: timm model name, for example ``tf_efficientnet_lite0``.
        strides: strides of the returned maps in pixels; the maps are named ``stride8`` and so on.
            Layers after the coarsest map are removed.
        freeze_stem: fixed pretrained weights of the stem and the first stage, as in DETR.
        norm: "FrozenBN" for fixed statistics and affine map of batch normalisations, "BN" to learn
            them, for pretraining with large batches.

    Raises:
        ValueError: the model has no map of such a stride, does not run without the layers after the
            coarsest map (HRNet), has channels last (Swin), or the end of its stem is unknown.
    """

    def __init__(
        self,
        name: str,
        *,
        strides: Sequence[int] = (8, 16, 32),
        freeze_stem: bool = True,
        norm: Norm = "FrozenBN",
    ) -> None:
        super().__init__()
        if norm not in get_args(Norm):
            raise ValueError(f"norm={norm!r} must be one of {', '.join(get_args(Norm))}")
        import timm

        body: Any = timm.create_model(name, features_only=True, pretrained=False)
        reductions = body.feature_info.reduction()
        missing = [stride for stride in strides if stride not in reductions]
        if missing:
            raise ValueError(f"{name} has features of strides {reductions}, not of {missing}.")
        self.out_indices = [reductions.index(stride) for stride in strides]
        channels = body.feature_info.channels()
        self._shapes = {
            f"stride{stride}": FeatureShape(channels[index], stride)
            for stride, index in zip(strides, self.out_indices, strict=True)
        }
        known = timm.get_pretrained_cfg(name)
        size = known.input_size if known is not None else (3, 224, 224)
        try:
            _remove_after(body, body.feature_info.module_name()[max(self.out_indices)])
            # Channels last: a quarter less time on a CPU, with EfficientNet-Lite0 at 96 x 128.
            self.body = body.to(memory_format=torch.channels_last)
            if norm == "FrozenBN":
                maps = _fold(_freeze_batch_norm(self.body), torch.zeros(1, *size))
            else:  # the dry run that `_fold` includes
                maps = self.body.eval()(torch.zeros(1, *size))
                self.body.train()
        except (AssertionError, AttributeError, LookupError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{name} does not run without the layers after its map of stride {max(strides)} "
                f"({type(error).__name__}: {error}); use another model, a ResNet for example."
            ) from error
        for index, shape in zip(self.out_indices, self._shapes.values(), strict=True):
            if maps[index].shape[1] != shape.channels:  # Swin's are (B, h, w, channels)
                raise ValueError(
                    f"{name} gives a map of shape {tuple(maps[index].shape)}, whose second "
                    f"dimension is not its {shape.channels} channels; use another model, a ResNet "
                    "for example."
                )
        if freeze_stem:
            _freeze_stem(self.body, name)

    def output_shape(self) -> dict[str, FeatureShape]:
        return self._shapes

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps = self.body(pixels.contiguous(memory_format=torch.channels_last))
        return {
            name: maps[index] for name, index in zip(self._shapes, self.out_indices, strict=True)
        }


def _freeze_stem(body: nn.Module, name: str) -> None:
    """Freeze all layers up to the first stage."""
    children = dict(body.named_children())
    if not children.keys() & FIRST_STAGES:
        raise ValueError(
            f"The end of the stem of {name} is unknown (it has {', '.join(children)}); set "
            "model.net.backbone.freeze_stem=false."
        )
    for key, child in children.items():
        stage = child if key != "blocks" else child.get_submodule("0")
        stage.requires_grad_(False)
        if key in FIRST_STAGES:
            return


def _remove_after(module: nn.Module, path: str) -> None:
    """Remove the layers after the one at a dotted path, such as ``blocks.4`` or ``layer3``."""
    names = [name for name, _ in module.named_children()]
    flat = path.replace(".", "_")  # timm's name for a layer taken out of its parent
    name, _, inner = (flat, "", "") if flat in names else path.partition(".")
    if name not in names:
        raise LookupError(f"it has no layer {name}")
    for later in names[names.index(name) + 1 :]:
        delattr(module, later)
    if inner:
        _remove_after(module.get_submodule(name), inner)


def _freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d by one with fixed statistics and affine map, and its activation.

    Batches of a few clips are too small for statistics, and frozen ones make an image's features
    independent of the rest of the batch.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _FrozenNormAct(child))
        else:
            _freeze_batch_norm(child)
    return module


@torch.no_grad()
def _fold(body: nn.Module, pixels: Float[Tensor, "1 3 H W"]) -> Sequence[Tensor]:
    """Fold normalisations into the convolutions before them, which a dry run finds.

    Convolutions whose output is one of the maps are not changed. Returns the maps of the dry run.
    """
    made_by: dict[int, tuple[Any, Tensor, int]] = {}  # by id; the tensor is kept alive
    pairs: list[tuple[Any, _FrozenNormAct]] = []
    calls: Counter[nn.Module] = Counter()

    def note(convolution: Any, _inputs: Any, output: Tensor) -> None:
        calls[convolution] += 1
        made_by[id(output)] = convolution, output, output._version

    def pair(norm: Any, inputs: tuple[Tensor]) -> None:
        calls[norm] += 1
        convolution, output, version = made_by.get(id(inputs[0]), (None, inputs[0], -1))
        if output._version == version:  # no operation in place between them
            pairs.append((convolution, norm))

    handles = [m.register_forward_hook(note) for m in body.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in body.modules() if isinstance(m, _FrozenNormAct)]
    handles += [norm.register_forward_pre_hook(pair) for norm in norms]
    maps = body(pixels)
    for handle in handles:
        handle.remove()
    returned = {made_by[id(m)][0] for m in maps if id(m) in made_by}
    for convolution, norm in pairs:
        once = calls[convolution] == calls[norm] == 1 and convolution not in returned
        norm.folded = once and fold_norm(convolution, norm)
    return maps


class _FrozenNormAct(FrozenBatchNorm2d):
    """Frozen batch normalisation and the activation that timm includes in it.

    Attributes:
        folded: whether the convolution before it includes the normalisation.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    folded = False

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, eps=norm.eps)
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.folded else self._normalised(x)
        if isinstance(self.act, nn.ReLU6):
            # In place without a gradient, which would require a copy of the map.
            return F.relu6(x, inplace=not x.requires_grad)
        return self.act(x)

    def _normalised(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale, shift = (v.to(x.dtype).view(1, -1, 1, 1) for v in (scale, shift))
        return torch.addcmul(shift, x, scale)  # one pass and no temporary


# ------------------------------------------------------------------------------------ padding


@contextmanager
def padding_isolated(backbone: nn.Module, images: Images) -> Iterator[None]:
    """Context in which an image's features do not depend on its padding.

    Convolutions pad with zeros, but cells beyond an image's edge are no longer zero after the first
    normalisation, so that an image's features depend on its batch. Here these cells are zeroed
    before and after every layer that reads neighbours, so that a padded image has the features of
    the image alone. Exceptions: TensorFlow's "SAME" padding, as in EfficientNet-Lite, unless sizes
    are multiples of 32; layers that average over the whole image, as squeeze-and-excitation.
    """
    H, W = images.pixels.shape[-2:]
    if images.padding(1, H, W) is None:
        yield
        return
    keep: dict[tuple[int, int], Tensor] = {}

    def zero(x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        if size not in keep:
            padding = images.padding(_stride(H, size[0]), *size)
            assert padding is not None
            keep[size] = ~padding.unsqueeze(1)
        return x * keep[size]

    before: Callable[..., Any] = lambda _module, args: (zero(args[0]), *args[1:])  # noqa: E731
    after: Callable[..., Any] = lambda _module, _args, out: zero(out)  # noqa: E731
    handles = []
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after))
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            handles.append(module.register_forward_pre_hook(before))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stride(pixels: int, cells: int) -> int:
    """Stride, a power of two, of a map with ``cells`` cells along ``pixels`` pixels."""
    stride = 1
    while -(-pixels // stride) > cells:
        stride *= 2
    return stride
