"""What is drawn is what the network reads, and what TFD weighs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_convert

from tests.conftest import make_sample, tiny_detector, tiny_detr_detector, tiny_sam_detr_detector
from tests.review.tiny_review import FRAMES
from v2idetr.distillation.spatial_masks import gaussian_mask
from v2idetr.modeling import deformable_attention
from v2idetr.modeling.meta_arch import Detector
from v2idetr.review.explanation import LIGHTEST, WeightsExplainer, explain
from v2idetr.review.run_review import RunReview

STRIDES = (8, 16, 32, 64)


def explained(detector: Detector, size: tuple[int, int] = (64, 96)) -> dict[str, Any]:
    detector.eval()
    sample = make_sample(num_frames=1, size=size)
    with torch.inference_mode():
        return explain(detector, detector.images([sample]), None)


@pytest.mark.parametrize("size", [(64, 96), (56, 80)])  # neither fills all levels
def test_sampling_points_are_the_reads_of_the_last_decoder_layer(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    reads: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = deformable_attention.deformable_read

    def recording(value: Any, shapes: Any, locations: Any, weights: Any) -> Any:
        reads.append((locations, weights))
        return original(value, shapes, locations, weights)

    monkeypatch.setattr(deformable_attention, "deformable_read", recording)
    detector = tiny_detector()
    found = explained(detector, size)
    locations, weights = reads[-1]  # the decoder's last layer reads last
    best = _query_of(detector, size, found["box"])
    kept = weights[0, best].flatten() / weights[0, best].max() >= LIGHTEST
    assert len(found["points"]) == int(kept.sum())
    padded = [-(-side // 32) * 32 for side in size]
    ratios = torch.tensor(
        [
            [s / (-(-p // stride) * stride) for s, p in zip(size[::-1], padded[::-1], strict=True)]
            for stride in STRIDES
        ]
    )
    expected = (locations[0, best] / ratios.view(1, -1, 1, 2)).flatten(0, 2)[kept]
    np.testing.assert_allclose([p[:2] for p in found["points"]], expected, atol=1e-4)
    assert max(p[2] for p in found["points"]) == 1


def _query_of(detector: Detector, size: tuple[int, int], box: list[float]) -> int:
    """The query whose box this is."""
    with torch.inference_mode():
        decoded = detector.net(detector.images([make_sample(num_frames=1, size=size)]))
    own = box_convert(decoded.boxes[-1][0], "cxcywh", "xyxy").clamp(0, 1)
    return int((own - torch.tensor(box)).abs().sum(1).argmin())


@pytest.mark.parametrize("make", [tiny_detr_detector, tiny_sam_detr_detector])
def test_detr_and_sam_detr_have_an_attention_map_over_the_image(
    make: Callable[[], Detector],
) -> None:
    cells = explained(make(), size=(64, 80))["cells"]  # padded to 64 x 96
    assert (cells["rows"], cells["columns"]) == (2, 3)
    assert (cells["width"], cells["height"]) == pytest.approx((32 / 80, 32 / 64))
    assert max(cells["weights"]) == 1
    assert min(cells["weights"]) >= 0


def test_hooks_are_gone_afterwards() -> None:
    detector = tiny_sam_detr_detector()
    explained(detector)
    attention = detector.net.decoder[-1].cross_attention
    assert not attention._forward_pre_hooks
    assert not attention.dropout._forward_hooks


@pytest.mark.parametrize("stage", range(3))
def test_a_run_explains_each_of_its_detectors(run_review: RunReview, stage: int) -> None:
    found = run_review.explain("points", stage, (0, 0, 0))
    assert found["words"].startswith("Sampling points of the decoder's last layer")
    assert found["points"]


def test_tfds_mask_is_that_of_training(run_review: RunReview) -> None:
    cells = run_review.explain("mask", 0, (0, 0, 0))["cells"]
    record = run_review.judged(0).records[0]
    x, y, w, h = record["annotations"][0]["bbox"]
    boxes = torch.tensor([[x, y, x + w, y + h]]).float()
    mask = gaussian_mask(boxes, 32, cells["rows"], cells["columns"])
    expected = (mask / mask.max()).flatten()
    np.testing.assert_allclose(cells["weights"], expected, atol=1e-4)
    assert cells["width"] * cells["columns"] >= 1


def test_without_a_lesion_the_mask_is_zero(run_review: RunReview) -> None:
    found = run_review.explain("mask", 0, (0, 0, FRAMES - 1))
    assert "No lesion" in found["words"]
    assert not any(found["cells"]["weights"])


def test_without_weights_the_page_says_so(finished_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (copy / "plain" / "best.pth").unlink()
    found = RunReview([copy]).explain("points", 1, (0, 0, 0))
    assert found == {
        "words": "best.pth is not in the folder of this stage, so nothing can be computed."
    }


def test_a_checkpoint_explains_frames_of_any_video(finished_run: Path) -> None:
    explainer = WeightsExplainer(finished_run / "plain" / "best.pth")
    assert explainer.points(np.zeros((30, 40, 3), np.uint8))["points"]


def test_an_exported_file_has_no_sampling_points() -> None:
    found = WeightsExplainer(Path("a.onnx")).points(np.zeros((30, 40, 3), np.uint8))
    assert "take its checkpoint" in found["words"]
