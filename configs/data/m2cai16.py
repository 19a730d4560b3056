"""M2CAI16 workflow at 1 frame/s: datasets/prepare_m2cai16.py."""

from .cholec80 import data

JSON = "data/m2cai16"
ROOT = f"{JSON}/frames"

data["phases"] = ["TrocarPlacement", *data["phases"]]
for _split, _paths in dict(train=data["train"], val=data["val"], **data["test"]).items():
    _paths.update(json=f"{JSON}/{_split}.json", image_root=ROOT)

# 200 epochs * some 50,000 frames / batch 128
train = dict(max_iter=78_000, eval_period=3_900)
finetune = dict(max_iter=7_800, eval_period=780)  # 10 epochs / batch 64
phases = dict(max_iter=2_200, eval_period=22)  # 100 epochs * 22 videos
