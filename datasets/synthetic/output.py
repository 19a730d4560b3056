"""Output folders of the generators: what made them, and whether a result is there already."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from v2idetr.data.text_files import read_text

RECORD = "generator.json"


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def description_of(folder: Path) -> dict[str, Any] | None:
    """What a folder was made of; None if it is empty or does not exist.

    Raises:
        ValueError: it holds something else, or its record is damaged.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    record = folder / RECORD
    if not record.is_file():
        raise ValueError(
            f"{folder} is not empty and was not made by this program: choose another --output"
        )
    try:
        return dict(json.loads(read_text(record)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{record} is damaged ({error}): choose another --output") from None


def is_made(
    output: Path,
    description: Mapping[str, Any],
    *,
    overwrite: bool,
    added_later: Mapping[str, Any] | None = None,
) -> bool:
    """Whether `output` holds the result already.

    Args:
        description: of the result, with its ``arguments``; the record may hold more.
        overwrite: another result may be replaced.
        added_later: values of arguments that older records lack.

    Raises:
        ValueError: it holds anything else, or a result of other arguments.
    """
    made = description_of(output)
    if made is None:
        return False
    if isinstance(made.get("arguments"), dict):
        made["arguments"] = {**(added_later or {}), **made["arguments"]}
    if {key: made.get(key) for key in description} == description:
        return True
    if overwrite:
        return False
    before, now = made.get("arguments", {}), description["arguments"]
    changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
    raise ValueError(
        f"{output} was made with other arguments or by another version "
        f"({', '.join(changed) or 'version'}): choose another --output or add --overwrite"
    )
