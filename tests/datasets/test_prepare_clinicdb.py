"""CVC-ClinicDB: the release and the listed layout by hand, and the real frames where they are."""

import json
import os
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.datasets.layouts import HEIGHT, WIDTH, boxes_by_file, mask, names, picture
from v2idetr.data.clip_mapper import read_frame
from v2idetr.data.coco_vid import load_split
from v2idetr.prepare import mask_boxes

BOX = (20, 4, 8, 12)
# First frames of sequences 1 to 23.
FIRST_FRAMES = (1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298, 318, 343)
FIRST_FRAMES += (364, 384, 409, 429, 448, 467)
NUMBERS = (1, 2, 10, 27, 300, 320, 343, 345, 479)  # sequences 1, 1, 1, 2, 15, 16, 17, 17, 24


def released(root: Path, numbers: tuple[int, ...], ending: str) -> Path:
    for number in numbers:
        picture(root / "Original" / f"{number}.{ending}")
        mask(root / "Ground Truth" / f"{number}.{ending}", BOX)
    return root


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return released(tmp_path / "CVC-ClinicDB", NUMBERS, "tif")


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    root = tmp_path / "clinicdb"
    entries = []
    for number, sequence in zip(NUMBERS, (1, 1, 1, 2, 15, 16, 17, 17, 24), strict=True):
        picture(root / "frames" / f"{number:03d}.jpg")
        entries.append(
            {
                "frame": number,
                "sequence": sequence,
                "index_in_sequence": number % 20,
                "width": WIDTH,
                "height": HEIGHT,
                "boxes_xywh": [list(BOX)],
            }
        )
    (root / "annotations.json").write_text(json.dumps({"sequences": [], "frames": entries}))
    return root


def test_release_is_divided_by_sequence(convert, release):
    written = convert("clinicdb", release)
    assert names(written["train"]) == ["sequence01", "sequence02"]
    assert names(written["val"]) == ["sequence15", "sequence16"]
    assert names(written["test"]) == ["sequence17"]
    assert boxes_by_file(written["train"])["Original/10.tif"] == [list(BOX)]
    first = [image["frame_index"] for image in written["train"]["images"]]
    assert first == [0, 1, 9, 1]
    notes = written["audit"]["notes"]
    assert notes["sequence is in no split"]["examples"][0].startswith("24 (1 frames)")
    assert notes["sequence does not exist"]["count"] == 12 + 6


def test_listed_layout_gives_the_same_splits(convert, listed, tmp_path):
    written = convert("clinicdb", listed)
    assert names(written["train"]) == ["sequence01", "sequence02"]
    assert boxes_by_file(written["train"])["frames/010.jpg"] == [list(BOX)]
    load_split(tmp_path / "out" / "train.json", listed, class_names=["polyp"])


def test_a_byte_order_mark_is_read_and_another_encoding_named(convert, listed):
    path = listed / "annotations.json"
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig")
    assert names(convert("clinicdb", listed)["train"]) == ["sequence01", "sequence02"]
    path.write_text(text, encoding="utf-16")
    with pytest.raises(SystemExit, match=r"annotations\.json: is not UTF-8, but UTF-16"):
        convert("clinicdb", listed)


def test_a_file_that_the_system_cannot_read_is_named(convert, listed):
    (listed / "annotations.json").unlink()
    (listed / "annotations.json").symlink_to("/proc/self/mem")  # a file with which reading fails
    with pytest.raises(
        SystemExit, match=r"prepare_clinicdb\.py: .*annotations\.json: Input/output error"
    ):
        convert("clinicdb", listed)


