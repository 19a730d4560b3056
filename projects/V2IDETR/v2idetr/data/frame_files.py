"""Frame files of a split, held against its annotation file.

check_files       one listing per folder and one stat per frame, without decoding
path_below        path of a frame that does not lead out of the image root
read_frame        file -> pixels of the size that the annotation file says
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from v2i_runtime.image_files import SIDEWAYS, ImageFileError, read_image
from v2idetr.data.audit import AuditReport

# First bytes of the placeholders for files that version control has not fetched.
POINTERS = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer: fetch it, `git lfs pull`",
    b"/annex/objects/": "a git-annex pointer: fetch it, `git annex get .`",
}
POINTER_LIMIT = 1024  # bytes, exclusive: specification of Git LFS

Size = tuple[int, int]


def check_files(frames: Mapping[int, Any], image_root: Path, report: AuditReport) -> None:
    """Check that every frame is a file that may hold an image; add faults to ``report.problems``.

    Splits have 100,000 frames: each folder is listed once, and each file checked once.
    """
    folders = _Folders(image_root)
    for frame in frames.values():
        name = frame["file_name"]
        fault = folders.fault(name)
        if fault is not None:
            kind, more = fault
            report.missing_frames.append(name)
            report.problems.add(kind, f"{name}{more}")


class _Folders:
    """Folders below ``image_root``, each listed once."""

    def __init__(self, image_root: Path) -> None:
        self._root = image_root
        self._listed: dict[str, dict[str, os.DirEntry[str]]] = {}
        self._closed: dict[str, str] = {}
        self._alike: dict[str, dict[str, str]] = {}

    def fault(self, name: str) -> tuple[str, str] | None:
        """Fault of a frame's file, and text for an example; None for a valid file."""
        folder, base = os.path.split(name)
        entry = self._entries(folder).get(base)
        if entry is not None:
            return _fault_of_file(entry)
        if folder in self._closed:
            return f"frame is in a folder that cannot be read ({self._closed[folder]})", ""
        missing = f"frame is not in {self._root} (data.<split>.image_root)"
        found = self._find_alike(name)
        if found is not None:
            return f"{missing} {_difference(name, found)}", f" is {found!r}"
        foreign = [n for n in self._entries(folder) if _is_undecodable(n)]
        if foreign:
            hint = "but in its folder are file names that are not UTF-8: rename those files"
            return f"{missing}, {hint}", f" may be {os.fsencode(foreign[0])!r}"
        return missing, ""

    def _entries(self, folder: str) -> dict[str, os.DirEntry[str]]:
        if folder not in self._listed:
            self._listed[folder] = {}
            try:
                with os.scandir(self._root / folder) as entries:
                    self._listed[folder] = {entry.name: entry for entry in entries}
            except (FileNotFoundError, NotADirectoryError, ValueError):
                pass  # ValueError: a name that no file can have
            except OSError as error:
                self._closed[folder] = str(error.strerror)
        return self._listed[folder]

    def _find_alike(self, name: str) -> str | None:
        """A path that differs in slashes, Unicode normalization or letter case only."""
        path = ""
        for part in name.replace("\\", "/").split("/"):
            entries = self._entries(path)
            if path not in self._alike:
                self._alike[path] = {_folded(n): n for n in entries}
            found = part if part in entries else self._alike[path].get(_folded(part))
            if found is None:
                return None
            path = os.path.join(path, found)
        return path


def _fault_of_file(entry: os.DirEntry[str]) -> tuple[str, str] | None:
    try:
        facts = entry.stat()
        if not stat.S_ISREG(facts.st_mode):
            return "frame is not a file", ""
        if facts.st_size == 0:
            return "frame is an empty file: copy or unpack it again", ""
        if facts.st_size < POINTER_LIMIT:
            with open(entry.path, "rb") as file:
                head = file.read(max(map(len, POINTERS)))
            for mark, what in POINTERS.items():
                if head.startswith(mark):
                    return f"frame is {what}", ""
    except FileNotFoundError:
        link = f" -> {os.readlink(entry.path)}" if entry.is_symlink() else ""
        return "frame is a broken link: fetch or copy the file that it leads to", link
    except OSError as error:
        return f"frame cannot be read ({error.strerror})", ""
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _difference(name: str, found: str) -> str:
    """Difference between a file's name on disk and in the annotation file, and the remedy."""
    differences = []
    if "\\" in name:
        name = name.replace("\\", "/")
        differences.append("with `/` for `\\`")
    form, other = (unicodedata.normalize("NFC", text) for text in (name, found))
    if form != other:
        differences.append("in another letter case")
    if form == name and other != found:
        differences.append("with decomposed letters (NFD)")
    elif form != name:
        differences.append("in another Unicode normalization")
    return f"but there {' and '.join(differences)}: write file_name as it is on disk"


def _is_undecodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return False


def path_below(root: Path, file_name: str) -> Path:
    """The path of a frame, if its name in the annotation file does not lead out of the root.

    Links below the root are followed: data sets are often put together from them.

    Args:
        root: image root.
        file_name: absolute path of the frame, as records have it.

    Raises:
        ImageFileError: it leads out.
    """
    folder, path = str(root.resolve()), os.path.normpath(file_name)
    if os.path.commonpath([folder, path]) != folder:
        raise ImageFileError(f"{path}: is not below the image root {folder}, so it is not shown")
    return Path(path)


def read_frame(path: str | Path, *, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """`read_image` with a check of the size, height x width px.

    Raises ImageFileError as `read_image` does, and for another size.
    """
    pixels = read_image(path)
    size = pixels.shape[1], pixels.shape[0]
    if size != (width, height):
        raise ImageFileError(_explain_size(path, size=size, expected=(width, height)))
    return pixels


def _explain_size(path: str | Path, *, size: Size, expected: Size) -> str:
    """Message for an image file whose (width, height) differs from the annotation file's."""
    text = (
        f"{path}: is {size[0]} x {size[1]} px (width x height), but the annotation file says "
        f"{expected[0]} x {expected[1]}; "
    )
    if size != expected[::-1]:
        return f"{text}boxes would not fit: correct one of the two"
    if _orientation(path) in SIDEWAYS:
        return (
            f"{text}its EXIF orientation turns it sideways: write width, height and boxes of the "
            "upright image, or, if the boxes were drawn on the image as it is stored, remove the "
            "orientation from the file (`exiftool -Orientation= FILE`)"
        )
    return f"{text}width and height of the annotation file seem to be swapped: correct them"


def _orientation(path: str | Path) -> int | None:
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Orientation)
    except (OSError, SyntaxError, ValueError):  # it was decoded, but its EXIF data is damaged
        return None
