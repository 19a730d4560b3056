"""The suggested config follows from boxes, frames, frame rate and memory, and says why."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2idetr.config.load import load_run_config
from v2idetr.prepare.labels.suggestion import (
    SIDE_DIVISOR,
    Facts,
    Machine,
    Value,
    as_yaml,
    clip_window,
    clips_at_once,
    facts_of,
    image_size,
    suggest,
    training_steps,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CPU, GPU = Machine(16.0, has_gpu=False), Machine(16.0, has_gpu=True)


def facts(**changes) -> Facts:
    usual = Facts(
        class_names=["polyp"],
        sizes=Counter({(1280, 960): 300}),
        box_shares=[0.2] * 100,
        most_boxes=2,
        frame_rate=25.0,
        step=1,
    )
    return replace(usual, **changes)


def test_smaller_lesions_ask_for_larger_images_until_the_bound_of_the_machine() -> None:
    shares = [0.3, 0.1, 0.05, 0.01]
    sides = [image_size(facts(box_shares=[s] * 9), GPU)[:2] for s in shares]
    assert sides == [(128, 96), (192, 144), (448, 336), (640, 480)]
    for share, (_, short) in zip(shares[:3], sides, strict=False):
        assert share * short / 8 >= 1.8  # two cells, but for rounding
    _, height, reason = image_size(facts(box_shares=[0.01] * 9), CPU)
    assert height <= 272 and "larger ones are slow without a GPU" in reason
    assert "0.3 cells" in reason


def test_images_do_not_become_larger_than_the_frames() -> None:
    small = facts(sizes=Counter({(320, 240): 9}), box_shares=[0.01] * 9)
    width, height, reason = image_size(small, GPU)
    assert (width, height) == (320, 240) and "the frames are no larger" in reason


def test_frames_of_another_shape_are_mentioned() -> None:
    two = facts(sizes=Counter({(640, 480): 3, (640, 360): 1, (1280, 960): 1}))
    assert "20% of the frames have another shape" in image_size(two, GPU)[2]


@given(st.integers(100, 4000), st.integers(100, 4000), st.floats(0.005, 1.0))
def test_sides_are_multiples_and_nearly_of_the_frames_shape(w, h, share) -> None:
    width, height, _ = image_size(facts(sizes=Counter({(w, h): 5}), box_shares=[share]), GPU)
    assert width % SIDE_DIVISOR == height % SIDE_DIVISOR == 0
    assert 0.85 < (width / height) / (w / h) < 1.18
    short = min(width, height)
    assert 96 <= short <= 480 and short <= max(min(w, h), 96)  # no larger than the frames
    wanted = min(max(2 * 8 / share, 96), max(min(w, h), 96), 480)  # two cells
    assert abs(short - wanted) < 1.5 * SIDE_DIVISOR


def test_steps_are_those_measured_on_few_frames_and_the_papers_on_many() -> None:
    def steps(number: int) -> int:
        return training_steps(facts(sizes=Counter({(640, 480): number})))[0]

    assert steps(297) == pytest.approx(1000, rel=0.02)  # 2,000 steps of 8 frames
    assert steps(19_544) == pytest.approx(14_658, rel=0.02)  # the paper's, on SUN-SEG
    assert steps(20) == 400 and steps(2_000) > steps(300)
    assert steps(1_000_000) == 30_000


def test_memory_bounds_the_clips_at_once() -> None:
    small, large = Machine(2.0, has_gpu=False), Machine(64.0, has_gpu=True)
    assert clips_at_once(640, 480, small)[0] == 1
    assert clips_at_once(128, 96, large)[0] == 16
    some = clips_at_once(640, 480, CPU)[0]
    assert 1 < some < 16 and some * 0.0018432 * 1000 < 8  # half of 16 GiB
    assert clips_at_once(640, 480, Machine(None, has_gpu=False))[0] == 1


def test_the_window_is_a_third_of_a_second_and_reaches_the_next_labelled_frames() -> None:
    assert clip_window(facts(frame_rate=30.0))[0] == 10
    assert clip_window(facts(frame_rate=30.0, step=25))[0] == 50
    window, reason = clip_window(facts(frame_rate=None))
    assert window == 8 and "--frame-rate" in reason


def test_facts_are_those_of_the_training_split() -> None:
    image = {"id": 1, "width": 200, "height": 100}
    content = {
        "images": [image, {**image, "id": 2}],
        "annotations": [
            {"image_id": 1, "bbox": [0, 0, 20, 5]},
            {"image_id": 1, "bbox": [0, 0, 40, 10]},
        ],
        "videos": [{"frame_rate": 25}, {"frame_rate": 30}, {}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    found = facts_of(content, step=3)
    assert found == Facts(["a", "b"], Counter({(200, 100): 2}), [0.1, 0.2], 2, 27.5, 3)


@pytest.mark.parametrize("ultrasound", [False, True])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_the_written_config_is_one_that_training_takes(
    tmp_path: Path, machine: Machine, ultrasound: bool
) -> None:
    path = tmp_path / "own" / "train.yaml"
    path.parent.mkdir()
    given_facts = facts(class_names=["off", "b: #1 \"x\" 'y'", "ä"], most_boxes=40)
    values = suggest(given_facts, machine, ultrasound=ultrasound)
    root = tmp_path / "own" / "frames #1"
    text = as_yaml(
        values, path=path, configs=CONFIGS, data=path.parent, image_root=root, run="output/own"
    )
    path.write_text(text, encoding="utf-8")
    config = load_run_config(path, [], world_size=1, has_gpu=machine.has_gpu)
    assert list(config.data.class_names) == given_facts.class_names
    assert config.model.net.num_classes == 3 and config.model.net.num_queries == 80
    assert config.data.test.test == {"json": f"{path.parent}/test.json", "image_root": str(root)}
    assert config.train.output_dir == "output/own" and config.train.patience == 4
    kinds = [step["_target_"].rpartition(".")[2] for step in config.data.augmentations.train]
    assert ("vertical_flip" in kinds) is not ultrasound
    reasons = [value.reason for value in values if value.reason]
    assert all(f"# {reason}" in text for reason in reasons) and len(reasons) >= 8
    assert Value("train.batch_size", 16) in values
