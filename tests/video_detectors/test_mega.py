"""MEGA: global and local relations, what is remembered, and its promises as a detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from tests.video_detectors import videos
from tests.video_detectors.tiny_c4 import (
    D,
    as_if_trained,
    base_detections,
    calm,
    random_regions,
    tiny_rcnn,
)
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.config.load import build, load_run_config
from v2idetr.data.reference_sampler import (
    AdjacentSampler,
    GlobalSampler,
    MixedSampler,
    VideoFrames,
    WindowSampler,
)
from v2idetr.evaluation.cost import parameters
from v2idetr.evaluation.predictions import evaluating
from v2idetr.modeling.detectron2_models import Detectron2Detector
from v2idetr.runs.checkpoint import Checkpoint, load_detector, save_checkpoint
from video_detectors.mega import MEGA, MemorySampler
from video_detectors.rdn import Clip, split_clip
from video_detectors.relation_attention import Regions

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "video"
BEST, DISTILLED = 4, 2


def training_sampler(*, num_global: int = 2, num_memory: int = 2):
    local = WindowSampler(num_frames=3, window=2, sampling="random")
    if num_global:
        local = MixedSampler(local=local, distant=GlobalSampler(num_references=num_global))
    if not num_memory:
        return local
    return MemorySampler(local=local, num_memory=num_memory, nearest=3, farthest=6)


def window(before: int = 1, after: int = 1, *, num_global: int = 3):
    local = AdjacentSampler(before=before, after=after)
    if not num_global:
        return local
    distant = GlobalSampler(num_references=num_global, in_evaluation="shuffled")
    return MixedSampler(local=local, distant=distant)


def tiny_mega(*, trained: bool = True, **settings) -> MEGA:
    torch.manual_seed(0)
    defaults = {
        "net": tiny_rcnn(stages=3),
        "class_names": ["polyp"],
        "reference_sampler": training_sampler(),
        "evaluation_sampler": window(),
        "num_proposals": BEST,
        "num_distilled": DISTILLED,
        "num_groups": 4,
        "memory_frames": 3,
    }
    detector = MEGA(**{**defaults, **settings})
    if trained:
        as_if_trained(detector)
    return detector.eval()


def without_memory(**settings) -> MEGA:
    sampler = training_sampler(num_memory=0)
    return tiny_mega(reference_sampler=sampler, memory_frames=0, **settings)


def silent(mega: MEGA, *names: str) -> MEGA:
    """Relations whose names begin so give nothing."""
    for name, parameter in mega.named_parameters():
        if name.startswith(names) and "value" in name:
            nn.init.zeros_(parameter)
    return mega


def ids(samples: list[dict]) -> list[int]:
    return [sample["frame_index"] for sample in samples]


# ------------------------------------------------------------------------- formulae


def plus(relation: nn.Module, regions: Regions, others: Regions) -> torch.Tensor:
    return regions.features + relation(regions, others)


def by_hand(mega: MEGA, key: Regions, local: list[Regions], memory: list[Regions] | None):
    """Three stages, key and references apart -> features of the key, keys of every stage."""
    one, two, three = mega.relations
    fc2, fc3 = mega.net.roi_heads.box_head.fc2, mega.net.roi_heads.box_head.fc3
    best = [frame.first(DISTILLED) for frame in local]

    def related_to(regions: list[Regions], stage: int) -> Regions:
        return Regions.cat([*regions, memory[stage]] if memory else regions)

    others = related_to(local, 0)
    key = key.with_features(fc2(plus(one, key, others)).relu())
    second = [frame.with_features(fc2(plus(one, frame, others)).relu()) for frame in best]
    others = related_to(second, 1)
    key = key.with_features(fc3(plus(two, key, others)).relu())
    third = [frame.with_features(fc3(plus(two, frame, others)).relu()) for frame in second]
    return plus(three, key, related_to(third, 2)), [local, second, third]


def informed(mega: MEGA, regions: Regions, distant: list[Regions]) -> Regions:
    return regions.with_features(plus(mega.global_relation, regions, Regions.cat(distant)))


@pytest.mark.parametrize("remembered", [0, 2])
@torch.no_grad()
def test_in_training_memory_is_made_of_the_frames_before_the_window(remembered: int) -> None:
    mega, key = tiny_mega(), random_regions(5)
    past = [random_regions(n) for n in (4, 3)[:remembered]]
    local, distant = [random_regions(4) for _ in range(3)], [random_regions(4) for _ in range(2)]
    memory = None
    if past:
        frames = [informed(mega, frame, distant) for frame in past]
        _, stages = by_hand(mega, random_regions(1), frames, None)
        memory = [Regions.cat(frames) for frames in stages]
        assert [len(regions) for regions in memory] == [7, 4, 4]
    frames = [informed(mega, frame, distant) for frame in local]
    want, _ = by_hand(mega, informed(mega, key, distant), frames, memory)
    have = mega.related(key, Clip(past, local, distant))
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_in_a_video_frames_that_have_left_are_remembered_as_they_were() -> None:
    mega, frames = calm(tiny_mega()), videos.video(9)
    samples = videos.clips(frames, mega.evaluation_sampler)
    states = dict(zip(ids(frames), mega.encode(frames), strict=True))
    memory: list[list[Regions]] = []
    leaving: tuple[int, list[Regions]] | None = None
    for sample in samples:
        clip_ids = ids(sample["clip"])
        if leaving is not None and leaving[0] not in clip_ids[:3]:
            memory = [*memory, leaving[1]][-3:]
        regions = [Regions(states[i].proposal_boxes.tensor, states[i].features) for i in clip_ids]
        distant = [r.first(BEST) for r in regions[3:]]
        local = [informed(mega, r.first(BEST), distant) for r in regions[:3]]
        past = [Regions.cat([stages[i] for stages in memory]) for i in range(3)] if memory else None
        key = informed(mega, regions[1], distant)
        want, stages = by_hand(mega, key, local, past)
        leaving = clip_ids[0], [of_frames[0] for of_frames in stages]

        clip = split_clip([r.first(BEST) for r in regions], mega.evaluation_sampler)
        have = mega.related_in_video(sample, regions[1], clip)
        torch.testing.assert_close(have, want, rtol=1e-3, atol=1e-3)
    assert len(memory) == 3, "the oldest of six are forgotten"


def test_memory_sampler_draws_from_before_the_window() -> None:
    frames = VideoFrames(np.arange(100), range(0, 100))
    sampler, rng = training_sampler(num_memory=3), np.random.default_rng(0)
    assert (sampler.num_frames, sampler.clip_index, sampler.num_global) == (8, 4, 2)
    drawn = set()
    for _ in range(50):
        places = sampler(frames, 50, rng)
        past, local = places[:3], places[3:6]
        assert past == sorted(set(past)) and local[1] == 50
        assert past[0] >= 44 and past[-1] <= 47 and 48 <= local[0] < 50 < local[2] <= 52
        drawn |= set(past)
    assert drawn == {44, 45, 46, 47}
    assert sampler(frames, 50, None)[:3] == sampler(frames, 50, None)[:3] == [44, 46, 47]


def test_distances_of_the_memory_are_in_frames_of_the_video_and_inside_the_scene() -> None:
    frames = VideoFrames(np.arange(0, 300, 3), range(10, 100))
    sampler, rng = training_sampler(num_memory=3), np.random.default_rng(0)
    assert set(sampler(frames, 50, rng)[:3]) == {48, 49}
    assert set(sampler(frames, 11, rng)[:3]) == {10}
    assert set(sampler(frames, 10, rng)[:3]) == {10}, "the first frame of a scene is repeated"


def test_settings_of_the_memory_sampler_are_checked() -> None:
    with pytest.raises(ValueError, match=r"1 <= nearest=6 <= farthest=3"):
        MemorySampler(local=window(), num_memory=1, nearest=6, farthest=3)
    with pytest.raises(ValueError, match=r"num_memory=0 must be at least 1"):
        MemorySampler(local=window(), num_memory=0, nearest=1, farthest=3)


# ------------------------------------------------------------------------- detections


def test_with_relations_that_give_nothing_it_is_the_single_frame_detector() -> None:
    mega = silent(tiny_mega(evaluation_sampler=window(2, 0)), "relations", "global_relation")
    frames = videos.video(4, size=(60, 90))  # padded to 64 x 96
    have, want = videos.in_order(mega, frames), base_detections(mega, frames)
    videos.assert_equal(have, want)
    alone = silent(without_memory(evaluation_sampler=window(0, 0)), "relations", "global_relation")
    frames = frames[:1]  # encoded alone, as by the single-frame detector
    for ours, theirs in zip(
        videos.in_order(alone, frames), base_detections(alone, frames), strict=True
    ):
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(ours.scores, theirs.scores)


@pytest.mark.parametrize("length", [1, 3, 8])
def test_without_memory_videos_streams_and_single_clips_are_equal(length: int) -> None:
    mega, frames = calm(without_memory()), videos.video(length)
    followed = videos.in_order(mega, frames)
    videos.assert_equal(followed, videos.from_nothing(mega, frames))
    videos.assert_equal(videos.streamed(mega, frames), followed)


@pytest.mark.parametrize("num_global", [0, 3])
@pytest.mark.parametrize("length", [1, 3, 8])
def test_with_memory_streams_and_videos_are_equal(length: int, num_global: int) -> None:
    mega = tiny_mega(
        reference_sampler=training_sampler(num_global=num_global),
        evaluation_sampler=window(num_global=num_global),
    )
    frames = videos.video(length)
    videos.assert_equal(videos.streamed(mega, frames), videos.in_order(mega, frames))


def test_a_video_in_one_batch_has_the_detections_of_frame_by_frame() -> None:
    mega, frames = tiny_mega(), videos.video(9)
    one_by_one = videos.in_order(mega, frames)
    with evaluating(mega):
        mega.reset()
        at_once = mega(videos.clips(frames, mega.evaluation_sampler))
    videos.assert_equal([found["instances"] for found in at_once], one_by_one)


def scores_at(mega: MEGA, frames: list[dict], frame: int) -> torch.Tensor:
    return videos.in_order(mega, frames)[frame].scores[:3]


def changed(frames: list[dict], place: int) -> list[dict]:
    frames = list(frames)
    frames[place] = {**frames[place], "image": 255 - frames[place]["image"]}
    return frames


@pytest.mark.parametrize(("memory_frames", "oldest"), [(0, 7), (1, 4), (2, 1)])
def test_memory_lengthens_the_range_at_every_stage(memory_frames: int, oldest: int) -> None:
    num_memory = 2 if memory_frames else 0
    mega = calm(
        tiny_mega(
            reference_sampler=training_sampler(num_global=0, num_memory=num_memory),
            evaluation_sampler=window(num_global=0),
            memory_frames=memory_frames,
        )
    )
    frames = videos.video(10)
    before = scores_at(mega, frames, 8)
    assert (before - scores_at(mega, changed(frames, oldest), 8)).abs().max() > 1e-7
    assert torch.equal(before, scores_at(mega, changed(frames, oldest - 1), 8))


def test_a_detection_depends_on_frames_of_the_whole_video() -> None:
    mega, frames = without_memory(), videos.video(12)
    distant = ids(videos.clips(frames, mega.evaluation_sampler)[1]["clip"][3:])
    (far,) = [i for i in distant if i > 3][:1]
    before, after = (scores_at(mega, f, 1) for f in (frames, changed(frames, far)))
    assert (before - after).abs().max() > 1e-6
    silent(mega, "global_relation")
    before, after = (scores_at(mega, f, 1) for f in (frames, changed(frames, far)))
    torch.testing.assert_close(before, after)


def test_a_new_video_begins_without_memory() -> None:
    mega, first, second = tiny_mega(), videos.video(7), videos.video(7, seed=1)
    alone = videos.in_order(mega, second)
    videos.in_order(mega, first)
    videos.assert_equal(videos.in_order(mega, second), alone)


def test_the_memory_keeps_no_more_than_its_frames_and_no_gradient() -> None:
    mega, frames = tiny_mega(), videos.video(9)
    mega.reset()
    for sample in videos.clips(frames, mega.evaluation_sampler):
        mega([sample])  # with gradients
        assert len(mega._memory) <= 3
    assert [[len(r) for r in stages] for stages in mega._memory] == [[BEST, 2, 2]] * 3
    assert not any(r.features.requires_grad for stages in mega._memory for r in stages)


# ------------------------------------------------------------------------- training


@pytest.mark.parametrize(("num_global", "num_memory"), [(2, 2), (0, 2), (2, 0)])
def test_gradients_reach_every_parameter_that_is_trained(num_global, num_memory) -> None:
    mega = tiny_mega(
        reference_sampler=training_sampler(num_global=num_global, num_memory=num_memory),
        evaluation_sampler=window(num_global=num_global),
        memory_frames=3 if num_memory else 0,
    )
    found = videos.losses(mega, videos.train_clips(mega))
    assert set(found) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    torch.stack(list(found.values())).sum().backward()
    assert not videos.without_gradient(mega)


def test_frames_of_the_memory_get_no_gradient_and_matter() -> None:
    mega = tiny_mega().train()
    key, local, distant = random_regions(5), [random_regions(4)], [random_regions(4)]
    past = [random_regions(4)]
    for region in (past[0], local[0], distant[0]):
        region.features.requires_grad_()
    related = mega.related(key, Clip(past, local, distant))
    related.sum().backward()
    assert past[0].features.grad is None
    assert local[0].features.grad.any() and distant[0].features.grad.any()
    other = mega.related(key, Clip([random_regions(4)], local, distant))
    assert (other - related).abs().max() > 1e-4


def test_a_few_steps_lower_the_loss() -> None:
    mega = tiny_mega(trained=False)
    totals = videos.losses_of_steps(mega, videos.train_clips(mega))
    assert totals[-1] < 0.8 * totals[0]


def test_losses_of_lesion_free_frames_are_finite() -> None:
    mega = tiny_mega()
    found = videos.losses(mega, videos.lesion_free(videos.train_clips(mega)))
    assert all(loss.isfinite() for loss in found.values()) and found["loss_box_reg"] == 0
    torch.stack(list(found.values())).sum().backward()


def test_every_clip_of_a_batch_has_its_own_frames() -> None:
    mega = silent(tiny_mega(), "relations", "global_relation")
    seen: list[Clip] = []
    mega.related = lambda key, clip: seen.append(clip) or key.features  # what it is called with
    batch = videos.train_clips(mega, 12, batch=3)
    videos.losses(mega, batch)
    for sample, clip in zip(batch, seen, strict=True):
        frames = sample["clip"]
        with torch.no_grad():
            alone = [mega.seen([frame])[-1][0] for frame in frames]
        have = [*clip.remembered, *clip.local, *clip.distant]
        assert list(map(len, (clip.remembered, clip.local, clip.distant))) == [2, 3, 2]
        for one, other in zip(have, alone, strict=True):
            torch.testing.assert_close(one.features, other.features, rtol=1e-4, atol=1e-4)


def test_with_relations_that_give_nothing_losses_are_those_of_the_single_frames() -> None:
    mega = silent(tiny_mega(), "relations", "global_relation")
    batch = videos.train_clips(mega)
    assert (mega.count_frames(batch), mega.count_boxes(batch)) == (2, 2)
    base = Detectron2Detector(net=mega.net, class_names=["polyp"])
    have, want = videos.losses(mega, batch), videos.losses(base, batch)
    for name, loss in want.items():
        torch.testing.assert_close(have[name], loss)


def test_a_frame_without_proposals_adds_nothing() -> None:
    mega, key = tiny_mega(), random_regions(3)
    local, distant = [random_regions(4), random_regions(0)], [random_regions(4)]
    have = mega.related(key, Clip([random_regions(0)], local, distant))
    torch.testing.assert_close(have, mega.related(key, Clip([], local[:1], distant)))
    nothing = Instances((64, 96))
    nothing.proposal_boxes, nothing.features = Boxes(torch.zeros(0, 4)), torch.zeros(0, D)
    nothing.objectness_logits = torch.zeros(0)
    frames = videos.video(3)
    mega.encode = lambda frames: [nothing[:] for _ in frames]
    assert [len(found) for found in videos.in_order(mega, frames)] == [0, 0, 0]


# ------------------------------------------------------------------------- weights and configs


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
def test_parameters_of_mega() -> None:
    config = load_run_config(
        CONFIGS / "mega_sun.yaml", ["model.weights=null"], world_size=1, has_gpu=False
    )
    with torch.device("meta"):
        mega = build(config, "video.model")
    net = mega.net
    # The released code has a box for the background as well, and biases of W_Q twice.
    background_box, twice = 4 * 1024 + 4, 4 * 1024
    last = [net.roi_heads, net.backbone.bottom_up.res5, net.backbone.reduce]
    parts = [*last, mega.relations, mega.global_relation]
    heads = sum(parameters(part)["total"] for part in parts) + background_box + twice
    rpn = parameters(net.proposal_generator)["total"]
    total = parameters(mega)["total"] + background_box + twice
    others = total - heads - rpn
    assert [round(x / 1e6, 1) for x in (heads, rpn, others)] == [43.0, 9.5, 8.5]
    # mega.pytorch has four sizes of anchors, for larger images; these are five.
    three_anchors = 3 * (1 + 4) * (1024 + 1)
    assert round((total - three_anchors) / 1e6, 1) == 61.0


def test_weights_of_rdn_are_refused_by_name(tmp_path: Path) -> None:
    mega = tiny_mega()
    state = {n: t for n, t in mega.state_dict().items() if not n.startswith("global_relation")}
    save_checkpoint(Checkpoint("video", 1, state, class_names=["polyp"]), tmp_path / "rdn.pth")
    with pytest.raises(CheckpointError, match=r"missing in the file.*\n.*global_relation\.key"):
        load_detector(mega, tmp_path / "rdn.pth")
    base = Detectron2Detector(net=tiny_rcnn(stages=3), class_names=["polyp"])
    assert {n for n in mega.state_dict() if n.startswith("net.")} == set(base.state_dict())


def test_samplers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"memory_frames=3, but reference_sampler draws 0 frames"):
        tiny_mega(reference_sampler=training_sampler(num_memory=0))
    with pytest.raises(ValueError, match=r"memory_frames=0, but reference_sampler draws 2 frames"):
        tiny_mega(memory_frames=0)
    with pytest.raises(ValueError, match=r"evaluation_sampler must give a window alone"):
        tiny_mega(evaluation_sampler=None)
    with pytest.raises(ValueError, match=r"must both have frames of the whole video, or neither"):
        tiny_mega(evaluation_sampler=window(num_global=0))
    with pytest.raises(ValueError, match=r"num_distilled=5 must be between 1 and num_proposals=4"):
        tiny_mega(num_distilled=5)


@pytest.mark.parametrize("data", ["clinicdb", "synthetic"])
def test_the_small_config_trains_on_its_sampler(data: str) -> None:
    config = load_run_config(
        CONFIGS / f"mega_{data}.yaml", ["model.weights=null"], world_size=1, has_gpu=False
    )
    mega = build(config, "video.model")
    batch = videos.train_clips(mega, batch=1)
    torch.stack(list(videos.losses(mega, batch).values())).sum().backward()
    assert not videos.without_gradient(mega)
    assert len(videos.in_order(mega, videos.video(2))) == 2
