"""Exported V2I-DETR students on images and live video, without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v2i_runtime.detections import Detections
    from v2i_runtime.detector import Detector
    from v2i_runtime.frame_detections import FrameDetections
    from v2i_runtime.lesion_detector import LesionDetector
    from v2i_runtime.loading import load
    from v2i_runtime.sources import open_source

__all__ = [
    "Detections",
    "Detector",
    "FrameDetections",
    "LesionDetector",
    "load",
    "open_source",
]

_MODULES = {
    "Detections": "detections",
    "Detector": "detector",
    "FrameDetections": "frame_detections",
    "LesionDetector": "lesion_detector",
    "load": "loading",
    "open_source": "sources",
}


def __getattr__(name: str) -> Any:
    # At first use: training imports this package for its resize and needs no video decoder.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
