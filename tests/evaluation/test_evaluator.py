"""The whole evaluation: thresholds from validation, groups, pooling, files and the table."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from v2idetr.data.audit import AuditReport
from v2idetr.data.coco_vid import SplitData
from v2idetr.evaluation.evaluator import (
    evaluate,
    evaluate_predictions,
    validate,
    write_evaluation,
)
from v2idetr.evaluation.predictions import FramePrediction, read_predictions
from v2idetr.evaluation.table import format_table

RULES = ["endovis_center", "iou50"]
LESION = [10.0, 10.0, 40.0, 40.0]  # xywh
HIT, MISS = [10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 90.0, 90.0]  # xyxy


def make_split(name, videos, *, classes=("lesion",)) -> SplitData:
    """``videos``: {video name: (group, lesions on each frame)}; image ids start at 1."""
    entries, records = {}, []
    for video_id, (video, (group, frames)) in enumerate(videos.items(), start=1):
        entries[video_id] = {"id": video_id, "name": video} | ({"group": group} if group else {})
        for index, lesions in enumerate(frames):
            annotation = {"bbox": LESION, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
            records.append(
                {"file_name": f"/data/{video}/{index}.png", "height": 100, "width": 100}
                | {"image_id": len(records) + 1, "video_id": video_id, "frame_index": index}
                | {"scene_id": 0, "annotations": [annotation] * lesions}
            )
    return SplitData(
        Path(f"{name}.json"), Path("/data"), list(classes), entries, records, AuditReport(name)
    )


def predictions_of(*frames):
    """One list of (box, score) a frame."""
    return [
        FramePrediction(
            image_id,
            np.array([box for box, _ in found], dtype=float).reshape(-1, 4),
            np.array([score for _, score in found], dtype=float),
            np.zeros(len(found), dtype=np.int64),
        )
        for image_id, found in enumerate(frames, start=1)
    ]


VAL = make_split("val", {"a": (None, [1, 1, 0])})
# F1 is 1 from 0.6 to 0.7 on validation, so 0.7 is chosen.
VAL_FOUND = predictions_of([(HIT, 0.9)], [(HIT, 0.7)], [(MISS, 0.5)])
EASY = make_split("easy", {"s": ("seen", [1, 1]), "u": ("unseen", [1, 0])})
EASY_FOUND = predictions_of(
    [(HIT, 0.8)], [(HIT, 0.65)], [(HIT, 0.95), (MISS, 0.75)], [(MISS, 0.72)]
)
HARD = make_split("hard", {"h": ("unseen", [1])})
HARD_FOUND = predictions_of([(MISS, 0.9)])


def result(rules=RULES, coco_ap=True):
    return evaluate_predictions(
        val=(VAL, VAL_FOUND),
        tests={"easy": (EASY, EASY_FOUND), "hard": (HARD, HARD_FOUND)},
        rules=rules,
        coco_ap=coco_ap,
    )


def counted(metrics, rule="iou50"):
    return tuple(metrics["rules"][rule][key] for key in ("tp", "fp", "fn"))


def test_threshold_is_chosen_on_validation_and_applied_unchanged_to_tests():
    metrics = result()
    assert metrics["thresholds"] == {"endovis_center": 0.7, "iou50": 0.7}
    assert metrics["val"]["rules"]["iou50"]["f1"] == 1.0
    # At 0.65, the best threshold for the test split itself, another lesion would be found.
    assert counted(metrics["tests"]["easy"]) == (2, 2, 1)
    assert metrics["tests"]["easy"]["rules"]["iou50"]["threshold"] == 0.7


def test_groups_are_reported_apart_and_add_up():
    easy = result()["tests"]["easy"]
    assert counted(easy["groups"]["seen"]) == (1, 0, 1)
    assert counted(easy["groups"]["unseen"]) == (1, 2, 0)
    assert easy["groups"]["seen"]["coco"]["AP50"] == pytest.approx(1.0)
    assert easy["groups"]["unseen"]["frames"] == 2
    assert result()["val"]["groups"] == {}


def test_test_splits_are_pooled_although_their_ids_collide():
    metrics = result()
    pooled = metrics["all_tests"]
    assert (pooled["videos"], pooled["frames"], pooled["lesions"]) == (3, 5, 4)
    assert pooled["lesion_free_frames"] == 1
    assert counted(pooled) == (2, 3, 2)
    assert counted(pooled["groups"]["unseen"]) == (1, 3, 1)
    assert [(row["split"], row["name"]) for row in pooled["per_video"]] == [
        ("easy", "s"),
        ("easy", "u"),
        ("hard", "h"),
    ]


def test_one_test_split_is_not_pooled():
    metrics = evaluate_predictions(
        val=(VAL, VAL_FOUND), tests={"easy": (EASY, EASY_FOUND)}, rules=["iou50"], coco_ap=False
    )
    assert metrics["all_tests"] is None
    assert metrics["tests"]["easy"]["coco"] is None


def test_every_rule_is_counted_in_every_video():
    rows = result()["tests"]["easy"]["per_video"]
    assert [row["group"] for row in rows] == ["seen", "unseen"]
    assert [row["frames"] for row in rows] == [2, 2]
    assert rows[0]["rules"]["endovis_center"]["recall"] == 0.5
    assert rows[1]["rules"]["iou50"]["precision"] == pytest.approx(1 / 3)


def test_validation_as_a_test_split_is_warned_of(caplog):
    pair = (VAL, VAL_FOUND)
    evaluate_predictions(val=pair, tests={"test": pair}, rules=["iou50"], coco_ap=False)
    assert "'test' is the validation split" in caplog.text


def test_splits_with_other_classes_are_an_error():
    other = make_split("other", {"o": (None, [1])}, classes=("benign", "malignant"))
    with pytest.raises(ValueError, match=r"other\.json.*'malignant'.*val\.json.*'lesion'"):
        evaluate_predictions(
            val=(VAL, VAL_FOUND),
            tests={"other": (other, HARD_FOUND)},
            rules=["iou50"],
            coco_ap=False,
        )


@pytest.mark.parametrize("name", ["val", "all tests"])
def test_reserved_name_of_a_test_split_is_an_error(name):
    with pytest.raises(ValueError, match=r"rename the test split"):
        evaluate_predictions(
            val=(VAL, VAL_FOUND), tests={name: (HARD, HARD_FOUND)}, rules=[], coco_ap=False
        )


# ---- with a model


class Replay(nn.Module):
    """Gives given predictions back, as a detector would."""

    def __init__(self, *found):
        super().__init__()
        self.found = {
            (split.json_path.stem, p.image_id): p for split, list_ in found for p in list_
        }
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, batched_inputs):
        return [{"instances": self.detect(sample)} for sample in batched_inputs]

    def detect(self, sample):
        p = self.found[sample["split"], sample["image_id"]]
        return Instances(
            (100, 100),
            pred_boxes=Boxes(torch.from_numpy(p.boxes_xyxy_px).float()),
            scores=torch.from_numpy(p.scores).float(),
            pred_classes=torch.from_numpy(p.classes),
        )


def loader_of(split):
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    return [
        [{"image": image, "image_id": r["image_id"], "split": split.json_path.stem}]
        for r in split.records
    ]


MODEL = Replay((VAL, VAL_FOUND), (EASY, EASY_FOUND), (HARD, HARD_FOUND))


def evaluated(**others):
    return evaluate(
        MODEL,
        val=(VAL, loader_of(VAL)),
        tests={"easy": (EASY, loader_of(EASY)), "hard": (HARD, loader_of(HARD))},
        rules=RULES,
        coco_ap=True,
        **others,
    )


def test_evaluating_a_model_equals_evaluating_its_predictions_and_adds_its_cost():
    with_model = evaluated()
    cost = with_model.pop("cost")
    assert with_model == result()
    assert cost["parameters"] == 3
    assert (cost["input_height"], cost["input_width"]) == (100, 100)


def test_metrics_can_be_computed_again_from_the_written_predictions(tmp_path):
    evaluated(predictions_dir=tmp_path)
    splits = {"val": VAL, "easy": EASY, "hard": HARD}
    read = {
        name: (split, read_predictions(tmp_path / f"predictions_{name}.json.gz", split))
        for name, split in splits.items()
    }
    tests = {name: read[name] for name in ("easy", "hard")}
    again = evaluate_predictions(val=read["val"], tests=tests, rules=RULES, coco_ap=True)
    assert again == result()


def test_unknown_rule_is_an_error_before_the_model_runs():
    with pytest.raises(ValueError, match="unknown rule 'iou'"):
        evaluate(nn.Linear(1, 1), val=(VAL, []), tests={}, rules=["iou"], coco_ap=False)
    with pytest.raises(ValueError, match="unknown rule 'iou'"):
        validate(nn.Linear(1, 1), VAL, [], rules=["iou"], coco_ap=False)


def test_validation_metrics_are_flat_and_name_their_rule():
    metrics = validate(MODEL, VAL, loader_of(VAL), rules=RULES, coco_ap=True)
    assert set(metrics) == {"AP", "AP50", "AP75"} | {
        f"{rule}/{key}" for rule in RULES for key in ("f1", "precision", "recall", "threshold")
    }
    assert metrics["iou50/f1"] == 1.0
    assert metrics["iou50/threshold"] == 0.7


def test_undefined_validation_figure_is_nan():
    negative = make_split("negative", {"n": (None, [0])})
    model = Replay((negative, predictions_of([])))
    metrics = validate(model, negative, loader_of(negative), rules=["iou50"], coco_ap=True)
    assert math.isnan(metrics["AP50"]) and math.isnan(metrics["iou50/f1"])


# ---- files and table


def test_json_round_trip_is_exact(tmp_path):
    metrics = evaluated()
    write_evaluation(tmp_path / "run" / "evaluation.json", metrics)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == metrics


def test_nan_never_reaches_a_file(tmp_path):
    path = tmp_path / "evaluation.json"
    with pytest.raises(ValueError, match="JSON"):
        write_evaluation(path, {"AP": math.nan})
    assert not path.exists()


def test_table_has_a_block_a_split_and_each_of_several_groups_and_a_row_a_model():
    table = format_table({"plain": evaluated(), "student": evaluated()})
    titles = [line.split(" (")[0] for line in table.splitlines() if " (videos: " in line]
    assert titles == [
        "easy",
        "easy / seen",
        "easy / unseen",
        "hard",
        "all tests",
        "all tests / seen",
        "all tests / unseen",
    ]
    assert sum(line.split()[:1] == ["student"] for line in table.splitlines()) == len(titles)
    assert "plain: endovis_center 0.700, iou50 0.700" in table
    assert max(len(line) for line in table.splitlines() if line[:3] != "FPS") <= 100


def test_names_of_groups_may_hold_the_mark_that_divides_titles():
    split = make_split("easy", {"s": ("seen / a", [1, 1]), "u": ("seen / b", [1, 0])})
    metrics = evaluate_predictions(
        val=(VAL, VAL_FOUND), tests={"easy": (split, EASY_FOUND)}, rules=["iou50"], coco_ap=False
    )
    titles = format_table({"m": metrics})
    assert "easy / seen / a (videos: 1" in titles and "easy / seen / b (videos: 1" in titles


def test_table_shows_percent_and_a_dash_where_a_figure_is_undefined():
    silent = predictions_of([])
    metrics = evaluate_predictions(
        val=(VAL, VAL_FOUND), tests={"hard": (HARD, silent)}, rules=["iou50"], coco_ap=False
    )
    row = next(line for line in format_table({"m": metrics}).splitlines() if "m " in line[:20])
    assert row.split() == ["m", "0.0", "/", "-", "/", "0.0"]


def test_table_counts_false_alarms_where_there_is_no_lesion():
    free = make_split("free", {"clip": ("seen", [0, 0, 0, 0])})
    alarms = predictions_of([(HIT, 0.9)], [], [(MISS, 0.8)], [(HIT, 0.1)])
    metrics = evaluate_predictions(
        val=(VAL, VAL_FOUND), tests={"free": (free, alarms)}, rules=["iou50"], coco_ap=False
    )
    table = format_table({"m": metrics})
    assert "false alarms (a frame)" in table and "F1 /" not in table
    row = next(line for line in table.splitlines() if "m " in line[:20])
    assert row.split() == ["m", "2", "(0.50)"]


def test_table_without_test_splits_shows_validation():
    metrics = evaluate_predictions(val=(VAL, VAL_FOUND), tests={}, rules=["iou50"], coco_ap=True)
    table = format_table({"plain": metrics})
    assert table.startswith("val (videos: 1, frames: 3, of them lesion-free: 1, lesions: 2)")
    assert "100.0" in table
