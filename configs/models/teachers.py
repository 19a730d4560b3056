"""The teacher of deformable_detr.py for students of another kind."""

from omegaconf import DictConfig

# What says how pictures become features is still the student's.
SHARED = ("backbone", "weights", "num_classes", "isolate_padding")


def on_its_own(teacher: DictConfig, detector: DictConfig) -> DictConfig:
    """The teacher with its own network, criterion and start instead of references to the student's.

    Args:
        teacher: as deformable_detr.py makes it.
        detector: the Deformable DETR that it is, apart from MSI.
    """
    for key in detector.net:
        if key not in ("_target_", "fusion", *SHARED):
            teacher.model.net[key] = detector.net[key]
    teacher.model.criterion = detector.criterion
    teacher.init_checkpoint = ""  # the student's weights are of another network
    return teacher