def test_sequences_can_be_chosen(convert, release):
    options = ("--train-sequences", "1,2", "--val-sequences", "16", "--test-sequences", "17-29")
    assert names(convert("clinicdb", release, *options)["test"]) == ["sequence17", "sequence24"]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A frame of each of the first 23 sequences."""
    return released(tmp_path / "many", FIRST_FRAMES, "png")


def test_folds_test_on_every_sequence_once_and_keep_splits_apart(convert, many):
    tested: list[str] = []
    for fold in range(1, 5):
        written = convert("clinicdb", many, "--fold", f"{fold}/4")
        parts = [names(written[split]) for split in ("train", "val", "test")]
        assert sorted(chain(*parts)) == [f"sequence{n:02d}" for n in range(1, 24)]
        assert len(parts[1]) == 3
        tested += parts[2]
    assert sorted(tested) == [f"sequence{n:02d}" for n in range(1, 24)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fold", "5/4"], "--fold 5/4: expected K/N"),
        (["--fold", "0/4"], "--fold 0/4: expected K/N"),
        (["--fold", "1"], "--fold 1: expected K/N"),
        (["--fold", "1/24"], "--fold 1/24: there are 23 sequences, too few"),
        (["--fold", "1/4", "--val-sequences", "3"], "--fold 1/4 chooses the sequences"),
    ],
)
def test_folds_that_cannot_be_are_refused(convert, many, options, message):
    with pytest.raises(SystemExit, match=message):
        convert("clinicdb", many, *options)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--val-sequences", "14-16", "--val-sequences 14-16: sequence 14 is in train already"),
        ("--test-sequences", "x", "--test-sequences x: 'x' is neither a number nor a range"),
        ("--test-sequences", "20", "split 'test' has no frames"),
    ],
)
def test_sequences_that_cannot_be_are_refused(convert, release, option, value, message):
    with pytest.raises(SystemExit, match=message):
        convert("clinicdb", release, option, value)


def test_each_part_of_a_mask_is_a_polyp_and_specks_are_noted(convert, release):
    mask(release / "Ground Truth" / "2.tif", (2, 3, 6, 5), BOX, (38, 0, 1, 1))
    written = convert("clinicdb", release)
    assert sorted(boxes_by_file(written["train"])["Original/2.tif"]) == [[2, 3, 6, 5], list(BOX)]
    notes = written["audit"]["notes"]["mask with specks, which give no box"]
    assert notes["examples"] == ["frame 2: 1"]


def test_tiff_as_released_gives_all_frames_in_color(convert, release):
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for number in NUMBERS:
        path = release / "Original" / f"{number}.tif"
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    written = convert("clinicdb", release)
    assert [len(written[split]["images"]) for split in ("train", "val", "test")] == [4, 2, 2]
    assert not [kind for kind in written["audit"]["notes"] if "cannot be used" in kind]
    for image in written["train"]["images"]:
        frame = read_frame(release / image["file_name"], height=HEIGHT, width=WIDTH)
        assert np.array_equal(frame, pixels)


def test_black_and_damaged_masks_are_named(convert, release, capsys):
    for number in (1, 2, 10):
        mask(release / "Ground Truth" / f"{number}.tif")
    whole = (release / "Ground Truth" / "343.tif").read_bytes()
    (release / "Ground Truth" / "343.tif").write_bytes(whole[:60])
    written = convert("clinicdb", release)
    notes = written["audit"]["notes"]
    black = notes["frame with a black mask counts as lesion-free"]
    assert black["examples"] == ["frame 1", "frame 2", "frame 10"]
    free = notes["sequence without any lesion: is it annotated?"]
    assert free["examples"] == ["sequence01 (3 frames)"]
    damaged = notes["frame with a mask that cannot be used is left out"]
    assert damaged["count"] == 1 and damaged["examples"][0].startswith("frame 343: 343.tif cannot")
    assert list(boxes_by_file(written["test"])) == ["Original/345.tif"]
    assert "WITHOUT 1 frame that cannot be used" in capsys.readouterr().out


def test_output_that_cannot_be_written_is_refused_before_frames_are_read(
    convert, release, tmp_path, monkeypatch
):
    (tmp_path / "out").write_text("a file")
    monkeypatch.setattr(mask_boxes, "read_mask", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(SystemExit, match=r"--output .*/out: .*is no folder; choose another"):
        convert("clinicdb", release)


def test_frames_without_a_mask_are_left_out_and_noted(convert, release):
    (release / "Ground Truth" / "2.tif").unlink()
    picture(release / "Original" / "700.tif")
    mask(release / "Ground Truth" / "700.tif", BOX)
    notes = convert("clinicdb", release)["audit"]["notes"]
    assert notes["frame without a mask, or the reverse, is left out"]["examples"] == ["2"]
    assert notes["frame number is not 1..612: left out"]["examples"] == ["700"]


def test_png_edition_in_a_folder_is_known(convert, release):
    (release / "PNG").mkdir()
    for folder in ("Original", "Ground Truth"):
        (release / folder).rename(release / "PNG" / folder)
    written = convert("clinicdb", release)
    assert written["train"]["images"][0]["file_name"] == "PNG/Original/1.tif"


def test_other_folders_and_files_are_refused(convert, listed):
    with pytest.raises(SystemExit, match="not the expected layout"):
        convert("clinicdb", listed / "frames")
    (listed / "annotations.json").write_text('{"frames": [{"frame": 1}]}')
    with pytest.raises(SystemExit, match=r"not the expected annotations \(KeyError"):
        convert("clinicdb", listed)


def test_resized_frames_are_refused(convert, listed):
    picture(listed / "frames" / "001.jpg", size=(20, 15))
    with pytest.raises(SystemExit, match=r"001\.jpg is \(20, 15\), its boxes are for \(40, 30\)"):
        convert("clinicdb", listed)


@pytest.mark.skipif("V2I_REAL_DATA" not in os.environ, reason="V2I_REAL_DATA is not set")
def test_real_frames_can_be_trained_on(convert, tmp_path):
    source = Path(os.environ["V2I_REAL_DATA"]) / "cvc_clinicdb"
    if not source.is_dir():
        pytest.skip(f"no cvc_clinicdb in V2I_REAL_DATA={os.environ['V2I_REAL_DATA']}")
    convert("clinicdb", source)
    reports = {
        split: load_split(tmp_path / "out" / f"{split}.json", source).report
        for split in ("train", "val", "test")
    }
    assert {split: (r.videos, r.frames, r.boxes) for split, r in reports.items()} == {
        "train": (14, 297, 309),
        "val": (2, 45, 45),
        "test": (7, 136, 136),
    }
