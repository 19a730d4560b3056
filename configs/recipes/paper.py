"""Training and evaluation of the paper; settings that it omits: Deformable DETR and SAM-DETR.

Steps and periods depend on the data set, see configs/data.
"""

from detectron2.config import LazyCall as L

train = dict(
    # Folder of the run, with one folder per stage; named after the config file by default.
    output_dir="output/${config_name}",
    seed=0,
    device="auto",  # auto | cpu | cuda; auto is the GPU if there is one
    stages=["teacher", "plain", "student"],  # stages to train, in this order
    max_iter=1000,
    batch_size=16,  # clips per step over all processes (paper, section III)
    # Micro-batch of a process, limited by memory; larger shares of a batch are accumulated with the
    # same gradient. The teacher needs some 4 GiB per clip of full size.
    clips_at_once=2,
    amp="off",  # off | bf16 | fp16 (GPU only)
    clip_grad_norm=0.1,  # maximum norm of all gradients together, as DETR; 0 disables clipping
    # Steps between evaluations on the validation split; 0: none, with evaluation.checkpoint=final
    eval_period=1000,
    # Early stopping: after this many evaluations without a better best_metric, the learning rate
    # decays to zero along a cosine, over `cooldown` times the steps so far; 0: max_iter steps
    patience=0,
    cooldown=0.25,
    checkpoint_period=500,  # steps between updates of last.pth
    log_period=20,  # steps per line of metrics.jsonl, which has their means
    num_workers=2,  # data workers per process; 0 loads data in the training process
    init_checkpoint="",  # initial weights of plain and student
    init_partial=False,  # load only matching tensors of init_checkpoint, and list the others
    best_metric="AP50",  # AP, AP50, AP75 or <rule>/f1 on the validation split, higher is better
    deterministic=True,  # deterministic operations on a GPU, if available
    # Where the lines of metrics.jsonl go as well: tensorboard, wandb, mlflow
    loggers=[],
    # Validation frames that are drawn with their detections at every validation; 0: none
    sample_frames=6,
    find_unused_parameters=False,  # of DistributedDataParallel, for custom models
)

# Stages by name. `settings`: section that overrides `train`; `given`: key of a checkpoint that
# replaces the training; `needs`: earlier stages by role.
stages = dict(
    teacher=L("v2idetr.engine.stage.DetectorStage")(
        model="teacher.model", settings="teacher", given="teacher.checkpoint"
    ),
    plain=L("v2idetr.engine.stage.DetectorStage")(model="model"),
    student=L("v2idetr.engine.stage.StudentStage")(model="model", needs=dict(teacher="teacher")),
)

evaluation = dict(
    rules=["endovis_center", "iou50"],  # rules of a hit, see evaluation/lesion_metrics.py
    coco_ap=True,
    batch_size=8,  # frames or clips
    checkpoint="best",  # best | final: weights of a stage for evaluation and as teacher
)

optimizer = L("v2idetr.engine.optimizer.AdamWRecipe")(
    lr=1e-4,  # paper, section III
    backbone_lr=1e-5,  # SAM-DETR, whose 12-epoch recipe agrees with the paper's numbers
    slow_factor=0.1,  # of sampling offsets and reference points, as Deformable DETR
    slow_names=["sampling_offsets", "reference_points"],
    weight_decay=1e-4,
)

# Relative to the length of the training: 12 epochs, drop by 10 after epoch 10.
lr_multiplier = L("fvcore.common.param_scheduler.MultiStepParamScheduler")(
    values=[1.0, 0.1], milestones=[10], num_updates=12
)
