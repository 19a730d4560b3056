"""Names of classes in the files -> classes of the detector."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

from v2idetr.prepare.labels.label_set import LabelSet
from v2idetr.wording import counted


def choose_classes(
    found: LabelSet, wanted: Sequence[str] | None, renamed: Mapping[str, str]
) -> list[str]:
    """Names of the classes in order; the boxes in ``found`` are renamed, or removed and noted.

    Args:
        found: labels.
        wanted: names of the classes after renaming; None for all that have boxes, in the order of
            the files.
        renamed: name in the files -> name of the class, or "" for boxes to leave out.

    Raises:
        ValueError: a name that no box has, boxes of a class that is not wanted, or names that
            differ in their case or spaces alone.
    """
    counts = Counter(box.class_name for frame in found.frames for box in frame.boxes)
    for name in renamed:
        if name not in counts and name not in found.class_names:
            raise ValueError(
                f"--rename {name}={renamed[name]}: no label has the class {name!r}; there are "
                f"{_listed(counts)}"
            )
    left_out = {name for name, new in renamed.items() if not new}
    for frame in found.frames:
        frame.boxes = [box for box in frame.boxes if box.class_name not in left_out]
        for box in frame.boxes:
            box.class_name = renamed.get(box.class_name, box.class_name)
    for name in sorted(left_out):
        found.notes.add(
            "class is left out (--rename)", f"{name}: {counted(counts[name], 'box', 'boxes')}"
        )
    after = Counter(box.class_name for frame in found.frames for box in frame.boxes)
    if wanted is not None:
        _check_wanted(after, wanted)
        return list(wanted)
    names = [renamed.get(name, name) for name in found.class_names]
    used = [name for name in dict.fromkeys(names) if after[name]]
    for name in dict.fromkeys(names):
        if name and not after[name]:
            found.notes.add("class without a box is left out", name)
    _check_distinct(used)
    return used


def _check_wanted(counts: Counter[str], wanted: Sequence[str]) -> None:
    if len(set(wanted)) < len(wanted) or "" in wanted:
        raise ValueError(f"--classes {','.join(wanted)}: names must be distinct")
    for name in counts:
        if name not in wanted:
            near = difflib.get_close_matches(name, wanted, n=1, cutoff=0.5) or wanted[:1]
            raise ValueError(
                f"--classes {','.join(wanted)}: {counted(counts[name], 'box', 'boxes')} of the "
                f"class {name!r}; join it with --rename {name}={near[0]}, or leave it out with "
                f"--rename {name}="
            )


def _check_distinct(names: Sequence[str]) -> None:
    """Names that mean the same would become two classes."""
    seen: dict[str, str] = {}
    for name in names:
        if not name.strip():
            raise ValueError("boxes have a class without a name; name it with --rename =NAME")
        first = seen.setdefault("".join(name.lower().split()), name)
        if first != name:
            raise ValueError(
                f"the classes {first!r} and {name!r} differ in case or spaces alone; join them "
                f"with --rename '{name}={first}'"
            )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name!r} ({n})" for name, n in counts.most_common(12)) or "no boxes"
