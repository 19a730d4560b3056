"""The loaders that a run makes for its detectors."""

from __future__ import annotations

import json

import pytest

from tests.tiny_runs import make_run
from v2idetr.config.load import load_config
from v2idetr.data.reference_sampler import AdjacentSampler, GlobalSampler
from v2idetr.engine.stage_graph import build_stage
from v2idetr.engine.stages import run_stages


def test_a_detector_may_bring_its_own_sampler(tiny_config) -> None:
    run = make_run(tiny_config)
    models = build_stage(run.config, "teacher")
    models.model.reference_sampler = AdjacentSampler(before=1, after=1)
    clips = {
        sample["frame_index"]: [frame["frame_index"] for frame in sample["clip"]]
        for batch in run.eval_loader(run.splits["val"], models.model)
        for sample in batch
    }
    assert clips == {0: [0, 0, 1], 1: [0, 1, 2], 2: [1, 2, 2]}
    models.model.reference_sampler = GlobalSampler(num_references=2)
    batch = next(iter(run.train_loader(run.stages["teacher"], models, 0)))
    assert {sample["clip_index"] for sample in batch} == {0}


def test_a_detector_may_look_at_other_frames_in_evaluation_than_in_training(tiny_config) -> None:
    run = make_run(tiny_config)
    models = build_stage(run.config, "teacher")
    models.model.reference_sampler = GlobalSampler(num_references=2)
    models.model.evaluation_sampler = AdjacentSampler(before=3, after=0)
    for loader, frames in (
        (run.train_loader(run.stages["teacher"], models, 0), 3),
        (run.eval_loader(run.splits["val"], models.model), 4),
    ):
        assert {len(sample["clip"]) for sample in next(iter(loader))} == {frames}
    assert run.reference_sampler(models.model, is_train=False).look_ahead == 0


def test_a_sampler_of_other_clips_than_the_detector_needs_is_refused(tiny_config) -> None:
    run = make_run(tiny_config)
    models = build_stage(run.config, "teacher")
    models.model.reference_sampler = GlobalSampler(num_references=4)
    with pytest.raises(ValueError, match=r"GlobalSampler makes clips of 5 .* num_frames=3"):
        run.train_loader(run.stages["teacher"], models, 0)


ADJACENT = "{_target_: v2idetr.data.reference_sampler.AdjacentSampler, before: 4, after: 1}"


def test_a_detectors_own_clips_may_be_longer_than_those_of_the_data(tiny_config) -> None:
    own = ["teacher.model.num_frames=6", f"teacher.model.reference_sampler={ADJACENT}"]
    run = make_run(tiny_config, *own, "train.stages=[teacher]")
    run_stages(run)
    evaluation = json.loads((run.folder / "teacher" / "evaluation.json").read_text())
    assert evaluation["look_ahead"] == 1, "one frame later than live"


def test_a_detector_of_clips_is_trained_but_not_distilled(tiny_config) -> None:
    config = load_config(tiny_config, ["model.num_frames=3"])
    with pytest.raises(ValueError, match=r"^distillation: .* model\.num_frames is 3"):
        build_stage(config, "student")
    build_stage(config, "plain")
