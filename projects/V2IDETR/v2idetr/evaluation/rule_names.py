"""Names of the rules in ``lesion_metrics.py``, which needs torch."""

RULE_NAMES = ("endovis_center", "iou50")
