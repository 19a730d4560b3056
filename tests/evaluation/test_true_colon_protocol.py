"""TRUE-Colon's metrics are the package's own, and what it cannot know is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import true_colon

from tests.evaluation.labelled_videos import (
    BOXES,
    HEIGHT,
    LESION,
    WIDTH,
    Videos,
    labelled,
    write_videos,
)
from v2idetr.data.ground_truth import read_ground_truth
from v2idetr.evaluation.pool import Pool
from v2idetr.evaluation.results_files import read_results
from v2idetr.evaluation.true_colon_protocol import (
    apply_protocol,
    frame_alerts,
    match_alert_rate,
)

RNG = np.random.default_rng(3)


def random_videos(videos: int = 4, frames: int = 40) -> Videos:
    """Lesions from the fifth frame on, with gaps; one video without any."""

    def frame(video: int, index: int) -> Any:
        lesion = video > 0 and index >= 5 and index % 7 != 0
        found = [("wrong", float(RNG.uniform(0.01, 0.6)))] * int(RNG.integers(0, 3))
        found += [("hit", float(RNG.uniform(0.1, 0.95)))] * int(lesion and RNG.random() < 0.7)
        return lesion, found

    return [[frame(v, i) for i in range(frames)] for v in range(videos)]


def direct(videos: Videos, fps: float, threshold: float) -> tuple[Any, Any, Any]:
    """The package called as its documentation says, on names as REAL-Colon has them."""
    images, annotations, results = [], [], []
    for v, frames in enumerate(videos):
        for index, (lesion, found) in enumerate(frames):
            name = f"00{v}-001_{index}"
            images.append({"id": len(images), "file_name": f"{name}.jpg"})
            images[-1] |= {"width": WIDTH, "height": HEIGHT}
            if lesion:
                box = {"id": len(annotations), "image_id": images[-1]["id"], "category_id": 1}
                box |= {"bbox": LESION, "area": 400.0, "iscrowd": 0}
                annotations.append(box | {"unique_id": f"00{v}-001_lesion"})
            for kind, score in found:
                entry = {"image_id": name, "category_id": 1, "bbox": BOXES[kind]}
                results.append(entry | {"score": round(score, 6)})
    ground_truth = {"images": images, "annotations": annotations}
    ground_truth["categories"] = [{"id": 1, "name": "polyp"}]
    evaluator = true_colon.create_evaluator(
        dataset="realcolon",
        id_source="pred_string",
        conf=threshold,
        tiers=frozenset({"frame", "frame_sweep", "lesion", "froc", "afroc"}),
        lesion=true_colon.LesionConfig(fps=fps),
    )
    return evaluator, ground_truth, results


def test_metrics_are_those_of_calling_the_package_directly(tmp_path: Path) -> None:
    videos = random_videos()
    pool, frames = labelled(tmp_path, videos, info={"fps": 25})
    ours = apply_protocol(pool, frames, 0.3)
    evaluator, ground_truth, results = direct(videos, 25, 0.3)
    theirs = true_colon.result_to_dict(evaluator.evaluate(ground_truth, results))
    sweep = theirs["frame_sweep"]
    for row in sweep["selected"]:
        row["precision"] = row["precision"] if row["tp"] + row["fp"] else None
    sweep["precision"] = [
        value if tp + fp else None
        for value, tp, fp in zip(sweep["precision"], sweep["tp"], sweep["fp"], strict=True)
    ]
    assert sweep["precision"][-1] is None  # no score is 1
    for tier in ("frame", "frame_sweep", "froc", "afroc"):
        assert ours[tier] == theirs[tier], tier
    assert ours["lesion"]["summary"] == theirs["lesion"]["summary"]
    assert ours["lesion"]["summary"]["n_lesions"] == 3
    names = {"lesion_id", "video_name", "split", "video_id", "video", "lesion"}
    for mine, other in zip(ours["lesion"]["records"], theirs["lesion"]["records"], strict=True):
        assert {k: v for k, v in mine.items() if k not in names} == {
            k: v for k, v in other.items() if k not in names
        }
    assert ours["undefined"] == []


def test_the_matched_threshold_is_the_packages(tmp_path: Path) -> None:
    videos = random_videos()
    pool, frames = labelled(tmp_path, videos)
    evaluator, ground_truth, results = direct(videos, 25, 0.3)
    for target in (0.045, 0.3):
        assert match_alert_rate(pool, frames, target) == evaluator.match_operating_point(
            ground_truth, results, target_fpr=target
        )


def test_alerts_by_frame_add_up_to_the_packages_counts(tmp_path: Path) -> None:
    pool, frames = labelled(tmp_path, random_videos())
    tier = apply_protocol(pool, frames, 0.4)["frame"]
    alerts = frame_alerts(pool, frames, 0.4)
    on_lesions = sum(alert for frame, alert in alerts if len(frame.lesions_xyxy_px))
    on_others = sum(alert for frame, alert in alerts if not len(frame.lesions_xyxy_px))
    assert (on_lesions, on_others) == (tier["tp"], tier["fp"])
    assert on_lesions and on_others


def test_frames_of_one_name_in_several_videos_are_not_merged(tmp_path: Path) -> None:
    """Every video has a 000000.png."""
    pool, frames = labelled(tmp_path, [[(True, [("hit", 0.9)])]] * 3)
    result = apply_protocol(pool, frames, 0.5)
    assert result["n_frames"] == 3 and result["lesion"]["summary"]["n_lesions"] == 3


def test_without_lesion_free_frames_rates_of_false_alerts_are_undefined(tmp_path: Path) -> None:
    pool, frames = labelled(
        tmp_path, [[(True, [("hit", 0.9), ("wrong", 0.9)])] * 15], info={"fps": 25}
    )
    result = apply_protocol(pool, frames, 0.5)
    assert result["frame"]["tpr"] == 1.0 and result["frame"]["fpr"] is None
    assert result["frame"]["precision"] is None and result["afroc"]["fpf"] is None
    assert result["froc"]["fp_per_image"] is not None
    (said,) = result["undefined"]
    assert "lesion-free frames" in said["why"]


def test_without_lesions_sensitivity_is_undefined(tmp_path: Path) -> None:
    pool, frames = labelled(tmp_path, [[(False, [("wrong", 0.9)])]])
    result = apply_protocol(pool, frames, 0.5)
    assert result["frame"]["fpr"] == 1.0 and result["frame"]["tpr"] is None
    assert result["froc"]["tpr_loc"] is None and result["lesion"] is None
    assert [u["why"] for u in result["undefined"]] == ["there are no lesions"]


def test_without_lesion_ids_the_lesion_tier_is_undefined(tmp_path: Path) -> None:
    videos = [[(True, [("hit", 0.9)]), (False, [])]]
    pool, frames = labelled(tmp_path, videos, lesion_ids=False)
    result = apply_protocol(pool, frames, 0.5)
    assert result["lesion"] is None
    assert "add instance_id" in result["undefined"][0]["why"]


def test_boxes_without_a_lesion_id_are_counted(tmp_path: Path) -> None:
    truth, results = write_videos(tmp_path, [[(True, [("hit", 0.9)])] * 3], info={"fps": 25})
    content = json.loads(truth.read_text())
    for annotation in content["annotations"][1:]:
        del annotation["instance_id"]
    truth.write_text(json.dumps(content))
    pool = Pool({"test": read_ground_truth(truth)})
    predictions = read_results(results, pool.truths["test"])
    result = apply_protocol(pool, pool.label({"test": predictions})["test"], 0.5)
    said = [f"{u['what']}: {u['why']}" for u in result["undefined"]]
    assert any("2 of 3 boxes: they have no instance_id" in sentence for sentence in said)


def test_without_alerts_precision_is_undefined(tmp_path: Path) -> None:
    pool, frames = labelled(tmp_path, [[(True, [("hit", 0.4)]), (False, [("wrong", 0.3)])]])
    result = apply_protocol(pool, frames, 0.5, ("frame", "frame_sweep"))
    assert (result["frame"]["precision"], result["frame"]["f1"]) == (None, 0.0)
    assert result["frame_sweep"]["precision"][-1] is None
    assert [u["why"] for u in result["undefined"]] == ["no frame alerts at the threshold"]


def test_without_a_frame_rate_latency_is_in_frames_alone(tmp_path: Path) -> None:
    videos = [[(True, []), (True, [("hit", 0.9)]), (False, [])]]
    pool, frames = labelled(tmp_path, videos)
    result = apply_protocol(pool, frames, 0.5)
    (record,) = result["lesion"]["records"]
    assert record["latency_frames"] == 1 and record["latency_seconds"] is None
    assert record["lesion"] == "7" and record["video"] == "clip1"
    assert result["lesion"]["summary"]["detected_within_5s"] is None
    assert "--fps" in result["undefined"][0]["why"]


def test_a_window_that_holds_too_few_frames_is_undefined(tmp_path: Path) -> None:
    videos = [[(True, [("hit", 0.9)])] * 20 + [(False, [])]]
    pool, frames = labelled(tmp_path, videos, info={"fps": 10})
    summary = apply_protocol(pool, frames, 0.5)["lesion"]["summary"]
    assert summary["detected_within_1s"] is None and summary["detected_within_3s"] == 1


def test_lesions_that_are_shown_too_briefly_are_not_called_late(tmp_path: Path) -> None:
    def within(frames_shown: int) -> tuple[int | None, str]:
        videos = [[(True, [("hit", 0.9)])] * frames_shown + [(False, [])]]
        pool, frames = labelled(tmp_path, videos, info={"fps": 25})
        result = apply_protocol(pool, frames, 0.5)
        reasons = " ".join(row["why"] for row in result["undefined"])
        return result["lesion"]["summary"]["detected_within_5s"], reasons

    count, why = within(14)
    assert count is None and "no lesion is shown on more than 14" in why
    assert within(15) == (1, "")


def test_windows_with_too_few_labelled_frames_are_undefined(tmp_path: Path) -> None:
    """A perfect detector on every fifth frame at 25 Hz: five labelled frames a second."""
    videos = [[(True, [("hit", 0.9)])] * 30 + [(False, [])]]
    pool, frames = labelled(tmp_path, videos, info={"fps": 25}, step=5)
    result = apply_protocol(pool, frames, 0.5)
    summary = result["lesion"]["summary"]
    assert summary["detected_within_1s"] is None and summary["detected_within_5s"] == 1
    assert "5 labelled frames a second" in result["undefined"][0]["why"]


@pytest.mark.parametrize("threshold", [0.0, 1e-7])
def test_a_frame_without_detections_never_alerts(tmp_path: Path, threshold: float) -> None:
    pool, frames = labelled(tmp_path, [[(True, []), (False, [])]])
    result = apply_protocol(pool, frames, threshold)
    assert (result["frame"]["tp"], result["frame"]["fp"]) == (0, 0)
    assert not any(alert for _, alert in frame_alerts(pool, frames, threshold))
