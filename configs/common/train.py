"""How a run is trained and evaluated; everything but the data, the model and the optimiser."""

train = dict(
    output_dir="output/run",  # one folder per run, one folder per stage in it
    seed=0,
    device="auto",  # auto | cpu | cuda; auto is the GPU if there is one
    stages=["teacher", "plain", "student"],  # run in this order; leave out what is not wanted
    max_iter=1000,
    batch_size=16,  # clips per step, over all processes and micro-batches (paper, section III)
    clips_at_once=16,  # what a process has memory for; it cuts a larger share of a batch up
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

evaluation = dict(
    rules=["endovis_center", "iou50"],  # what counts as a hit, see evaluation/lesion_metrics.py
    coco_ap=True,
    batch_size=8,  # frames or clips
    checkpoint="best",  # best | final: which weights of a stage are evaluated and teach
)
