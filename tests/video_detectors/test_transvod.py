"""TransVOD: its formulae, its two steps of training, and the single-frame detector below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from detectron2.config import LazyConfig, instantiate
from torch import nn

from tests.conftest import TinyBackbone, criterion
from tests.video_detectors.attention_in_numpy import (
    array,
    attended,
    deformably_attended,
    feed_forward,
    layer_norm,
    linear,
)
from tests.video_detectors.videos import (
    assert_equal,
    clips,
    from_nothing,
    in_order,
    lesion_free,
    losses_of_steps,
    streamed,
    train_clips,
    video,
    without_gradient,
)
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.data.reference_sampler import AdjacentSampler, GlobalSampler, WindowSampler
from v2idetr.modeling.backbone_weights import load_backbone
from v2idetr.modeling.deformable_detr import DeformableDETR
from v2idetr.modeling.meta_arch import Detector
from v2idetr.modeling.token_attention import TokenGrid
from v2idetr.runs.checkpoint import load_detector
from video_detectors.transvod import (
    FrameOutput,
    MemoryEncoderLayer,
    QueryEncoderLayer,
    TemporalTransformer,
    TransVOD,
)

D, HEADS, N, R = 32, 4, 10, 2
SHAPES = [(3, 4), (2, 2)]
BASES = {
    "refined": {"box_refine": True},
    "two stages": {"box_refine": True, "two_stage": True, "mixed_queries": True},
    "not refined": {},
}


def full_size() -> Any:
    """The single-frame detector of the paper's size, as it is configured."""
    models = Path(__file__).resolve().parents[2] / "configs" / "models"
    return LazyConfig.load(str(models / "transvod.py")).model


def tiny_net(**changes) -> DeformableDETR:
    settings = {"num_classes": 1, "d": D, "num_queries": N, "num_heads": HEADS, "ffn_dim": 48}
    settings |= {"num_encoder_layers": 1, "num_decoder_layers": 2, "dropout": 0.0} | changes
    net = DeformableDETR(backbone=TinyBackbone(), weights=None, **settings)
    for head in net.box_heads:
        nn.init.normal_(head.layers[-1].weight, std=0.1)
    return net


def tiny_temporal(**changes) -> TemporalTransformer:
    settings = {"d": D, "num_levels": 4, "num_references": R, "num_heads": HEADS, "ffn_dim": 48}
    return TemporalTransformer(**{**settings, "dropout": 0.0, **changes})


def tiny(*, base=None, temporal=None, names=("polyp",), **samplers) -> TransVOD:
    torch.manual_seed(0)
    module = tiny_temporal(num_classes=len(names), **(temporal or {}))
    net = tiny_net(num_classes=len(names), **(BASES["refined"] if base is None else base))
    nn.init.normal_(module.box_heads[0].layers[-1].weight, std=0.1)
    return TransVOD(
        net=net,
        temporal=module,
        criterion=criterion(),
        class_names=list(names),
        **{"reference_sampler": AdjacentSampler(before=1, after=1), **samplers},
    )


