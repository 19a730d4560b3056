"""The queue of keys: negatives of the contrastive loss and references of the distillation.

MoCo (He et al., CVPR 2020), section 3.2. Keys of one or several encoders are stored for the same
images at the same places, with one pointer: the distributions over the queue of a teacher and a
student can then be compared entry by entry.

Legend: K places, N keys, B queries, M = 1 + N, d dimensions of a key.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The keys of the last K images, oldest first out. All of it is part of the state dict.

    Args:
        size: K, a multiple of the number of keys that each call of `enqueue` adds.
        dims: dimensions of the keys by the name of their encoder.
    """

    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.size, self.names = size, list(dims)
        for name, dim in dims.items():
            self.register_buffer(f"{name}_keys", torch.zeros(size, dim))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def keys(self, name: str) -> Float[Tensor, "N d"]:
        """Keys of one encoder; at the start of a training fewer than K.

        Places that have not been filled are left out: MoCo's random vectors there would be noise in
        the distributions that are distilled.
        """
        return self.get_buffer(f"{name}_keys")[: int(self.filled)]

    @torch.no_grad()
    def enqueue(self, keys: Mapping[str, Float[Tensor, "N d"]]) -> None:
        """Replace the oldest keys by those of new images, the same images for all encoders.

        Args:
            keys: of this process's images, by encoder. Each process adds those of all processes,
                in the order of their ranks.
        """
        assert list(keys) == self.names, f"keys of {list(keys)}, not of {self.names}"
        new = {name: _of_all_processes(part) for name, part in keys.items()}
        count = {len(part) for part in new.values()}
        assert len(count) == 1 and not self.size % max(count), (count, self.size)
        start, number = int(self.pointer), count.pop()
        for name, part in new.items():
            self.get_buffer(f"{name}_keys")[start : start + number] = part
        self.pointer.fill_((start + number) % self.size)
        self.filled.clamp_(min=start + number)


def _of_all_processes(tensor: Tensor) -> Tensor:
    """Rows of equally long tensors of all processes, in the order of their ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def check_queue_size(size: int, batch_size: int, *, key: str, batch_key: str) -> None:
    """Refuse a queue whose end would cut a batch.

    Raises:
        ValueError: it is smaller than a batch or no multiple of it; names both keys.
    """
    if size < batch_size or size % batch_size:
        nearest = max(1, round(size / batch_size)) * batch_size
        raise ValueError(
            f"{key} is {size}, which is no multiple of {batch_key}, {batch_size}: the queue takes "
            f"the keys of whole batches. Set {key}={nearest}, or another batch size."
        )


def cosine_logits(
    queries: Float[Tensor, "B d"], positives: Float[Tensor, "B d"], negatives: Float[Tensor, "N d"]
) -> Float[Tensor, "B M"]:
    """Similarities of each query to its own positive, in column 0, and to all negatives.

    In float32 under mixed precision, too: bfloat16 has steps of 0.004 below 1.
    """
    with torch.autocast(queries.device.type, enabled=False):
        own = (queries * positives).sum(1, keepdim=True)
        return torch.cat([own, queries @ negatives.T], dim=1)
