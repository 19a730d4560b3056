"""Cost of a detector: counts that can be done by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import make_sample, tiny_detector, tiny_teacher
from v2idetr.data.reference_sampler import (
    AdjacentSampler,
    GlobalSampler,
    MixedSampler,
    WindowSampler,
)
from v2idetr.distillation.student import DistilledStudent
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation
from v2idetr.evaluation.cost import WARM_UP, flops, measure_cost, parameters, seconds_per_frame
from v2idetr.modeling.deformable_attention import DeformableAttention


class OnImage(nn.Module):
    """A module as a detector: applied to the image of the first sample."""

    def __init__(self, module, prepare=lambda image: image):
        super().__init__()
        self.module, self.prepare = module, prepare

    def forward(self, batched_inputs):
        self.module(self.prepare(batched_inputs[0]["image"].float()))
        return [{} for _ in batched_inputs]


def sample(h=8, w=8):
    return {"image": torch.zeros(3, h, w, dtype=torch.uint8)}


def test_shared_parameters_count_once_and_frozen_ones_are_not_trainable():
    first, second = nn.Linear(3, 5), nn.Linear(3, 5)
    second.weight = first.weight
    second.bias.requires_grad_(False)
    assert parameters(nn.ModuleList([first, second])) == {"total": 25, "trainable": 20}


def test_convolution_counts_two_operations_a_multiply_add():
    convolution = OnImage(nn.Conv2d(3, 4, 3, padding=1, bias=False))
    assert flops(convolution, sample(8, 8)) == 2 * 3 * 4 * 9 * 64


class SelfAttention(nn.Module):
    def __init__(self, fused: bool):
        super().__init__()
        self.fused = fused
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens):
        if self.fused:
            return F.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


@pytest.mark.parametrize("fused", [True, False], ids=["fused kernel", "nn.MultiheadAttention"])
def test_attention_is_counted_on_a_cpu_too(fused):
    """torch's counter alone reports 0 for both: they run as one opaque operation."""
    model = OnImage(SelfAttention(fused), lambda image: torch.zeros(1, 10, 8))
    products = 2 * 2 * 10 * 10 * 8  # query x key and weights x value
    projections = 0 if fused else 4 * 2 * 10 * 8 * 8
    assert flops(model, sample()) == products + projections
    assert torch.backends.mha.get_fastpath_enabled()


class Read(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = DeformableAttention(d=16, num_heads=2, num_levels=1, num_points=4)

    def forward(self, tokens):
        reference = torch.full((1, tokens.shape[1], 1, 2), 0.5)
        return self.attention(tokens, reference, tokens, [(4, 5)], None)


def test_reads_of_deformable_attention_are_counted():
    N, d, levels, points, heads = 20, 16, 1, 4, 2
    model = OnImage(Read(), lambda image: torch.zeros(1, N, d))
    projections = 2 * N * d * (d + d + heads * levels * points * (2 + 1))
    reads = 2 * 4 * levels * points * d * N
    assert flops(model, sample()) == projections + reads


class SplitParameter(nn.Module):
    """Under no_grad, the parts of a split parameter claim to need a gradient."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Parameter(torch.zeros(5, 16))
        self.layer = nn.Linear(8, 4, bias=False)

    def forward(self, image):
        return self.layer(self.embed.split(8, dim=1)[0])


def test_split_parameters_do_not_stop_the_count():
    model = OnImage(SplitParameter())
    assert flops(model, sample()) == 2 * 5 * 8 * 4
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_plain_detector_and_student_cost_the_same_and_a_teacher_more():
    plain, teacher = tiny_detector(), tiny_teacher()
    student = DistilledStudent(
        student=tiny_detector(), losses={"tfd": TargetGuidedFeatureDistillation()}
    )
    clip = make_sample()
    assert flops(plain, clip) == flops(student, clip)
    assert parameters(plain) == parameters(student)
    assert flops(teacher, clip) > flops(plain, clip) > 0


def test_time_is_measured_in_evaluation_mode_and_training_mode_comes_back():
    modes = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, batched_inputs):
            modes.append((self.training, torch.is_grad_enabled()))
            return [{}]

    spy = Spy().train()
    assert seconds_per_frame(spy, sample(), repeats=5) > 0
    assert modes == [(False, False)] * (WARM_UP + 5)  # warm-up, then repeats
    assert spy.training


class Remembering(nn.Module):
    """Applies one layer to every frame that it has not seen in this video, and one to the clip."""

    order = "video"

    def __init__(self, sampler):
        super().__init__()
        self.reference_sampler = sampler
        self.each, self.together = nn.Linear(8, 4, bias=False), nn.Linear(8, 16, bias=False)
        self.reset()

    def reset(self):
        self.seen, self.frames = set(), []

    def forward(self, batched_inputs):
        new = {frame["image_id"] for frame in batched_inputs[0]["clip"]} - self.seen
        for _ in new:
            self.each(torch.zeros(1, 8))
        self.together(torch.zeros(1, 8))
        self.seen |= new
        self.frames.append(len(new))
        return [{}]


SAMPLERS = {
    "neighbours": AdjacentSampler(before=2, after=1),
    "some neighbours": WindowSampler(num_frames=3, window=6, sampling="fixed"),
    "the same frames of the video": MixedSampler(
        local=AdjacentSampler(before=1, after=0), distant=GlobalSampler(num_references=2)
    ),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("length", [1, 5])
def test_what_a_video_detector_knows_of_earlier_frames_costs_nothing_again(sampler, length):
    """Also where the sample is of a short video."""
    model = Remembering(sampler)
    clip = sample() | {"clip": [sample() for _ in range(length)]}
    assert flops(model, clip) == 2 * 8 * 4 + 2 * 8 * 16, "one frame is new"
    seconds_per_frame(model, clip, repeats=9)
    assert model.frames[0] == sampler.num_frames, "there is no frame before the first"
    assert set(model.frames[-9:]) == {1}
    assert measure_cost(model, clip, repeats=2)["frames_per_detection"] == length


def test_all_costs_of_a_cpu_detector():
    cost = measure_cost(OnImage(nn.Conv2d(3, 4, 1)), sample(6, 10), repeats=5)
    assert cost["parameters"] == cost["trainable_parameters"] == 16
    assert (cost["input_height"], cost["input_width"]) == (6, 10)
    assert cost["frames_per_second"] > 0
    assert cost["peak_memory_mib"] is None
    assert cost["frames_per_detection"] == 1
    assert " thread" in cost["machine"]
