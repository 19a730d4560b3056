"""Names of the rules in ``lesion_metrics.py``, apart from the rules, which need torch."""

RULE_NAMES = ("endovis_center", "iou50")
