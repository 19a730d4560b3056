"""CVA-Net on the small Deformable DETR."""

from .cva_net import stages, train, video  # noqa: F401 (parts of this config)
from .deformable_detr_small import model  # noqa: F401
