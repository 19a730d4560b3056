"""Names of images and videos, as label files write them -> names that can be compared.

name_in_file    address, Windows path or upload name -> path with "/"
leads_out       whether a path leaves the folder that it is relative to
number_at_end   "case3_000012" -> ("case3", 12)
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # that Label Studio puts before the names of uploads
JOINT = "_-. "  # between a video's name and a frame's number


def name_in_file(text: str) -> str:
    """A path with ``/``, of an address its path, or the path that it asks for (``?d=``)."""
    if "://" in text or text.startswith("/data/"):
        parts = urlsplit(text)
        asked = parse_qs(parts.query).get("d")
        text = asked[0] if asked else unquote(parts.path)
    return text.replace("\\", "/").strip()


def leads_out(name: str) -> bool:
    """Whether a path is absolute or goes up."""
    return (
        name.startswith("/") or re.match(r"^[A-Za-z]:", name) is not None or ".." in name.split("/")
    )


def parts_of(name: str) -> list[str]:
    """Parts of a path, without what leads out of a folder and without the file's suffix."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    if parts:
        parts[-1] = PurePosixPath(parts[-1]).stem
    return parts


def number_at_end(stem: str) -> tuple[str, int | None]:
    """Text before the number at the end of a name, without joints, and the number, if any."""
    match = re.fullmatch(r"(.*?)(\d+)", stem)
    if match is None:
        return stem, None
    return match[1].rstrip(JOINT), int(match[2])


def without_upload_prefix(stem: str) -> str:
    """``0a1b2c3d-case3`` -> ``case3``."""
    return UPLOAD.sub("", stem)
