"""V2I-DETR: a video teacher distilled into a single-frame lesion detector.

    load        checkpoint, published weights or exported file -> detector of images and videos
    evaluate    detector, ground truth -> metrics and predictions

Importing the package before torch limits how long idle threads of torch spin. By default, beside
one busy process, a training step on two cores takes 2.6 times as long as alone; with few spins 1.5
times, and no longer alone (RESULTS.md). OMP_WAIT_POLICY and GOMP_SPINCOUNT take precedence.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v2i_runtime.frame_detections import FrameDetections
    from v2i_runtime.lesion_detector import LesionDetector
    from v2idetr.deploy.loading import load
    from v2idetr.deploy.split_evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "FrameDetections", "LesionDetector", "evaluate", "load"]

_MODULES = {
    "Evaluation": "v2idetr.deploy.split_evaluation",
    "FrameDetections": "v2i_runtime.frame_detections",
    "LesionDetector": "v2i_runtime.lesion_detector",
    "evaluate": "v2idetr.deploy.split_evaluation",
    "load": "v2idetr.deploy.loading",
}

SPINS = "100"  # spins of an idle GNU OpenMP thread before it sleeps

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def __getattr__(name: str) -> Any:
    # At first use: every program imports this package, most of them without torch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from v2idetr.process_setup import ignore_torch_jit

    ignore_torch_jit()  # before the imports that warn
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
