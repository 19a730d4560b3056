"""Cross-view Query Distillation: which queries, what they see, what they are compared with."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import tiny_net
from v2idetr.distillation.cqd import CrossView, CrossViewQueryDistillation, draw_indices
from v2idetr.distillation.knowledge import Knowledge
from v2idetr.modeling.deformable_detr import DeformableDETR
from v2idetr.modeling.extra_queries import ExtraQueries, decode_beside
from v2idetr.modeling.interface import Decoded, Features, Images, Memory, Queries

D = 4


def distil(**options) -> CrossViewQueryDistillation:
    return CrossViewQueryDistillation(**{"student_dim": D, "teacher_dim": D} | options)


def labelled(C: int = 2, T: int = 3, N: int = 10, *, L: int = 2, ref: int = 2) -> Knowledge:
    """Knowledge in which every number tells its clip, frame and query index."""
    frame = torch.arange(C * T).view(-1, 1, 1) * 1000.0
    code = (frame + torch.arange(N).view(1, -1, 1)).float()
    queries = Queries(
        code.expand(-1, -1, D) + 0.25,
        code.expand(-1, -1, D) + 0.5,
        (code / 1e5).expand(-1, -1, ref),
    )
    hidden = torch.stack([code.expand(-1, -1, D) + layer * 1e5 for layer in range(L)])
    return Knowledge(Features({}, None), queries, hidden, T, (code / 2e5).expand(-1, -1, 4))


def draw(knowledge: Knowledge, cqd: CrossViewQueryDistillation, *, seeds: list[int], ref: int = 2):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return cqd.extra_queries(knowledge, reference_dim=ref, generators=generators)


def decode(net: DeformableDETR, memory: Memory, own: Queries, cross: Queries, mask: str):
    decoded, extra = decode_beside(net, memory, own, [ExtraQueries(cross, mask)])
    return decoded, extra[0]


# ------------------------------------------------------------------------- drawing indices


@given(N=st.integers(1, 60), T=st.integers(1, 6), seed=st.integers(0, 99))
def test_disjoint_chunks_cover_as_many_different_indices_as_queries(
    N: int, T: int, seed: int
) -> None:
    n = N // T
    index = draw_indices(N, T, n, disjoint=True, generator=torch.Generator().manual_seed(seed))
    assert index.shape == (T, n)
    assert len(set(index.flatten().tolist())) == T * n
    assert ((index >= 0) & (index < N)).all()


@given(N=st.integers(1, 60), T=st.integers(1, 6), seed=st.integers(0, 99))
def test_independent_draws_repeat_indices_between_frames_alone(N: int, T: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = draw_indices(N, T, N, disjoint=False, generator=generator)
    assert all(sorted(frame.tolist()) == list(range(N)) for frame in index)


def test_independent_draws_do_collide() -> None:
    generator = torch.Generator().manual_seed(0)
    index = draw_indices(100, 3, 33, disjoint=False, generator=generator)
    assert len(set(index.flatten().tolist())) < 99


@pytest.mark.parametrize("sampling", ["disjoint", "independent"])
def test_a_seed_decides_the_draw_wherever_its_clip_stands(sampling: str) -> None:
    cqd, knowledge = distil(sampling=sampling), labelled(C=2)
    first = draw(knowledge, cqd, seeds=[5, 6]).queries.content % 1000
    again = draw(knowledge, cqd, seeds=[5, 6]).queries.content % 1000
    swapped = draw(knowledge, cqd, seeds=[6, 5]).queries.content % 1000
    assert torch.equal(first, again)
    assert torch.equal(first, swapped.flip(0))
    assert not torch.equal(first[0], first[1])


def test_without_a_seed_draws_come_from_the_global_state() -> None:
    cqd, knowledge = distil(), labelled(C=1)
    torch.manual_seed(3)
    first = cqd.extra_queries(knowledge, reference_dim=2, generators=[None])
    second = cqd.extra_queries(knowledge, reference_dim=2, generators=[None])
    torch.manual_seed(3)
    again = cqd.extra_queries(knowledge, reference_dim=2, generators=[None])
    assert torch.equal(first.queries.content, again.queries.content)
    assert not torch.equal(first.queries.content, second.queries.content)


@pytest.mark.parametrize(
    ("per_frame", "N", "T", "n"),
    [("N/T", 100, 3, 33), ("N/T", 100, 5, 20), ("N/2", 100, 3, 50), ("N", 100, 3, 100)],
)
def test_the_number_of_queries_per_frame_is_that_of_the_papers_rows(
    per_frame: str, N: int, T: int, n: int
) -> None:
    cqd = distil(per_frame=per_frame)
    assert cqd.queries_per_frame(N, T) == n
    assert draw(labelled(1, T, N), cqd, seeds=[0]).queries.num_queries == T * n


def test_more_frames_than_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"per_frame=N/T of 2 teacher queries and 3 frames"):
        distil().queries_per_frame(2, 3)


def test_independent_sampling_draws_every_frame_anew() -> None:
    """Equation 4 to the letter: a permutation a frame, so frames share indices by chance."""
    knowledge = labelled(C=1, T=3, N=9)  # n = 3: chunks of one permutation would fit
    shared = {"disjoint": 0, "independent": 0}
    for sampling in shared:
        cqd = distil(sampling=sampling)
        for seed in range(20):
            index = (draw(knowledge, cqd, seeds=[seed]).target[0, 0, :, 0] % 1000).tolist()
            shared[sampling] += len(set(index)) < 9
            assert all(len(set(index[3 * t : 3 * t + 3])) == 3 for t in range(3))
    # All nine differ in 1680 of 84 ** 3 independent draws.
    assert shared["disjoint"] == 0 and shared["independent"] >= 18


def test_too_many_queries_for_disjoint_chunks_are_drawn_independently() -> None:
    cqd = distil(per_frame="N")
    cross = draw(labelled(C=1, T=3, N=10), cqd, seeds=[0])
    index = (cross.target[0, 0, :, 0] % 1000).view(3, 10)
    assert all(sorted(frame.tolist()) == list(range(10)) for frame in index)


# ------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("per_frame", ["N/T", "N/2", "N"])
@pytest.mark.parametrize("sampling", ["disjoint", "independent"])
def test_content_position_reference_and_target_are_of_one_frame_and_index(
    per_frame: str, sampling: str
) -> None:
    cqd = distil(per_frame=per_frame, sampling=sampling)
    cross = draw(labelled(C=2, T=3, N=10), cqd, seeds=[1, 2])
    code = cross.target[0, ..., 0]
    assert torch.equal(cross.queries.content[..., 0], code + 0.25)
    assert torch.equal(cross.queries.position[..., 0], code + 0.5)
    torch.testing.assert_close(cross.queries.reference[..., 0], code / 1e5)
    assert torch.equal(cross.target[1, ..., 0], code + 1e5)
    frame = (code // 1000).long()
    n = cqd.queries_per_frame(10, 3)
    for clip in range(2):  # frame after frame, and of the own clip alone
        assert frame[clip].tolist() == [3 * clip + t for t in range(3) for _ in range(n)]


def test_decoded_queries_carry_the_teachers_answer_as_content() -> None:
    cross = draw(labelled(), distil(source="decoded"), seeds=[1, 2])
    assert torch.equal(cross.queries.content, cross.target[-1])
    assert torch.equal(cross.queries.position, cross.target[0] + 0.5)


@pytest.mark.parametrize(("have", "want"), [(2, 2), (2, 4), (4, 2), (4, 4)])
def test_references_get_the_form_that_the_student_has(have: int, want: int) -> None:
    knowledge = labelled(ref=have)
    cross = draw(knowledge, distil(), seeds=[1, 2], ref=want)
    assert cross.queries.reference.shape[-1] == want
    code = cross.target[0, ..., :1]
    torch.testing.assert_close(cross.queries.reference[..., :2], (code / 1e5).expand(-1, -1, 2))
    if have == want == 4:
        size = (code / 1e5).expand(-1, -1, 2)
        torch.testing.assert_close(cross.queries.reference[..., 2:], size)


@pytest.mark.parametrize("have", [2, 4])
@pytest.mark.parametrize("want", [2, 4])
def test_references_may_be_the_boxes_that_the_teacher_predicted(have: int, want: int) -> None:
    cross = draw(labelled(ref=have), distil(reference="prediction"), seeds=[1, 2], ref=want)
    code = cross.target[0, ..., :1]
    torch.testing.assert_close(cross.queries.reference, (code / 2e5).expand(-1, -1, want))
    assert torch.equal(cross.queries.content[..., :1], code + 0.25), "the rest is the query's own"
    assert torch.equal(cross.queries.position[..., :1], code + 0.5)


def test_the_teachers_knowledge_is_not_changed() -> None:
    knowledge = labelled()
    content, reference = knowledge.queries.content.clone(), knowledge.queries.reference.clone()
    draw(knowledge, distil(source="decoded", reference="prediction"), seeds=[1, 2])
    assert torch.equal(knowledge.queries.content, content)
    assert torch.equal(knowledge.queries.reference, reference)


# ------------------------------------------------------------------------- the loss


def loss_of(ours: Tensor, theirs: Tensor, **options) -> float:
    """The loss for hidden states (L, n, d) of one clip."""
    n = ours.shape[1]
    empty = Queries(torch.zeros(1, n, 1), torch.zeros(1, n, 1), torch.zeros(1, n, 2))
    hidden = ours.unsqueeze(1)
    decoded = Decoded(hidden, torch.zeros(*hidden.shape[:3], 1), torch.zeros(*hidden.shape[:3], 4))
    options = {"student_dim": ours.shape[-1], "teacher_dim": theirs.shape[-1]} | options
    cqd = CrossViewQueryDistillation(**options)
    return cqd.compare(decoded, CrossView(empty, target=theirs.unsqueeze(1))).item()


def test_the_loss_is_one_minus_the_cosine() -> None:
    a = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [1.0, 1.0]]])
    b = torch.tensor([[[0.0, 2.0], [4.0, 3.0], [-2.0, -2.0]]])
    want = ((1 - 0) + (1 - 24 / 25) + (1 + 1)) / 3
    assert loss_of(a, b, weight=1.0) == pytest.approx(want, rel=1e-6)
    assert loss_of(a, b, weight=5.0) == pytest.approx(5 * want, rel=1e-6)
    assert loss_of(a, b) == pytest.approx(5 * want, rel=1e-6), "the paper's weight is the default"


def test_equal_answers_cost_nothing_whatever_their_length() -> None:
    a = torch.randn(2, 7, D)
    assert loss_of(a, a.clone()) == pytest.approx(0.0, abs=1e-5)
    assert loss_of(a, a * 3) == pytest.approx(0.0, abs=1e-5)
    assert loss_of(a, -a, weight=1.0) == pytest.approx(2.0, rel=1e-5)


def test_the_last_layer_or_all_layers_are_compared() -> None:
    a = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    b = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    assert loss_of(a, b, weight=1.0, layers="last") == pytest.approx(0.0, abs=1e-6)
    assert loss_of(a, b, weight=1.0, layers="all") == pytest.approx(0.5, rel=1e-6)


def test_decoders_of_different_depth_can_only_be_compared_at_the_end() -> None:
    a, b = torch.randn(2, 5, D), torch.randn(3, 5, D)
    want = 1 - nn.functional.cosine_similarity(a[-1], b[-1], -1).mean()
    assert loss_of(a, b, weight=1.0) == pytest.approx(want.item(), rel=1e-5)
    with pytest.raises(
        ValueError, match=r"student has 2 layers and the teacher 3\. Use layers=last"
    ):
        loss_of(a, b, layers="all")


def test_only_the_student_learns() -> None:
    ours, theirs = torch.randn(1, 1, 5, D, requires_grad=True), torch.randn(1, 1, 5, D)
    theirs.requires_grad_()
    cross = CrossView(labelled(1, 1, 5).queries, target=theirs)
    decoded = Decoded(ours, torch.zeros(1, 1, 5, 1), torch.zeros(1, 1, 5, 4))
    distil().compare(decoded, cross).backward()
    assert ours.grad.any() and theirs.grad is None


# ------------------------------------------------------------------------- different widths


def test_equal_widths_need_nothing_learnt() -> None:
    assert not list(distil().parameters())


def test_learnt_projections_translate_between_widths() -> None:
    cqd = distil(student_dim=6)
    cross = draw(labelled(), cqd, seeds=[1, 2])
    assert cross.queries.content.shape[-1] == cross.queries.position.shape[-1] == 6
    assert cross.target.shape[-1] == D
    n = cross.queries.num_queries
    decoded = Decoded(torch.randn(2, 2, n, 6), torch.zeros(2, 2, n, 1), torch.zeros(2, 2, n, 4))
    loss = cqd.compare(decoded, cross) + cross.queries.content.sum() + cross.queries.position.sum()
    loss.backward()
    assert len(list(cqd.parameters())) == 6
    assert all(parameter.grad.any() for parameter in cqd.parameters())


# ------------------------------------------------------------------------- who sees whom


@pytest.fixture(
    params=[
        {},
        {"box_refine": True},
        {"box_refine": True, "two_stage": True},
        {"box_refine": True, "two_stage": True, "mixed_queries": True},
    ]
)
def net(request: pytest.FixtureRequest) -> DeformableDETR:
    return tiny_net(**request.param).eval()


def remember(net: DeformableDETR) -> tuple[Memory, Queries, Queries]:
    """A memory of two images, the net's own queries, and five from elsewhere."""
    images = Images(torch.randn(2, 3, 64, 96), [(64, 96)] * 2)
    memory = net.encode(net.extract(images))
    reference = torch.rand(2, 5, net.reference_dim) * 0.6 + 0.2
    cross = Queries(torch.randn(2, 5, net.d), torch.randn(2, 5, net.d), reference)
    return memory, net.queries(memory), cross


