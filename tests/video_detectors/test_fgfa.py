"""FGFA: warping, weights and sums against their formulae, and its promises as a detector."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.video_detectors import videos
from tests.video_detectors.tiny_c4 import (
    C4,
    as_if_trained,
    base_detections,
    tiny_rcnn,
)
from tests.video_detectors.tiny_stft import tiny_fcos
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.config.load import build, load_run_config
from v2idetr.data.reference_sampler import AdjacentSampler, WindowSampler
from v2idetr.evaluation.cost import parameters
from v2idetr.modeling.detectron2_models import Detectron2Detector
from v2idetr.runs.checkpoint import Checkpoint, load_detector, save_checkpoint
from video_detectors.fgfa import FGFA, Embedding, Frames, warped
from video_detectors.flownet import FlowNetS

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "video"
ALONE = AdjacentSampler(before=0, after=0)


def tiny_fgfa(*, before: int = 2, after: int = 2, trained: bool = True, **settings) -> FGFA:
    torch.manual_seed(0)
    defaults = {
        "net": tiny_rcnn(),
        "class_names": ["polyp"],
        "flownet": FlowNetS(width=4),
        "embedding": Embedding(C4, 8, 10),
        "reference_sampler": WindowSampler(num_frames=3, window=3, sampling="random"),
        "evaluation_sampler": AdjacentSampler(before=before, after=after),
    }
    detector = FGFA(**{**defaults, **settings})
    if trained:
        as_if_trained(detector)
    return detector.eval()


def random_clips(C: int, T: int, *, embeddings: bool = False) -> Frames:
    maps = torch.randn(C, T, 10, 4, 6) if embeddings else None
    return Frames(torch.randn(C, T, C4, 4, 6), torch.randn(C, T, 3, 32, 48), maps)


# ------------------------------------------------------------------------- formulae


def sampled(values: np.ndarray, y: float, x: float) -> np.ndarray:
    """The mean (channels,) of the four cells around a position inside the map."""
    h, w = values.shape[1:]
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    total = np.zeros(len(values))
    for row in {math.floor(y), min(math.floor(y) + 1, h - 1)}:
        for column in {math.floor(x), min(math.floor(x) + 1, w - 1)}:
            total += values[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def moved(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    out = np.zeros_like(values)
    for y, x in np.ndindex(values.shape[1:]):
        out[:, y, x] = sampled(values, y + flow[1, y, x], x + flow[0, y, x])
    return out


def test_maps_are_warped_along_the_flow_and_at_the_border_it_is_repeated() -> None:
    rng = np.random.default_rng(0)
    maps, flow = rng.normal(size=(2, 3, 4, 5)), rng.normal(0, 3, (2, 2, 4, 5))
    have = warped(torch.tensor(maps).float(), torch.tensor(flow).float())
    want = np.stack([moved(*pair) for pair in zip(maps, flow, strict=True)])
    np.testing.assert_allclose(have, want, atol=1e-5)
    still = warped(torch.tensor(maps).float(), torch.zeros(2, 2, 4, 5))
    np.testing.assert_allclose(still, maps, atol=1e-5)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def numpy_of(module: nn.Module, x: np.ndarray) -> np.ndarray:
    return module(torch.tensor(x).float()[None])[0].numpy()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("released", [False, True])
@torch.no_grad()
def test_features_are_averaged_by_the_likeness_of_embeddings(released, training) -> None:
    fgfa = tiny_fgfa(current_in_training=not released, warp_embeddings=released).train(training)
    given_embeddings = released and not training
    clips, current = random_clips(2, 4, embeddings=given_embeddings), 1
    have = fgfa.aggregated(clips, current)
    for c in range(2):
        c4, pixels = clips.c4[c].double().numpy(), clips.pixels[c]
        features, embeddings = [], []
        for t in range(4):
            flow = fgfa.flownet(pixels[current, None], pixels[t, None])[0].double().numpy()
            assert t == current or np.abs(flow).max() > 0.1, "something moves"
            here = c4[t] if t == current else moved(c4[t], flow)
            features.append(here)
            if given_embeddings:
                alone = clips.embeddings[c, t].double().numpy()
                embeddings.append(alone if t == current else moved(alone, flow))
            else:
                embeddings.append(numpy_of(fgfa.embedding, here))
        summed = [t for t in range(4) if t != current or not (released and training)]
        for y, x in np.ndindex(4, 6):
            own = embeddings[current][:, y, x]
            weights = np.exp([cosine(embeddings[t][:, y, x], own) for t in summed])
            weights /= weights.sum()
            want = sum(w * features[t][:, y, x] for w, t in zip(weights, summed, strict=True))
            np.testing.assert_allclose(have[c, :, y, x], want, atol=1e-4)


def test_an_embedding_is_three_convolutions() -> None:
    embedding = Embedding(6, 4, 5).double()
    x = torch.randn(1, 6, 3, 4, dtype=torch.float64)
    w1, b1, w2, b2, w3, b3 = (p.detach().numpy() for p in embedding.parameters())
    first = np.maximum(np.einsum("oc,chw->ohw", w1[..., 0, 0], x[0]) + b1[:, None, None], 0)
    padded = np.pad(first, ((0, 0), (1, 1), (1, 1)))
    second = np.zeros((4, 3, 4))
    for o, y, column in np.ndindex(4, 3, 4):
        second[o, y, column] = (w2[o] * padded[:, y : y + 3, column : column + 3]).sum() + b2[o]
    third = np.einsum("oc,chw->ohw", w3[..., 0, 0], np.maximum(second, 0)) + b3[:, None, None]
    np.testing.assert_allclose(embedding(x)[0].detach(), third)


# ------------------------------------------------------------------------- detections


@pytest.mark.parametrize("released", [False, True])
def test_without_references_it_is_the_single_frame_detector(released: bool) -> None:
    fgfa = tiny_fgfa(before=0, after=0, warp_embeddings=released)
    frames = videos.video(4, size=(60, 90))  # padded to 64 x 96
    have, want = videos.in_order(fgfa, frames), base_detections(fgfa, frames)
    assert sum(len(found) for found in want) > 4
    for ours, theirs in zip(have, want, strict=True):
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(ours.scores, theirs.scores)


def test_with_equal_frames_and_no_flow_it_is_the_single_frame_detector() -> None:
    fgfa = tiny_fgfa()
    for parameter in fgfa.flownet.predict2.parameters():
        nn.init.zeros_(parameter)
    frames = videos.video(5)
    frames = [{**frame, "image": frames[0]["image"]} for frame in frames]
    videos.assert_equal(videos.in_order(fgfa, frames), base_detections(fgfa, frames))


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("length", [1, 3, 7])
def test_videos_streams_and_single_clips_give_equal_detections(length, released) -> None:
    fgfa, frames = tiny_fgfa(warp_embeddings=released), videos.video(length)
    followed = videos.in_order(fgfa, frames)
    videos.assert_equal(followed, videos.from_nothing(fgfa, frames))
    videos.assert_equal(videos.streamed(fgfa, frames), followed)


@pytest.mark.parametrize("changed", [1, 2, 4, 5])
def test_a_detection_depends_on_every_frame_of_its_window(changed: int) -> None:
    fgfa, frames = tiny_fgfa(), videos.video(7)
    before = videos.in_order(fgfa, frames)
    frames[changed] = {**frames[changed], "image": 255 - frames[changed]["image"]}
    after = videos.in_order(fgfa, frames)
    assert (before[3].scores[:3] - after[3].scores[:3]).abs().max() > 1e-5
    far = 6 if changed < 4 else 0
    videos.assert_equal(before[far : far + 1], after[far : far + 1])


def test_warped_embeddings_change_detections_and_no_loss() -> None:
    frames = videos.video(5)
    paper, released = tiny_fgfa(), tiny_fgfa(warp_embeddings=True)
    one, other = videos.in_order(paper, frames), videos.in_order(released, frames)
    assert (one[2].scores[:3] - other[2].scores[:3]).abs().max() > 1e-6
    batch = videos.train_clips(paper)
    assert videos.losses(paper, batch) == videos.losses(released, batch)


def test_the_current_frame_in_training_changes_the_losses_and_no_detection() -> None:
    frames = videos.video(5)
    paper, released = tiny_fgfa(), tiny_fgfa(current_in_training=False)
    videos.assert_equal(videos.in_order(paper, frames), videos.in_order(released, frames))
    batch = videos.train_clips(paper)
    assert videos.losses(paper, batch) != videos.losses(released, batch)


# ------------------------------------------------------------------------- training


@pytest.mark.parametrize("current", [False, True])
def test_gradients_reach_every_parameter_that_is_trained(current: bool) -> None:
    fgfa = tiny_fgfa(current_in_training=current)
    found = videos.losses(fgfa, videos.train_clips(fgfa))
    assert set(found) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    torch.stack(list(found.values())).sum().backward()
    assert not videos.without_gradient(fgfa)
    assert all(p.grad.any() for n, p in fgfa.named_parameters() if n.startswith("flownet"))


def test_a_few_steps_lower_the_loss() -> None:
    fgfa = tiny_fgfa(trained=False)
    totals = videos.losses_of_steps(fgfa, videos.train_clips(fgfa))
    assert totals[-1] < 0.8 * totals[0]


def test_losses_of_lesion_free_frames_are_finite() -> None:
    fgfa = tiny_fgfa()
    found = videos.losses(fgfa, videos.lesion_free(videos.train_clips(fgfa)))
    assert all(loss.isfinite() for loss in found.values()) and found["loss_box_reg"] == 0
    torch.stack(list(found.values())).sum().backward()


def test_the_current_frames_alone_are_labelled() -> None:
    fgfa = tiny_fgfa()
    batch = videos.train_clips(fgfa)
    assert (fgfa.count_frames(batch), fgfa.count_boxes(batch)) == (2, 2)
    before = videos.losses(fgfa, batch)
    for sample in batch:
        sample["clip"] = [{**f, "instances": f["instances"][:0]} for f in sample["clip"]]
    assert videos.losses(fgfa, batch) == before


def test_a_clip_does_not_see_the_others_of_its_batch() -> None:
    fgfa = tiny_fgfa().train()
    clips = random_clips(3, 3)
    together = fgfa.aggregated(clips, 1)
    for c in range(3):
        alone = fgfa.aggregated(clips.map(lambda x, c=c: x[c : c + 1]), 1)
        torch.testing.assert_close(together[c : c + 1], alone)


def test_a_training_clip_without_references_has_the_losses_of_the_single_frame() -> None:
    fgfa = tiny_fgfa(reference_sampler=ALONE)
    batch = videos.train_clips(fgfa)
    base = Detectron2Detector(net=fgfa.net, class_names=["polyp"])
    assert videos.losses(fgfa, batch) == videos.losses(base, batch)


def test_precision_of_positions_survives_autocast() -> None:
    fgfa = tiny_fgfa()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = videos.losses(fgfa, videos.train_clips(fgfa))
        maps, flow = torch.randn(1, 2, 4, 5), torch.full((1, 2, 4, 5), 0.4)
        assert warped(maps.bfloat16(), flow).dtype == torch.float32
    assert all(loss.isfinite() for loss in found.values())


# ------------------------------------------------------------------------- weights and configs


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
def test_parameters_of_fgfa() -> None:
    config = load_run_config(
        CONFIGS / "fgfa_sun.yaml", ["model.weights=null"], world_size=1, has_gpu=False
    )
    with torch.device("meta"):
        fgfa, base = build(config, "video.model"), build(config, "model")
    parts = [fgfa.flownet, fgfa.embedding, base]
    assert [round(parameters(part)["total"] / 1e6, 1) for part in parts] == [38.7, 3.9, 47.4]
    # The released code has a box for the background as well.
    background_box = 4 * 1024 + 4
    assert round((parameters(fgfa)["total"] + background_box) / 1e6, 1) == 90.0


def test_the_base_gives_its_weights_and_its_names_are_kept(tmp_path: Path) -> None:
    fgfa = tiny_fgfa()
    base = Detectron2Detector(net=tiny_rcnn(), class_names=["polyp"])
    assert {n for n in fgfa.state_dict() if n.startswith("net.")} == set(base.state_dict())
    checkpoint = Checkpoint("plain", 1, base.state_dict(), class_names=["polyp"])
    save_checkpoint(checkpoint, tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match=r"missing in the file.*\n.*embedding\.0\.bias"):
        load_detector(fgfa, tmp_path / "plain.pth")
    fresh = load_detector(fgfa, tmp_path / "plain.pth", partial=True)
    assert {name.split(".")[0] for name in fresh} == {"flownet", "embedding"}


def test_weights_of_the_flow_are_not_looked_for_where_others_follow(caplog, tmp_path) -> None:
    with caplog.at_level(logging.WARNING):
        tiny_fgfa(weights=None, flow_weights=str(tmp_path / "nowhere.ckpt"))
        assert not caplog.records
        tiny_fgfa(weights="")
    assert "video.model.flow_weights is empty" in caplog.text
    torch.save({"state_dict": FlowNetS(width=4).state_dict()}, tmp_path / "flow.ckpt")
    tiny_fgfa(weights="", flow_weights=str(tmp_path / "flow.ckpt"))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"net: FCOS with FPN has no map c4.*faster_rcnn_c4\.py"):
        tiny_fgfa(net=tiny_fcos())
    with pytest.raises(ValueError, match=r"flownet\.stride=8 must be net\.backbone\.stride=16"):
        tiny_fgfa(flownet=FlowNetS(width=4, stride=8))
    with pytest.raises(ValueError, match=r"no reference, and current_in_training=false leaves"):
        tiny_fgfa(reference_sampler=ALONE, current_in_training=False)


@pytest.mark.parametrize("data", ["clinicdb", "synthetic"])
def test_the_small_config_trains_on_its_sampler(data: str) -> None:
    config = load_run_config(
        CONFIGS / f"fgfa_{data}.yaml", ["model.weights=null"], world_size=1, has_gpu=False
    )
    fgfa = build(config, "video.model")
    batch = videos.train_clips(fgfa, batch=1)
    torch.stack(list(videos.losses(fgfa, batch).values())).sum().backward()
    assert not videos.without_gradient(fgfa)
    assert len(videos.in_order(fgfa, videos.video(2))) == 2
