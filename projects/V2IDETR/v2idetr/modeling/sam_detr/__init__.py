from v2idetr.modeling.sam_detr.network import SAMDETR

__all__ = ["SAMDETR"]
