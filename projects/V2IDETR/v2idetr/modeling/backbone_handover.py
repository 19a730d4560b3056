"""A backbone that another model has trained: it fits, and both normalise their images alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from v2idetr.modeling.backbone_weights import fitting_weights, load_backbone
from v2idetr.modeling.detectron2_models import image_backbone

PIXELS = "pixels"  # key of the statistics in a checkpoint
Statistics = Mapping[str, list[float]]


@dataclass(frozen=True)
class Giver:
    """A model that will hand on its backbone.

    Attributes:
        tensors: its state dict, without values.
        pixels: see `pixel_statistics`.
    """

    tensors: dict[str, Tensor]
    pixels: Statistics


def giver(model: nn.Module) -> Giver:
    """What is known of a model before it is trained."""
    tensors = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    return Giver(tensors, pixel_statistics(model))


def pixel_statistics(model: nn.Module) -> dict[str, list[float]]:
    """A model's ``pixel_mean`` and ``pixel_std``, RGB in 0..255; {} if it has none."""
    found = {name: getattr(model, name, None) for name in ("pixel_mean", "pixel_std")}
    return {name: t.flatten().tolist() for name, t in found.items() if isinstance(t, Tensor)}


def check_handover(giver: Giver, model: nn.Module, *, source: str, key: str) -> None:
    """Compare the backbones of two models before the first one is trained.

    Args:
        giver: is trained first.
        model: gets its backbone, unless it has none itself.
        source: name of the giver, for messages.
        key: of the config that names the giver.

    Raises:
        ValueError: names, shapes or the images' normalisation differ.
    """
    network = getattr(model, "net", model)
    if getattr(network, "backbone", None) is not None:
        fitting_weights(image_backbone(network), giver.tensors, source, key=key)
        check_pixels(giver.pixels, model, source=source, key=key)


def take_backbone(model: nn.Module, file: Path, *, key: str) -> None:
    """Give a model the backbone in a file of this project.

    Raises:
        ValueError: names, shapes or the images' normalisation differ.
    """
    load_backbone(image_backbone(getattr(model, "net", model)), file, key=key)
    check_file_pixels(model, str(file), key=key)


def check_file_pixels(model: nn.Module, weights: str | None, *, key: str) -> None:
    """Compare how images were normalised for the weights of a model's backbone.

    Args:
        model: has the backbone.
        weights: where its weights come from, see `load_imagenet_weights`. Files that do not say how
            images were normalised are accepted.
        key: of the file in the config.

    Raises:
        ValueError: other than by the model.
    """
    path = Path(weights or "").expanduser()
    if path.suffix in (".pth", ".pt") and path.is_file():
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        known = content.get(PIXELS) if isinstance(content, dict) else None
        if isinstance(known, dict):
            check_pixels(known, model, source=str(path), key=key)


def check_pixels(known: Statistics, model: nn.Module, *, source: str, key: str) -> None:
    """Compare how images were normalised for weights that a model gets.

    Args:
        known: statistics of the weights; {} is accepted.
        model: gets them.
        source: name of the giver, for messages.
        key: of the config that names the giver.

    Raises:
        ValueError: other than by the model.
    """
    own = pixel_statistics(model)
    if all(np.allclose(known[name], own[name], rtol=1e-4) for name in own.keys() & known.keys()):
        return
    raise ValueError(
        f"{key}: the backbone of {source} has learned from images with {_shown(known)}, but the "
        f"{type(model).__name__} that gets it has {_shown(own)}. Give both the same pixel_mean and "
        "pixel_std in the config."
    )


def _shown(pixels: Statistics) -> str:
    return ", ".join(f"{name}={[round(v, 3) for v in pixels[name]]}" for name in sorted(pixels))
