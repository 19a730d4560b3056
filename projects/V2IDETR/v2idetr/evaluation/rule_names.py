"""Names of the rules in ``lesion_metrics.py``, which needs torch, and what a reader calls them."""

RULE_NAMES = ("endovis_center", "iou50")
RULE_TITLES = {
    "endovis_center": "Box centre lies in the lesion",
    "iou50": "Box overlaps the lesion by half or more",
}
RULE_LABELS = {"endovis_center": "centre in lesion", "iou50": "IoU 0.5"}  # where there is no room
