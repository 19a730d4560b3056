"""TransVOD on the small Deformable DETR, with two references of a window."""

from detectron2.config import LazyCall as L

from .deformable_detr_small import model  # noqa: F401 (part of this config)
from .transvod import stages, train, video  # noqa: F401

video.model.temporal.num_levels = 4
video.model.temporal.num_references = 2
video.model.reference_sampler = L("v2idetr.data.reference_sampler.WindowSampler")(
    num_frames=3, window="${data.window}", sampling="${data.sampling}", side="${data.side}"
)
