"""Our DETR and that of transformers: same weights, same outputs and losses.

The two share one backbone module. With its auxiliary losses on, transformers hands the normalised
outputs from layer to layer, unlike the official code and ours; so they are off here, and what the
layers before the last give out is compared through their streams.
"""

from __future__ import annotations

import pytest
import torch
from transformers import DetrConfig, DetrForObjectDetection

from tests.conftest import softmax_criterion
from tests.modeling.transformers_models import (
    SharedBackbone,
    batch,
    disturb,
    labels,
    tiny_resnet,
)
from v2idetr.checkpoints.layouts import read_layout
from v2idetr.modeling.criterion import Targets
from v2idetr.modeling.detr import DETR
from v2idetr.modeling.detr.weights import TRANSFORMERS
from v2idetr.modeling.interface import Decoded, Images, Memory

D, HEADS, FFN, LAYERS = 32, 4, 48, 3


def build_theirs(num_labels: int) -> DetrForObjectDetection:
    config = DetrConfig(
        backbone_config=tiny_resnet("stage4"),
        d_model=D,
        num_queries=11,
        num_labels=num_labels,
        encoder_layers=2,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN,
    )
    model = DetrForObjectDetection(config)
    disturb(model)
    return model.eval()


def build_ours(theirs: DetrForObjectDetection) -> DETR:
    """Our network with the weights of theirs."""
    config = theirs.config
    ours = DETR(
        backbone=SharedBackbone(theirs.model.backbone),
        num_classes=config.num_labels,
        d=D,
        num_queries=config.num_queries,
        num_encoder_layers=config.encoder_layers,
        num_decoder_layers=LAYERS,
        num_heads=HEADS,
        ffn_dim=FFN,
        isolate_padding=False,  # as published
    )
    named, _ = read_layout(TRANSFORMERS, dict(theirs.state_dict()), "transformers")
    state = {name: tensor for name, tensor in named.items() if not name.startswith("backbone.")}
    expected = {key for key in ours.state_dict() if not key.startswith("backbone.")}
    assert set(state) == expected
    ours.load_state_dict(state, strict=False)
    return ours.eval()


@torch.no_grad()
def run_ours(ours: DETR, images: Images) -> tuple[Memory, Decoded]:
    memory = ours.encode(ours.extract(images))
    return memory, ours.decode(memory, ours.queries(memory))


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([(128, 192), (128, 192)], id="unpadded"),
        pytest.param([(128, 192), (192, 128), (64, 64)], id="padded"),
    ],
)
def test_same_weights_give_the_outputs_and_losses_of_transformers(
    num_labels: int, sizes: list[tuple[int, int]]
) -> None:
    theirs = build_theirs(num_labels)
    ours = build_ours(theirs)
    images, mask = batch(sizes)
    targets = labels([2, 0, 1][: len(sizes)], num_labels)
    with torch.no_grad():
        want = theirs(images.pixels, pixel_mask=mask, labels=targets, output_hidden_states=True)
    memory, have = run_ours(ours, images)

    shown = slice(None) if memory.padding is None else ~memory.padding
    torch.testing.assert_close(
        memory.tokens[shown], want.encoder_last_hidden_state[shown], atol=1e-4, rtol=0
    )
    stream = torch.stack(want.decoder_hidden_states[1:LAYERS])  # [0] is the input
    torch.testing.assert_close(have.content[:-1], stream, atol=1e-4, rtol=0)
    torch.testing.assert_close(have.hidden[-1], want.last_hidden_state, atol=1e-4, rtol=0)
    torch.testing.assert_close(have.logits[-1], want.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(have.boxes[-1], want.pred_boxes, atol=1e-4, rtol=0)

    truth = Targets([t["class_labels"] for t in targets], [t["boxes"] for t in targets])
    losses = softmax_criterion()(have, truth)
    for name, theirs_name, weight in (
        ("class", "loss_ce", 1.0),
        ("l1", "loss_bbox", 5.0),
        ("giou", "loss_giou", 2.0),
    ):
        want_loss = weight * want.loss_dict[theirs_name]
        torch.testing.assert_close(losses[f"loss_{name}"], want_loss, atol=1e-4, rtol=1e-4)


def test_we_have_as_many_parameters_as_transformers() -> None:
    theirs = build_theirs(1)
    ours = build_ours(theirs)
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
