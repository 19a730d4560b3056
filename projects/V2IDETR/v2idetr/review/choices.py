"""What can be chosen on the page: runs, weights and videos below a folder.

The page knows them by their position in these lists; it takes no paths.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from v2i_runtime.loading import MODEL_SUFFIXES
from v2idetr.deploy.loading import CHECKPOINT_SUFFIXES
from v2idetr.runs.stage_folder import BEST

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".ts", ".wmv")
DEEPEST = 6  # folders below the root
MOST_FOLDERS = 20_000
MOST_ENTRIES = 500  # of a list


@dataclass
class Choices:
    """Lists of paths, by name; ``cut`` says what was left out, in words."""

    root: Path
    runs: list[Path] = field(default_factory=list)
    models: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    cut: str = ""

    def title(self, path: Path) -> str:
        """A path for a reader: relative to the root where it is below it."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)


def look_for(root: Path) -> Choices:
    """Runs, models and videos below a folder.

    What is hidden is passed over, as are links to folders, and to files outside the root.

    Of a run, checkpoints named best.pth are listed, not those of resuming.
    """
    choices = Choices(root.resolve())
    for seen, (folder, folders, files) in enumerate(os.walk(choices.root), start=1):
        here = Path(folder)
        depth = len(here.relative_to(choices.root).parts)
        folders[:] = sorted(n for n in folders if n[0] != "." and n != "__pycache__")
        if depth >= DEEPEST:
            folders.clear()
        if {"config.yaml", "run.json"} <= set(files):
            choices.runs.append(here)
        for name in sorted(files):
            if name[0] == "." or not (here / name).resolve().is_relative_to(choices.root):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix in VIDEO_SUFFIXES:
                choices.videos.append(here / name)
            elif name == BEST or _holds_detector(here / name, suffix):
                choices.models.append(here / name)
        if seen >= MOST_FOLDERS:
            choices.cut = f"Only the first {MOST_FOLDERS} folders below {choices.root} were read."
            break
    for kind in ("runs", "models", "videos"):
        entries = getattr(choices, kind)
        if len(entries) > MOST_ENTRIES:
            choices.cut += f" Only the first {MOST_ENTRIES} of {len(entries)} {kind} are listed."
            del entries[MOST_ENTRIES:]
    choices.cut = choices.cut.strip()
    return choices


def _holds_detector(path: Path, suffix: str) -> bool:
    """Whether a file is likely one of weights to publish, or an exported one."""
    if suffix in (".safetensors", ".onnx"):
        return True
    return suffix in MODEL_SUFFIXES and path.with_suffix(".bin").is_file()


def check_model(path: Path) -> None:
    """Raise ValueError unless a path is a file that may hold a detector."""
    suffixes = (*CHECKPOINT_SUFFIXES, *MODEL_SUFFIXES)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"--model {path}: must be one of {', '.join(suffixes)}")
    if not path.is_file():
        raise ValueError(f"--model {path}: no such file")
