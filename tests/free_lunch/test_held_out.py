"""Frames of held-out videos among those of a pretraining: refused, left out, or nobody can look."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from free_lunch import held_out as audit
from tests.tiny_runs import make_run
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stages import run_stages


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_pretraining_on_a_held_out_video_is_refused_under_any_name(
    pretraining_config, unlabelled_data, tiny_data, tmp_path, held_out
) -> None:
    source = Path(tiny_data["val"]["image_root"])
    content = json.loads(Path(tiny_data["val"]["json"]).read_text())
    assert content["annotations"], "as a detector's splits"
    for number, image in enumerate(content["images"]):
        with Image.open(source / image["file_name"]) as frame:
            image["file_name"] = f"copy_{number}.jpg"
            frame.save(tmp_path / image["file_name"], quality=95)
    content["videos"][0]["name"] = "a_new_name"
    (tmp_path / "copy.json").write_text(json.dumps(content))
    copy = {"json": str(tmp_path / "copy.json"), "image_root": str(tmp_path)}
    data = {"train": unlabelled_data["val"], "val": copy}
    if held_out == "test":
        data |= {"val": unlabelled_data["train"], "test": {"hidden": copy}}
    run_context = make_run(
        pretraining_config, *(f"data.{name}={json.dumps(part)}" for name, part in data.items())
    )
    with pytest.raises(
        ValueError, match=r"3 of 3 frames of val0 are also in a_new_name, .*/000\.png"
    ):
        run_stages(run_context)
    assert not (run_context.stage_folder("teacher") / "last.pth").exists()


@pytest.fixture
def with_card(tmp_path: Path, unlabelled_data: dict) -> dict[str, dict[str, str]]:
    """The splits, each with one title card in place of a video's first frame."""
    card = np.zeros((48, 64, 3), np.uint8)
    cv2.putText(card, "LOGO", (2, 30), 0, 0.6, (255, 255, 255), 2)
    Image.fromarray(card).save(tmp_path / "card.png")
    Image.fromarray(card).save(tmp_path / "card.jpg", quality=95)
    splits = {}
    for name, file in (("train", "card.png"), ("val", "card.jpg")):
        content = json.loads(Path(unlabelled_data[name]["json"]).read_text())
        content["images"][0]["file_name"] = str(tmp_path / file)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        root = unlabelled_data[name]["image_root"]
        splits[name] = {"json": str(tmp_path / f"{name}.json"), "image_root": root}
    return splits


def run_of(config: Path, splits: dict[str, dict[str, str]], *changes: str) -> RunContext:
    return make_run(config, *(f"data.{n}={json.dumps(s)}" for n, s in splits.items()), *changes)


def test_a_title_card_is_left_out_of_training(pretraining_config, with_card, caplog) -> None:
    share = [f"stages.{name}.shared_share=0.25" for name in ("teacher", "student")]
    run = run_of(pretraining_config, with_card, *share)
    with caplog.at_level(logging.WARNING):
        run_stages(run)
    assert "1 frame of data.train left out, in 1 video: copies of held-out frames" in caplog.text
    for name in ("teacher", "student"):
        left = [r["file_name"] for r in run.stages[name].training_split(run).records]
        assert len(left) == 11 and not any("card" in file for file in left)
    again = run_of(pretraining_config, with_card, *share)  # goes on with the same frames
    again.stages["teacher"].train(again)
    assert len(again.stages["teacher"].training_split(again).records) == 11


def test_more_shared_frames_than_the_named_share_are_refused(pretraining_config, with_card) -> None:
    run = run_of(pretraining_config, with_card, "stages.teacher.shared_share=0.2")
    told = (
        r"stages\.teacher\.shared_share=0\.2 of a video:\n(?s:.*)1 of 4 frames of train0 .* in val0"
    )
    with pytest.raises(ValueError, match=told):
        run_stages(run)


def test_a_held_out_video_of_the_same_name_is_warned_of(
    pretraining_config, unlabelled_data, tmp_path, caplog
) -> None:
    content = json.loads(Path(unlabelled_data["val"]["json"]).read_text())
    content["videos"][0]["name"] = "train1"
    (tmp_path / "val.json").write_text(json.dumps(content))
    run = make_run(pretraining_config, f"data.val.json={tmp_path / 'val.json'}")
    assert audit.frames_to_leave_out(run, "train", most=0.0, key="k") == []
    assert "data.train and data.val both have 1 video called train1: if they are" in caplog.text


def test_a_run_that_names_no_held_out_split_says_so(pretraining_config, caplog) -> None:
    run = make_run(pretraining_config, "data.val=null", "train.eval_period=0")
    assert audit.frames_to_leave_out(run, "train", most=0.0, key="k") == []
    assert "nobody looks for frames of held-out videos among those of data.train" in caplog.text


def test_all_stages_of_a_run_decode_the_frames_once(pretraining_config, monkeypatch) -> None:
    looked_at = []
    check_frames = audit.check_frames

    def counting(split):
        looked_at.append(split.json_path.name)
        return check_frames(split)

    monkeypatch.setattr(audit, "check_frames", counting)
    run_stages(make_run(pretraining_config))
    assert sorted(looked_at) == ["train_unlabelled.json", "val_unlabelled.json"]
