"""Video detectors find on two processes what they find on one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from tests.tiny_fixtures import in_two_processes
from tests.video_detectors import test_cva_net, test_fgfa, test_mega, test_transvod, test_yona
from tests.video_detectors.test_stream import Brightness
from tests.video_detectors.tiny_stft import tiny_stft
from tests.video_detectors.videos import video
from v2idetr.data.clip_mapper import ClipMapper
from v2idetr.data.coco_vid import SplitData, load_split, write_split
from v2idetr.data.loader import build_eval_loader
from v2idetr.data.reference_sampler import AdjacentSampler
from v2idetr.evaluation.predictions import FramePrediction, predict, write_predictions

LENGTHS = [3, 6, 1, 4]  # frames of the videos

DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "brightness": lambda: Brightness(AdjacentSampler(before=2, after=1)),
    "stft": lambda: tiny_stft(trained=True),
    "yona": lambda: test_yona.trained(previous_score=test_yona.STRONG),
    "transvod": lambda: test_transvod.tiny(),
    "cva_net": lambda: test_cva_net.tiny(),
    "fgfa": lambda: test_fgfa.tiny_fgfa(),
    "mega": lambda: test_mega.tiny_mega(),
}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> SplitData:
    root, images = tmp_path_factory.mktemp("videos"), []
    for number, length in enumerate(LENGTHS):
        for frame in video(length, seed=number):
            name = f"{number}_{frame['frame_index']}.png"
            Image.fromarray(frame["image"].permute(1, 2, 0).numpy()).save(root / name)
            keys = ("video_id", "frame_index", "width", "height")
            own = {key: frame[key] for key in keys}
            images.append(own | {"id": len(images) + 1, "file_name": name})
    write_split(
        root / "split.json",
        videos=[{"id": v, "name": str(v)} for v in range(len(LENGTHS))],
        images=images,
        annotations=[],
        categories=[{"id": 1, "name": "lesion"}],
        info={},
    )
    return load_split(root / "split.json", root)


def loader(split: SplitData, detector: nn.Module, **share: int) -> DataLoader:
    sampler = detector.evaluation_sampler or detector.reference_sampler
    mapper = ClipMapper(sampler=sampler, augmentations=[], is_train=False)
    return build_eval_loader(split, mapper, batch_size=2, whole_videos=True, **share)


@pytest.mark.parametrize("kind", DETECTORS)
def test_two_processes_find_what_one_finds(kind, split, tmp_path: Path) -> None:
    detector = DETECTORS[kind]()

    def found(name: str, **share: int) -> list[FramePrediction]:
        predictions = predict(detector, loader(split, detector, **share))
        write_predictions(tmp_path / name, split, predictions)
        return predictions

    alone = found("alone.json")
    assert [p.image_id for p in alone] == list(range(1, sum(LENGTHS) + 1))
    assert len({tuple(p.scores) for p in alone}) == sum(LENGTHS), "frames differ"
    in_two_processes(
        lambda rank: found(f"{rank}.json", rank=rank, world_size=2, num_workers=rank), tmp_path
    )
    files = [(tmp_path / name).read_bytes() for name in ("alone.json", "0.json", "1.json")]
    assert files[0] == files[1] == files[2]
