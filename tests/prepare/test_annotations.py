"""What all converters share: choice of cases, masks to boxes, sizes of pictures."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from v2i_runtime.image_files import image_size
from v2idetr.data.audit import Findings
from v2idetr.prepare.annotations import (
    Conversion,
    Frame,
    Lesion,
    Video,
    even_share,
    evenly_spaced,
)
from v2idetr.prepare.command_line import check_apart, numbers_of
from v2idetr.prepare.mask_boxes import boxes_of_mask, read_mask
from v2idetr.prepare.sun_names import case_number, in_temporal_order


@given(st.integers(0, 60), st.data())
def test_evenly_spaced_items_are_distinct_and_in_order(total, data):
    count = data.draw(st.integers(0, total))
    chosen = evenly_spaced(list(range(total)), count)
    assert len(chosen) == count
    assert chosen == sorted(set(chosen))
    gaps = np.diff([-1, *chosen, total]) if count else np.array([0])
    assert count == 0 or gaps.max() <= total / count + 1


def test_a_fifth_of_a_hundred_cases_is_every_fifth():
    assert evenly_spaced(list(range(1, 101)), 20) == list(range(3, 101, 5))
    with pytest.raises(ValueError, match="cannot take 3 of 2"):
        evenly_spaced([1, 2], 3)


def test_a_share_is_at_least_one_item_and_never_all():
    assert even_share([1, 2, 3, 4, 5], 0.4) == [2, 4]
    assert even_share([1, 2], 0.1, total=40) == [2]
    assert [even_share(list(range(n)), 0.1) for n in (2, 1, 0)] == [[1], [], []]


def test_lists_and_ranges_of_numbers():
    assert numbers_of("1, 3,5-7") == [1, 3, 5, 6, 7]
    assert numbers_of("") == []
    with pytest.raises(ValueError, match="'a' is neither"):
        numbers_of("1,a")


@pytest.mark.parametrize(
    ("text", "said"), [("20-15", "ends before it begins: write 15-20"), (" , ", "has no number")]
)
def test_a_list_that_would_mean_nothing_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        numbers_of(text)


def test_a_cache_of_frames_cannot_be_where_the_data_are(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "data")
    check_apart(tmp_path / "data", tmp_path / "output")
    with pytest.raises(ValueError, match="Give another folder by --output"):
        check_apart(tmp_path / "data", tmp_path / "link")


def test_parts_of_a_mask_touch_at_corners():
    mask = np.zeros((20, 30), dtype=bool)
    mask[2:7, 3:8] = mask[7:12, 8:14] = True  # corner to corner: one part
    mask[15:19, 20:24] = True
    mask[0, 29] = True
    assert boxes_of_mask(mask) == ([[3, 2, 11, 10], [20, 15, 4, 4]], 1)
    assert boxes_of_mask(np.zeros((4, 4), dtype=bool)) == ([], 0)


@pytest.mark.parametrize(("mode", "value"), [("L", 255), ("L", 1), ("1", 1), ("RGB", 255)])
def test_masks_of_any_kind_are_read(tmp_path, mode, value):
    picture = Image.new(mode, (6, 4))
    picture.paste(value if mode != "RGB" else (value,) * 3, (1, 1, 3, 4))
    picture.save(tmp_path / "mask.png")
    assert boxes_of_mask(read_mask(tmp_path / "mask.png"))[0] == [[1, 1, 2, 3]]


def test_a_mask_whose_brightest_pixel_means_nothing_is_refused(tmp_path):
    Image.fromarray(np.diag([100] * 4).astype(np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match=r"grey\.png: the brightest pixel of this mask is 100"):
        read_mask(tmp_path / "grey.png")


@pytest.mark.parametrize(("kind", "white"), [(np.uint16, 65535), (np.uint16, 1), (np.float32, 1)])
def test_masks_of_any_depth_are_read(tmp_path, kind, white):
    tifffile.imwrite(tmp_path / "mask.tif", np.diag([white] * 4).astype(kind))
    assert read_mask(tmp_path / "mask.tif").sum() == 4


def test_palette_masks_are_read_by_index(tmp_path):
    picture = Image.fromarray(np.eye(4, dtype=np.uint8))
    picture.putpalette([0, 0, 0, 128, 0, 0])
    picture.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").sum() == 4


def test_size_of_a_picture_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (8, 6)).save(tmp_path / "plain.jpg")
    assert image_size(tmp_path / "turned.jpg") == (6, 8)
    assert image_size(tmp_path / "plain.jpg") == (8, 6)


def test_frames_of_sun_are_in_order_of_part_recording_and_image():
    names = [
        "case_M_20181001100941_0U62372100109341_1_005_002-1_a2_ayy_image0001.jpg",
        "case_M_20181001100941_0U62372100109341_1_005_001-1_a10_ayy_image0001.jpg",
        "case_M_20181001100941_0U62372100109341_1_005_001-1_a9_ayy_image0010.jpg",
        "case_M_20181001100941_0U62372100109341_1_005_001-1_a9_ayy_image0009.jpg",
    ]
    ordered = in_temporal_order(names, "case1", Findings())
    assert [name for name, _ in ordered] == names[::-1]
    assert [scene for _, scene in ordered] == [0, 0, 1, 2]


def test_case_of_a_clip():
    assert [case_number(name) for name in ("case4", "case12_3")] == [4, 12]
    with pytest.raises(ValueError, match="'clip1' is not named"):
        case_number("clip1")


def toy(folder: Path) -> Conversion:
    return Conversion(
        name="Toy",
        converter="prepare_toy.py",
        output=folder / "out",
        image_root=folder,
        class_names=["polyp"],
    )


def test_conversion_writes_an_audit_that_a_person_can_read(tmp_path: Path):
    Image.new("RGB", (40, 30)).save(tmp_path / "1.jpg")
    conversion = toy(tmp_path)
    for number in range(7):
        conversion.notes.add("row that cannot be read", f"line {number}")
    frames = [Frame("1.jpg", [Lesion([-10, 0, 30, 15])]), Frame("2.jpg")]
    conversion.write({"train": [Video("a", frames)]})
    page = (tmp_path / "out" / "audit.md").read_text()
    assert "| train   | 1        | 1        | 0             | 1 " in page
    assert "- row that cannot be read: 7\n    - line 0\n" in page
    assert "    - ... and 2 more\n" in page
    assert "- frame cannot be used and is left out: 1\n    - 2.jpg no such file" in page
    assert any(line.startswith("note: box reaches outside") for line in conversion.lines())


def test_a_split_without_usable_frames_says_which_files_and_why(tmp_path: Path):
    Image.new("RGB", (40, 30)).save(tmp_path / "1.jpg")
    (tmp_path / "2.jpg").write_bytes(b"cut")
    conversion = toy(tmp_path)
    splits = {"train": [Video("a", [Frame("1.jpg")])], "val": [Video("b", [Frame("2.jpg")])]}
    message = r"split 'val' is empty: none of its frames can be used: 1 .2\.jpg cannot be read"
    with pytest.raises(ValueError, match=message):
        conversion.write(splits)
    assert not (tmp_path / "out").exists()


def test_file_names_that_are_no_text_are_refused_by_name(tmp_path: Path):
    name = os.fsdecode(b"frame\xff.png")
    Image.new("RGB", (40, 30)).save(tmp_path / name, "PNG")
    conversion = toy(tmp_path)
    with pytest.raises(ValueError, match=r"file name is not UTF-8.*frame\\udcff\.png"):
        conversion.write({"train": [Video("a", [Frame(name)])]})


def test_empty_split_is_refused_before_anything_is_written(tmp_path: Path):
    conversion = toy(tmp_path)
    with pytest.raises(ValueError, match="split 'val' has no frames; choose other cases"):
        conversion.write({"train": [Video("a", [Frame("1.jpg")])], "val": [Video("b", [])]})
    assert not (tmp_path / "out").exists()


def test_an_invalid_split_leaves_no_other_one_behind(tmp_path: Path):
    Image.new("RGB", (40, 30)).save(tmp_path / "1.jpg")
    conversion = toy(tmp_path)
    box = Lesion([0, 0, 9, 9], category_id=2)
    splits = {"train": [Video("a", [Frame("1.jpg")])], "val": [Video("b", [Frame("1.jpg", [box])])]}
    with pytest.raises(ValueError, match=r"val\.json.*\n?.*category"):
        conversion.write(splits)
    assert not (tmp_path / "out").exists()
