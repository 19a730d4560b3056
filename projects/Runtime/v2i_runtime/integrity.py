"""SHA-256 of an exported file, stored in the file itself.

It is that of the ``.onnx``, or of the ``.xml`` followed by its ``.bin``, with `PLACEHOLDER` where
the digest stands: graph, weights and description are covered.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

PLACEHOLDER = "?" * 64


def digest(path: Path, stored: str = PLACEHOLDER) -> str:
    """SHA-256 of an exported file, in hexadecimal digits.

    Args:
        path: ``.onnx``, or ``.xml`` with its ``.bin`` beside it.
        stored: digest in the file, which is left out.
    """
    before, after = _around(path, stored)
    sha256 = hashlib.sha256(before)
    sha256.update(PLACEHOLDER.encode())
    sha256.update(after)
    weights = path.with_suffix(".bin")
    if path.suffix.lower() == ".xml" and weights.exists():
        with open(weights, "rb") as file:
            hashlib.file_digest(file, lambda: sha256)
    return sha256.hexdigest()


def seal(path: Path) -> None:
    """Put the digest into an exported file whose description holds `PLACEHOLDER`."""
    position = len(_around(path, PLACEHOLDER)[0])
    text = digest(path).encode()
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(text)


def _around(path: Path, stored: str) -> tuple[memoryview, memoryview]:
    """Content before and behind the digest; not copied, as a file may be large."""
    content, text = path.read_bytes(), stored.encode()
    start = content.find(text)
    start = len(content) if start < 0 else start
    return memoryview(content)[:start], memoryview(content)[start + len(text) :]
