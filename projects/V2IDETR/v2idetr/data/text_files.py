"""Text files that a user brings -> text, with or without a byte-order mark."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

# What other encodings begin with; UTF-32's first, as UTF-16's mark is the beginning of it.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, without the byte-order mark that some programs write first.

    Raises:
        ValueError: the file is not UTF-8; names the file, the place and the remedy.
        OSError: it cannot be read, with the path as its filename.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        # One of reading itself, as of a damaged disk, comes without a name.
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        seems = next(
            (f", but {name}" for mark, name in MARKS.items() if content[:4].startswith(mark)), ""
        )
        raise ValueError(
            f"{path}: is not UTF-8{seems} (byte 0x{content[error.start]:02x} at {error.start}); "
            "save it as UTF-8"
        ) from error
