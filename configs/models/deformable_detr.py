"""V2I-DETR with Deformable DETR as teacher and student, at the size of the paper."""

from detectron2.config import LazyCall as L

from .backbones import resnet50

model = L("v2idetr.modeling.meta_arch.Detector")(
    net=L("v2idetr.modeling.deformable_detr.DeformableDETR")(
        backbone=resnet50,
        weights="weights/resnet50_imagenet.pth",  # torchvision's; Detectron2's is a .pkl
        num_classes=1,
        strides=[8, 16, 32, 64],
        d=256,
        num_queries=100,  # paper, section III
        num_encoder_layers=6,
        num_decoder_layers=6,
        num_heads=8,
        num_points=4,
        ffn_dim=1024,
        dropout=0.1,
        box_refine=False,
        two_stage=False,
        mixed_queries=False,
        fusion=None,  # mixing of the frames of a clip
        isolate_padding=True,
    ),
    criterion=L("v2idetr.modeling.criterion.SetCriterion")(
        classification=L("v2idetr.modeling.classification.FocalClassification")(
            alpha=0.25, gamma=2.0
        ),
        matcher=L("v2idetr.modeling.matcher.HungarianMatcher")(
            class_weight=2.0, l1_weight=5.0, giou_weight=2.0
        ),
        class_weight=2.0,
        l1_weight=5.0,
        giou_weight=2.0,
    ),
    class_names="${data.class_names}",
    pixel_mean=[123.675, 116.28, 103.53],  # ImageNet, RGB
    pixel_std=[58.395, 57.12, 57.375],
    score_topk=100,
    size_divisor=32,
)

# The teacher is the student's detector with MSI between neck and encoder.
teacher = dict(
    model=L("v2idetr.modeling.meta_arch.Detector")(
        num_frames="${data.num_frames}",
        net=L("v2idetr.modeling.deformable_detr.DeformableDETR")(
            **{
                key: f"${{model.net.{key}}}"
                for key in model.net
                if key not in ("_target_", "fusion")
            },
            fusion=L("v2idetr.modeling.fusion.Fusion")(
                features=L("v2idetr.modeling.temporal.MSI")(
                    strides="${teacher.model.net.strides}",
                    roles=["local", "local", "global", "global"],
                    d="${teacher.model.net.d}",
                    ffn_dim=1024,
                    num_heads=8,
                    depth=1,
                    residual="uniformer",
                    kernel_size=5,
                ),
                memory=None,
                queries=None,
            ),
        ),
        **{key: f"${{model.{key}}}" for key in model if key not in ("_target_", "net")},
    ),
    init_checkpoint="${train.init_checkpoint}",  # initial weights
    init_partial=False,  # true for initial weights of a detector without MSI, such as COCO's
    checkpoint="",  # checkpoint of a trained teacher; the teacher stage is then skipped
    max_iter="${train.max_iter}",
    batch_size="${train.batch_size}",
    optimizer="${optimizer}",
)

distillation = dict(
    frames="current",  # current | all: distil every frame of a clip from one forward of the teacher
    cqd=L("v2idetr.distillation.cqd.CrossViewQueryDistillation")(
        weight=5.0,  # lambda_qe, paper, section II-E
        per_frame="N/T",
        sampling="disjoint",
        mask="one_way",
        source="input",
        reference="query",
        layers="last",
        student_dim="${model.net.d}",
        teacher_dim="${teacher.model.net.d}",
    ),
    qd=None,  # fd, ed and qd: baselines of the paper, see configs/ablations/table4
    tfd=L("v2idetr.distillation.tfd.TargetGuidedFeatureDistillation")(
        weight=1.0,  # lambda_bk, paper, section II-E
        stride=32,
        sigma="box",
        sigma_ratio=1 / 6,
        normalizer="pixels",
        align="none",
        student_dim="${model.net.d}",
        teacher_dim="${teacher.model.net.d}",
    ),
    fd=None,
    ed=None,
)
