#!/usr/bin/env python3
"""Draw the figures of docs/distillation.md from the code that trains, on synthetic frames.

python tools/draw_figures.py                 # docs/msi.jpg, docs/tfd.jpg, docs/cqd.svg

msi   cells of neighbouring frames that reach a cell of the current one: gradients through MSI
tfd   masks of `gaussian_mask` on frames with a small, a medium and a large lesion
cqd   a draw of `draw_indices`, and which queries see which: the decoded queries that change
      when one of them is changed, in `decode_beside`
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from datasets.synthetic.clips import Frame

SIZE = 384, 288  # width, height of the frames, px
STRIDES = {8: "local", 32: "global"}
T, N = 3, 12  # frames of a clip, queries of the small network
FRAME_COLOURS = ("#7a5af0", "#009d8c", "#d98200")
CYAN, INK, WHITE = (0, 229, 255), (26, 29, 35), (255, 255, 255)
# Seeds of clips that show what is meant, found by looking.
SPOILED = (5, 9)  # clip, frame with glare over the lesion
OFFSET = 4  # frames to the neighbours
LESIONS = {"small": 3, "medium": 1, "large": 2}


def main(arguments: list[str] | None = None) -> int:
    """Draw all figures; returns 2 where the folder cannot be written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder (default docs)")
    options = parser.parse_args(arguments)
    # Imported here, so that --help needs neither torch nor matplotlib.
    import matplotlib

    from v2idetr.output_folder import check_writable
    from v2idetr.plot_style import STYLE, to_svg

    matplotlib.use("Agg")
    try:
        check_writable(options.output, "--output")
    except ValueError as error:
        print(f"draw_figures: {error}", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    for name, draw in {"msi": draw_msi, "tfd": draw_tfd}.items():
        path = options.output / f"{name}.jpg"
        with matplotlib.rc_context(STYLE):
            draw().savefig(path, dpi=110, pil_kwargs={"quality": 88, "subsampling": 0})
        print(f"wrote {path}")
    path = options.output / "cqd.svg"
    path.write_text(to_svg(draw_cqd, "cqd"), encoding="utf-8")
    print(f"wrote {path}")
    return 0


# ------------------------------------------------------------------ MSI


def draw_msi() -> Figure:
    """Two levels of three frames, with the cells that reach one cell of the current frame."""
    import matplotlib.pyplot as plt

    frames = spoiled_clip()
    x0, y0, x1, y1 = frames[1].box or (0, 0, 0, 0)
    figure, axes = plt.subplots(len(STRIDES), T, figsize=(11, 5.9), layout="constrained")
    for row, (stride, role) in zip(axes, STRIDES.items(), strict=True):
        cell = (y0 + y1) // 2 // stride, (x0 + x1) // 2 // stride
        reached = reaching_cells(stride, role, cell)
        for index, (axis, frame) in enumerate(zip(row, frames, strict=True)):
            marked = cell if index == 1 else None
            show(axis, tinted(frame.image, reached[index] * 0.55, stride, marked))
        row[0].set_ylabel(f"stride {stride}: {role}", fontsize=12, color="#1a1d23")
    titles = f"{OFFSET} frames earlier", "current frame", f"{OFFSET} frames later"
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=12)
    return figure


def spoiled_clip() -> list[Frame]:
    """A frame with glare over the lesion, between two that show it."""
    seed, now = SPOILED
    frames = rendered(seed, (5, 6), 14, now + OFFSET + 1, difficulty=1.3)
    return [frames[now - OFFSET], frames[now], frames[now + OFFSET]]


def rendered(
    seed: int, draws: tuple[int, int], length: int, wanted: int, *, difficulty: float
) -> list[Frame]:
    """The first frames of a clip of some length; all of it depends on the seeds and the length."""
    from itertools import islice

    from datasets.synthetic.clips import ClipSpec, render_clip

    case, clip = ((seed, draw) for draw in draws)
    spec = ClipSpec("colon", SIZE, case, clip, (length,), difficulty=difficulty)
    return list(islice(render_clip(spec), wanted))


