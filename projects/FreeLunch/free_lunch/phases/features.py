"""Features of all frames of a split by a frozen backbone, computed once and kept beside the run."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor, nn

from free_lunch.encoder import PooledBackbone
from free_lunch.phases.labels import LabelledSplit
from free_lunch.phases.videos import VideoFeatures
from v2i_runtime.progress import progress_bar
from v2idetr.atomic_file import write_atomically
from v2idetr.config.load import to_plain
from v2idetr.engine.run_context import RunContext
from v2idetr.tensor_files import packed, read_safetensors

logger = logging.getLogger(__name__)

FOLDER = "features"  # in that of the run


def features_of(
    run: RunContext, backbone: PooledBackbone, labelled: LabelledSplit, name: str
) -> list[VideoFeatures]:
    """Features and labels of each video of a split.

    Args:
        backbone: in any mode; it is evaluated.
        labelled: the whole split.
        name: of the split, for messages.

    They are read from ``features/`` in the folder of the run, where this backbone has been there
    before with the same frames: files of these names, sizes and times of modification.
    """
    digest = _digest(run, backbone, labelled)
    file = run.folder / FOLDER / f"{digest[:16]}.safetensors"
    if file.exists():
        features = read_safetensors(file)[0]["features"]
    else:
        features = _computed(run, backbone, labelled, name)
        if comm.is_main_process():
            content = packed({"features": features}, {"split": str(labelled.split.json_path)})
            write_atomically(file, lambda opened: opened.write(content))
        comm.synchronize()
    videos, start = [], 0
    for video, records in labelled.videos():
        rows = features[start : start + len(records)].numpy()
        labels = np.array([record["phase"] for record in records])
        videos.append(VideoFeatures(video, rows, labels))
        start += len(records)
    return videos


@torch.no_grad()
def _computed(
    run: RunContext, backbone: PooledBackbone, labelled: LabelledSplit, name: str
) -> Tensor:
    """Features (N, c) in the order of the records, on all processes."""
    backbone.to(run.device).eval()
    mapper = run.clip_mapper(labelled.split, backbone, is_train=False)
    loader = run.samples_in_order(labelled.split, mapper)
    bar = progress_bar(loader, desc=f"features of {name}", disable=not comm.is_main_process())
    parts = [backbone.features(pixels_of(batch, run.device)).float().cpu() for batch in bar]
    own = torch.cat(parts) if parts else torch.empty(0, backbone.num_features)
    everywhere: Any = comm.all_gather(own)
    return torch.cat(everywhere)


def pixels_of(samples: list[dict[str, Any]], device: torch.device) -> Tensor:
    """Images of samples of one size, (B, 3, H, W).

    Raises:
        ValueError: their sizes differ.
    """
    sizes = {tuple(sample["image"].shape[1:]) for sample in samples}
    if len(sizes) > 1:
        raise ValueError(
            f"frames have the sizes {sorted(sizes)} px (height, width): give data.augmentations a "
            "resize to one size, such as v2idetr.data.augmentation.resize_fixed."
        )
    return torch.stack([sample["image"] for sample in samples]).to(device)


def _digest(run: RunContext, backbone: nn.Module, labelled: LabelledSplit) -> str:
    """Of all that the features depend on: weights, frames and their preprocessing."""
    digest = hashlib.sha256()
    for key, tensor in sorted(backbone.state_dict().items()):
        if key.startswith("backbone."):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    shown = to_plain(run.config)["data"]["augmentations"]["test"]
    means = [backbone.get_buffer(name).flatten().tolist() for name in ("pixel_mean", "pixel_std")]
    digest.update(repr((shown, means)).encode())
    for record in labelled.split.records:
        found = Path(record["file_name"]).stat()
        digest.update(f"{record['file_name']} {found.st_size} {found.st_mtime_ns}\n".encode())
    digest.update(Path(labelled.split.json_path).read_bytes())
    return digest.hexdigest()
