"""Retrieval of a video from one of its frames: a measure of a backbone that needs no labels.

For each frame, the most similar of all other frames is looked up, by cosine of their features. It
is right if it is of the same video; frames of that video within a gap do not count, because
neighbours are near copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from free_lunch.phases.videos import VideoFeatures

QUERIES_AT_ONCE = 512


def video_retrieval(videos: Sequence[VideoFeatures], *, gap: int) -> float | None:
    """Share of frames whose nearest frame is of their video, averaged over videos.

    Args:
        videos: features of whole videos.
        gap: frames of the same video closer than this to the query are left out.

    Returns:
        None with a single video, or where every video is shorter than the gap.
    """
    features = F.normalize(torch.cat([torch.from_numpy(v.features) for v in videos]), dim=1)
    counts = [len(video.labels) for video in videos]
    owner = torch.repeat_interleave(torch.arange(len(videos)), torch.tensor(counts))
    place = torch.cat([torch.arange(count) for count in counts])
    hits: list[list[bool]] = [[] for _ in videos]
    for rows in torch.arange(len(owner)).split(QUERIES_AT_ONCE):
        similarity = features[rows] @ features.T
        same = owner[rows, None] == owner
        near = same & ((place[rows, None] - place).abs() < gap)
        similarity[near] = -torch.inf
        nearest = similarity.argmax(1)
        can_hit = (same & ~near).any(1)
        for row, found, counts_row in zip(rows, nearest, can_hit, strict=True):
            if counts_row:
                hits[int(owner[row])].append(bool(owner[found] == owner[row]))
    shares = [np.mean(video) for video in hits if video]
    return float(np.mean(shares)) if len(videos) > 1 and shares else None