def same(a: Decoded, b: Decoded) -> bool:
    names = ("hidden", "logits", "boxes", "content")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.parametrize("mask", ["one_way", "isolated"])
def test_own_queries_are_decoded_bit_by_bit_as_if_alone(net: DeformableDETR, mask: str) -> None:
    memory, own, cross = remember(net)
    decoded, _ = decode(net, memory, own, cross, mask)
    assert same(decoded, net.decode(memory, own))


def test_without_a_mask_cross_view_queries_change_the_own_ones(net: DeformableDETR) -> None:
    memory, own, cross = remember(net)
    decoded, crossed = decode(net, memory, own, cross, "none")
    assert (decoded.hidden - net.decode(memory, own).hidden).abs().max() > 1e-2
    both = net.decode(memory, Queries.cat([cross, own]))
    assert same(crossed, both.slice(0, 5)) and same(decoded, both.slice(5, 17))


def test_one_way_cross_view_queries_see_the_own_ones(net: DeformableDETR) -> None:
    memory, own, cross = remember(net)
    cqd = distil(mask="one_way")
    _, crossed = decode(net, memory, own, cross, cqd.mask)
    moved = Queries(own.content + 1.0, own.position, own.reference)
    _, after = decode(net, memory, moved, cross, cqd.mask)
    assert (crossed.hidden - after.hidden).abs().max() > 1e-2