def reaching_cells(stride: int, role: str, cell: tuple[int, int]) -> np.ndarray:
    """1 for every cell of the T frames on which a cell of the current frame depends, (T, h, w)."""
    import torch

    from v2idetr.modeling.interface import Features
    from v2idetr.modeling.temporal import MSI

    torch.manual_seed(0)
    d = 16
    msi = MSI(strides=[stride], roles=[role], d=d, ffn_dim=32, num_heads=2)
    for parameter in msi.parameters():  # it starts as the identity
        torch.nn.init.normal_(parameter, std=0.3)
    shape = (T, d, SIZE[1] // stride, SIZE[0] // stride)
    maps = torch.randn(shape, requires_grad=True)
    mixed = msi(Features({stride: maps}, None, num_frames=T)).maps[stride]
    mixed[1, :, *cell].sum().backward()
    assert maps.grad is not None
    return (maps.grad.abs().amax(1) > 0).float().numpy()


# ------------------------------------------------------------------ TFD


def draw_tfd() -> Figure:
    """Frames with a small, a medium and a large lesion, with TFD's mask of stride 32."""
    import matplotlib.pyplot as plt
    import torch

    from v2idetr.distillation.spatial_masks import gaussian_mask

    stride = 32
    figure, axes = plt.subplots(1, len(LESIONS), figsize=(11, 3.2), layout="constrained")
    for axis, (name, seed) in zip(axes, LESIONS.items(), strict=True):
        frame = rendered(seed, (1, 2), 3, 1, difficulty=0.0)[0]
        x0, y0, x1, y1 = frame.box or (0, 0, 0, 0)
        box = torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32)
        mask = gaussian_mask(box, stride, SIZE[1] // stride, SIZE[0] // stride).numpy()
        show(axis, tinted(frame.image, 0.8 * mask / mask.max(), stride))
        axis.add_patch(
            plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="white", lw=1.6, ls="--")
        )
        cells = int((mask > 0).sum())
        words = f"{cells} cell{'s' * (cells > 1)}, largest weight {mask.max():.2f}"
        axis.set_title(f"{name} lesion: {words}", fontsize=11)
    return figure


# ------------------------------------------------------------------ CQD


