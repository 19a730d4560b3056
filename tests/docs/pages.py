"""Documentation in the repository, its code blocks and its commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RESULTS.md")),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "projects").glob("*/README.md"),
        ROOT / "datasets" / "README.md",
        ROOT / "configs" / "ablations" / "README.md",
    ]
)
SHELLS = ("", "console", "bash", "sh")
FENCE = re.compile(r"(?ms)^( *)```(\w*) *\n(.*?)^\1``` *$")


def name_of(page: Path) -> str:
    """Path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """Content of the fenced blocks of some languages."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [block[3] for block in found if block[2] in languages]


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every command in the blocks for a shell, without variables set before it."""
    for block in blocks(page, *SHELLS):
        waiting = ""
        for line in block.splitlines():
            waiting += line.removesuffix("\\") + " "
            if line.endswith("\\"):
                continue
            try:
                words = shlex.split(waiting, comments=True)
            except ValueError:  # a quotation goes on in the next line
                continue
            waiting = ""
            while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
                words.pop(0)
            if words and words[0] in ("python", "pip", "make", "torchrun", "v2i-predict-video"):
                yield words
