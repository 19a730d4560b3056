"""Splits of a run, checked together before anything is trained."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from v2idetr.config.load import load_config
from v2idetr.engine.run_context import load_splits
from v2idetr.engine.stage_graph import resolve_stages


def edit(config, split: str, change) -> None:
    """Give a run a changed copy of a split's JSON; tiny_data is shared by all tests."""
    source = Path(config.data[split].json)
    content = json.loads(source.read_text())
    change(content)
    copy = Path(config.train.output_dir).parent / f"{split}_changed.json"
    copy.write_text(json.dumps(content))
    config.data[split].json = str(copy)


def with_one_larger_frame(content: dict) -> None:
    content["images"][1] |= {"width": 80, "height": 60}


@pytest.mark.parametrize(
    ("split", "stages", "others", "refused"),
    [
        ("train", "[teacher]", [], True),
        ("train", "[student]", ["teacher.checkpoint=t.pth"], True),
        ("train", "[plain]", [], False),
        ("train", "[teacher]", ["data.window=0"], False),
        ("val", "[teacher,student]", [], True),
        ("val", "[student]", ["teacher.checkpoint=t.pth"], False),
    ],
)
def test_sizes_within_a_scene_stop_stages_that_look_at_several_frames(
    tiny_config, monkeypatch, tmp_path, split, stages, others, refused
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.pth").touch()
    monkeypatch.setattr("v2idetr.data.coco_vid._decode_some", lambda split: None)
    config = load_config(tiny_config, [f"train.stages={stages}", *others])
    edit(config, split, with_one_larger_frame)
    if not refused:
        load_splits(config, with_train=True)
        return
    with pytest.raises(ValueError, match=rf"data\.{split}: .*\n.*one scene have different sizes"):
        load_splits(config, with_train=True)


def with_a_larger_second_scene(content: dict) -> None:
    video = content["images"][0]["video_id"]
    last = [image for image in content["images"] if image["video_id"] == video][-1]
    last |= {"width": 80, "height": 60, "scene_id": 1}


@pytest.mark.parametrize("sampler", ["WindowSampler", "GlobalSampler"])
def test_sizes_within_a_video_stop_detectors_that_look_at_the_whole_video(
    tiny_config, monkeypatch, sampler
) -> None:
    monkeypatch.setattr("v2idetr.data.coco_vid._decode_some", lambda split: None)
    config = load_config(tiny_config, ["train.stages=[teacher]"])
    edit(config, "train", with_a_larger_second_scene)
    settings = {
        "WindowSampler": {"num_frames": 3, "window": 2, "sampling": "fixed"},
        "GlobalSampler": {"num_references": 2},
    }[sampler]
    config.teacher.model.reference_sampler = {
        "_target_": f"v2idetr.data.reference_sampler.{sampler}",
        **settings,
    }
    if sampler == "WindowSampler":
        load_splits(config, with_train=True)
        return
    with pytest.raises(ValueError, match=r"data\.train: .*\n.*one video have different sizes"):
        load_splits(config, with_train=True)


def test_sizes_within_a_video_matter_where_the_evaluation_looks_at_the_whole_video(
    tiny_config, monkeypatch
) -> None:
    monkeypatch.setattr("v2idetr.data.coco_vid._decode_some", lambda split: None)
    config = load_config(tiny_config, ["train.stages=[teacher]"])
    config.teacher.model.evaluation_sampler = {
        "_target_": "v2idetr.data.reference_sampler.GlobalSampler",
        "num_references": 2,
    }
    edit(config, "train", with_a_larger_second_scene)
    load_splits(config, with_train=True)
    edit(config, "val", with_a_larger_second_scene)
    with pytest.raises(ValueError, match=r"data\.val: .*\n.*one video have different sizes"):
        load_splits(config, with_train=True)


def test_a_student_takes_the_clips_of_its_teacher_from_any_split(tiny_config) -> None:
    stages = resolve_stages(load_config(tiny_config, ["+stages.student.split=more"]))
    assert stages["student"].together(load_config(tiny_config), "more") == "scene"
    assert stages["student"].together(load_config(tiny_config), "val") == "frame"


def with_a_video_of_one_frame(content: dict) -> None:
    content["videos"].append({"id": 99, "name": "alone"})
    image = content["images"][-1]
    image |= {"video_id": 99, "frame_index": 0}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != image["id"]]


def test_a_video_of_one_frame_has_no_frames_of_the_whole_video(tiny_config) -> None:
    config = load_config(tiny_config, ["train.stages=[teacher]"])
    edit(config, "val", with_a_video_of_one_frame)
    load_splits(config, with_train=True)
    config.teacher.model.reference_sampler = {
        "_target_": "v2idetr.data.reference_sampler.GlobalSampler",
        "num_references": 2,
    }
    with pytest.raises(ValueError, match=r"data\.val: .*\n.*video of one frame, .* leave it out"):
        load_splits(config, with_train=True)


def test_detectron2_knows_the_splits_by_name(tiny_config) -> None:
    config = load_config(tiny_config, [])
    splits = load_splits(config, with_train=True)
    folder = Path(config.data.train.json).parent.name
    for name in ("train", "val", "test/held_out"):
        assert DatasetCatalog.get(f"v2idetr/{folder}/{name}") == splits[name].records


def test_a_training_split_without_boxes_is_refused(tiny_config) -> None:
    config = load_config(tiny_config, [])
    edit(config, "train", lambda content: content["annotations"].clear())
    with pytest.raises(ValueError, match=r"data\.train: no box to train on"):
        load_splits(config, with_train=True)
    load_splits(config, with_train=False)


@pytest.mark.parametrize(("split", "nothing"), [("val", None), ("test", {})])
def test_a_stage_that_is_reported_needs_a_validation_and_a_test_split(
    tiny_config, split, nothing
) -> None:
    config = load_config(tiny_config, [])
    config.data[split] = nothing
    with pytest.raises(
        ValueError, match=rf"data\.{split} is empty, but the stage \w+ is evaluated"
    ):
        load_splits(config, with_train=True)


def test_a_class_without_a_box_to_train_on_is_warned_about(tiny_config, caplog) -> None:
    config = load_config(tiny_config, [])
    config.data.class_names = ["polyp", "serrated"]

    def add(content: dict) -> None:
        content["categories"].append({"id": 2, "name": "serrated"})

    edit(config, "train", add)
    edit(config, "val", add)
    config.data.test = {"held_out": config.data.val}  # one file: said, and not refused
    with caplog.at_level(logging.WARNING, logger="v2idetr"):
        load_splits(config, with_train=True)
    assert any("cannot be learned: 1 (serrated)" in message for message in caplog.messages)
    assert any("data.val and data.test.held_out are one file" in m for m in caplog.messages)


def test_a_file_in_two_splits_is_refused_but_test_splits_may_overlap(tiny_config) -> None:
    config = load_config(tiny_config, [])
    config.data.test = {"all": config.data.test.held_out, "easy": config.data.test.held_out}
    load_splits(config, with_train=True)
    edit(config, "val", lambda content: None)
    config.data.test = {"again": config.data.val}
    edit(config, "val", lambda content: None)
    config.data.train = config.data.val
    with pytest.raises(
        ValueError, match=r"file is a frame of data\.train and of data\.val: .* 3 \("
    ):
        load_splits(config, with_train=True)
