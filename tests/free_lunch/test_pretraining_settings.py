"""Settings of a pretraining that are refused, by their keys, before anything is trained."""

from __future__ import annotations

import pytest

from tests.tiny_runs import make_run
from v2idetr.engine.stages import run_stages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.student.temperature=0", r"^stages\.student: temperature=0 must be .* above 0"),
        ("stages.student.temperature=-0.2", r"^stages\.student: temperature=-0\.2 must"),
        (
            "stages.student.distillation_temperature=0",
            r"^stages\.student: distillation_temperature=0 must",
        ),
        ("stages.student.momentum=1.5", r"^stages\.student: momentum=1\.5 must lie in \[0, 1\)"),
        ("stages.student.momentum=-1", r"^stages\.student: momentum=-1 must"),
        ("stages.student.contrast_weight=-1", r"^stages\.student: contrast_weight=-1 must"),
        ("stages.student.distillation_weight=.nan", r"distillation_weight=nan must"),
        ("stages.contrastive.contrast_weight=0", r"^stages\.contrastive: contrast_w.* both 0"),
        ("encoder.dim=0", r"^encoder: dim=0 must be at least 1"),
        ("teacher.encoder.hidden_dim=0", r"^teacher\.encoder: hidden_dim=0 must"),
        ("views.normalize={mean: [0, 0, 0], std: [1, 1, 1]}", r"^views\.normalize is \{.* be null"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(pretraining_config, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        run_stages(make_run(pretraining_config, change))
