"""FlowNet-S: its layers, its flow in cells, and files of its weights."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from v2idetr.checkpoints.files import CheckpointError
from video_detectors.flownet import FlowNetS, flow_input, load_flow_weights

KEY = "video.model.flow_weights"


def random_flownet(**settings) -> FlowNetS:
    torch.manual_seed(0)
    flownet = FlowNetS(**{"width": 4, **settings})
    for parameter in flownet.parameters():
        nn.init.normal_(parameter, std=0.1)
    return flownet


def released_names(flownet: FlowNetS) -> dict[str, torch.Tensor]:
    """As in mega.pytorch."""
    names = {"conv1": "flow_conv1", **{f"predict{7 - k}": f"Convolution{k}" for k in range(1, 6)}}
    names |= {f"upsample{k}to{k - 1}": f"upsample_flow{k}to{k - 1}" for k in range(3, 7)}
    renamed = {}
    for name, tensor in flownet.state_dict().items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{names.get(layer, layer)}.{kind}"] = tensor
    return renamed


def reference(flownet: FlowNetS, pair: torch.Tensor) -> torch.Tensor:
    """Layer by layer, with transposed convolutions that are cropped afterwards."""
    state = flownet.state_dict()

    def conv(name: str, x, stride=1):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    def up(name: str, x, like):
        y = F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)
        return y[:, :, 1 : like.shape[2] + 1, 1 : like.shape[3] + 1]

    def leaky(x):
        return torch.where(x > 0, x, 0.1 * x)

    c1 = leaky(conv("conv1", pair, 2))
    c2 = leaky(conv("conv2", c1, 2))
    c3 = leaky(conv("conv3_1", leaky(conv("conv3", c2, 2))))
    c4 = leaky(conv("conv4_1", leaky(conv("conv4", c3, 2))))
    c5 = leaky(conv("conv5_1", leaky(conv("conv5", c4, 2))))
    c6 = leaky(conv("conv6_1", leaky(conv("conv6", c5, 2))))
    x = c6
    for level, skip in ((5, c5), (4, c4), (3, c3), (2, c2)):
        flow = up(f"upsample{level + 1}to{level}", conv(f"predict{level + 1}", x), skip)
        x = torch.cat([skip, leaky(up(f"deconv{level}", x, skip)), flow], 1)
    return conv("predict2", F.avg_pool2d(x, 2, ceil_mode=True)) * 2.5


@pytest.mark.parametrize("size", [(96, 128), (70, 100)])
def test_the_layers_are_those_of_the_released_code(size: tuple[int, int]) -> None:
    flownet = random_flownet()
    frames = torch.randn(2, 2, 3, *(-(-edge // 2) for edge in size))
    flow = flownet(*frames)
    assert flow.shape == (2, 2, *(-(-edge // 16) for edge in size))
    torch.testing.assert_close(flow, reference(flownet, torch.cat([*frames], 1)))


@pytest.mark.parametrize("stride", [8, 16])
def test_a_unit_of_its_output_is_twenty_pixels_of_the_halved_frames(stride: int) -> None:
    flownet = FlowNetS(width=4, stride=stride)
    nn.init.constant_(flownet.predict2.bias, 1.0)
    flow = flownet(*torch.randn(2, 1, 3, 36, 48))
    assert flow.shape[-2:] == (-(-72 // stride), 96 // stride)
    assert (flow == 40 / stride).all()


def test_flow_of_another_stride_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flownet.stride=32 must be 8 or 16"):
        FlowNetS(stride=32)


def test_flow_of_random_weights_is_zero_and_can_be_learnt() -> None:
    flownet, frames = FlowNetS(width=4), torch.randn(2, 1, 3, 32, 48)
    optimizer = torch.optim.SGD(flownet.parameters(), lr=0.01)
    assert not flownet(*frames).any()
    for _ in range(2):
        optimizer.zero_grad()
        (flownet(*frames) - 1).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in flownet.parameters())


def test_frames_enter_in_bgr_at_half_their_size() -> None:
    rng = np.random.default_rng(0)
    pixels, mean, std = rng.uniform(0, 255, (1, 3, 6, 7)), np.array([120.0, 110, 100]), 58.0
    normalised = (pixels - mean.reshape(3, 1, 1)) / std
    halved = flow_input(torch.tensor(normalised).float(), torch.full((3, 1, 1), std))
    assert halved.shape == (1, 3, 3, 4)
    for channel, y, x in np.ndindex(3, 3, 4):
        block = pixels[0, 2 - channel, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        want = (block.mean() - mean[2 - channel]) / 255
        assert halved[0, channel, y, x].item() == pytest.approx(want, abs=1e-5)


def test_weights_are_read_from_a_file_in_either_naming(tmp_path: Path) -> None:
    trained = random_flownet()
    files = {
        "own.pth": {"model": trained.state_dict()},
        "released.ckpt": {"state_dict": released_names(trained)},
        "prefixed.pth": {f"flownet.{n}": t for n, t in released_names(trained).items()},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        flownet = FlowNetS(width=4)
        load_flow_weights(flownet, str(tmp_path / name), key=KEY)
        for key, tensor in trained.state_dict().items():
            assert torch.equal(flownet.state_dict()[key], tensor)


def test_random_weights_are_said_in_a_warning(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        load_flow_weights(FlowNetS(width=4), "", key=KEY)
    assert f"FlowNet starts from random weights ({KEY} is empty)" in caplog.text


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"flow_weights: .*nowhere.pth: no such checkpoint"):
        load_flow_weights(FlowNetS(width=4), str(tmp_path / "nowhere.pth"), key=KEY)
    torch.save(random_flownet().state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match=r"(?s)flow_weights: .*narrow.pth.*of another shape"):
        load_flow_weights(FlowNetS(width=8), str(tmp_path / "narrow.pth"), key=KEY)
