"""Published weights: a safetensors file whose header describes the detector."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from v2i_runtime.preprocess import Preprocess
from v2idetr.atomic_file import write_atomically
from v2idetr.checkpoints.architecture import HIDDEN, describe
from v2idetr.checkpoints.files import CheckpointError, sha256
from v2idetr.modeling.backbone_handover import pixel_statistics
from v2idetr.modeling.weight_rules import Architecture
from v2idetr.tensor_files import packed

logger = logging.getLogger(__name__)

FORMAT, BACKBONE_FORMAT = "v2idetr-weights", "v2idetr-backbone"
VERSION, BACKBONE_VERSION = "2", "1"
# In version 1, in place of "preprocess"; "input_size" is the resize in words.
VERSION_1_PREPROCESS = ("pixel_mean", "pixel_std", "size_divisor", "input_size")


@dataclass(frozen=True)
class Header:
    """Facts about a detector besides its tensors.

    Attributes:
        architecture: see ``architecture.describe``, with "num_queries" and "isolate_padding".
        class_names: class names by index.
        preprocess: preprocessing of images.
        config: YAML config of the training run; "" for none.
        source: name of the source file.
        source_sha256: digest of the source file.
        source_layout: layout of the source file.
        project_version: version of the program that wrote the file.
    """

    architecture: Architecture
    class_names: list[str]
    preprocess: Preprocess
    config: str
    source: str
    source_sha256: str
    source_layout: str
    project_version: str


def project_version() -> str:
    """Version of the installed package; "" for an uninstalled source tree."""
    try:
        return importlib.metadata.version("v2idetr")
    except importlib.metadata.PackageNotFoundError:
        return ""


def write_published(path: Path, state: Mapping[str, Tensor], header: Header) -> None:
    """Write a detector's weights with their header.

    Args:
        path: path of a ``.safetensors`` file.
        state: tensors, named as in the detector (``net. ...``).
        header: header of the file.

    Raises:
        OSError: the file cannot be written; an earlier one is untouched.
    """
    values = asdict(header) | {"preprocess": header.preprocess.to_json()}
    _write(path, state, FORMAT, VERSION, values)


def write_backbone(path: Path, state: Mapping[str, Tensor], kind: str, source: Path) -> None:
    """Write the ImageNet weights of a ResNet, for ``model.net.weights``.

    Args:
        path: path of a ``.safetensors`` file.
        state: tensors with torchvision's names.
        kind: name of the ResNet, such as "resnet50".
        source: source file.

    Raises:
        OSError: see :func:`write_published`.
    """
    facts = {"backbone": kind, "source": source.name, "source_sha256": sha256(source)}
    facts |= {"project_version": project_version()}
    _write(path, state, BACKBONE_FORMAT, BACKBONE_VERSION, facts)


def _write(
    path: Path, state: Mapping[str, Tensor], kind: str, version: str, values: dict[str, Any]
) -> None:
    words = {name: json.dumps(value) for name, value in values.items()}
    content = packed(state, {"format": kind, "version": version, **words})
    write_atomically(path, lambda file: file.write(content))


def read_header(metadata: Mapping[str, str], source: str | Path) -> Header | None:
    """The header of a file; None without one of our headers.

    Raises:
        CheckpointError: an unreadable header, or the header of a backbone.
    """
    if metadata.get("format") == BACKBONE_FORMAT:
        raise CheckpointError(
            f"{source}: contains only a backbone; set model.net.weights to it instead."
        )
    if metadata.get("format") != FORMAT:
        return None
    version = metadata.get("version")
    if version not in ("1", VERSION):
        raise CheckpointError(
            f"{source}: has header version {version}, but this program reads version {VERSION} and "
            "earlier; use the program that wrote it."
        )
    names = [field.name for field in fields(Header)]
    if version == "1":
        names = [name for name in names if name != "preprocess"] + [*VERSION_1_PREPROCESS]
    if unknown := sorted(metadata.keys() - {"format", "version", *names}):
        raise CheckpointError(f"{source}: its header is damaged (it has {', '.join(unknown)}).")
    try:
        values = {name: json.loads(metadata[name]) for name in names}
        if version == "1":
            values["preprocess"] = {key: values.pop(key) for key in VERSION_1_PREPROCESS}
            words = values["preprocess"].pop("input_size")
            values["preprocess"]["resize"] = None
            logger.info("%s: has a header of version 1, its resize in words: %s", source, words)
        values["preprocess"] = Preprocess.from_json(values["preprocess"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: its header is damaged ({error}).") from error
    for name, value in values.items():
        if not _is_of_type(name, value):
            raise CheckpointError(f"{source}: its header is damaged ({name} is {value!r:.100}).")
    return Header(**values)


def _is_of_type(name: str, value: Any) -> bool:
    """Whether a value has the type in :class:`Header`."""
    if name == "architecture":
        return isinstance(value, dict) and isinstance(value.get("network"), str)
    if name == "class_names":
        return isinstance(value, list) and all(isinstance(word, str) for word in value)
    return isinstance(value, Preprocess if name == "preprocess" else str)


def check_header(
    header: Header, detector: Any, source: str | Path, *, partial: bool, advice: str = ""
) -> None:
    """Compare a file's header with the detector for its weights.

    Args:
        header: header of the file.
        detector: a ``meta_arch.Detector``.
        source: file name for messages.
        partial: comparison of only those settings that tensor shapes do not determine.
        advice: alternative remedy for the error.

    Raises:
        CheckpointError: lists the differences.
    """
    want, preprocess = header.architecture, header.preprocess
    pixels = differing_pixels(
        {"pixel_mean": preprocess.pixel_mean, "pixel_std": preprocess.pixel_std}, detector
    )
    check_architecture(want, detector, source, partial=partial, advice=advice, also=pixels)
    logger.info(
        "%s was trained on images resized by %s, padded to multiples of %d (here %s).",
        source,
        preprocess.resize or "(unknown)",
        preprocess.size_divisor,
        getattr(detector, "size_divisor", "not known"),
    )
    isolated = getattr(getattr(detector, "net", None), "isolate_padding", None)
    if isolated != want.get("isolate_padding", isolated):
        logger.info(
            "%s was trained with net.isolate_padding=%s and is used with %s: features of padded "
            "images differ slightly.",
            source,
            want["isolate_padding"],
            isolated,
        )


def differing_pixels(want: Mapping[str, Sequence[float]], detector: Any) -> list[str]:
    """Sentences about ``pixel_mean`` and ``pixel_std`` of a file that differ from a detector's.

    Args:
        want: those of the file, RGB in 0..255; missing ones are not compared.
        detector: detector for the file's weights; one without them makes its own.
    """
    differing = []
    for key, own in pixel_statistics(detector).items():
        ours, theirs = torch.tensor(own), torch.tensor(want.get(key, own))
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-3):
            differing.append(f"{key} is {_short(ours)}, in the file {_short(theirs)}")
    return differing


def check_architecture(
    want: Architecture,
    detector: Any,
    source: str | Path,
    *,
    partial: bool,
    advice: str = "",
    also: Sequence[str] = (),
) -> None:
    """Compare a file's architecture with the detector for its weights.

    Args:
        want: settings of the file; others are not compared.
        detector, source, partial, advice: see :func:`check_header`.
        also: further differences.

    Raises:
        CheckpointError: lists the differences.
    """
    have = describe(getattr(detector, "net", detector))
    keys = [key for key in want if key in have and (not partial or key in HIDDEN)]
    differing = [_difference(key, have[key], want[key]) for key in keys if have[key] != want[key]]
    differing += also
    if differing:
        raise CheckpointError(
            f"{source}: does not fit the config's detector:\n  "
            + "\n  ".join(differing)
            + f"\n{_remedy(have, want, partial, advice)}"
        )


def _difference(key: str, have: Any, want: Any) -> str:
    if key != "temporal":
        return f"net.{key} is {have!r}, in the file {want!r}"
    if have:
        return (
            "net.fusion is a module, in the file null (teacher.model.net.fusion=null disables it)"
        )
    return "net.fusion is null, in the file a module: it is of a teacher (teacher.checkpoint)"


def _remedy(have: Architecture, want: Architecture, partial: bool, advice: str) -> str:
    if have["network"] != want["network"]:
        return f"Use a config of {want['network']}, or other weights."
    remedy = "Set these keys of the config as in the file"
    if not partial and have.get("num_classes") != want.get("num_classes"):
        remedy = (
            "Give the weights your classes with tools/convert_checkpoint.py --config-file CONFIG "
            "--new-class-head, and set the other keys above as in the file"
        )
    return f"{remedy}; or {advice}." if advice and not partial else f"{remedy}."


def _short(numbers: Tensor) -> list[float]:
    return [round(number, 3) for number in numbers.tolist()]
