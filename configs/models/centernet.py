"""CenterNet with ResNet-50, as YONA's authors have it; trained as the transformers are."""

from copy import deepcopy

from detectron2.config import LazyCall as L

from .backbones import resnet50

model = L("v2idetr.modeling.detectron2_models.Detectron2Detector")(
    net=L("video_detectors.centernet.CenterNet")(
        backbone=deepcopy(resnet50),
        num_classes=1,
        pixel_mean=[123.675, 116.28, 103.53],  # ImageNet, RGB
        pixel_std=[58.395, 57.12, 57.375],
        d=64,
        norm="BN",
        score_threshold=0.05,
        nms_threshold=0.3,
        max_detections=100,
    ),
    class_names="${data.class_names}",
    weights="weights/resnet50_imagenet.pth",  # torchvision's; Detectron2's is a .pkl
)

train = dict(
    stages=["plain"],
    clips_at_once=8,  # for the statistics of batch normalisation
)