def test_isolated_cross_view_queries_do_not_see_the_own_ones(net: DeformableDETR) -> None:
    memory, own, cross = remember(net)
    cqd = distil(mask="isolated")
    _, crossed = decode(net, memory, own, cross, cqd.mask)
    moved = Queries(own.content + 1.0, own.position, own.reference)
    _, after = decode(net, memory, moved, cross, cqd.mask)
    assert same(crossed, after)
    assert same(crossed, net.decode(memory, cross))


@pytest.mark.parametrize("mask", ["one_way", "isolated", "none"])
def test_cross_view_queries_see_each_other(net: DeformableDETR, mask: str) -> None:
    memory, own, cross = remember(net)
    cqd = distil(mask=mask)
    _, crossed = decode(net, memory, own, cross, cqd.mask)
    content = cross.content.clone()
    content[:, 0] += 1.0
    _, after = decode(net, memory, own, Queries(content, cross.position, cross.reference), cqd.mask)
    assert (crossed.hidden[:, :, 1:] - after.hidden[:, :, 1:]).abs().max() > 1e-3


def test_cosine_of_parallel_vectors_is_exact_enough_for_half_precision() -> None:
    a = torch.randn(1, 50, 64)
    half = loss_of(a.half(), a.half())
    assert math.isfinite(half) and half == pytest.approx(0.0, abs=1e-4)
