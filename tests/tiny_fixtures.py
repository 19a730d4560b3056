"""A few small images, and a config that trains all three stages on them in seconds."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
import yaml
from detectron2.utils.logger import setup_logger
from PIL import Image

from v2idetr.data.coco_vid import write_split
from v2idetr.evaluation import evaluator
from v2idetr.modeling import deformable_attention, depthwise_conv, dropout

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))  # for the config, which names tiny_parts.TinyBackbone


def make_split(folder: Path, name: str, *, videos: int, frames: int, seed: int) -> dict[str, str]:
    """Noise with one bright square a frame, the last frame of each video without."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for index in range(videos * frames):
        video, frame = divmod(index, frames)
        pixels = rng.integers(0, 100, (48, 64, 3), dtype=np.uint8)
        x, y, size = (int(v) for v in rng.integers(4, 20, 3))
        if frame < frames - 1:
            pixels[y : y + size, x : x + size] = 220
            box = {"bbox": [x, y, size, size], "area": size * size, "iscrowd": 0}
            ids = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": 1}
            annotations.append(ids | box)
        file_name = f"{name}/{index:03d}.png"
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / file_name)
        images.append(
            {
                "id": index + 1,
                "file_name": file_name,
                "width": 64,
                "height": 48,
                "video_id": video + 1,
                "frame_index": frame,
                "scene_id": 0,
            }
        )
    write_split(
        folder / f"{name}.json",
        videos=[{"id": v + 1, "name": f"{name}{v}"} for v in range(videos)],
        images=images,
        annotations=annotations,
        categories=[{"id": 1, "name": "polyp"}],
        info={"description": "test"},
    )
    return {"json": str(folder / f"{name}.json"), "image_root": str(folder)}


@cache
def load_numba() -> None:
    """Import numba and its kernels before a fork: in every child it takes two seconds."""
    for module in (deformable_attention, depthwise_conv, dropout):
        assert module._numba_works()


def in_child(work: Callable[[], int | None]) -> int:
    """Exit code of `work` (minus the signal that ended it) in a forked process.

    Quicker than a new interpreter, and whatever it patches or limits ends with it.
    """
    load_numba()
    child = os.fork()
    if child == 0:
        code = 70
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run below nohup
        try:
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_two_processes(work: Callable[[int], object], folder: Path) -> None:
    """Let `work(rank)` run in two forked processes that exchange tensors by gloo."""

    def connected(rank: int) -> None:
        url = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=2)
        work(rank)
        dist.destroy_process_group()

    load_numba()
    second = os.fork()
    if second == 0:
        os._exit(in_child(lambda: connected(1)))
    assert in_child(lambda: connected(0)) == 0
    assert os.waitpid(second, 0)[1] == 0


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    """The terminal's handler is made anew: one of an earlier test writes to that test's stdout."""
    setup_logger.cache_clear()
    logging.getLogger("v2idetr").handlers.clear()


@pytest.fixture(name="in_child")
def in_child_fixture() -> Callable[[Callable[[], int | None]], int]:
    return in_child


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("tiny_data")
    return {
        "train": make_split(folder, "train", videos=3, frames=4, seed=0),
        "val": make_split(folder, "val", videos=1, frames=3, seed=1),
        "test": {"held_out": make_split(folder, "test", videos=1, frames=3, seed=2)},
    }


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_data: dict) -> Path:
    return write_tiny_config(tmp_path, tiny_data)


def write_tiny_config(folder: Path, data: dict) -> Path:
    """The paper's recipe with a tiny model: 6 steps a stage, evaluated at 3 and 6."""
    net = {
        "backbone": {"_target_": "tiny_parts.TinyBackbone", "width": 8},
        "weights": "",
        "d": 32,
        "num_queries": 6,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
        "ffn_dim": 16,
    }
    config = {
        "_base_": [
            str(ROOT / "configs" / part)
            for part in ("recipes/paper.py", "models/deformable_detr.py", "data/sun.py")
        ],
        "train": {
            "output_dir": str(folder / "run"),
            "device": "cpu",
            "max_iter": 6,
            "batch_size": 4,
            "clips_at_once": 16,
            "eval_period": 3,
            "checkpoint_period": 2,
            "log_period": 2,
            "num_workers": 0,
            "best_metric": "endovis_center/f1",
        },
        "optimizer": {"lr": 1e-3},
        "data": {
            **data,
            "window": 2,
            "augmentations": {
                "train": [{"_target_": "v2idetr.data.augmentation.horizontal_flip"}],
                "test": [
                    {
                        "_target_": "v2idetr.data.augmentation.resize_fixed",
                        "width": 64,
                        "height": 48,
                    }
                ],
            },
        },
        "model": {"net": net},
        "teacher": {"model": {"net": {"fusion": {"features": {"ffn_dim": 16, "num_heads": 2}}}}},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def tiny_detr_config(tiny_config: Path) -> Path:
    """The same with a DETR as student; its teacher is as small."""
    config = yaml.safe_load(tiny_config.read_text())
    config["_base_"] = [base.replace("deformable_detr.py", "detr.py") for base in config["_base_"]]
    shared = ("backbone", "weights")
    own = {key: value for key, value in config["model"]["net"].items() if key not in shared}
    config["teacher"]["model"]["net"] |= own
    path = tiny_config.with_name("tiny_detr.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


COST = {
    "parameters": 1,
    "trainable_parameters": 1,
    "flops": 1,
    "frames_per_second": 1.0,
    "peak_memory_mib": None,
    "input_height": 48,
    "input_width": 64,
    "frames_per_detection": 1,
    "machine": "test",
}


@pytest.fixture(autouse=True)
def cost_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than all the rest."""
    monkeypatch.setattr(evaluator, "measure_cost", lambda model, sample: COST)
