"""Data of an ablation: that of smoke tests, and synthetic video."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from synthetic_data import make_command, prepare_command, split_overrides

# Layout of the smoke test's data, and {test split of the config: file of the converter}.
SUNSEG, BUV = "sunseg", "buv"
SMOKE_TESTS = {
    "sun": (SUNSEG, {"easy": "test_easy", "hard": "test_hard"}),
    "buv": (BUV, {"test": "test"}),
    "clinicdb": (SUNSEG, {"test": "test_easy"}),
    "synthetic": (
        SUNSEG,
        {"easy": "test_easy", "hard": "test_hard", "negative": "test_negative"},
    ),
}
SMOKE_CLIPS = {SUNSEG: (12, 4, 3, 5), BUV: (12, 4)}
SMOKE_SIZE = (96, 64)  # width, height
SMOKE_STEPS = 4


def smoke_overrides(dataset: str, folder: Path) -> list[str]:
    """Overrides for a few steps of the full models on tiny images.

    Args:
        dataset: data set whose config is changed.
        folder: folder of the ablation, see `smoke_commands`.
    """
    width, height = SMOKE_SIZE
    resize = {
        "_target_": "v2idetr.data.augmentation.resize_fixed",
        "width": width,
        "height": height,
    }
    steps = [f"train.{key}_period={SMOKE_STEPS}" for key in ("eval", "checkpoint")]
    return [
        f"train.max_iter={SMOKE_STEPS}",
        f"teacher.max_iter={SMOKE_STEPS}",
        "train.patience=0",
        *steps,
        "train.log_period=1",
        "train.batch_size=2",
        "train.clips_at_once=2",
        "teacher.batch_size=2",
        "train.num_workers=0",
        "model.net.weights=null",  # no file is needed
        "model.weights=null",
        *(f"data.augmentations.{kind}={json.dumps([resize])}" for kind in ("train", "test")),
        *split_overrides(*_smoke_folders(folder), SMOKE_TESTS[dataset][1]),
    ]


def smoke_commands(dataset: str, folder: Path) -> list[tuple[list[str], Path]]:
    """Programs that make the smoke test's data, each with its last output file."""
    layout, _ = SMOKE_TESTS[dataset]
    data, annotations = _smoke_folders(folder)
    size = "{}x{}".format(*SMOKE_SIZE)
    return _commands(layout, data, annotations, size=size, clips=SMOKE_CLIPS[layout])


def synthetic_commands(data: Path, annotations: Path) -> list[tuple[list[str], Path]]:
    """Programs that make the data of configs/v2i_synthetic.yaml, likewise."""
    return _commands(SUNSEG, data, annotations)


def _commands(
    layout: str, data: Path, annotations: Path, *, size: str = "", clips: Sequence[int] = ()
) -> list[tuple[list[str], Path]]:
    make = make_command(layout, data, size=size, clips=clips)
    prepare = prepare_command(layout, data, annotations, negatives=layout == SUNSEG)
    return [(make, data / "generator.json"), (prepare, annotations / "audit.json")]


def _smoke_folders(folder: Path) -> tuple[Path, Path]:
    return folder / "smoke" / "data", folder / "smoke" / "annotations"
