"""The loaders that a run makes for its detectors."""

from __future__ import annotations

import pytest

from tests.tiny_runs import make_run
from v2idetr.data.reference_sampler import AdjacentSampler, GlobalSampler
from v2idetr.engine.stage import build_stage


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


def test_a_sampler_of_other_clips_than_the_detector_needs_is_refused(tiny_config) -> None:
    run = make_run(tiny_config)
    models = build_stage(run.config, "teacher")
    models.model.reference_sampler = GlobalSampler(num_references=4)
    with pytest.raises(ValueError, match=r"GlobalSampler makes clips of 5 .* num_frames=3"):
        run.train_loader(run.stages["teacher"], models, 0)
