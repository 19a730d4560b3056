"""From a detector's weights to a file of another code base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from v2idetr.checkpoints import transformers_folder
from v2idetr.checkpoints.conversion import LAYOUTS, Weights
from v2idetr.checkpoints.files import CheckpointError, write_whole
from v2idetr.checkpoints.published import ADVICE, BESIDE, words_of


def export(weights: Weights, name: str, output: Path) -> list[str]:
    """Write weights in the layout of another code base.

    Args:
        weights: of a detector.
        name: of the code base.
        output: a ``.pth`` file with the tensors under "model" and the header beside them; for
            transformers a folder with ``model.safetensors``, ``config.json`` and
            ``preprocessor_config.json``.

    Returns:
        what the other code base does otherwise, one sentence each.

    Raises:
        CheckpointError: it has no such detector, or no place for a part of it.
    """
    header, network = weights.header, weights.header.architecture["network"]
    layout = next((la for la in LAYOUTS if (la.name, la.network) == (name, network)), None)
    if layout is None:
        have = ", ".join(la.title for la in LAYOUTS if la.network == network) or "none"
        raise CheckpointError(f"{weights.path}: {name} has no {network}; these do: {have}.")
    _check_strides(weights, name)
    state, remarks = layout.from_ours(weights.state, weights.path), []
    if header.architecture.get("isolate_padding"):
        remarks.append(
            f"padding: net.isolate_padding is true, but {name} has no such thing; pictures padded "
            "to a common size get slightly other features there"
        )
    if name != "transformers":
        whole: dict[str, Any] = {"model": state, BESIDE: words_of(header)}
        write_whole(output, lambda file: torch.save(whole, file), advice=ADVICE)
        return remarks
    return remarks + transformers_folder.write_folder(output, state, header, weights.path)


def _check_strides(weights: Weights, name: str) -> None:
    """Official DETR reads C5 alone, and Deformable DETR C5 or C3, C4 and C5."""
    strides = weights.header.architecture["strides"]
    if strides != [32] and (len(strides) == 1 or strides[:3] != [8, 16, 32]):
        raise CheckpointError(
            f"{weights.path}: its feature levels have strides {strides}, but the backbones of "
            f"{name} give 32, or 8, 16 and 32 and on from there."
        )
