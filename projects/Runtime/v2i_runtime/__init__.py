"""Exported V2I-DETR students on images and live video, without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v2i_runtime.detections import Detections
    from v2i_runtime.detector import Detector
    from v2i_runtime.sources import open_source

__all__ = ["Detections", "Detector", "open_source"]

_MODULES = {"Detections": "detections", "Detector": "detector", "open_source": "sources"}


def __getattr__(name: str) -> Any:
    # At first use: training imports this package for its resize and needs no video decoder.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
