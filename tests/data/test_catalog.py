"""Detectron2's own tools on a registered split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

from tests.tiny_fixtures import make_split
from v2i_runtime.image_files import read_image
from v2idetr.data.catalog import register_splits
from v2idetr.data.coco_vid import SplitData, load_split

NAME = "v2idetr/squares/test/held_out"


@pytest.fixture
def split(tmp_path) -> Iterator[SplitData]:
    paths = make_split(tmp_path, "squares", videos=2, frames=3, seed=0)
    split = load_split(paths["json"], paths["image_root"])
    register_splits({"test/held_out": split}, "v2idetr/squares")
    yield split
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_the_visualizer_draws_ground_truth_with_the_names_of_classes(split) -> None:
    record = DatasetCatalog.get(NAME)[0]
    assert MetadataCatalog.get(NAME).thing_classes == ["polyp"]
    pixels = read_image(record["file_name"])
    drawn = Visualizer(pixels, MetadataCatalog.get(NAME)).draw_dataset_dict(record).get_image()
    assert drawn.shape == pixels.shape and not np.array_equal(drawn, pixels)


def test_its_mapper_gives_our_boxes(split) -> None:
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")
    for record in DatasetCatalog.get(NAME):
        sample = mapper(record)
        boxes = [a["bbox"] for a in record["annotations"]]
        xyxy = [[x, y, x + w, y + h] for x, y, w, h in boxes]
        assert sample["instances"].gt_boxes.tensor.tolist() == xyxy
        assert sample["image"].shape == (3, 48, 64)
    assert [r["image_id"] for r in DatasetCatalog.get(NAME)] == [1, 2, 3, 4, 5, 6]


def test_its_loader_and_evaluator_find_that_ground_truth_is_right(split, tmp_path) -> None:
    mapper = DatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    truth = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")
    records = {record["image_id"]: record for record in DatasetCatalog.get(NAME)}
    loader = build_detection_test_loader(list(records.values()), mapper=mapper, num_workers=0)
    evaluator = COCOEvaluator(NAME, output_dir=str(tmp_path), use_fast_impl=False)
    evaluator.reset()
    for (sample,) in loader:
        known = truth(records[sample["image_id"]])["instances"]
        found = Instances(known.image_size, pred_boxes=known.gt_boxes)
        found.scores, found.pred_classes = torch.ones(len(known)), known.gt_classes
        evaluator.process([sample], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_a_name_is_registered_again_with_what_it_now_means(split) -> None:
    shorter = dataclasses.replace(split, records=split.records[:2], class_names=["lesion"])
    for _ in range(2):
        register_splits({"test/held_out": shorter}, "v2idetr/squares")
    assert len(DatasetCatalog.get(NAME)) == 2
    assert MetadataCatalog.get(NAME).thing_classes == ["lesion"]