def disturbed(module: nn.Module) -> nn.Module:
    """Weights that are nowhere zero, in evaluation mode."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


# ------------------------------------------------------------------------- the formulae


def frames(
    count: int, *, padded: bool = False, N: int = N, K: int = 1, ref: int = 4
) -> FrameOutput:
    S = sum(h * w for h, w in SHAPES)
    padding, ratios = None, torch.ones(count, 2, 2)
    if padded:  # the last column of both levels
        masks = [torch.zeros(count, h, w, dtype=torch.bool) for h, w in SHAPES]
        for mask in masks:
            mask[..., -1] = True
        padding = torch.cat([mask.flatten(1) for mask in masks], 1)
        ratios[..., 0] = torch.tensor([0.7, 0.5])
    return FrameOutput(
        tokens=torch.randn(count, S, D),
        position=torch.randn(count, S, D),
        padding=padding,
        valid_ratios=ratios,
        shapes=SHAPES,
        hidden=torch.randn(count, N, D),
        logits=torch.randn(count, N, K),
        boxes=torch.rand(count, N, 4),
        reference=torch.rand(count, N, ref),
    )


def levels_of(tokens: np.ndarray) -> list[np.ndarray]:
    """Tokens (S, c) of one image -> maps (h, w, c)."""
    sizes = [h * w for h, w in SHAPES]
    parts = np.split(tokens, np.cumsum(sizes)[:-1])
    return [part.reshape(*hw, *part.shape[1:]) for part, hw in zip(parts, SHAPES, strict=True)]


def centres(ratios: np.ndarray) -> np.ndarray:
    """Cell centres (S, 2) in [0, 1] of the image without padding."""
    return np.array(
        [
            ((x + 0.5) / w / ratio[0], (y + 0.5) / h / ratio[1])
            for (h, w), ratio in zip(SHAPES, ratios, strict=True)
            for y in range(h)
            for x in range(w)
        ]
    )


@pytest.mark.parametrize("padded", [False, True])
def test_the_memory_reads_itself_then_the_references_around_each_place(padded: bool) -> None:
    layer = disturbed(
        MemoryEncoderLayer(
            d=D, num_heads=HEADS, num_levels=2 * R, num_points=3, ffn_dim=20, dropout=0.1
        )
    )
    current, others = frames(2, padded=padded), frames(2 * R, padded=padded)
    have = array(layer(current.image, others.image))
    for c in range(2):
        own, position = array(current.tokens[c]), array(current.position[c])
        padding = np.zeros(len(own), bool) if not padded else current.padding[c].numpy()
        where = own + position
        seen = attended(layer.self_attention, where, where, own, ~padding)
        x = layer_norm(layer.self_norm, own + seen)
        references = range(c * R, (c + 1) * R)
        maps = [
            m for r in references for m in levels_of(array(others.tokens[r] + others.position[r]))
        ]
        masks = [mask[..., 0] for _ in references for mask in levels_of(padding[:, None])]
        ratios = np.concatenate([array(others.valid_ratios[r]) for r in references])
        points = centres(array(current.valid_ratios[c]))[:, None] * ratios[None]
        read = deformably_attended(layer.cross_attention, x + position, points, maps, masks)
        want = feed_forward(layer.ffn, layer_norm(layer.cross_norm, x + read))
        np.testing.assert_allclose(have[c], want, atol=1e-4)


def test_queries_read_themselves_then_others() -> None:
    layer = disturbed(QueryEncoderLayer(d=D, num_heads=HEADS, ffn_dim=20, dropout=0.1))
    content, others = torch.randn(2, 5, D), torch.randn(2, 7, D)
    have = array(layer(content, others))
    for c in range(2):
        x, y = array(content[c]), array(others[c])
        x = layer_norm(layer.self_norm, x + attended(layer.self_attention, x, x, x))
        x = layer_norm(layer.cross_norm, x + attended(layer.cross_attention, x, y, y))
        np.testing.assert_allclose(have[c], feed_forward(layer.ffn, x), atol=1e-4)


@pytest.mark.parametrize("ref", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_the_decoder_reads_the_encoded_memory_and_moves_the_references(padded, ref) -> None:
    temporal = disturbed(tiny_temporal(num_levels=2))
    current, others = frames(1, padded=padded, ref=ref), frames(R, padded=padded)
    have = temporal(current, others, others.logits.sigmoid())
    memory = array(temporal.memory_encoder(current.image, others.image)[0])
    x = array(temporal._encoded_queries(current.hidden, others.hidden, others.logits.sigmoid())[0])
    (layer,) = temporal.decoder
    x = layer_norm(layer.self_norm, x + attended(layer.self_attention, x, x, x))
    padding = np.zeros(len(memory), bool) if not padded else current.padding[0].numpy()
    ratios = array(current.valid_ratios[0])
    reference = array(current.reference[0])
    points = reference[:, None] * np.concatenate([ratios] * (ref // 2), -1)[None]
    masks = [mask[..., 0] for mask in levels_of(padding[:, None])]
    read = deformably_attended(layer.cross_attention, x, points, levels_of(memory), masks)
    x = feed_forward(layer.ffn, layer_norm(layer.cross_norm, x + read))
    np.testing.assert_allclose(array(have.hidden[-1, 0]), x, atol=1e-3)
    np.testing.assert_allclose(
        array(have.logits[-1, 0]), linear(temporal.class_heads[0], x), atol=1e-3
    )
    delta = x
    for linear_layer in temporal.box_heads[0].layers[:-1]:
        delta = np.maximum(linear(linear_layer, delta), 0)
    delta = linear(temporal.box_heads[0].last, delta)
    start = np.zeros_like(delta)
    start[:, :ref] = np.log(reference / (1 - reference))
    np.testing.assert_allclose(
        array(have.boxes[-1, 0]), 1 / (1 + np.exp(-start - delta)), atol=1e-3
    )


class Recorder(nn.Module):
    """In place of a layer of the query encoder: keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.empty(0)

    def forward(self, content, others):
        self.seen = others
        return content


