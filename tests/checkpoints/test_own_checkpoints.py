"""A checkpoint of train_net.py fits the detector it was trained as, and no other."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.checkpoints.tiny_detectors import detector_of, disturbed, tiny_network
from tests.conftest import tiny_teacher
from v2idetr.checkpoints.architecture import describe
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.modeling.meta_arch import Detector
from v2idetr.runs.checkpoint import Checkpoint, load_detector, save_checkpoint

ADVICE = "set train.init_partial=true to leave out what does not fit"


def tiny_detector(kind: str = "DETR", **changes) -> Detector:
    return detector_of(disturbed(tiny_network(kind, **changes)))  # type: ignore[arg-type]


def saved(detector: Detector, folder: Path, class_names: list[str]) -> Path:
    checkpoint = Checkpoint(
        "plain",
        2,
        dict(detector.state_dict()),
        class_names=class_names,
        architecture=describe(detector.net),
    )
    save_checkpoint(checkpoint, folder / "best.pth")
    return folder / "best.pth"


def bare(detector: Detector, folder: Path) -> Path:
    torch.save(detector.state_dict(), folder / "bare.pth")
    return folder / "bare.pth"


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("kind", ["saved", "bare"])
def test_another_family_is_refused_and_no_way_around_is_advised(
    kind: str, partial: bool, tmp_path: Path
) -> None:
    theirs = tiny_detector("DeformableDETR")
    path = bare(theirs, tmp_path) if kind == "bare" else saved(theirs, tmp_path, ["polyp"])
    with pytest.raises(CheckpointError, match=r"net\.network is 'DETR', in the file 'Deform") as e:
        load_detector(tiny_detector(), path, partial=partial, advice=ADVICE)
    assert "init_partial" not in str(e.value) and "Use a config of DeformableDETR" in str(e.value)


@pytest.mark.parametrize("partial", [False, True])
def test_another_number_of_heads_is_refused(partial: bool, tmp_path: Path) -> None:
    path = saved(tiny_detector(), tmp_path, ["polyp"])
    with pytest.raises(CheckpointError, match=r"net\.num_heads is 4, in the file 8"):
        load_detector(tiny_detector(num_heads=4), path, partial=partial)


def test_class_heads_for_other_classes_are_not_taken(tmp_path: Path) -> None:
    names = list("abcde")
    path, other = saved(tiny_detector(), tmp_path, names), tiny_detector()
    with pytest.raises(CheckpointError, match=r"new-class-head(?s:.*)init_partial=true"):
        load_detector(other, path, class_names=names[::-1], advice=ADVICE)
    left_out = load_detector(other, path, class_names=names[::-1], partial=True)
    assert left_out == ["net.class_head.bias", "net.class_head.weight"]
    assert load_detector(other, path, class_names=names, partial=True) == []


def test_what_partial_loading_finds_in_another_shape_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tiny_detector(), tmp_path, ["polyp"])
    with caplog.at_level(logging.WARNING):
        load_detector(tiny_detector(num_queries=9), path, partial=True)
    assert "net.query_embed.weight" in caplog.text and "the model has (9, " in caplog.text


def test_a_teacher_of_before_msi_lay_in_a_slot_still_loads(tmp_path: Path) -> None:
    teacher, other = tiny_teacher(d=64), tiny_teacher(d=64)
    names = {n: n.replace("fusion.features.", "temporal.") for n in teacher.state_dict()}
    assert any(name != former for name, former in names.items())
    state = {names[name]: tensor for name, tensor in teacher.state_dict().items()}
    torch.save({"model": state}, tmp_path / "teacher.pth")
    load_detector(other, tmp_path / "teacher.pth")
    assert all(torch.equal(other.state_dict()[n], t) for n, t in teacher.state_dict().items())
