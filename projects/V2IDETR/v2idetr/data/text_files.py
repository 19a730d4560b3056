"""Text files of users -> text, with or without a byte-order mark."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

# Byte-order marks of other encodings; UTF-32 first, as its mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file without its byte-order mark.

    Raises:
        ValueError: the file is not UTF-8; names file, byte and remedy.
        OSError: the file cannot be read; has its path as the filename.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        # Errors of reading itself, as from a damaged disk, have no file name.
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
