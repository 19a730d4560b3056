"""What the frozen teacher hands to a student."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import make_sample, tiny_teacher
from v2idetr.distillation.knowledge import Reach, teacher_knowledge
from v2idetr.modeling.interface import Queries

TWO_STAGE = {"box_refine": True, "two_stage": True}


def clips() -> list[dict]:
    """Two clips of different size; the current frames are the second and the third."""
    samples = [make_sample(0, size=(64, 96)), make_sample(1, size=(96, 64))]
    return [samples[0], samples[1] | samples[1]["clip"][2] | {"clip_index": 2}]


def test_features_are_those_of_the_current_frames_after_the_temporal_module() -> None:
    teacher, samples = tiny_teacher().eval(), clips()
    knowledge = teacher_knowledge(teacher, samples)
    with torch.no_grad():
        features = teacher.net.extract(teacher.images(teacher.frames(samples)))
    assert list(knowledge.features.maps) == [8, 16, 32, 64]
    for stride, every in features.maps.items():
        assert torch.equal(knowledge.features.maps[stride], every[[1, 5]])
        assert torch.equal(knowledge.features.padding[stride], features.padding[stride][[1, 5]])
    assert knowledge.num_frames == 3


@pytest.mark.parametrize("settings", [{}, {"box_refine": True}, TWO_STAGE])
def test_hidden_states_are_the_decoded_queries_of_every_frame(settings: dict) -> None:
    teacher, samples = tiny_teacher(**settings).eval(), clips()
    knowledge = teacher_knowledge(teacher, samples)
    assert knowledge.queries is not None and knowledge.hidden is not None
    with torch.no_grad():
        memory = teacher.net.encode(teacher.net.extract(teacher.images(teacher.frames(samples))))
        decoded = teacher.net.decode(memory, knowledge.queries)
    assert knowledge.hidden.shape == (2, 6, 12, 32)
    assert torch.equal(knowledge.hidden, decoded.hidden)
    assert torch.equal(knowledge.boxes, decoded.boxes[-1])


def test_knowledge_carries_no_gradient() -> None:
    knowledge = teacher_knowledge(tiny_teacher(**TWO_STAGE).eval(), clips())
    queries = knowledge.queries
    tensors = [*knowledge.features.maps.values(), *knowledge.encoded.maps.values()]
    tensors += [knowledge.hidden, knowledge.boxes, knowledge.decoded.hidden, knowledge.scores]
    tensors += [queries.content, queries.position, queries.reference]
    assert not any(tensor.requires_grad for tensor in tensors)


def differ(queries: Queries, name: str) -> bool:
    frames = getattr(queries, name)
    return bool((frames[0] - frames[1]).abs().max() > 1e-4)


def test_queries_of_a_two_stage_teacher_differ_from_frame_to_frame() -> None:
    queries = teacher_knowledge(tiny_teacher(**TWO_STAGE).eval(), clips()).queries
    assert queries.reference.shape == (6, 12, 4)
    assert all(differ(queries, name) for name in ("content", "position", "reference"))


def test_queries_of_a_one_stage_teacher_are_one_bank_and_its_answers_differ() -> None:
    knowledge = teacher_knowledge(tiny_teacher().eval(), clips())
    assert knowledge.queries.reference.shape == (6, 12, 2)
    assert not any(differ(knowledge.queries, name) for name in ("content", "reference"))
    assert (knowledge.hidden[:, 0] - knowledge.hidden[:, 1]).abs().max() > 1e-3


def test_the_teacher_goes_no_further_than_it_has_to() -> None:
    teacher, known = tiny_teacher().eval(), []
    for reach in Reach:
        knowledge = teacher_knowledge(teacher, clips(), reach=reach)
        known.append({name for name, value in vars(knowledge).items() if value is not None})
    always = {"features", "num_frames"}
    assert known[Reach.FEATURES] == always
    assert known[Reach.MEMORY] == always | {"encoded"}
    assert known[Reach.DECODED] == always | {"encoded", "decoded", "scores"}
    assert known[Reach.CLIPS] == known[Reach.DECODED] | {"queries", "hidden", "boxes"}


@pytest.mark.parametrize("reach", [Reach.MEMORY, Reach.DECODED])
def test_only_current_frames_are_encoded_when_the_others_are_not_needed(reach: Reach) -> None:
    teacher, frames = tiny_teacher().eval(), []
    encode = teacher.net.encode
    teacher.net.encode = lambda features: frames.append(len(features.maps[32])) or encode(features)
    teacher_knowledge(teacher, clips(), reach=reach)
    assert frames == [2]


@pytest.mark.parametrize("settings", [{}, TWO_STAGE])
def test_what_is_known_of_current_frames_is_that_of_all_frames(settings: dict) -> None:
    teacher, samples = tiny_teacher(**settings).eval(), clips()
    knowledge = teacher_knowledge(teacher, samples)
    with torch.no_grad():
        memory = teacher.net.encode(teacher.net.extract(teacher.images(teacher.frames(samples))))
        decoded = teacher.net.decode(memory, knowledge.queries)
    for stride, encoded in knowledge.encoded.maps.items():
        assert torch.equal(encoded, memory.level(stride)[[1, 5]])
        assert torch.equal(
            knowledge.encoded.padding[stride], memory.features.padding[stride][[1, 5]]
        )
    for name in ("hidden", "logits", "boxes"):
        assert torch.equal(getattr(knowledge.decoded, name), getattr(decoded, name)[:, [1, 5]])
    assert torch.equal(knowledge.scores, decoded.logits[:, [1, 5]].sigmoid())
    alone = teacher_knowledge(teacher, samples, reach=Reach.DECODED)
    torch.testing.assert_close(alone.decoded.hidden, knowledge.decoded.hidden, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone.encoded.maps, knowledge.encoded.maps, atol=1e-5, rtol=1e-4)


def test_a_teacher_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call teacher\.eval\(\) first"):
        teacher_knowledge(tiny_teacher().train(), clips())


@pytest.mark.parametrize("T", [1, 2, 5])
def test_clips_of_any_length_give_knowledge(T: int) -> None:
    teacher = tiny_teacher(num_frames=T).eval()
    knowledge = teacher_knowledge(teacher, [make_sample(0, num_frames=T)])
    assert knowledge.num_frames == T
    assert knowledge.hidden.shape[1] == T
