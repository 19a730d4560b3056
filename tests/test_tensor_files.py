"""A damaged safetensors file is refused, whatever part of it is damaged."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from v2idetr.checkpoints.files import CheckpointError, read_weights
from v2idetr.checkpoints.published import write_backbone
from v2idetr.modeling.backbone_weights import _read_state
from v2idetr.tensor_files import CHECKSUM, packed, read_safetensors

STATE = {
    "a.weight": torch.linspace(-1, 1, 40).view(5, 8),
    "a.half": torch.ones(3, dtype=torch.bfloat16),
    "b.count": torch.arange(7),
    "b.empty": torch.zeros(0, 4),
    "b.scalar": torch.tensor(2.5),
}
WORDS = {"format": "sample", "class_names": '["adenoma", "serrated"]', "note": "Grüße"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(packed(STATE, WORDS))
    return path


def is_seen(path: Path) -> bool:
    """Whether a file is refused; or the checksum's name alone is damaged, all else being whole."""
    try:
        state, words = read_safetensors(path)
    except ValueError:
        return True
    whole = all(torch.equal(state[name], tensor) for name, tensor in STATE.items())
    return whole and len(words) == len(WORDS) + 1 and words.items() >= WORDS.items()


def test_tensors_and_words_come_back(path: Path) -> None:
    state, words = read_safetensors(path)
    assert words == WORDS and state.keys() == STATE.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())
    assert all(state[name].dtype == tensor.dtype for name, tensor in STATE.items())


def test_the_same_content_gives_the_same_bytes() -> None:
    backwards = dict(reversed(WORDS.items()))
    assert packed(STATE, WORDS) == packed(STATE, WORDS) == packed(STATE, backwards)
    assert packed(STATE, {}) == packed(STATE, {})


def test_views_and_gaps_are_written_as_what_they_show(tmp_path: Path) -> None:
    whole = torch.randn(4, 3, 5, 5)
    state = {"part": whole[1:3], "last": whole.to(memory_format=torch.channels_last)}
    (tmp_path / "a.safetensors").write_bytes(packed(state, {}))
    back, _ = read_safetensors(tmp_path / "a.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_every_program_can_read_it(path: Path) -> None:
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {**WORDS, CHECKSUM: file.metadata()[CHECKSUM]}
        assert torch.equal(file.get_tensor("b.count"), STATE["b.count"])


def test_each_flipped_bit_is_seen(path: Path) -> None:
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        assert is_seen(path), place


def test_cut_off_overwritten_and_swapped_parts_are_seen(path: Path) -> None:
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        start, end = sorted(rng.integers(0, len(content), 2).tolist())
        kind = int(rng.integers(3))
        if kind == 0:
            damaged = damaged[:end]
        elif kind == 1:
            damaged[start : end + 1] = rng.bytes(end + 1 - start)
        else:
            damaged[start:end] = reversed(damaged[start:end])
        if bytes(damaged) == content:
            continue
        path.write_bytes(damaged)
        assert is_seen(path), (kind, start, end)


def test_a_damaged_file_is_named_with_the_remedy(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: .*checksum.*Copy the file"):
        read_weights(path)


def test_a_file_without_a_checksum_loads_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file(STATE, path, {"format": "pt"})
    with caplog.at_level(logging.INFO, logger="v2idetr"):
        assert read_weights(path).metadata == {"format": "pt"}
    assert f"{path}: has no checksum" in caplog.text


def test_weights_of_a_backbone_are_checked_as_well(tmp_path: Path) -> None:
    path, source = tmp_path / "resnet.safetensors", tmp_path / "resnet.pth"
    source.write_bytes(b"x")
    write_backbone(path, {"conv1.weight": torch.randn(4, 3)}, "resnet50", source)
    assert _read_state(path)["conv1.weight"].shape == (4, 3)
    content = bytearray(path.read_bytes())
    content[-5] ^= 16
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a file of plain tensors"):
        _read_state(path)


def test_the_order_of_the_header_does_not_matter(path: Path) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(reversed(header["__metadata__"].items()))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    assert read_safetensors(path)[1] == WORDS
