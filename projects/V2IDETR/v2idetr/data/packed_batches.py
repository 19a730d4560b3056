"""Transfer of batches out of a loader's worker as one tensor each."""

import io
import pickle
from typing import Any

import torch
from torch.utils.data import get_worker_info


class Collate:
    """Samples -> batch, packed if it leaves a worker or is pinned."""

    def __init__(self, pin_memory: bool) -> None:
        self._pin_memory = pin_memory

    def __call__(self, samples: list[dict[str, Any]]) -> "list[dict[str, Any]] | _Packed":
        if self._pin_memory:
            return _Pinnable(samples)
        return samples if get_worker_info() is None else _Packed(samples)


class _Packed:
    """A batch that is pickled as one tensor and unpickled as the `list[dict]` of samples.

    The tensors of the samples are views of that tensor. By default every tensor of every frame
    takes a file descriptor: four workers with 16 clips of 5 frames exceed the usual limit of 1024.
    """

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        rest = io.BytesIO()
        pickler = _TensorPickler(rest, protocol=5)
        pickler.dump(samples)
        self._rest = rest.getvalue()
        self._data = torch.empty(pickler.size, dtype=torch.uint8)
        for tensor, (start, *_) in pickler.tensors.values():
            flat = tensor.contiguous().view(-1).view(torch.uint8)
            self._data[start : start + len(flat)] = flat

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (self._data, self._rest)


class _Pinnable(_Packed):
    """A batch that the loader moves to page-locked memory in one copy."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _pinnable, (self._data, self._rest)

    def pin_memory(self) -> list[dict[str, Any]]:
        """Called by the loader."""
        return _unpack(self._data.pin_memory(), self._rest)


def _pinnable(data: torch.Tensor, rest: bytes) -> _Pinnable:
    packed = object.__new__(_Pinnable)
    packed._data, packed._rest = data, rest
    return packed


class _TensorPickler(pickle.Pickler):
    """Replaces each tensor by its place in a buffer."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.size = 0
        # By id; the tensor is kept because its id is only unique while it lives.
        self.tensors: dict[int, tuple[torch.Tensor, tuple[int, torch.Size, torch.dtype]]] = {}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, torch.Tensor):
            return None
        if id(obj) not in self.tensors:
            self.tensors[id(obj)] = obj, (self.size, obj.shape, obj.dtype)
            # Views of other types must begin at multiples of their size.
            self.size += -(-obj.numel() * obj.element_size() // 16) * 16
        return self.tensors[id(obj)][1]


class _TensorUnpickler(pickle.Unpickler):
    """Replaces places by views of the buffer.

    They are torch views, so that the buffer is not reused before a copy to a GPU is complete.
    """

    def __init__(self, data: torch.Tensor, rest: bytes) -> None:
        super().__init__(io.BytesIO(rest))
        self._data, self._views = data, {}

    def persistent_load(self, pid: tuple[int, torch.Size, torch.dtype]) -> torch.Tensor:
        # Equal places are one tensor, or empty ones.
        if pid not in self._views:
            start, shape, dtype = pid
            end = start + shape.numel() * dtype.itemsize
            self._views[pid] = self._data[start:end].view(dtype).view(shape)
        return self._views[pid]


def _unpack(data: torch.Tensor, rest: bytes) -> list[dict[str, Any]]:
    return _TensorUnpickler(data, rest).load()
