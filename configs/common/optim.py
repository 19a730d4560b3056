"""The recipe of the paper; where it is silent, of Deformable DETR and SAM-DETR."""

from detectron2.config import LazyCall as L

optimizer = L("v2idetr.engine.optimizer.AdamWRecipe")(
    lr=1e-4,  # paper, section III
    backbone_lr=1e-5,  # SAM-DETR, whose 12-epoch recipe the paper's numbers agree with
    slow_factor=0.1,  # Deformable DETR: sampling offsets and reference points learn slowly
    slow_names=["sampling_offsets", "reference_points"],
    weight_decay=1e-4,
)

# Relative to the length of the run: 12 epochs, drop by 10 at epoch 10.
lr_multiplier = L("fvcore.common.param_scheduler.MultiStepParamScheduler")(
    values=[1.0, 0.1], milestones=[10], num_updates=12
)
