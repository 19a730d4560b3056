"""Causal multi-stage temporal convolutional network over the frame features of a video.

TeCNO (Czempiel et al., MICCAI 2020): the multi-stage TCN of MS-TCN (Abu Farha and Gall, CVPR 2019)
with causal convolutions. A stage is a stack of residual layers whose dilation doubles::

    x <- x + Dropout(W1 ReLU(W_dilated * x))        kernel 3: frames t, t - D, t - 2D;  D = 2^layer

The first stage reads features, each later one the softmax of the previous stage. A logit depends on
the 2 (2^layers - 1) frames before it and on none after it.

The released code of Free Lunch trains one stage of 12 layers with 64 maps, with dropout of whole
feature channels at its input; these are the defaults. TeCNO's configuration has 2 stages of 9
layers. Unlike MS-TCN, TeCNO's code applies cross-entropy to softmax outputs, without smoothing;
here it is applied to logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class CausalTCN(nn.Module):
    """Features of videos -> phase logits of every stage.

    Args:
        d: width of the features.
        num_phases: K.
        num_stages: S, the first stage and its refinements.
        num_layers: residual layers of a stage; 12 look back 8190 frames.
        width: maps of a layer.
        dropout: rate in each residual layer.
        channel_dropout: rate at which whole feature channels of a video are dropped.

    Raises:
        ValueError: no stage, layer or map.
    """

    def __init__(
        self,
        *,
        d: int,
        num_phases: int,
        num_stages: int = 1,
        num_layers: int = 12,
        width: int = 64,
        dropout: float = 0.5,
        channel_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if min(num_stages, num_layers, width) < 1:
            raise ValueError(
                "CausalTCN needs at least one stage, layer and map, got "
                f"num_stages={num_stages}, num_layers={num_layers} and width={width}."
            )
        self.d, self.num_phases = d, num_phases
        self.channel_dropout = nn.Dropout1d(channel_dropout)
        self.stages = nn.ModuleList(
            CausalStage(inputs, num_phases, num_layers=num_layers, width=width, dropout=dropout)
            for inputs in [d, *[num_phases] * (num_stages - 1)]
        )

    def forward(self, features: Float[Tensor, "B T d"]) -> Float[Tensor, "S B T K"]:
        """Logits of each stage, the last one's being the prediction.

        Videos of different lengths are padded at the end. Causality keeps the padding out of the
        logits before it, so that no mask is needed here; ``phase_losses`` takes the lengths.

        Raises:
            ValueError: features of another width.
        """
        if features.shape[2] != self.d:
            raise ValueError(
                f"CausalTCN was built for features of width {self.d}, got {features.shape[2]}."
            )
        x = self.channel_dropout(features.transpose(1, 2))
        logits = []
        for stage in self.stages:
            logits.append(stage(x))
            x = logits[-1].softmax(dim=1)
        return torch.stack(logits).transpose(2, 3)


class CausalStage(nn.Module):
    """One stage: projection, residual layers, classifier."""

    def __init__(
        self, inputs: int, num_phases: int, *, num_layers: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.input = nn.Conv1d(inputs, width, 1)
        self.layers = nn.ModuleList(
            CausalLayer(width, dilation=2**layer, dropout=dropout) for layer in range(num_layers)
        )
        self.output = nn.Conv1d(width, num_phases, 1)

    def forward(self, x: Float[Tensor, "B inputs T"]) -> Float[Tensor, "B K T"]:
        x = self.input(x)
        for layer in self.layers:
            x = layer(x)
        return self.output(x)

    def empty_rings(self) -> list[Float[Tensor, "_ width"]]:
        """Memory of each layer before the first frame."""
        weight = self.input.weight
        return [weight.new_zeros(layer.past, len(weight)) for layer in self._causal_layers()]

    def step(
        self, x: Float[Tensor, "inputs"], rings: list[Float[Tensor, "_ width"]], frame: int
    ) -> Float[Tensor, "K"]:
        """``forward`` of one frame; updates the rings."""
        x = self.input(x[:, None])[:, 0]
        for layer, ring in zip(self._causal_layers(), rings, strict=True):
            x = layer.step(x, ring, frame)
        return self.output(x[:, None])[:, 0]

    def _causal_layers(self) -> list[CausalLayer]:
        return [layer for layer in self.layers if isinstance(layer, CausalLayer)]


class CausalLayer(nn.Module):
    """Residual layer with a dilated convolution that sees no later frame."""

    def __init__(self, width: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        self.past = 2 * dilation  # frames that the convolution looks back
        self.dilated = nn.Conv1d(width, width, 3, dilation=dilation)
        self.pointwise = nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B width T"]) -> Float[Tensor, "B width T"]:
        update = F.relu(self.dilated(F.pad(x, (self.past, 0))))
        return x + self.dropout(self.pointwise(update))

    def step(
        self, x: Float[Tensor, "width"], ring: Float[Tensor, "_ width"], frame: int
    ) -> Float[Tensor, "width"]:
        """``forward`` of one frame without dropout; writes it into the ring of earlier inputs."""
        oldest = frame % self.past  # of frame t - 2D, to be overwritten
        middle = (frame + self.past // 2) % self.past  # of frame t - D
        taps = torch.stack([ring[oldest], ring[middle], x], dim=1)
        ring[oldest] = x
        update = F.relu(F.conv1d(taps, self.dilated.weight, self.dilated.bias))
        return x + self.pointwise(update)[:, 0]


def phase_losses(
    logits: Float[Tensor, "S B T K"],
    labels: Int[Tensor, "B T"],
    lengths: Int[Tensor, "B"] | None = None,
    *,
    num_frames: float | None = None,
    smoothing_weight: float = 0.15,
    smoothing_limit: float = 4.0,
) -> dict[str, Float[Tensor, ""]]:
    """Cross-entropy and truncated smoothing, each summed over stages (loss of MS-TCN).

    ::

        loss_phase  = sum over stages of the mean over frames of -log p_t(label_t)
        loss_smooth = smoothing_weight * sum over stages of the mean over neighbouring frames and
                      phases of min(|log p_t - log p_{t-1}|, smoothing_limit)^2

    No gradient flows into p_{t-1}. The released code of Free Lunch has ``smoothing_weight`` 1.
    Means are over all frames of the batch inside ``lengths``: a long video weighs more.

    Args:
        logits: output of ``CausalTCN``.
        labels: phase index of each frame; any value in the padding.
        lengths: frames of each video; None if none is padded.
        num_frames: of these videos; or, where a batch is shared by processes that have as many
            videos each, those of the whole batch over the number of processes. The mean of the
            processes' losses is then the loss of the whole batch. None: counted.
        smoothing_weight: lambda of MS-TCN.
        smoothing_limit: tau of MS-TCN, in nats.

    Raises:
        ValueError: a length outside [1, T].
    """
    B, T = labels.shape
    valid = torch.ones(B, T, dtype=torch.bool, device=logits.device)
    if lengths is not None:
        if lengths.min() < 1 or lengths.max() > T:
            raise ValueError(f"Lengths of videos must lie in [1, {T}], got {lengths.tolist()}.")
        valid = torch.arange(T, device=logits.device) < lengths.to(logits.device)[:, None]
    frames = float(valid.sum()) if num_frames is None else num_frames
    log_p = logits.log_softmax(dim=-1)
    target = labels.long().masked_fill(~valid, 0)[None, ..., None].expand(len(logits), -1, -1, -1)
    entropy = -log_p.gather(-1, target).squeeze(-1)
    change = log_p[:, :, 1:] - log_p[:, :, :-1].detach()
    change = change.square().clamp(max=smoothing_limit**2).mean(dim=-1)
    return {
        "loss_phase": _sum_over(valid, entropy) / frames,
        # Each video has one pair of neighbours less than frames; without any, the sum is 0.
        "loss_smooth": smoothing_weight * _sum_over(valid[:, 1:], change) / ((frames - B) or 1.0),
    }


def _sum_over(frames: Bool[Tensor, "B t"], values: Float[Tensor, "S B t"]) -> Float[Tensor, ""]:
    """Sum over these frames and all stages."""
    return values.masked_fill(~frames, 0.0).sum()


class PhaseStream:
    """A ``CausalTCN`` on a live video, one frame at a time, in constant memory.

    Gives the logits of the whole-video forward. Each layer keeps its last 2D inputs in a ring that
    starts at zero, the padding before the first frame. With the defaults, a stage keeps 2 MB.

    Raises:
        ValueError: the model is in training mode, where dropout is active.
    """

    def __init__(self, model: CausalTCN) -> None:
        if model.training:
            raise ValueError("PhaseStream needs the model in eval mode; call model.eval() first.")
        self.stages = [stage for stage in model.stages if isinstance(stage, CausalStage)]
        self.reset()

    def reset(self) -> None:
        """Forget all frames; to be called before a new video."""
        self._frame = 0
        self._rings = [stage.empty_rings() for stage in self.stages]

    @torch.no_grad()
    def step(self, feature: Float[Tensor, "d"]) -> Float[Tensor, "S K"]:
        """Logits of the next frame, by stage."""
        logits, x = [], feature
        for stage, rings in zip(self.stages, self._rings, strict=True):
            logits.append(stage.step(x, rings, self._frame))
            x = logits[-1].softmax(dim=0)
        self._frame += 1
        return torch.stack(logits)
