"""Config of a run -> preprocessing of its evaluation, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from v2i_runtime.preprocess import FixedSize, NoResize, Preprocess, Resize, ShortestEdge


def preprocess_of(config: Mapping[str, Any], model: str = "model") -> Preprocess:
    """Preprocessing of a run's evaluation.

    Args:
        config: a run's config with ``data.augmentations.test`` and the detector's statistics.
        model: key of the detector.

    Raises:
        ValueError: the resize is of another kind; names the key.
    """
    resize = _resize_of(config["data"]["augmentations"]["test"])
    return replace(preprocess_without_resize(config, model), resize=resize)


def preprocess_without_resize(config: Mapping[str, Any], model: str = "model") -> Preprocess:
    """As :func:`preprocess_of`, with an unknown resize."""
    node: Any = config
    for part in model.split("."):
        node = node[part]
    own = {**(node.get("net") or {}), **node}  # Detectron2's are settings of the network
    given = {
        key: tuple(float(value) for value in own[key])
        for key in ("pixel_mean", "pixel_std")
        if key in own
    }
    return Preprocess(None, **given, size_divisor=node.get("size_divisor", 32))


def _resize_of(test: Sequence[Mapping[str, Any]]) -> Resize:
    """The resize of a config's augmentations for evaluation."""
    if not test:
        return NoResize()
    node, target = test[0], str(test[0]["_target_"])
    if len(test) == 1 and target == "v2idetr.data.augmentation.resize_fixed":
        return FixedSize(node["height"], node["width"])
    if len(test) == 1 and target == "v2idetr.data.augmentation.ResizeShortEdge":
        edges = node["short_edges"]
        edges = [edges] if isinstance(edges, int) else list(edges)
        if len(edges) == 1:
            return ShortestEdge(edges[0], node["max_size"], node.get("size_divisor", 1))
        raise ValueError(
            f"data.augmentations.test[0].short_edges is {edges}, of which one is drawn for each "
            "image: set a single length for evaluation."
        )
    names = ", ".join(str(node["_target_"]) for node in test)
    raise ValueError(
        f"data.augmentations.test is {names}, which cannot be exported: use one of "
        "v2idetr.data.augmentation.resize_fixed and ResizeShortEdge, or nothing."
    )
