"""Student against teacher: what several of the distillation losses do alike."""

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
    """Refuse a word that is not among the choices.

    Args:
        key: below ``distillation``, such as "tfd.sigma".
        value: as given.
        choices: a ``Literal``.

    Raises:
        ValueError: it is another.
    """
    words = get_args(choices)
    if value not in words:
        near = difflib.get_close_matches(str(value), words, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"distillation.{key} must be one of {words}, got {value!r}.{meant}")


# ------------------------------------------------------------------ maps


def alignment(loss: str, align: Align, *, student_dim: int, teacher_dim: int) -> nn.Module:
    """What is done to the student's map before it is compared.

    Args:
        loss: its key below ``distillation``.
        align: "none", or "conv1x1": a learnt projection.
        student_dim, teacher_dim: widths.

    Raises:
        ValueError: "none" between two widths; another word.
    """
    one_of(f"{loss}.align", align, Align)
    if align == "conv1x1":
        return nn.Conv2d(student_dim, teacher_dim, 1)
    if student_dim != teacher_dim:
        raise ValueError(
            f"The student's features have width {student_dim} and the teacher's {teacher_dim}: "
            f"set distillation.{loss}.align=conv1x1, or give both models one d."
        )
    return nn.Identity()


def same_level(
    key: str, stride: int, student: Features, teacher: Features
) -> tuple[Float[Tensor, "B ds h w"], Float[Tensor, "B dt h w"]]:
    """The maps of one stride, in single precision; the teacher's has no gradient.

    Args:
        key: below ``distillation``, which asks for this stride.
        stride: in pixels.
        student, teacher: features of the same images.

    Raises:
        ValueError: one of them has no such level, or the maps have other sizes.
    """
    for name, features in (("student", student), ("teacher", teacher)):
        if stride not in features.maps:
            shared = sorted(student.maps.keys() & teacher.maps.keys())
            raise ValueError(
                f"distillation.{key}={stride}, but the {name} has levels of strides "
                f"{sorted(features.maps)}. Both have {shared}."
            )
    ours, theirs = student.maps[stride].float(), teacher.maps[stride].float()
    if ours.shape[-2:] != theirs.shape[-2:]:
        raise ValueError(
            f"The student's stride-{stride} map is {tuple(ours.shape[-2:])} cells and the "
            f"teacher's {tuple(theirs.shape[-2:])}: both must see the same padded images "
            "(one size_divisor)."
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
        normalizer: what N counts: "pixels" (cells of the image), "elements" (cells x channels) or
            "mask_sum".
        padding: True on padding; None when nothing is padded.
        channels: of the map.
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


def translation(have: int, want: int) -> nn.Module:
    """Queries of one width to another: a learnt projection, nothing where the widths agree."""
    return nn.Identity() if have == want else nn.Linear(have, want)


def compared_layers(
    loss: str, layers: Layers, student: int, teacher: int
) -> tuple[list[int], list[int]]:
    """The student's decoder layers, and the teacher's that they are compared with.

    Args:
        loss: its key below ``distillation``.
        layers: the "last" ones or "all".
        student, teacher: how many layers they have.

    Raises:
        ValueError: "all" of decoders with different depths.
    """
    if layers == "last":
        return [student - 1], [teacher - 1]
    if student != teacher:
        raise ValueError(
            f"distillation.{loss}.layers=all needs decoders of one depth; the student has "
            f"{student} layers and the teacher {teacher}. Use layers=last."
        )
    return list(range(student)), list(range(teacher))


def cosine_distance(
    student: Float[Tensor, "*Q d"], teacher: Float[Tensor, "*Q d"]
) -> Float[Tensor, "*Q"]:
    """``1 - cos``, in single precision; nothing flows to the teacher."""
    return 1 - F.cosine_similarity(student.float(), teacher.detach().float(), -1)
