"""Evaluation of real detectors over real files, from the annotation file to the table."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tiny_detector, tiny_teacher
from v2idetr.data.augmentation import resize_fixed
from v2idetr.data.clip_mapper import ClipMapper
from v2idetr.data.coco_vid import SplitData, load_split, write_split
from v2idetr.data.loader import build_eval_loader
from v2idetr.data.reference_sampler import WindowSampler
from v2idetr.evaluation.evaluator import evaluate
from v2idetr.evaluation.predictions import predict, read_predictions
from v2idetr.evaluation.table import format_table

WIDTH, HEIGHT = 60, 40


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> SplitData:
    """Two videos of noise with two frames each; every first frame has a lesion."""
    root: Path = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    frames = [
        {"id": 2 * video + index, "file_name": f"{video}_{index}.png", "width": WIDTH}
        | {"height": HEIGHT, "video_id": video, "frame_index": index}
        for video in (1, 2)
        for index in (0, 1)
    ]
    for frame in frames:
        noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / frame["file_name"])
    lesions = [
        {"id": i, "image_id": frame["id"], "category_id": 1, "bbox": [10, 10, 20, 15]}
        for i, frame in enumerate(frames[::2], start=1)
    ]
    write_split(
        root / "split.json",
        videos=[{"id": 1, "name": "a", "group": "seen"}, {"id": 2, "name": "b", "group": "unseen"}],
        images=frames,
        annotations=lesions,
        categories=[{"id": 1, "name": "polyp"}],
        info={"description": "noise"},
    )
    return load_split(root / "split.json", root)


def loader_of(split, *, num_frames=1, batch_size=3):
    mapper = ClipMapper(
        sampler=WindowSampler(num_frames=num_frames, window=1, sampling="fixed"),
        augmentations=[resize_fixed(96, 64)],
        is_train=False,
    )
    return build_eval_loader(split, mapper, batch_size=batch_size)


def test_boxes_are_in_pixels_of_the_original_frame(split):
    found = predict(tiny_detector(), loader_of(split))
    corners = np.concatenate([prediction.boxes_xyxy_px for prediction in found])
    assert corners.min() >= 0
    assert 30 < corners[:, 2].max() <= WIDTH
    assert 20 < corners[:, 3].max() <= HEIGHT


def test_teacher_and_student_are_evaluated_alike(split, tmp_path):
    results = {}
    for name, model, num_frames in (("teacher", tiny_teacher(), 3), ("plain", tiny_detector(), 1)):
        loader = loader_of(split, num_frames=num_frames)
        results[name] = evaluate(
            model,
            val=(split, loader),
            tests={"test": (split, loader)},
            rules=["endovis_center", "iou50"],
            coco_ap=True,
            predictions_dir=tmp_path / name,
        )
        written = tmp_path / name / "predictions_test.json.gz"
        assert sum(len(p.scores) for p in read_predictions(written, split)) == 4 * 12  # N = 12
    assert results["teacher"]["cost"]["frames_per_detection"] == 3
    assert results["teacher"]["cost"]["flops"] > results["plain"]["cost"]["flops"]
    assert set(results["plain"]["tests"]["test"]["groups"]) == {"seen", "unseen"}
    assert "test / unseen" in format_table(results)