def chosen(scores: torch.Tensor, **settings) -> list[list[int]]:
    """Which of the references' queries each layer reads; queries hold their own numbers."""
    temporal = tiny_temporal(num_classes=scores.shape[-1], **settings)
    temporal.query_encoder = nn.ModuleList(Recorder() for _ in temporal.query_shares)
    count, N = scores.shape[:2]
    others = torch.arange(count * N).float().view(count, N, 1).expand(-1, -1, D)
    temporal._encoded_queries(torch.zeros(1, N, D), others, scores)
    return [layer.seen[0, :, 0].long().tolist() for layer in temporal.query_encoder]


def test_each_layer_reads_fewer_of_the_most_confident_queries_of_all_references() -> None:
    scores = torch.rand(3, N, 1, generator=torch.Generator().manual_seed(3))
    order = np.argsort(-scores.flatten().numpy()).tolist()
    # 80, 50 and 30 of 300 are 3, 2 and 1 of 10, of each of three references.
    assert chosen(scores) == [order[:9], order[:6], order[:3]]
    assert chosen(scores, query_shares=(1.0, 0.01)) == [order, order[:3]]


def test_of_300_queries_the_layers_read_80_50_and_30_a_reference() -> None:
    scores = torch.rand(2, 300, 1)
    assert [len(layer) for layer in chosen(scores)] == [160, 100, 60]


def test_the_released_choice_can_take_a_query_twice() -> None:
    scores = torch.zeros(1, N, 2)
    scores[0, 4] = torch.tensor([0.9, 0.8])
    scores[0, 7, 1] = 0.5
    scores[0, 2, 0] = 0.4
    assert chosen(scores, query_shares=(0.3,)) == [[4, 7, 2]]
    assert chosen(scores, query_shares=(0.3,), picks="pairs") == [[4, 4, 7]]


