"""Checkpoints are whole, safe to read, and refused with a reason where they do not fit."""

from __future__ import annotations

import io
import os
import pickle
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from v2idetr.checkpoints.files import CheckpointError, read_weights
from v2idetr.runs.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_detector,
    load_into,
    save_checkpoint,
)


def checkpoint(scale: float = 1.0, **changes) -> Checkpoint:
    model = {"weight": torch.full((4, 3), scale), "bias": torch.zeros(4)}
    return Checkpoint(stage="plain", iteration=7, model=model, class_names=["polyp"], **changes)


def test_a_checkpoint_comes_back_as_it_was(tmp_path) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([{"params": [parameter], "name": "main", "initial_lr": 0.1}])
    parameter.grad = torch.ones(3)
    optimizer.step()
    best = {"metric": "AP50", "value": 0.5, "iteration": 4}
    before = checkpoint(
        optimizer=optimizer.state_dict(), best=best, progress={"hooks": {}}, git_commit="abc"
    )
    save_checkpoint(before, tmp_path / "last.pth")
    after = load_checkpoint(tmp_path / "last.pth")
    assert (after.stage, after.iteration, after.best) == ("plain", 7, best)
    assert torch.equal(after.model["weight"], before.model["weight"])
    assert after.optimizer is not None
    assert after.optimizer["param_groups"] == optimizer.state_dict()["param_groups"]
    assert os.listdir(tmp_path) == ["last.pth"], "no temporary file is left"


def test_a_full_disk_leaves_the_old_checkpoint_and_no_temporary_file(tmp_path, in_child) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(checkpoint(1.0), path)

    def write_too_much() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        big = Checkpoint(stage="plain", iteration=8, model={"weight": torch.ones(100_000)})
        with pytest.raises(CheckpointError, match=r"could not be written.*EFBIG.*untouched"):
            save_checkpoint(big, path)

    assert in_child(write_too_much) == 0
    assert load_checkpoint(path).iteration == 7
    assert os.listdir(tmp_path) == ["last.pth"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_any_failing_write_is_one_clear_error(tmp_path, monkeypatch, failing) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(checkpoint(1.0), path)

    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, no_space)
    with pytest.raises(CheckpointError, match="ENOSPC: No space left on device") as caught:
        save_checkpoint(checkpoint(2.0), path)
    assert "--resume" in str(caught.value)
    monkeypatch.undo()
    assert load_checkpoint(path).model["weight"][0, 0] == 1.0
    assert os.listdir(tmp_path) == ["last.pth"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_recognised(tmp_path, share) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(checkpoint(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        load_checkpoint(path)


def test_a_damaged_tensor_is_recognised(tmp_path) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(Checkpoint(stage="plain", iteration=0, model={"w": torch.ones(10_000)}), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path)


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_pickled_code_is_refused_and_not_run(tmp_path, how) -> None:
    path, target = tmp_path / "evil.pth", tmp_path / "touched"
    content = {"model": Malicious(target)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for load in (load_checkpoint, read_weights):
        with pytest.raises(CheckpointError, match=r"pickled Python objects.*not loaded") as caught:
            load(path)
        assert "state_dict()" in str(caught.value), "says what to do"
    assert not target.exists()


@pytest.mark.parametrize("content", [b"hello world", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_a_file_of_another_kind_is_refused(tmp_path, content) -> None:
    path = tmp_path / "picture.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_weights(path)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pth: no such checkpoint file"):
        load_checkpoint(tmp_path / "nothing.pth")


def test_a_checkpoint_of_another_program_is_no_run_to_resume(tmp_path) -> None:
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match=r"train\.init_checkpoint"):
        load_checkpoint(tmp_path / "theirs.pth")
    assert read_weights(tmp_path / "theirs.pth").state["w"] == 1
    torch.save({"format": "v2idetr-checkpoint", "version": 99}, tmp_path / "new.pth")
    with pytest.raises(CheckpointError, match="version 99"):
        load_checkpoint(tmp_path / "new.pth")


@pytest.mark.parametrize("content", [{}, {"model": 3}, {"epoch": 3}, [1, 2]])
def test_a_file_without_weights_is_refused(tmp_path, content) -> None:
    torch.save(content, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="has no state dict"):
        read_weights(tmp_path / "empty.pth")


def test_weights_for_other_classes_are_refused_where_classes_matter(tmp_path) -> None:
    save_checkpoint(checkpoint(), tmp_path / "a.pth")
    assert load_detector(nn.Linear(3, 4), tmp_path / "a.pth", class_names=["polyp"]) == []
    with pytest.raises(CheckpointError, match=r"trained for the classes \['polyp'\]"):
        load_detector(nn.Linear(3, 4), tmp_path / "a.pth", class_names=["benign", "malignant"])


def test_mismatched_weights_are_listed_and_nothing_is_loaded() -> None:
    model = nn.Linear(3, 4)
    before = model.weight.clone()
    state = {"weight": torch.ones(5, 3), "scale": torch.ones(1)}
    with pytest.raises(CheckpointError) as caught:
        load_into(model, state, "file.pth")
    message = str(caught.value)
    assert "missing in the file (1):\n    bias" in message
    assert "not in the model (1):\n    scale" in message
    assert "of another shape (1):\n    weight (5, 3), the model has (4, 3)" in message
    assert torch.equal(model.weight, before)


def test_long_lists_of_mismatches_are_capped() -> None:
    with pytest.raises(CheckpointError, match="and 90 more"):
        load_into(nn.Linear(1, 1), {f"layer{i}": torch.ones(1) for i in range(100)}, "file.pth")


def test_partial_loading_returns_what_was_left_out() -> None:
    model = nn.Linear(3, 4)
    left_out = load_into(model, {"weight": torch.ones(4, 3)}, "file.pth", partial=True)
    assert left_out == ["bias"] and bool((model.weight == 1).all())
    with pytest.raises(CheckpointError, match="not one of its weights fits"):
        load_into(model, {"other": torch.ones(1)}, "file.pth", partial=True)


def test_only_plain_types_are_written(tmp_path) -> None:
    import numpy as np

    with pytest.raises(AssertionError, match=r"best\.value is a float64"):
        save_checkpoint(checkpoint(best={"value": np.float64(0.5)}), tmp_path / "x.pth")
    buffer = io.BytesIO()
    torch.save({"value": np.float64(0.5)}, buffer)
    buffer.seek(0)
    with pytest.raises(pickle.UnpicklingError):  # the reason
        torch.load(buffer, weights_only=True)