def draw_cqd() -> Figure:
    """Which queries are drawn of each frame, and which see which by the mask of self-attention."""
    import matplotlib.pyplot as plt
    import torch

    from v2idetr.distillation.cqd import draw_indices

    drawn = draw_indices(N, T, N // T, disjoint=True, generator=torch.Generator().manual_seed(3))
    figure, axes = plt.subplots(
        1, 3, figsize=(11, 3.7), layout="constrained", gridspec_kw={"width_ratios": [1.25, 1, 1]}
    )
    first = axes[0]
    for frame, indices in enumerate(drawn.tolist()):
        first.scatter(range(N), [frame] * N, s=46, fc="white", ec="#c3c9d1", lw=1.2)
        first.scatter(indices, [frame] * len(indices), s=62, c=FRAME_COLOURS[frame])
    first.set(yticks=range(T), xticks=range(N), ylim=(T - 0.4, -0.6), xlabel="query of the teacher")
    first.set_yticklabels(["frame before", "current frame", "frame after"])
    first.set_title(f"Draw: {N // T} of {N} queries a frame, none twice", fontsize=11)
    first.grid(False)
    first.spines[:].set_visible(False)
    first.tick_params(length=0)
    for axis, mask in zip(axes[1:], ("one_way", "none"), strict=True):
        draw_visibility(axis, visibility(mask, drawn), drawn)
        words = {"one_way": "mask=one_way (default)", "none": "mask=none"}[mask]
        axis.set_title(words, fontsize=11)
    return figure


def draw_visibility(axis: Axes, seen: np.ndarray, drawn: Any) -> None:
    """Matrix of who sees whom; rows and columns are own queries, then drawn ones by frame."""
    import numpy as np
    from matplotlib.colors import to_rgb

    colours = ["#5b6370"] * N + [FRAME_COLOURS[f] for f in range(T) for _ in drawn[f]]
    columns = np.array([to_rgb(colour) for colour in colours])
    axis.imshow(np.where(seen[..., None], columns[None], to_rgb("#eef0f3")))
    for line in range(1, 2 * N):
        axis.axhline(line - 0.5, color="white", lw=1.2)
        axis.axvline(line - 0.5, color="white", lw=1.2)
    places = [N / 2 - 0.5, 1.5 * N - 0.5]
    axis.set_xticks(places, ["own", "drawn"])
    axis.set_yticks(places, ["own", "drawn"], rotation=90, va="center")
    axis.set(xlabel="is seen", ylabel="query")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def visibility(mask: Any, drawn: Any) -> np.ndarray:
    """Whether each decoded query (row) depends on each query (column): own ones, then drawn ones.

    Changes one query after the other in a small DETR, and looks at what its decoder gives.
    """
    import numpy as np
    import torch

    from v2idetr.modeling.detr import DETR
    from v2idetr.modeling.extra_queries import ExtraQueries, decode_beside
    from v2idetr.modeling.interface import Features, Queries

    torch.manual_seed(0)
    net = DETR(
        backbone=small_backbone(),
        num_classes=1,
        d=16,
        num_queries=N,
        num_encoder_layers=1,
        num_decoder_layers=2,
        num_heads=2,
        ffn_dim=16,
        dropout=0.0,
    ).eval()
    with torch.no_grad():
        memory = net.encode(Features({32: torch.randn(1, 16, 4, 5)}, None))
        own = net.queries(memory)
        extra = Queries(torch.randn(1, N, 16), torch.randn(1, N, 16), torch.rand(1, N, 2))
        own.content = torch.randn(1, N, 16)

        def decoded(changed: int | None) -> np.ndarray:
            parts = [own.content.clone(), extra.content.clone()]
            if changed is not None:
                parts[changed // N][0, changed % N] += 1
            mine = Queries(parts[0], own.position, own.reference)
            theirs = ExtraQueries(Queries(parts[1], extra.position, extra.reference), mask)
            first, (second,) = decode_beside(net, memory, mine, [theirs])
            return np.concatenate([first.hidden[-1][0], second.hidden[-1][0]])

        before = decoded(None)
        changes = [np.abs(decoded(index) - before).max(1) > 1e-6 for index in range(2 * N)]
    return np.stack(changes, 1)


def small_backbone() -> Any:
    """A backbone of one convolution: its features are not asked for."""
    from torch import nn

    from v2idetr.modeling.backbone import FeatureShape

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 32, stride=32)

        def output_shape(self) -> dict[str, FeatureShape]:
            return {"c5": FeatureShape(8, 32)}

        def forward(self, pixels: Any) -> dict[str, Any]:
            return {"c5": self.conv(pixels)}

    return Small()


# ------------------------------------------------------------------ frames and cells


def show(axis: Axes, image: np.ndarray) -> None:
    """The frame, without axes."""
    axis.imshow(image)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def tinted(
    image: np.ndarray, opacity: np.ndarray, stride: int, marked: tuple[int, int] | None = None
) -> np.ndarray:
    """A frame with the cells of a map over it, a pixel apart.

    Args:
        image: RGB frame.
        opacity: of every cell, in [0, 1].
        stride: side of a cell, px.
        marked: (row, column) of a cell with an outline; None for none.
    """
    import cv2
    import numpy as np

    alpha = opacity.repeat(stride, 0).repeat(stride, 1)[..., None]
    alpha[::stride], alpha[:, ::stride] = 0, 0
    pixels = np.ascontiguousarray((image * (1 - alpha) + np.array(CYAN) * alpha).astype(np.uint8))
    if marked is not None:
        y, x = (side * stride for side in marked)
        for width, colour in ((5, WHITE), (2, INK)):
            cv2.rectangle(pixels, (x - 1, y - 1), (x + stride, y + stride), colour, width)
    return pixels


if __name__ == "__main__":
    sys.exit(main())