def test_clips_do_not_see_each_other() -> None:
    temporal = disturbed(tiny_temporal(num_levels=2))
    current, others = frames(3), frames(3 * R)
    together = temporal(current, others, others.logits.sigmoid())
    for c in range(3):
        own = others.select(torch.arange(c * R, (c + 1) * R))
        alone = temporal(current.select(torch.tensor([c])), own, own.logits.sigmoid())
        torch.testing.assert_close(together.boxes[:, c], alone.boxes[:, 0], atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------- detection


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_without_temporal_modules_it_is_the_single_frame_detector(base: dict) -> None:
    transvod = tiny(base=base, evaluation_sampler=None)
    transvod.temporal = None
    transvod.evaluation_sampler = AdjacentSampler(before=0, after=0)
    single = Detector(net=transvod.net, criterion=criterion(), class_names=["polyp"])
    frames = video(4)
    for frame, have in zip(frames, in_order(transvod, frames), strict=True):
        want = single.eval()([frame])[0]["instances"]
        assert torch.equal(have.pred_boxes.tensor, want.pred_boxes.tensor)
        assert torch.equal(have.scores, want.scores)
    batch = train_clips(transvod)
    have, want = transvod.train()(batch), single.train()(batch)
    assert have.keys() == want.keys()
    assert all(torch.equal(have[name], want[name]) for name in want)


SAMPLERS = {
    "adjacent": AdjacentSampler(before=1, after=1),
    "window": WindowSampler(num_frames=3, window=3, sampling="fixed"),
    "past": WindowSampler(num_frames=3, window=4, sampling="fixed", side="past"),
    "global": GlobalSampler(num_references=2),
}


@pytest.mark.parametrize(
    ("base", "sampler"),
    [*(("refined", name) for name in SAMPLERS), *((name, "adjacent") for name in [*BASES][1:])],
)
def test_videos_streams_and_single_clips_give_equal_detections(base, sampler) -> None:
    transvod = tiny(base=BASES[base], reference_sampler=SAMPLERS[sampler])
    frames = video(7)
    followed = in_order(transvod, frames)
    assert_equal(followed, from_nothing(transvod, frames))
    assert_equal(streamed(transvod, frames), followed)


def test_frames_are_padded_to_the_divisor_in_videos_as_in_training() -> None:
    transvod, frames = tiny().eval(), video(5, size=(48, 80))
    samples = clips(frames, transvod.reference_sampler)
    everything = transvod.frames(samples)
    current = transvod.index_of_labelled(everything)
    with torch.no_grad():
        outputs = transvod._outputs(*transvod._single_frames(transvod.images(everything)))
        others = torch.tensor([i for i in range(len(everything)) if i not in current])
        decoded = transvod._fused(outputs.select(current), outputs.select(others))
        want = [found["instances"] for found in transvod.postprocess(decoded, samples)]
    assert_equal(in_order(transvod, frames), want)


@pytest.mark.parametrize("place", [0, 2])
def test_a_detection_depends_on_every_reference(place: int) -> None:
    transvod, frames = tiny(), video(6)
    before = in_order(transvod, frames)[3]
    frames = [dict(frame) for frame in frames]
    frames[2 + place]["image"] = torch.zeros_like(frames[0]["image"])
    after = in_order(transvod, frames)[3]
    assert (before.scores - after.scores).abs().max() > 1e-6


@pytest.mark.parametrize("length", [1, 2])
def test_videos_shorter_than_a_clip_repeat_frames(length: int) -> None:
    transvod, frames = tiny(reference_sampler=GlobalSampler(num_references=R)), video(length)
    assert_equal(in_order(transvod, frames), from_nothing(transvod, frames))


# ------------------------------------------------------------------------- training


OPTIONS = {
    "paper": {},
    "released": {"memory_encoder": False, "picks": "pairs"},
    "two layers": {"num_decoder_layers": 2},
}


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("temporal", OPTIONS.values(), ids=OPTIONS)
def test_gradients_reach_every_parameter_that_is_trained(temporal, base, freeze) -> None:
    transvod = tiny(base=base, temporal=temporal, names=("a", "b"), freeze_net=freeze).train()
    losses = transvod(train_clips(transvod))
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert not without_gradient(transvod)
    frozen = {n for n, p in transvod.named_parameters() if not p.requires_grad}
    layers = range(2 if "box_refine" in base else 1)
    heads = tuple(f"net.{kind}_heads.{i}." for kind in ("class", "box") for i in layers)
    net = {name for name, _ in transvod.named_parameters() if name.startswith("net.")}
    assert frozen == (net if freeze else {name for name in net if name.startswith(heads)})
    assert ("loss_class_encoder" in losses) == ("two_stage" in base and not freeze)
    assert ("loss_class_0" in losses) == (temporal.get("num_decoder_layers") == 2)


def test_the_detections_of_single_frames_stay_those_of_the_first_step() -> None:
    transvod, frames = tiny(), video(2)
    before = transvod.eval().encode(frames)
    losses_of_steps(transvod, train_clips(transvod), 3, lr=1e-2)
    for one, other in zip(before, transvod.eval().encode(frames), strict=True):
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.logits, other.logits)


def test_a_few_steps_lower_the_loss() -> None:
    transvod = tiny()
    totals = losses_of_steps(transvod, train_clips(transvod), 12, lr=1e-3)
    assert totals[-1] < 0.9 * totals[0]


def test_losses_of_lesion_free_frames_are_finite_and_have_gradients() -> None:
    transvod = tiny().train()
    losses = transvod(lesion_free(train_clips(transvod)))
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert losses["loss_l1"] == 0 and losses["loss_class"] > 0


def test_only_the_current_frames_are_labelled() -> None:
    transvod = tiny().train()
    batch = train_clips(transvod)
    assert (transvod.count_frames(batch), transvod.count_boxes(batch)) == (2, 2)
    before = transvod(batch)
    for sample in batch:
        sample["clip"] = [
            frame if place == 1 else {**frame, "instances": frame["instances"][:0]}
            for place, frame in enumerate(sample["clip"])
        ]
    after = transvod(batch)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_training_starts_at_the_references_of_the_single_frame_detector(base: dict) -> None:
    transvod, sample = tiny(base=base), train_clips(tiny(base=base), batch=1)
    for head in transvod.temporal.box_heads:
        nn.init.zeros_(head.last.weight)
    with torch.no_grad():
        boxes = transvod.eval().losses(transvod.frames(sample)).decoded.boxes[-1]
        single = transvod.net(transvod.images(transvod.labelled(transvod.frames(sample))))
    assert ("box_refine" in base) == torch.allclose(boxes, single.boxes[-1], atol=1e-5)
    if "box_refine" not in base:
        torch.testing.assert_close(boxes[..., 2:], torch.full_like(boxes[..., 2:], 0.11920292))


