"""SUN's frame names -> temporal order and cuts; its lesion-free case folders -> videos.

Example: ``case_M_20181001100941_0U62372100109341_1_005_001-1_a10_ayy_image0001.jpg``. Frames are
sorted by (number before ``-``, number after ``_a``, number after ``image``), as in SUN-SEG's own
loader; a plain sort puts a10 before a9. Another ``_a`` is another recording, so there is a cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from v2i_runtime.image_files import image_names, natural_key
from v2idetr.data.audit import Findings
from v2idetr.prepare.annotations import Frame, Video

FRAME_NAME = re.compile(r"^([^-]*?(\d+)-.*?_a(\d+)_).*image(\d+)$")
CASE_FOLDER = re.compile(r"^case(\d+)$")


def in_temporal_order(names: Sequence[str], where: str, notes: Findings) -> list[tuple[str, int]]:
    """(name, scene) in temporal order; scenes count from 0 and change with the recording.

    Names of another form are in natural order, as one scene, with a note.
    """
    parsed = {name: FRAME_NAME.match(Path(name).stem) for name in names}
    strange = [name for name, match in parsed.items() if match is None]
    if strange:
        notes.add("names unlike SUN's: natural order, no cuts", f"{where}: {strange[0]}")
        return [(name, 0) for name in sorted(names, key=natural_key)]
    ordered: list[tuple[str, int]] = []
    recording, scene = None, -1
    for name, match in sorted(parsed.items(), key=lambda item: _place(item[1])):
        assert match is not None
        if match[1] != recording:
            recording, scene = match[1], scene + 1
        ordered.append((name, scene))
    return ordered


def _place(match: re.Match[str] | None) -> tuple[int, int, int, str]:
    assert match is not None
    return int(match[2]), int(match[3]), int(match[4]), match[0]


def case_number(name: str) -> int:
    """``case12_3`` -> 12. Raises ValueError for names without a case."""
    match = re.match(r"case(\d+)(?:_\d+)?$", name)
    if match is None:
        raise ValueError(f"folder {name!r} is not named case<N> or case<N>_<M>")
    return int(match[1])


def case_folders(parent: Path) -> dict[int, Path]:
    """Subfolders ``case<N>`` by N."""
    found = ((CASE_FOLDER.match(path.name), path) for path in parent.iterdir() if path.is_dir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def _relative(folder: Path, root: Path) -> Path:
    """The folder as seen from ``root``; ``..`` behind a symbolic link leads away from the link."""
    if folder.is_relative_to(root):
        return folder.relative_to(root)
    return Path(os.path.relpath(folder.resolve(), root.resolve()))


def lesion_free_videos(
    parents: Sequence[Path], image_root: Path, notes: Findings
) -> dict[int, list[Video]]:
    """Videos of SUN's lesion-free cases, ``case<N>`` in ``parents``, by case number."""
    videos: dict[int, list[Video]] = {}
    for parent in parents:
        for number, folder in case_folders(parent).items():
            ordered = in_temporal_order(image_names(folder), folder.name, notes)
            root = _relative(folder, image_root)
            frames = [Frame((root / name).as_posix(), scene_id=scene) for name, scene in ordered]
            name = f"negative_case{number}"
            if number in videos:
                name = f"{name}_{parent.name}"
                notes.add("lesion-free case in two folders: two videos", str(root))
            if frames:
                videos.setdefault(number, []).append(Video(name, frames))
            else:
                notes.add("case folder without images", str(root))
    return dict(sorted(videos.items()))
