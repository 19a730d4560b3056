from v2idetr.modeling.deformable_detr.network import DeformableDETR

__all__ = ["DeformableDETR"]
