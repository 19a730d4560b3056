"""COCO results of any detector, joined with the frames and classes of a ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.labelled_videos import labelled, write_videos
from v2idetr.data.ground_truth import GroundTruth, read_ground_truth
from v2idetr.evaluation.coco_ap import ResampledAP, coco_ap
from v2idetr.evaluation.results_files import read_results

ENTRY = {"image_id": 1, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}
VIDEOS = [[(True, [])] * 2, [(True, [])]]


def truth_of(folder: Path, **settings: Any) -> GroundTruth:
    return read_ground_truth(write_videos(folder, VIDEOS, **settings)[0])


def read(folder: Path, truth: GroundTruth, *entries: Any) -> list[int]:
    """Number of detections by frame."""
    (folder / "results.json").write_text(json.dumps(entries))
    found = {p.image_id: len(p.scores) for p in read_results(folder / "results.json", truth)}
    return [found[image_id] for image_id in sorted(found)]


def test_integer_ids_are_those_of_the_ground_truth(tmp_path: Path) -> None:
    assert read(tmp_path, truth_of(tmp_path), {**ENTRY, "image_id": 2}) == [0, 1, 0]


@pytest.mark.parametrize("name", ["clip2/000000.png", "clip2/000000"])
def test_names_are_paths_of_frames(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, truth_of(tmp_path), {**ENTRY, "image_id": name}) == [0, 0, 1]


def test_a_name_without_folder_does_where_it_is_unique(tmp_path: Path) -> None:
    unique = truth_of(tmp_path, file_name="x/{video}_{frame}.jpg")
    assert read(tmp_path, unique, {**ENTRY, "image_id": "clip1_1"}) == [0, 1, 0]
    repeated = truth_of(tmp_path)
    with pytest.raises(ValueError, match="'000000' names several frames"):
        read(tmp_path, repeated, {**ENTRY, "image_id": "000000"})
    with pytest.raises(ValueError, match="'other' is no frame"):
        read(tmp_path, repeated, {**ENTRY, "image_id": "other"})


def test_a_file_name_of_another_frame_is_refused(tmp_path: Path) -> None:
    truth = truth_of(tmp_path)
    assert read(tmp_path, truth, {**ENTRY, "file_name": "elsewhere/000000.jpg"}) == [1, 0, 0]
    with pytest.raises(ValueError, match=r"'clip1/000001\.png' here and 'clip1/000000\.png' in"):
        read(tmp_path, truth, {**ENTRY, "file_name": "clip1/000001.png"})


def shuffled(folder: Path) -> GroundTruth:
    """Frames 1, 2, 3 are 2.png, 3.png, 1.png."""
    content = json.loads(write_videos(folder, VIDEOS)[0].read_text())
    for image, number in zip(content["images"], (2, 3, 1), strict=True):
        image["file_name"] = f"{number}.png"
    (folder / "test.json").write_text(json.dumps(content))
    return read_ground_truth(folder / "test.json")


def test_a_number_that_is_the_name_of_a_file_is_told_by_file_name(tmp_path: Path) -> None:
    truth = shuffled(tmp_path)
    assert read(tmp_path, truth, {**ENTRY, "image_id": 2, "file_name": "2.png"}) == [1, 0, 0]
    assert read(tmp_path, truth, {**ENTRY, "image_id": 2, "file_name": "3.png"}) == [0, 1, 0]


def test_ids_that_may_be_the_names_of_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image_id 2 is '3\.png' in .*Give .* the file_name"):
        read(tmp_path, shuffled(tmp_path), {**ENTRY, "image_id": 2})


def test_a_class_that_the_ground_truth_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"category_id 0 is not .* has 1 \(polyp\)"):
        read(tmp_path, truth_of(tmp_path), {**ENTRY, "category_id": 0})


def test_category_ids_of_the_file_become_classes(tmp_path: Path) -> None:
    content = json.loads(write_videos(tmp_path, VIDEOS)[0].read_text())
    content["categories"] = [{"id": 0, "name": "polyp"}]
    content["annotations"] = [{**a, "category_id": 0} for a in content["annotations"]]
    (tmp_path / "test.json").write_text(json.dumps(content))
    truth = read_ground_truth(tmp_path / "test.json")
    (tmp_path / "results.json").write_text(json.dumps([{**ENTRY, "category_id": 0}]))
    (first, *_) = read_results(tmp_path / "results.json", truth)
    assert first.classes.tolist() == [0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"annotations": []}', "holds a dict, not a list"),
        ("[1]", "is not a COCO results list"),
        ("[{}]", "is neither a key"),
        ('[{"image_id": [], "category_id": {}, "bbox": [0,0,1,1], "score": 1}]', "image_id"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0,0,1,NaN], "score": 1}]', "four finite"),
        ("[" * 200_000, "is not a COCO results list"),
        *(
            (json.dumps([ENTRY, {**ENTRY, "score": score}]), rf"score {score} .* not in \[0, 1\]")
            for score in (73.5, -0.5)
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    truth = truth_of(tmp_path)
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=said) as caught:
        read_results(tmp_path / "results.json", truth)
    assert "results.json" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json: no such file"):
        read_results(tmp_path / "none.json", truth_of(tmp_path))


def test_resampled_ap_is_the_ap_of_the_resampled_frames(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = ("hit", "wrong")
    videos = [
        [
            (bool(rng.random() < 0.8), [(kinds[rng.integers(2)], float(s)) for s in rng.random(3)])
            for _ in range(10)
        ]
    ]
    _, frames = labelled(tmp_path, videos)
    resampled = ResampledAP(frames, ["polyp"])
    for indexes in (list(range(10)), [3, 3, 3, 1], rng.integers(10, size=25).tolist()):
        want = coco_ap([frames[i] for i in indexes], ["polyp"])
        assert resampled(indexes) == {key: want[key] for key in ("AP", "AP50", "AP75")}
