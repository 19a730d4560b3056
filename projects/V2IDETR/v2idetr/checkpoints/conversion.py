"""From a file of any layout to a detector's weights with their header."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from v2idetr.checkpoints import detrex, huggingface, official, transformers_folder
from v2idetr.checkpoints.architecture import (
    NETWORKS,
    Architecture,
    check_complete,
    describe,
    describe_state,
    incomplete,
)
from v2idetr.checkpoints.class_heads import (
    default_class_names,
    with_classes,
    with_new_class_head,
)
from v2idetr.checkpoints.files import CheckpointError, Stored, sha256
from v2idetr.checkpoints.layouts import Layout, missing_parts
from v2idetr.checkpoints.published import (
    BESIDE,
    Header,
    check_header,
    project_version,
    read_header,
)
from v2idetr.checkpoints.renaming import State
from v2idetr.checkpoints.resnets import NOT_PLAIN, PLAIN

LAYOUTS = (
    official.DETR,
    official.DEFORMABLE_DETR,
    official.SAM_DETR,
    detrex.DETR,
    detrex.DEFORMABLE_DETR,
    huggingface.DETR,
    huggingface.DEFORMABLE_DETR,
)
# How all of them show pictures to a detector: RGB, ImageNet's statistics, as on COCO.
PIXEL_MEAN, PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
INPUT_SIZE = "ResizeShortEdge short_edges=800 max_size=1333"
HEADS = 8  # of all published detectors
QUERIES = 300  # of the official two-stage detectors


@dataclass(frozen=True)
class Weights:
    """A detector's weights.

    Attributes:
        state: tensors, named as in the network.
        header: what they do not say.
        path: of the file that they were read from, for messages.
        assumed: what the file does not say either, one sentence each.
    """

    state: State
    header: Header
    path: Path
    assumed: tuple[str, ...] = ()

    def published_state(self) -> State:
        """Tensors, named as in the detector around the network."""
        return {f"net.{name}": tensor for name, tensor in self.state.items()}


def layout_of(state: State) -> Layout | None:
    """The layout of another code base that a file is in, recognised from its names."""
    return next((la for la in LAYOUTS if all(mark in state for mark in la.marks)), None)


def find_layout(state: State, source: str | Path) -> Layout:
    """The layout of a file, recognised from its names.

    Args:
        state: of the file.
        source: for messages.

    Raises:
        CheckpointError: it is in none of them.
    """
    layout = layout_of(state)
    if layout is not None:
        return layout
    parts = missing_parts(list(state))
    if not parts:
        nearest = max(LAYOUTS, key=lambda layout: layout.knows(state))
        lacking = [mark for mark in nearest.marks if mark not in state]
        parts = ["It has names such as " + ", ".join([*state][:3]) + "."]
        if nearest.knows(state):
            parts.append(
                f"It is nearest to {nearest.title}, but has no {' and no '.join(lacking)}."
            )
    titles = ", ".join(layout.title for layout in LAYOUTS)
    raise CheckpointError(
        f"{source}: is in no layout known here ({titles}, this project). {' '.join(parts)}"
    )


def read_foreign(
    path: Path, stored: Stored, layout: Layout, *, num_heads: int | None = None
) -> Weights:
    """A detector from a file of another code base.

    Args:
        path: of the file; what transformers has written beside it is read, too.
        stored: its content.
        layout: of it.
        num_heads: attention heads where the file does not say them; None for the published number.

    Raises:
        CheckpointError: it is not whole, or of a detector that we do not have.
    """
    hidden = _hidden_settings(path, stored, layout)
    state, unknown = layout.to_ours(stored.state, path)
    if unknown:
        raise incomplete(layout, str(path), [], unknown)
    ours = _header_beside(path, stored, layout)
    if ours is not None:
        return read_published(path, state, ours)
    if "dc5" in path.name.lower() and "dilation" not in hidden:
        raise CheckpointError(
            f"{path}: is a DC5 detector by its name, with a dilated backbone, which is none of "
            "ours. If it is not, rename the file."
        )
    assumed = []
    if "num_heads" not in hidden:
        hidden["num_heads"] = HEADS if num_heads is None else num_heads
        if num_heads is None and layout.network != "SAMDETR":
            assumed.append(f"number of heads is not in the file; {HEADS} assumed (--num-heads)")
    architecture = _architecture_of(path, state, layout, hidden["num_heads"])
    if architecture["backbone"] == NOT_PLAIN:
        raise CheckpointError(
            f"{path}: its backbone is not {PLAIN}, but has their names with other shapes; no "
            "config here has it."
        )
    if "num_queries" not in architecture | hidden:
        assumed.append(f"number of queries is not in the file; {QUERIES} assumed")
    architecture.setdefault("num_queries", hidden.get("num_queries", QUERIES))
    names = hidden.get("class_names", [])
    if len(names) != architecture["num_classes"]:
        names = default_class_names(architecture["num_classes"])
    header = _header(
        path,
        layout.title,
        architecture | {"isolate_padding": False},
        class_names=names,
        pixel_mean=hidden.get("pixel_mean", PIXEL_MEAN),
        pixel_std=hidden.get("pixel_std", PIXEL_STD),
        input_size=hidden.get("input_size", INPUT_SIZE),
        size_divisor=1,
    )
    return Weights(state, header, path, tuple(assumed))


def read_published(path: Path, state: State, header: Header) -> Weights:
    """A detector from a file with a header of ours.

    Args:
        path: of the file.
        state: its tensors, named as in the network.
        header: of the file.

    Raises:
        CheckpointError: the tensors are not those of the detector in the header. A temporal module,
            and a backbone that is no ResNet, are left to whoever builds them.
    """
    described = header.architecture
    if described["network"] not in NETWORKS:
        raise CheckpointError(
            f"{path}: its header names the network {described['network']!r}, which is none of "
            f"{', '.join(NETWORKS)}."
        )
    layout = Layout("ours", described["network"], "this project", marks=(), rules=())
    shown = _architecture_of(
        path,
        state,
        layout,
        described.get("num_heads"),
        strides=described.get("strides"),
        resnet=described.get("backbone") != "other",
    )
    differing = [
        f"{key} is {described[key]!r}, the tensors show {value!r}"
        for key, value in shown.items()
        if described.get(key, value) != value
    ]
    if len(header.class_names) != shown["num_classes"]:
        differing.append(f"class_names are {len(header.class_names)}, not {shown['num_classes']}")
    if differing:
        raise CheckpointError(
            f"{path}: its header is of another detector than its tensors; convert the file that it "
            "was made from again.\n  " + "\n  ".join(differing)
        )
    return Weights(state, header, path)


def of_detector(path: Path, detector: Any, config: str, input_size: str) -> Weights:
    """The weights of a detector of ours that were loaded from a file.

    Args:
        path: of that file.
        detector: a ``meta_arch.Detector``.
        config: YAML of its run.
        input_size: see :class:`Header`.
    """
    state = {
        name.removeprefix("net."): tensor.detach()
        for name, tensor in detector.state_dict().items()
        if name.startswith("net.")
    }
    header = _header(
        path,
        "this project",
        _architecture(detector.net),
        class_names=list(detector.class_names),
        pixel_mean=_numbers(detector.pixel_mean),
        pixel_std=_numbers(detector.pixel_std),
        input_size=input_size,
        size_divisor=detector.size_divisor,
        config=config,
    )
    return Weights(state, header, path)


def for_classes(weights: Weights, class_names: Sequence[str], *, new_head: bool) -> Weights:
    """The same detector for other classes.

    Args:
        weights: of the detector.
        class_names: known to it, unless there is a new head.
        new_head: give it a fresh class head.

    Raises:
        CheckpointError: it does not know a class.
    """
    header, names = weights.header, list(class_names)
    if new_head:
        state = with_new_class_head(weights.state, len(names))
    elif names == header.class_names:
        return weights
    else:
        state = with_classes(weights.state, header.class_names, names, weights.path)
    architecture = header.architecture | {"num_classes": len(names)}
    header = replace(header, architecture=architecture, class_names=names)
    return replace(weights, state=state, header=header)


def check_fits(weights: Weights, detector: Any, config: str) -> Weights:
    """The same weights for a detector of a config, which their header then holds.

    Raises:
        CheckpointError: lists what differs.
    """
    try:
        check_header(weights.header, detector, weights.path, partial=False)
    except CheckpointError as error:
        raise CheckpointError("\n".join([str(error), *weights.assumed])) from error
    return replace(weights, header=replace(weights.header, config=config))


def _architecture_of(
    path: Path,
    state: State,
    layout: Layout,
    num_heads: Any,
    *,
    strides: Any = None,
    resnet: bool = True,
) -> Architecture:
    """What the tensors show; CheckpointError where they are no whole detector."""
    try:
        architecture = describe_state(layout.network, state, num_heads, strides)
        num_heads = architecture["num_heads"]
        divisible = num_heads >= 1 and architecture["d"] % num_heads == 0
    except KeyError as error:
        raise incomplete(layout, str(path), [str(error.args[0])]) from error
    except (IndexError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{path}: has tensors of shapes that {layout.title} never has."
        ) from error
    if not divisible:
        raise CheckpointError(
            f"{path}: its width of {architecture['d']} cannot be cut into {num_heads} heads; "
            "keep the training arguments or the config.json with the file, which say how many, or "
            "give --num-heads."
        )
    check_complete(state, architecture, layout, str(path), resnet=resnet)
    return architecture


def _header_beside(path: Path, stored: Stored, layout: Layout) -> Header | None:
    """The header of a file that :func:`export` has written, now as of that file."""
    words = stored.beside.get(BESIDE)
    header = read_header(words, path) if isinstance(words, dict) else None
    if header is None:
        return None
    digest, version = sha256(path), project_version()
    return replace(
        header,
        source=path.name,
        source_sha256=digest,
        source_layout=layout.title,
        project_version=version,
    )


def _hidden_settings(path: Path, stored: Stored, layout: Layout) -> dict[str, Any]:
    """Settings that the tensors do not show, from what lies beside them."""
    if layout.name == "transformers":
        return transformers_folder.hidden_settings(path.parent)
    if layout.name != "official":
        return {}
    args = stored.beside.get("args")
    try:
        return official.hidden_settings(args if isinstance(args, Namespace) else None)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}.") from error


def _architecture(net: Any) -> Architecture:
    return describe(net) | {
        "num_queries": net.num_queries,
        "isolate_padding": getattr(net, "isolate_padding", True),
    }


def _numbers(tensor: Tensor) -> list[float]:
    """As they were written in the config, before they became single precision."""
    return [round(number, 4) for number in tensor.flatten().tolist()]


def _header(
    path: Path,
    layout: str,
    architecture: Architecture,
    *,
    class_names: list[str],
    pixel_mean: list[float],
    pixel_std: list[float],
    input_size: str,
    size_divisor: int,
    config: str = "",
) -> Header:
    return Header(
        architecture=architecture,
        class_names=class_names,
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
        input_size=input_size,
        size_divisor=size_divisor,
        config=config,
        source=path.name,
        source_sha256=sha256(path),
        source_layout=layout,
        project_version=project_version(),
    )