def test_the_single_frame_network_starts_with_the_weights_that_it_has_alone() -> None:
    state = tiny().state_dict()
    torch.manual_seed(0)
    for name, tensor in tiny_net(**BASES["refined"]).state_dict().items():
        assert torch.equal(state[f"net.{name}"], tensor), name


def test_the_second_step_starts_from_the_weights_of_the_first(tmp_path) -> None:
    first = Detector(net=tiny_net(**BASES["refined"]), criterion=criterion(), class_names=["polyp"])
    path = tmp_path / "plain.pth"
    torch.save({"model": first.state_dict()}, path)
    transvod = tiny()
    with pytest.raises(CheckpointError, match=r"missing in the file .*\n.*temporal\."):
        load_detector(transvod, path)
    fresh = load_detector(transvod, path, partial=True)
    assert fresh and all(name.startswith("temporal.") for name in fresh)
    for name, tensor in first.net.state_dict().items():
        assert torch.equal(transvod.net.state_dict()[name], tensor)


# ------------------------------------------------------------------------- options


def test_without_its_encoder_the_memory_stays_that_of_the_frame() -> None:
    temporal = disturbed(tiny_temporal(num_levels=2, memory_encoder=False))
    assert temporal.memory_encoder is None
    current, others = frames(1), frames(R)
    before = temporal(current, others, others.logits.sigmoid())
    others.tokens = torch.randn_like(others.tokens)
    after = temporal(current, others, others.logits.sigmoid())
    assert torch.equal(before.boxes, after.boxes)


def test_without_a_memory_encoder_other_numbers_of_references_can_be_evaluated() -> None:
    transvod = tiny(
        temporal={"memory_encoder": False}, evaluation_sampler=AdjacentSampler(before=2, after=2)
    )
    frames = video(6)
    assert_equal(in_order(transvod, frames), from_nothing(transvod, frames))


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
def test_parameters_of_transvod() -> None:
    config = full_size().net
    config.num_classes, config.weights = 31, None
    with torch.device("meta"):
        net = instantiate(config)
        temporal = TemporalTransformer(num_classes=31)
        released = TemporalTransformer(num_classes=31, memory_encoder=False)

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    assert round(count(net, temporal) / 1e6, 1) == 40.3  # the released code has TDTE, unused
    assert [round(count(layer) / 1e6, 2) for layer in temporal.query_encoder] == [1.05] * 3
    assert round(count(temporal.memory_encoder) / 1e6, 2) == 1.27
    assert round(count(temporal.decoder) / 1e6, 2) == 0.95
    assert count(temporal) - count(released) == count(temporal.memory_encoder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_levels": 3}, r"temporal\.num_levels is 3, but net needs 4: set it to that"),
        ({"num_references": 5}, r"chooses 2 references, but temporal\.num_references is 5"),
        ({"query_shares": (0.5, 0.0)}, r"query_shares=\[0\.5, 0\.0\] must be above 0"),
    ],
)
def test_modules_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(temporal=settings)


def test_clips_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="reference_sampler chooses no reference"):
        tiny(reference_sampler=AdjacentSampler(before=0, after=0))
    with pytest.raises(ValueError, match="evaluation_sampler chooses 3 references, but temporal"):
        tiny(evaluation_sampler=AdjacentSampler(before=2, after=1))


# ------------------------------------------------------------------------- the backbone


@torch.no_grad()
def test_dc5_is_that_of_torchvision(tmp_path) -> None:
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    ours = instantiate(full_size().net.backbone).eval()
    load_backbone(ours, tmp_path / "resnet50.pth")
    pixels = torch.randn(1, 3, 64, 96)
    (name,) = ours.output_shape()
    assert ours.output_shape()[name].stride == 16
    body = nn.Sequential(*list(theirs.children())[:-2])
    torch.testing.assert_close(ours(pixels)[name], body(pixels), atol=1e-3, rtol=1e-3)


def test_an_image_grid_is_that_of_its_tensors() -> None:
    given = frames(3, padded=True)
    picked = given.select(torch.tensor([2, 0]))
    image = picked.image
    assert isinstance(image, TokenGrid)
    for name in ("tokens", "position", "padding", "valid_ratios"):
        assert torch.equal(getattr(image, name), getattr(given, name)[[2, 0]])
    again = FrameOutput.cat([given.select(torch.tensor([i])) for i in (2, 0)])
    assert torch.equal(again.decoded.hidden, picked.decoded.hidden)
    assert again.shapes == given.shapes
