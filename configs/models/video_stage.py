"""The stage of a video detector, `video.model`, behind that of its single-frame detector."""

from detectron2.config import LazyCall as L

video = dict(
    checkpoint="",  # checkpoint of a trained detector; its stage is then skipped
    init_checkpoint="",  # initial weights
    init_partial=False,  # true for those of a single-frame detector
    max_iter=None,  # as train
    batch_size=None,
    optimizer="${optimizer}",
)

stages = dict(
    video=L("v2idetr.engine.stage.DetectorStage")(
        model="video.model", settings="video", given="video.checkpoint"
    )
)
