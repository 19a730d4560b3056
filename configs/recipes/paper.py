"""How a run is trained and evaluated: the paper; where it is silent, Deformable DETR and SAM-DETR.

Steps and periods are those of a data set: see configs/data.
"""

from detectron2.config import LazyCall as L

train = dict(
    # One folder per run, one folder per stage in it; by default named after the config file.
    output_dir="output/${config_name}",
    seed=0,
    device="auto",  # auto | cpu | cuda; auto is the GPU if there is one
    stages=["teacher", "plain", "student"],  # run in this order; leave out what is not wanted
    max_iter=1000,
    batch_size=16,  # clips per step, over all processes and micro-batches (paper, section III)
    # What a process has memory for; it cuts a larger share of a batch up, with the same gradient.
    # The teacher needs some 4 GiB a clip of full size.
    clips_at_once=2,
    amp="off",  # off | bf16 | fp16 (GPU only)
    clip_grad_norm=0.1,  # of all gradients together, as DETR; 0 switches it off
    # steps between evaluations on the validation split; 0: none, with evaluation.checkpoint=final
    eval_period=1000,
    # Early stopping: after so many evaluations without a better best_metric the learning rate
    # falls to zero along a cosine, over `cooldown` times the steps so far; 0: trains max_iter steps
    patience=0,
    cooldown=0.25,
    checkpoint_period=500,  # steps between writes of last.pth
    log_period=20,  # steps between lines of metrics.jsonl, each their mean
    num_workers=2,  # processes that prepare samples; 0 prepares them in the training process
    init_checkpoint="",  # weights to start from, plain and student
    init_partial=False,  # take what fits of an init_checkpoint, and list what does not
    best_metric="AP50",  # AP, AP50, AP75 or <rule>/f1 on the validation split, higher is better
    deterministic=True,  # repeatable operations on a GPU, where there are any
    tensorboard=False,  # also write TensorBoard event files
    find_unused_parameters=False,  # DistributedDataParallel's switch, for models of your own
)

# What train.stages can name: a stage's settings are those of `train`, or first of its own section;
# `given` is the key of a trained file that replaces it; `needs` are earlier stages and their roles.
stages = dict(
    teacher=L("v2idetr.engine.stage.DetectorStage")(
        model="teacher.model", settings="teacher", given="teacher.checkpoint"
    ),
    plain=L("v2idetr.engine.stage.DetectorStage")(model="model"),
    student=L("v2idetr.engine.stage.StudentStage")(model="model", needs=dict(teacher="teacher")),
)

evaluation = dict(
    rules=["endovis_center", "iou50"],  # what counts as a hit, see evaluation/lesion_metrics.py
    coco_ap=True,
    batch_size=8,  # frames or clips
    checkpoint="best",  # best | final: which weights of a stage are evaluated and teach
)

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
