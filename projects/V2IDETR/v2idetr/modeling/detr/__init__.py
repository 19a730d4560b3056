from v2idetr.modeling.detr.network import DETR

__all__ = ["DETR"]
