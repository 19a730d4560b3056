"""What the tests on a GPU share: the device, and detectors of the demo's size.

V2I_GPU_TEST_DEVICE=cpu is a dry run: every test body on a machine without a GPU, with the CPU's
plain kernels in the GPU's place (other rounding, as on another device). It shows that the tests
run, and nothing about GPUs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny_fixtures import (  # noqa: F401 (fixtures)
    cost_is_not_measured,
    fresh_log,
    tiny_config,
    tiny_data,
)

MODELS = Path(__file__).resolve().parents[2] / "configs" / "models"
FAMILIES = ("deformable_detr_small", "detr_small", "sam_detr_small")
DRY_RUN = os.environ.get("V2I_GPU_TEST_DEVICE") == "cpu"


@pytest.fixture(autouse=True)
def device() -> Iterator[torch.device]:
    """The GPU, computing in full float32; all tests here are skipped without one."""
    if DRY_RUN:
        yield torch.device("cpu")
        return
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU (V2I_GPU_TEST_DEVICE=cpu: dry run on the CPU)")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield torch.device("cuda", 0)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Determinism is switched on for the process by runs that are tested here."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def other_rounding() -> Iterator[None]:
    """In a dry run, kernels that round differently from the CPU's usual ones."""
    with torch.backends.mkldnn.flags(enabled=not DRY_RUN):
        yield


def demo_detector(family: str, role: str) -> torch.nn.Module:
    """A detector of configs/models ("model" or "teacher"), its backbone from ImageNet.

    Without dropout, which no two devices draw alike, and with noise on all new weights: as they
    are initialised, scores are equal and reads lie exactly on the centres of cells, where rounding
    decides.
    """
    from detectron2.config import LazyConfig, instantiate

    config = LazyConfig.load(str(MODELS / f"{family}.py"))
    config.data = {"class_names": ["lesion"], "num_frames": 3}
    config.model.net.dropout = config.teacher.model.net.dropout = 0.0
    torch.manual_seed(0)
    detector = instantiate(config.model if role == "model" else config.teacher.model)
    with torch.no_grad():
        for name, parameter in detector.net.named_parameters():
            if not name.startswith("backbone."):
                parameter += 0.02 * torch.randn_like(parameter)
    return detector
