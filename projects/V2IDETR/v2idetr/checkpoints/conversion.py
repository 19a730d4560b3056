"""File of any layout -> a detector's weights with their header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from v2i_runtime.preprocess import Preprocess, ShortestEdge
from v2idetr.checkpoints.architecture import check_complete, describe, describe_state, incomplete
from v2idetr.checkpoints.class_heads import (
    default_class_names,
    with_classes,
    with_new_class_head,
)
from v2idetr.checkpoints.files import CheckpointError, Stored, listed, sha256
from v2idetr.checkpoints.layouts import OURS, find_layout, read_layout
from v2idetr.checkpoints.published import Header, check_header, project_version
from v2idetr.checkpoints.settings_beside import settings_beside
from v2idetr.modeling.renaming import State
from v2idetr.modeling.resnet_names import NOT_PLAIN, PLAIN
from v2idetr.modeling.weight_rules import (
    Architecture,
    Layout,
    WeightRules,
    families,
    rules_of,
)

# Of all published detectors on COCO, with ImageNet's statistics.
PUBLISHED_PREPROCESS = Preprocess(ShortestEdge(800, 1333), size_divisor=1)
DEFAULT_NUM_QUERIES = 300  # of the official two-stage detectors


@dataclass(frozen=True)
class Weights:
    """A detector's weights.

    Attributes:
        state: tensors, named as in the network.
        header: facts that are not in the tensors.
        path: path of the source file, for messages.
        rules: rules of the network class; None for none.
        assumed: assumptions about facts that are not in the file, one sentence each.
    """

    state: State
    header: Header
    path: Path
    rules: WeightRules | None
    assumed: tuple[str, ...] = ()

    def published_state(self) -> State:
        """Tensors, named as in the detector around the network."""
        return {f"net.{name}": tensor for name, tensor in self.state.items()}


def read_foreign(path: Path, stored: Stored, *, num_heads: int | None = None) -> Weights:
    """A detector from a file of another code base.

    Args:
        path: path of the file; settings of transformers beside it are also read.
        stored: content of the file.
        num_heads: number of attention heads for files without it; None for the published number.

    Raises:
        CheckpointError: the layout is unknown, the file incomplete or the detector unsupported.
    """
    network, layout = find_layout(stored.state, path)
    rules = rules_of(network)
    assert rules is not None
    beside = settings_beside(path, stored, layout)
    state, unknown = read_layout(layout, stored.state, path)
    if unknown:
        raise incomplete(layout, str(path), [], unknown)
    if "dc5" in path.name.lower() and "dilation" not in beside:
        raise CheckpointError(
            f"{path}: is a DC5 detector by its name, with a dilated backbone, which is not "
            "supported. If it is not, rename the file."
        )
    assumed = []
    if "num_heads" not in beside:
        beside["num_heads"] = rules.assumed_heads if num_heads is None else num_heads
        if num_heads is None and rules.assumed_heads is not None:
            assumed.append(
                f"number of heads is not in the file; {rules.assumed_heads} assumed (--num-heads)"
            )
    known = {"num_heads": beside["num_heads"]}
    architecture = _architecture_of(path, network, state, layout, known)
    if architecture["backbone"] == NOT_PLAIN:
        raise CheckpointError(
            f"{path}: its backbone is not {PLAIN}, but has their names with other shapes, "
            "which is not supported."
        )
    if "num_queries" not in architecture | beside:
        assumed.append(f"number of queries is not in the file; {DEFAULT_NUM_QUERIES} assumed")
    architecture.setdefault("num_queries", beside.get("num_queries", DEFAULT_NUM_QUERIES))
    names = beside.get("class_names", [])
    if len(names) != architecture["num_classes"]:
        names = default_class_names(architecture["num_classes"])
    header = _header(
        path,
        layout.title,
        architecture | {"isolate_padding": False},
        names,
        beside.get("preprocess", PUBLISHED_PREPROCESS),
    )
    return Weights(state, header, path, rules, tuple(assumed))


def read_published(
    path: Path, state: State, header: Header, network: type[nn.Module] | None = None
) -> Weights:
    """A detector from a file with our header.

    Args:
        path: path of the file.
        state: tensors of the file, named as in the network.
        header: header of the file.
        network: class that a config names, for detectors that are no family of this project.

    Raises:
        CheckpointError: no such network is known; or the tensors are not those of the detector in
            the header. A temporal module, a backbone that is no ResNet, and a network without rules
            are left to whoever builds them.
    """
    described = header.architecture
    name = described["network"]
    if network is None or network.__name__ != name:
        network = families().get(name)
    if network is None:
        raise CheckpointError(
            f"{path}: its header names the network {name!r}, which is none of "
            f"{', '.join(sorted(families()))}; give the config of its run with --config-file."
        )
    rules = rules_of(network)
    if rules is None:
        return Weights(state, header, path, None)
    resnet = described.get("backbone") != "other"
    shown = _architecture_of(path, network, state, OURS, described, resnet=resnet)
    differing = [
        f"{key} is {described[key]!r}, the tensors show {value!r}"
        for key, value in shown.items()
        if described.get(key, value) != value
    ]
    classes = len(header.class_names)
    if classes != shown.get("num_classes", classes):
        differing.append(f"class_names are {classes}, not {shown['num_classes']}")
    if differing:
        raise CheckpointError(
            f"{path}: its header does not match its tensors; convert its source file "
            "again.\n  " + "\n  ".join(differing)
        )
    return Weights(state, header, path, rules)


def of_detector(path: Path, detector: Any, config: str, preprocess: Preprocess) -> Weights:
    """Weights of one of our detectors, loaded from a file.

    Args:
        path: path of the file.
        detector: a ``TrainableDetector`` around a network ``net``.
        config: YAML config of its run.
        preprocess: preprocessing of its run.

    Raises:
        CheckpointError: the detector has tensors outside of its network.
    """
    tensors = detector.state_dict()
    if outside := [name for name in tensors if not name.startswith("net.")]:
        raise CheckpointError(
            f"{path}: cannot be published, because {type(detector).__name__} has tensors outside "
            "of its network, the attribute net:" + listed("outside", outside)
        )
    state = {name.removeprefix("net."): tensor.detach() for name, tensor in tensors.items()}
    net = detector.net
    architecture = describe(net)
    for key in ("num_queries", "isolate_padding"):
        if hasattr(net, key):
            architecture[key] = getattr(net, key)
    names = list(detector.class_names)
    header = _header(path, "this project", architecture, names, preprocess, config)
    return Weights(state, header, path, rules_of(type(net)))


def for_classes(weights: Weights, class_names: Sequence[str], *, new_head: bool) -> Weights:
    """The same detector for other classes.

    Args:
        weights: weights of the detector.
        class_names: some of its class names, or any with a new head.
        new_head: whether to replace the class head by a new one.

    Raises:
        CheckpointError: an unknown class, or a network without rules that name its heads.
    """
    header, rules, names = weights.header, weights.rules, list(class_names)
    if not new_head and names == header.class_names:
        return weights
    if rules is None:
        raise CheckpointError(
            f"{weights.path}: the class heads of {header.architecture['network']} are unknown; add "
            f"weight_rules to the class, or keep its classes."
        )
    if new_head:
        had = len(header.class_names)
        state = with_new_class_head(weights.state, rules, had, len(names))
    else:
        state = with_classes(weights.state, rules, header.class_names, names, weights.path)
    architecture = header.architecture | {"num_classes": len(names)}
    header = replace(header, architecture=architecture, class_names=names)
    return replace(weights, state=state, header=header)


def check_fits(weights: Weights, detector: Any, config: str) -> Weights:
    """The same weights for a config's detector, with the config in their header.

    Raises:
        CheckpointError: lists the differences.
    """
    try:
        check_header(weights.header, detector, weights.path, partial=False)
    except CheckpointError as error:
        raise CheckpointError("\n".join([str(error), *weights.assumed])) from error
    return replace(weights, header=replace(weights.header, config=config))


def _architecture_of(
    path: Path,
    network: type[nn.Module],
    state: State,
    layout: Layout,
    known: dict[str, Any],
    *,
    resnet: bool = True,
) -> Architecture:
    """Settings from the tensors; CheckpointError for an incomplete detector."""
    try:
        architecture = describe_state(network, state, known)
        width, num_heads = architecture.get("d", 0), architecture.get("num_heads", 1)
        divisible = num_heads >= 1 and width % num_heads == 0
    except KeyError as error:
        raise incomplete(layout, str(path), [str(error.args[0])]) from error
    except (IndexError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{path}: has tensors of shapes that do not occur in {layout.title}."
        ) from error
    if not divisible:
        raise CheckpointError(
            f"{path}: its width of {width} cannot be divided into {num_heads} heads; "
            "keep the training arguments or the config.json with the file for their number, or "
            "set --num-heads."
        )
    check_complete(network, state, architecture, layout, str(path), resnet=resnet)
    return architecture


def _header(
    path: Path,
    layout: str,
    architecture: Architecture,
    class_names: list[str],
    preprocess: Preprocess,
    config: str = "",
) -> Header:
    return Header(
        architecture=architecture,
        class_names=class_names,
        preprocess=preprocess,
        config=config,
        source=path.name,
        source_sha256=sha256(path),
        source_layout=layout,
        project_version=project_version(),
    )
