"""Our Deformable DETR and that of transformers: same weights, same outputs and losses.

The two share one backbone module, so that the comparison is about neck, encoder, proposals,
decoder, heads, matching and loss.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

from tests.modeling.transformers_models import (
    SharedBackbone,
    batch,
    disturb,
    labels,
    tiny_resnet,
)
from v2idetr.checkpoints.layouts import read_layout
from v2idetr.modeling.classification import FocalClassification
from v2idetr.modeling.criterion import SetCriterion, Targets
from v2idetr.modeling.deformable_detr import DeformableDETR
from v2idetr.modeling.deformable_detr.weights import TRANSFORMERS
from v2idetr.modeling.interface import Decoded, Images, Memory
from v2idetr.modeling.matcher import HungarianMatcher

D, HEADS, FFN, LAYERS = 32, 4, 48, 3

VARIANTS = {
    "one_stage": {"num_labels": 1, "num_queries": 11},
    "one_stage_classes": {"num_labels": 3, "num_queries": 11},
    "box_refined": {"num_labels": 2, "num_queries": 11, "with_box_refine": True},
    "two_stage": {
        "num_labels": 1,
        "two_stage_num_proposals": 9,
        "with_box_refine": True,
        "two_stage": True,
    },
    "two_stage_classes": {
        "num_labels": 3,
        "two_stage_num_proposals": 9,
        "with_box_refine": True,
        "two_stage": True,
    },
}


def build_theirs(**variant) -> DeformableDetrForObjectDetection:
    config = DeformableDetrConfig(
        backbone_config=tiny_resnet("stage2", "stage3", "stage4"),
        d_model=D,
        encoder_layers=2,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN,
        auxiliary_loss=True,
        class_cost=2,  # the official weight; transformers' default is 1
        **variant,
    )
    model = DeformableDetrForObjectDetection(config)
    if config.with_box_refine:  # transformers ties the heads of all layers; the official code not
        model.bbox_embed = nn.ModuleList(copy.deepcopy(head) for head in model.bbox_embed)
        model.class_embed = nn.ModuleList(copy.deepcopy(head) for head in model.class_embed)
        model.model.decoder.bbox_embed = model.bbox_embed
        model.model.decoder.class_embed = model.class_embed if config.two_stage else None
    disturb(model)
    return model.eval()


def build_ours(theirs: DeformableDetrForObjectDetection) -> DeformableDETR:
    """Our network with the weights of theirs."""
    config = theirs.config
    ours = DeformableDETR(
        backbone=SharedBackbone(theirs.model.backbone),
        num_classes=config.num_labels,
        d=D,
        num_queries=config.two_stage_num_proposals if config.two_stage else config.num_queries,
        num_encoder_layers=config.encoder_layers,
        num_decoder_layers=LAYERS,
        num_heads=HEADS,
        ffn_dim=FFN,
        box_refine=config.with_box_refine,
        two_stage=config.two_stage,
        isolate_padding=False,  # as published
    )
    expected = {key for key in ours.state_dict() if not key.startswith("backbone.")}
    named, _ = read_layout(TRANSFORMERS, dict(theirs.state_dict()), "transformers")
    state = {key: value for key, value in named.items() if key in expected}
    assert set(state) == expected
    ours.load_state_dict(state, strict=False)
    return ours.eval()


def keep_invalid_tokens_out(theirs: DeformableDetrForObjectDetection) -> None:
    """Give tokens that propose nothing a low score.

    Ours never selects them. The official code may, since it only replaces their features by zeros;
    then ours has other queries.
    """
    with torch.no_grad():
        nothing = theirs.model.enc_output_norm(theirs.model.enc_output(torch.zeros(D)))
        theirs.class_embed[-1].weight[0] -= nothing / nothing.norm()


@torch.no_grad()
def run_ours(ours: DeformableDETR, images: Images) -> tuple[Memory, Decoded]:
    memory = ours.encode(ours.extract(images))
    return memory, ours.decode(memory, ours.queries(memory))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([(128, 192), (128, 192)], id="unpadded"),
        pytest.param([(128, 192), (192, 128), (64, 64)], id="padded"),
    ],
)
def test_same_weights_give_the_outputs_and_losses_of_transformers(
    variant: str, sizes: list[tuple[int, int]]
) -> None:
    theirs = build_theirs(**VARIANTS[variant])
    if theirs.config.two_stage:
        keep_invalid_tokens_out(theirs)
    ours = build_ours(theirs)
    images, mask = batch(sizes)
    targets = labels([2, 0, 1][: len(sizes)], ours.num_classes)
    with torch.no_grad():
        want = theirs(images.pixels, pixel_mask=mask, labels=targets)
    memory, have = run_ours(ours, images)

    if memory.proposals is not None:
        scores = memory.proposals.logits[..., 0]
        chosen = scores.topk(ours.num_queries, dim=1).indices
        assert memory.proposals.valid.gather(1, chosen).all(), "the comparison needs valid ones"
        valid = memory.proposals.valid
        torch.testing.assert_close(
            memory.proposals.logits[valid], want.enc_outputs_class[valid], atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            memory.proposals.boxes[valid],
            want.enc_outputs_coord_logits.sigmoid()[valid],
            atol=1e-4,
            rtol=0,
        )

    layers = [*want.auxiliary_outputs, {"logits": want.logits, "pred_boxes": want.pred_boxes}]
    assert len(have.logits) == len(layers) == LAYERS
    hidden = want.intermediate_hidden_states.transpose(0, 1)
    torch.testing.assert_close(have.hidden, hidden, atol=1e-4, rtol=0)
    for layer, outputs in enumerate(layers):
        torch.testing.assert_close(have.logits[layer], outputs["logits"], atol=1e-4, rtol=0)
        torch.testing.assert_close(have.boxes[layer], outputs["pred_boxes"], atol=1e-4, rtol=0)

    losses = SetCriterion(classification=FocalClassification(), matcher=HungarianMatcher())(
        have, Targets([t["class_labels"] for t in targets], [t["boxes"] for t in targets])
    )
    names = {"class": ("loss_ce", 2.0), "l1": ("loss_bbox", 5.0), "giou": ("loss_giou", 2.0)}
    assert len(losses) == 3 * LAYERS
    for key, loss in losses.items():
        _, name, *suffix = key.split("_")
        theirs_name, weight = names[name]
        want_loss = weight * want.loss_dict["_".join([theirs_name, *suffix])]
        torch.testing.assert_close(loss, want_loss, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_we_have_as_many_parameters_as_transformers(variant: str) -> None:
    theirs = build_theirs(**VARIANTS[variant])
    ours = build_ours(theirs)
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
