"""Safetensors files with a checksum in their header, verified when they are read.

The format itself has none: a flipped bit of a weight would load unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

logger = logging.getLogger(__name__)

CHECKSUM = "content_sha256"  # key in the metadata; of tensors, names and other metadata


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Content of a safetensors file, the same bytes for the same tensors and metadata.

    Args:
        tensors: tensors by name, on any device, also views and with gaps in memory.
        metadata: strings for the header.
    """
    # The format has neither shared storages (views) nor gaps (channels-last).
    state = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    header, data = _split(safetensors.torch.save(state, dict(metadata)))
    header["__metadata__"] = {**metadata, CHECKSUM: _digest(header, data)}
    # Written anew because the library's order of the metadata is random.
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned
    return b"".join([len(text).to_bytes(8, "little"), text, data])


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata without the checksum.

    Raises:
        ValueError: it is no safetensors file, or is damaged.
        OSError: it cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        state = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    header, data = _split(content)
    metadata = header.get("__metadata__", {})
    checksum = metadata.pop(CHECKSUM, None)
    if checksum is None:
        logger.info("%s: has no checksum; its tensors cannot be checked for damage", path)
    elif checksum != _digest(header, data):
        raise ValueError("the checksum of its tensors does not match")
    return state, metadata


def _split(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and tensors of a file's content."""
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), memoryview(content)[start:]


def _digest(header: Mapping[str, Any], data: memoryview) -> str:
    """SHA-256 of the header without the checksum, keys sorted, and of the tensors' bytes."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()
