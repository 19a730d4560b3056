from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from v2idetr.atomic_file import write_atomically
from v2idetr.data.text_files import read_text
from v2idetr.output_folder import check_writable, explain_os_error
from v2idetr.wording import counted


def test_an_output_that_can_be_written_passes_and_nothing_is_left_behind(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "new" / "folder")
    check_writable(tmp_path / "new" / "file.json", is_file=True)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_of_a_folder_is_named_with_the_option(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("")
    for path in (tmp_path / "notes", tmp_path / "notes" / "below"):
        with pytest.raises(ValueError, match=r"--out-dir .*notes is no folder; choose another"):
            check_writable(path, "--out-dir")


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder, not a file"):
        check_writable(tmp_path, "--json", is_file=True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody may write")
def test_a_place_that_takes_no_files_is_refused_also_for_root() -> None:
    for path, is_file in ((Path("/proc/results"), False), (Path("/proc/boxes.json"), True)):
        with pytest.raises(ValueError, match=f"{path}: nothing can be written to /proc"):
            check_writable(path, is_file=is_file)


def test_a_failed_atomic_write_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    def disk_is_full(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "page.html"
    with pytest.raises(OSError) as caught:
        write_atomically(target, disk_is_full)
    assert explain_os_error(caught.value).startswith(f"{target}: No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeff1\nzäh\n".encode())
    assert read_text(tmp_path / "a.txt") == "1\nzäh\n"


@pytest.mark.parametrize(
    ("encoding", "said"),
    [("latin-1", "is not UTF-8 (byte 0xe4 at 1)"), ("utf-16", "is not UTF-8, but UTF-16")],
)
def test_another_encoding_is_named_with_the_file(tmp_path: Path, encoding: str, said: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("zäh".encode(encoding))
    with pytest.raises(ValueError, match="save it as UTF-8") as caught:
        read_text(path)
    assert f"{path}: {said}" in str(caught.value)


def test_one_thing_is_counted_without_an_s() -> None:
    assert [counted(n, "frame") for n in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]
