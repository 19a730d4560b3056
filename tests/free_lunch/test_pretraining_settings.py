"""Settings of a pretraining that are refused, by their keys, before anything is trained."""

from __future__ import annotations

import pytest

from free_lunch.pretraining import build_encoder
from tests.tiny_runs import make_run
from v2idetr.config.load import load_config
from v2idetr.engine.stages import check_models, run_stages


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


def test_views_of_one_cell_are_tried_in_pairs(pretraining_config) -> None:
    run = make_run(pretraining_config, "views.input_size=32", "train.stages=[contrastive]")
    check_models(run, ["contrastive"])  # batch normalisation cannot learn from a single value
    alone = make_run(
        pretraining_config,
        "views.input_size=32",
        "train.stages=[contrastive]",
        "train.batch_size=1",
    )
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # as in training
        check_models(alone, ["contrastive"])


def test_a_start_from_random_weights_names_the_key_of_the_encoder(
    pretraining_config, caplog
) -> None:
    build_encoder(load_config(pretraining_config), "teacher.encoder", pretrained=True)
    assert "random weights (teacher.encoder.weights is empty)" in caplog.text
