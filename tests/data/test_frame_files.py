"""Files of frames: what cannot be an image is named with its cause, before anything is decoded."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from v2i_runtime.image_files import ImageFileError
from v2idetr.data.audit import AuditReport
from v2idetr.data.frame_files import check_files, path_below, read_frame


def problems_of(root: Path, *names: str) -> str:
    """What is found about frames of these names, as text."""
    report = AuditReport(source="train")
    check_files({k: {"file_name": name} for k, name in enumerate(names)}, root, report)
    assert len(report.missing_frames) == len(report.problems)
    return "\n".join(report.problems.lines())


def touch(path: Path, content: bytes = b"not decoded here") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_links_to_frames_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "store" / "a.png")
    (tmp_path / "case1").mkdir()
    (tmp_path / "case1" / "a.png").symlink_to("../store/a.png")
    assert problems_of(tmp_path, "case1/a.png", "store/a.png") == ""


def test_a_broken_link_is_named_with_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("../elsewhere/a.png")
    assert "broken link" in problems_of(tmp_path, "a.png")
    assert "(a.png -> ../elsewhere/a.png)" in problems_of(tmp_path, "a.png")


def test_an_empty_file_and_a_folder_are_no_frames(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", b"")
    (tmp_path / "b.png").mkdir()
    said = problems_of(tmp_path, "a.png", "b.png")
    assert "frame is an empty file: copy or unpack it again: 1 (a.png)" in said
    assert "frame is not a file: 1 (b.png)" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "`git lfs pull`"),
        (b"/annex/objects/SHA256E-s9--1.png\n", "`git annex get .`"),
    ],
)
def test_a_pointer_of_version_control_is_named_with_what_fetches_the_file(
    tmp_path: Path, text: bytes, said: str
) -> None:
    touch(tmp_path / "a.png", text)
    assert said in problems_of(tmp_path, "a.png")


def test_a_name_in_another_unicode_normalization_is_found(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Läsion/ü1.png")
    touch(tmp_path / decomposed)
    said = problems_of(tmp_path, "Läsion/ü1.png")
    assert "but there with decomposed letters (NFD): write file_name as it is on disk" in said


def test_a_name_with_backslashes_or_other_letter_case_is_found(tmp_path: Path) -> None:
    touch(tmp_path / "Case1" / "a.PNG")
    said = problems_of(tmp_path, "Case1\\a.PNG", "case1/a.png", "case2/a.png")
    assert "but there with `/` for `\\`: write file_name" in said
    assert "but there in another letter case: write file_name" in said
    assert "(case1/a.png is 'Case1/a.PNG')" in said
    assert "(data.<split>.image_root): 1 (case2/a.png)" in said


def test_names_on_disk_that_are_not_utf8_are_pointed_at(tmp_path: Path) -> None:
    try:
        touch(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")))
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    said = problems_of(tmp_path, "café.png")
    assert "file names that are not UTF-8: rename those files" in said
    assert r"b'caf\xe9.png'" in said


def test_a_file_that_exif_turns_is_refused_with_the_cause(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # orientation: a quarter turn
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"a\.jpg: is 30 x 40 px .*EXIF orientation turns it"):
        read_frame(tmp_path / "a.jpg", width=40, height=30)
    assert read_frame(tmp_path / "a.jpg", width=30, height=40).shape == (40, 30, 3)


def test_width_and_height_that_are_swapped_in_the_json_are_said_so(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="seem to be swapped"):
        read_frame(tmp_path / "a.png", width=30, height=40)


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "../images_secret/a.png"]
)
def test_a_frame_outside_the_image_root_is_not_shown(tmp_path: Path, name: str) -> None:
    root = tmp_path / "images"
    with pytest.raises(ImageFileError, match="is not below the image root"):
        path_below(root, str(root / name))


def test_a_link_below_the_image_root_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / "images"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    assert path_below(root, str(root / "link" / "a.png")) == root / "link" / "a.png"
