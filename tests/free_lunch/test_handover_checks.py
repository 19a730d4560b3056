"""A backbone that does not fit its detector is refused before anything is pretrained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.free_lunch.tiny_phases import TINY_ENCODER
from tests.tiny_runs import make_run
from v2idetr.config.load import build
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stages import check_models, run_stages
from v2idetr.modeling.backbone_handover import pixel_statistics, take_backbone
from v2idetr.runs.checkpoint import load_checkpoint

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # the detector's
ENCODER = {
    "_target_": "free_lunch.encoder.Encoder",
    **TINY_ENCODER,
    "pixel_mean": MEAN,
    "pixel_std": STD,
}
VIEWS = {"_target_": "lightly.transforms.MoCoV2Transform", "input_size": 64, "normalize": None}
STAGE = {"_target_": "free_lunch.pretraining.PretrainingStage", "queue_size": 8}


def chain(path: Path, *changes: str, **encoder) -> RunContext:
    """A backbone that is pretrained for a detector, two steps each."""
    return make_run(
        path,
        f"model.net.backbone={json.dumps(TINY_ENCODER['backbone'])}",
        f"+encoder={json.dumps(ENCODER | encoder)}",
        f"+views={json.dumps(VIEWS)}",
        f"+stages.contrastive={json.dumps(STAGE)}",
        "+stages.plain.needs={backbone: contrastive}",
        "train.stages=[contrastive, plain]",
        *changes,
    )


def test_a_backbone_that_fits_is_handed_on(tiny_config: Path) -> None:
    run = chain(tiny_config)
    run_stages(run)
    pretrained = load_checkpoint(run.folder / "contrastive" / "final.pth")
    assert pretrained.pixels == pixel_statistics(build(run.config, "encoder"))
    take_backbone(build(run.config, "model"), run.folder / "contrastive" / "final.pth", key="k")


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            {"backbone": {"_target_": "tiny_parts.TinyNormBackbone", "width": 16}},
            r"^the stage contrastive does not fit the backbone TinyNormBackbone: .*another shape "
            r".*in stages\.plain\.needs\.backbone",
        ),
        (
            {"backbone": {"_target_": "tiny_parts.TinyBackbone", "width": 8}},
            r"^the stage contrastive does not fit the backbone .*missing \['norm\.weight'",
        ),
        (
            {"pixel_mean": [127.0, 127.0, 127.0]},
            r"^stages\.plain\.needs\.backbone: the backbone of the stage contrastive .*"
            r"pixel_mean=\[127\.0, .*\[123\.675, .*Give both the same",
        ),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused_before_it_is_pretrained(
    tiny_config: Path, encoder: dict, message: str
) -> None:
    run = chain(tiny_config, **encoder)
    with pytest.raises(ValueError, match=message):
        run_stages(run)
    assert not run.stage_folder("contrastive").exists()


@pytest.mark.parametrize("key", ["model.net.weights", "encoder.weights"])
def test_a_file_of_otherwise_normalised_images_is_refused(
    tiny_config: Path, tmp_path: Path, key: str
) -> None:
    state = build(chain(tiny_config).config, "encoder").state_dict()
    file = tmp_path / "given.pth"
    stage = "contrastive" if key.startswith("encoder") else "plain"
    change = (f"{key}={file}", f"train.stages=[{stage}]", "stages.plain.needs={}")
    for pixels in ({"pixel_mean": MEAN, "pixel_std": STD}, {}):  # an older file does not say
        torch.save({"model": state, "pixels": pixels}, file)
        run = chain(tiny_config, *change)
        check_models(run, [stage])
    torch.save({"model": state, "pixels": {"pixel_mean": MEAN, "pixel_std": [1.0] * 3}}, file)
    with pytest.raises(ValueError, match=rf"{key}: the backbone of {file} has learned.*\[1\.0, 1"):
        check_models(chain(tiny_config, *change), [stage])
