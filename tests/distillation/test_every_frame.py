"""``distillation.frames=all``: every frame of a clip is a current frame of the student."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import make_sample, tiny_detector, tiny_teacher
from tests.distillation.test_student import KINDS, cqd, distil
from v2idetr.distillation.cqd import CrossViewQueryDistillation
from v2idetr.distillation.feature_distillation import (
    EmbeddingDistillation,
    FeatureDistillation,
)
from v2idetr.distillation.knowledge import teacher_knowledge, views_of
from v2idetr.distillation.query_distillation import QueryDistillation
from v2idetr.distillation.student import DistilledStudent

T = 3


def batch() -> list[dict[str, Any]]:
    samples = [make_sample(0, lesions=2), make_sample(1, size=(96, 64), lesions=1)]
    return [{**sample, "seed": 40 + k} for k, sample in enumerate(samples)]


def losses_by_frame(distilled: DistilledStudent, teacher: Any) -> dict[str, torch.Tensor]:
    """Mean over T calls, each with another frame of every clip as the current one."""
    views = views_of(batch(), "all")
    share = distilled.student.count_boxes(views) / T
    calls = []
    for index in range(T):
        part = views[index::T]
        calls.append(distilled(part, teacher_knowledge(teacher, part), num_boxes=share))
    return {name: torch.stack([call[name] for call in calls]).mean() for name in calls[0]}


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize(
    "losses",
    [
        {},
        {"qd": QueryDistillation(student_dim=32, teacher_dim=32)},
        {"cqd": None},
        {
            "fd": FeatureDistillation(mask="attention", student_dim=32, teacher_dim=32),
            "ed": EmbeddingDistillation(mask="box", student_dim=32, teacher_dim=32),
        },
    ],
)
def test_losses_and_gradients_are_the_means_of_one_call_for_each_frame(
    settings: dict[str, Any], losses: dict[str, Any]
) -> None:
    teacher = tiny_teacher(**settings).eval()
    student = tiny_detector(**settings).train()
    every = distil(student, frames="all", **losses).train()
    together = every(
        batch(), every.knowledge(teacher, batch()), num_boxes=float(every.count_boxes(batch()))
    )
    sum(together.values()).backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    apart = losses_by_frame(distil(student, **losses).train(), teacher)
    sum(apart.values()).backward()
    assert together.keys() == apart.keys()
    for name, loss in apart.items():
        torch.testing.assert_close(together[name], loss, rtol=1e-4, atol=1e-6, msg=name)
    largest = max(p.grad.abs().max().item() for p in student.parameters())
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-3, atol=1e-5 * largest, msg=name
        )


def test_the_teacher_goes_forward_once() -> None:
    teacher, every = tiny_teacher().eval(), distil(tiny_detector(), frames="all")
    calls: list[int] = []
    teacher.net.backbone.register_forward_hook(lambda _m, args, _out: calls.append(len(args[0])))
    every.knowledge(teacher, batch())
    assert calls == [2 * T]


def test_lesions_of_all_frames_are_counted_and_labels_learnt_from() -> None:
    every = distil(tiny_detector(), frames="all")
    in_clips = sum(len(frame["instances"]) for sample in batch() for frame in sample["clip"])
    assert every.count_boxes(batch()) == in_clips > distil(tiny_detector()).count_boxes(batch())


def test_views_have_the_frame_of_their_index_and_a_seed_of_their_own() -> None:
    samples = batch()
    views = views_of(samples, "all")
    assert [view["clip_index"] for view in views] == [0, 1, 2, 0, 1, 2]
    for k, view in enumerate(views):
        frame = samples[k // T]["clip"][k % T]
        assert view["image"] is frame["image"] and view["instances"] is frame["instances"]
    assert len({view["seed"] for view in views}) == len(views)
    assert [view["seed"] for view in views_of(samples, "all")] == [view["seed"] for view in views]
    assert views_of(samples, "current") is samples


def test_each_view_draws_queries_of_its_own_clip() -> None:
    teacher, samples = tiny_teacher().eval(), batch()
    knowledge = teacher_knowledge(teacher, samples, frames="all")
    assert knowledge.hidden is not None and knowledge.queries is not None
    generators = [torch.Generator().manual_seed(k) for k in range(2 * T)]
    drawn = cqd().extra_queries(knowledge, reference_dim=2, generators=generators)
    n = CrossViewQueryDistillation(student_dim=32, teacher_dim=32).queries_per_frame(
        knowledge.queries.num_queries, T
    )
    for view in range(2 * T):
        clip = view // T
        for t in range(T):
            target = drawn.target[-1, view, t * n : (t + 1) * n]
            known = knowledge.hidden[-1, clip * T + t]
            apart = torch.cdist(target, known).amin(1)
            assert apart.max() < 1e-5
    assert not torch.equal(drawn.target[:, 0], drawn.target[:, 1])


@pytest.mark.parametrize("frames", ["current", "all"])
def test_a_student_that_sees_clips_itself_is_refused(frames) -> None:
    with pytest.raises(ValueError, match=r"single frames, but model\.num_frames is 3"):
        distil(tiny_teacher(), frames=frames)
