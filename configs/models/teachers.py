"""The teacher of deformable_detr.py for students of another kind."""

from omegaconf import DictConfig

# Arguments that remain references to the student's.
SHARED = ("backbone", "weights", "num_classes", "isolate_padding")


def on_its_own(teacher: DictConfig, detector: DictConfig) -> DictConfig:
    """The teacher with its own network and criterion instead of references to the student's.

    Args:
        teacher: `teacher` of deformable_detr.py.
        detector: the same Deformable DETR without MSI.
    """
    for key in detector.net:
        if key not in ("_target_", "fusion", *SHARED):
            teacher.model.net[key] = detector.net[key]
    teacher.model.criterion = detector.criterion
    teacher.init_checkpoint = ""  # the student's weights are of another network
    return teacher
