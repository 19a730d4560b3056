"""Distances between student and teacher, shared by the distillation losses."""

from __future__ import annotations

import difflib
from typing import Any, Literal, get_args

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from v2idetr.modeling.interface import Features

Align = Literal["none", "conv1x1"]
Normalizer = Literal["pixels", "elements", "mask_sum"]
Layers = Literal["last", "all"]


def one_of(key: str, value: str, choices: Any) -> None:
    """Reject a value that is not one of the choices.

    Args:
        key: config key below ``distillation``, such as "tfd.sigma".
        value: value of the key.
        choices: ``Literal`` of the valid values.

    Raises:
        ValueError: ``value`` is not in ``choices``.
    """
    words = get_args(choices)
    if value not in words:
        near = difflib.get_close_matches(str(value), words, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"distillation.{key} must be one of {words}, got {value!r}.{meant}")


# ------------------------------------------------------------------ maps


def alignment(loss: str, align: Align, *, student_dim: int, teacher_dim: int) -> nn.Module:
    """Projection of the student's map to the teacher's width.

    Args:
        loss: key of the loss below ``distillation``.
        align: "none", or "conv1x1": a learnt projection.
        student_dim, teacher_dim: widths of the maps.

    Raises:
        ValueError: "none" for different widths; unknown ``align``.
    """
    one_of(f"{loss}.align", align, Align)
    if align == "conv1x1":
        return nn.Conv2d(student_dim, teacher_dim, 1)
    if student_dim != teacher_dim:
        raise ValueError(
            f"The student's features have width {student_dim} and the teacher's {teacher_dim}: "
            f"set distillation.{loss}.align=conv1x1, or set both models to the same d."
        )
    return nn.Identity()


def same_level(
    key: str, stride: int, student: Features, teacher: Features
) -> tuple[Float[Tensor, "B ds h w"], Float[Tensor, "B dt h w"]]:
    """Maps of one stride in single precision, the teacher's without gradient.

    Args:
        key: config key of the stride below ``distillation``.
        stride: stride in pixels.
        student, teacher: features of the same images.

    Raises:
        ValueError: one of them has no such level, or the maps differ in number or size.
    """
    for name, features in (("student", student), ("teacher", teacher)):
        if stride not in features.maps:
            shared = sorted(student.maps.keys() & teacher.maps.keys())
            raise ValueError(
                f"distillation.{key}={stride}, but the {name} has levels of strides "
                f"{sorted(features.maps)}. Both have {shared}."
            )
    ours, theirs = student.maps[stride].float(), teacher.maps[stride].float()
    if len(ours) != len(theirs):  # or the fewer ones would be broadcast
        raise ValueError(
            f"distillation.{key}={stride}: the student has maps of {len(ours)} images and the "
            f"teacher of {len(theirs)}: both need the same images."
        )
    if ours.shape[-2:] != theirs.shape[-2:]:
        raise ValueError(
            f"The student's stride-{stride} map is {tuple(ours.shape[-2:])} cells and the "
            f"teacher's {tuple(theirs.shape[-2:])}: both need the same padded images "
            "(same size_divisor)."
        )
    return ours, theirs.detach()


def weighted_mean(
    distance: Float[Tensor, "B h w"],
    weights: Float[Tensor, "B h w"],
    *,
    normalizer: Normalizer,
    padding: Bool[Tensor, "B h w"] | None,
    channels: int,
) -> Float[Tensor, " B"]:
    """``1/N sum_ij M_ij D_ij`` of every image.

    Args:
        distance: D, summed over channels.
        weights: M, zero on padding.
        normalizer: N: "pixels" (cells of the image), "elements" (cells x channels) or "mask_sum".
        padding: True on padding; None without padding.
        channels: number of channels of the map.
    """
    if normalizer == "mask_sum":
        count = weights.flatten(1).sum(1).clamp(min=1e-6)
    elif padding is None:
        count = weights.new_full((len(weights),), weights[0].numel())
    else:
        count = (~padding).flatten(1).sum(1).to(weights.dtype)
    if normalizer == "elements":
        count = count * channels
    return (weights * distance).flatten(1).sum(1) / count


# ------------------------------------------------------------------ queries


def width_projection(have: int, want: int) -> nn.Module:
    """Learnt projection of queries to another width; the identity for equal widths."""
    return nn.Identity() if have == want else nn.Linear(have, want)


def compared_layers(
    loss: str, layers: Layers, student: int, teacher: int
) -> tuple[list[int], list[int]]:
    """Compared decoder layers of student and teacher.

    Args:
        loss: key of the loss below ``distillation``.
        layers: "last" or "all".
        student, teacher: numbers of decoder layers.

    Raises:
        ValueError: "all" of decoders with different depths.
    """
    if layers == "last":
        return [student - 1], [teacher - 1]
    if student != teacher:
        raise ValueError(
            f"distillation.{loss}.layers=all needs decoders of equal depth; the student has "
            f"{student} layers and the teacher {teacher}. Use layers=last."
        )
    return list(range(student)), list(range(teacher))


def cosine_distance(
    student: Float[Tensor, "*Q d"], teacher: Float[Tensor, "*Q d"]
) -> Float[Tensor, "*Q"]:
    """``1 - cos`` in single precision, without gradient for the teacher."""
    return 1 - F.cosine_similarity(student.float(), teacher.detach().float(), -1)
