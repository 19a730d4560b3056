"""RDN: regions related to those of neighbours, and its promises as a detector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from tests.video_detectors import videos
from tests.video_detectors.tiny_c4 import (
    as_if_trained,
    base_detections,
    calm,
    random_regions,
    tiny_rcnn,
)
from tests.video_detectors.tiny_stft import tiny_fcos
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.config.load import build, load_run_config
from v2idetr.data.reference_sampler import AdjacentSampler, WindowSampler
from v2idetr.evaluation.cost import parameters
from v2idetr.modeling.detectron2_models import Detectron2Detector
from v2idetr.runs.checkpoint import Checkpoint, load_detector, save_checkpoint
from video_detectors.rdn import RDN, Clip, propose, split_clip
from video_detectors.relation_attention import Regions

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "video"


def tiny_rdn(*, trained: bool = True, **settings) -> RDN:
    torch.manual_seed(0)
    defaults = {
        "net": tiny_rcnn(),
        "class_names": ["polyp"],
        "reference_sampler": WindowSampler(num_frames=3, window=3, sampling="random"),
        "evaluation_sampler": AdjacentSampler(before=2, after=2),
        "num_proposals": 4,
        "num_groups": 4,
    }
    detector = RDN(**{**defaults, **settings})
    if trained:
        as_if_trained(detector)
    return detector.eval()


# ------------------------------------------------------------------------- formulae


@torch.no_grad()
def test_every_stage_relates_to_the_same_regions() -> None:
    rdn = tiny_rdn(net=tiny_rcnn(stages=3))
    key, local = random_regions(5), [random_regions(n) for n in (4, 3, 4)]
    others = Regions.cat(local)
    one, two, three = rdn.relations
    fc2, fc3 = rdn.net.roi_heads.box_head.fc2, rdn.net.roi_heads.box_head.fc3

    def plus(relation: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x + relation(key.with_features(x), others)

    x = plus(one, key.features)
    x = plus(two, fc2(x).relu())
    x = plus(three, fc3(x).relu())
    torch.testing.assert_close(rdn.related(key, Clip([], local, [])), x)


@torch.no_grad()
def test_proposals_are_those_of_detectron2() -> None:
    net = tiny_rcnn().eval()
    as_if_trained(net)
    images = net.preprocess_image(videos.video(3, size=(60, 90)))
    maps = net.backbone(images.tensor)
    theirs, _ = net.proposal_generator(images, maps, None)
    for training in (False, True):
        ours = propose(net.proposal_generator.train(training), maps, images.image_sizes)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.proposal_boxes.tensor, other.proposal_boxes.tensor)
            assert torch.equal(one.objectness_logits, other.objectness_logits)


def test_frames_are_split_in_the_order_of_the_sampler() -> None:
    frames = [random_regions(1) for _ in range(5)]
    clip = split_clip(frames, AdjacentSampler(before=2, after=2))
    assert (clip.remembered, clip.local, clip.distant) == ([], frames, [])


# ------------------------------------------------------------------------- detections


def test_with_relations_that_give_nothing_it_is_the_single_frame_detector() -> None:
    rdn = tiny_rdn(evaluation_sampler=AdjacentSampler(before=2, after=0))
    for relation in rdn.relations:
        for parameter in relation.value.parameters():
            nn.init.zeros_(parameter)
    frames = videos.video(4, size=(60, 90))  # padded to 64 x 96
    have, want = videos.in_order(rdn, frames), base_detections(rdn, frames)
    assert sum(len(found) for found in want) > 4
    for ours, theirs in zip(have, want, strict=True):
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(ours.scores, theirs.scores)


@pytest.mark.parametrize("length", [1, 3, 7])
def test_videos_streams_and_single_clips_give_equal_detections(length: int) -> None:
    rdn, frames = calm(tiny_rdn()), videos.video(length)
    followed = videos.in_order(rdn, frames)
    videos.assert_equal(followed, videos.from_nothing(rdn, frames))
    videos.assert_equal(videos.streamed(rdn, frames), followed)


@pytest.mark.parametrize("changed", [1, 2, 4, 5])
def test_a_detection_depends_on_every_frame_of_its_window(changed: int) -> None:
    rdn, frames = tiny_rdn(), videos.video(7)
    before = videos.in_order(rdn, frames)
    frames[changed] = {**frames[changed], "image": 255 - frames[changed]["image"]}
    after = videos.in_order(rdn, frames)
    assert (before[3].scores[:3] - after[3].scores[:3]).abs().max() > 1e-5
    far = 6 if changed < 4 else 0
    videos.assert_equal(before[far : far + 1], after[far : far + 1])


def test_references_are_the_best_proposals() -> None:
    frames = videos.video(5)
    scores = [videos.in_order(tiny_rdn(num_proposals=n), frames)[2].scores[:3] for n in (1, 4, 12)]
    assert len({tuple(s.tolist()) for s in scores}) == 3
    more = videos.in_order(tiny_rdn(num_proposals=100), frames)[2].scores[:3]
    assert torch.equal(more, scores[-1]), "there are no more than 12"


# ------------------------------------------------------------------------- training


def test_gradients_reach_every_parameter_that_is_trained() -> None:
    rdn = tiny_rdn()
    found = videos.losses(rdn, videos.train_clips(rdn))
    assert set(found) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    torch.stack(list(found.values())).sum().backward()
    assert not videos.without_gradient(rdn)


def test_a_few_steps_lower_the_loss() -> None:
    rdn = tiny_rdn(trained=False)
    totals = videos.losses_of_steps(rdn, videos.train_clips(rdn))
    assert totals[-1] < 0.8 * totals[0]


def test_losses_of_lesion_free_frames_are_finite() -> None:
    rdn = tiny_rdn()
    found = videos.losses(rdn, videos.lesion_free(videos.train_clips(rdn)))
    assert all(loss.isfinite() for loss in found.values()) and found["loss_box_reg"] == 0
    torch.stack(list(found.values())).sum().backward()


def test_the_current_frames_alone_are_labelled() -> None:
    rdn = tiny_rdn()
    batch = videos.train_clips(rdn)
    assert (rdn.count_frames(batch), rdn.count_boxes(batch)) == (2, 2)
    before = videos.losses(rdn, batch)
    for sample in batch:
        sample["clip"] = [{**f, "instances": f["instances"][:0]} for f in sample["clip"]]
    assert videos.losses(rdn, batch) == before


def test_with_relations_that_give_nothing_losses_are_those_of_the_single_frames() -> None:
    rdn = tiny_rdn()
    for relation in rdn.relations:
        for parameter in relation.value.parameters():
            nn.init.zeros_(parameter)
    batch = videos.train_clips(rdn)
    base = Detectron2Detector(net=rdn.net, class_names=["polyp"])
    have, want = videos.losses(rdn, batch), videos.losses(base, batch)
    for name, loss in want.items():
        torch.testing.assert_close(have[name], loss)


def test_training_works_under_autocast() -> None:
    rdn = tiny_rdn()
    with torch.autocast("cpu", dtype=torch.bfloat16), EventStorage():
        found = rdn.train()(videos.train_clips(rdn))
    assert all(loss.isfinite() for loss in found.values())


# ------------------------------------------------------------------------- weights and configs


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
def test_parameters_of_rdn() -> None:
    config = load_run_config(
        CONFIGS / "rdn_sun.yaml", ["model.weights=null"], world_size=1, has_gpu=False
    )
    with torch.device("meta"):
        rdn = build(config, "video.model")
    # The released code has a box for the background as well.
    background_box = 4 * 1024 + 4
    assert round((parameters(rdn)["total"] + background_box) / 1e6, 1) == 53.7


def test_the_base_gives_its_weights_and_its_names_are_kept(tmp_path: Path) -> None:
    rdn = tiny_rdn()
    base = Detectron2Detector(net=tiny_rcnn(), class_names=["polyp"])
    assert {n for n in rdn.state_dict() if n.startswith("net.")} == set(base.state_dict())
    checkpoint = Checkpoint("plain", 1, base.state_dict(), class_names=["polyp"])
    save_checkpoint(checkpoint, tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match=r"missing in the file.*\n.*relations\.0\."):
        load_detector(rdn, tmp_path / "plain.pth")
    fresh = load_detector(rdn, tmp_path / "plain.pth", partial=True)
    assert fresh and all(name.startswith("relations.") for name in fresh)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"net: FCOS with NoneType is no Faster R-CNN whose"):
        tiny_rdn(net=tiny_fcos())
    with pytest.raises(ValueError, match=r"conv_dims=\[\] and fc_dims of one width"):
        tiny_rdn(net=tiny_rcnn(conv_dims=(8,)))
    with pytest.raises(ValueError, match=r"num_groups=5 must divide the width d=16"):
        tiny_rdn(num_groups=5)
    with pytest.raises(ValueError, match=r"num_proposals=0 must be at least 1"):
        tiny_rdn(num_proposals=0)


@pytest.mark.parametrize("data", ["clinicdb", "synthetic"])
def test_the_small_config_trains_on_its_sampler(data: str) -> None:
    config = load_run_config(
        CONFIGS / f"rdn_{data}.yaml", ["model.weights=null"], world_size=1, has_gpu=False
    )
    rdn = build(config, "video.model")
    batch = videos.train_clips(rdn, batch=1)
    torch.stack(list(videos.losses(rdn, batch).values())).sum().backward()
    assert not videos.without_gradient(rdn)
    assert len(videos.in_order(rdn, videos.video(2))) == 2
    assert videos.in_order(rdn, videos.video(1))[0].scores.isfinite().all()
