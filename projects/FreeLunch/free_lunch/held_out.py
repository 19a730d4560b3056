"""Copies of held-out frames among those of a pretraining: refused, or left out where they are few.

Frames of a list without labels may come from a video that is held out elsewhere, under another file
name, size or compression. A title card (a logo, "no signal") is in many videos without a leak.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from typing import Any

from detectron2.utils import comm

from v2idetr.data.audit import Findings
from v2idetr.engine.run_context import RunContext
from v2idetr.prepare.frame_checks import Copies, Fingerprint, check_frames, find_copies
from v2idetr.wording import counted

logger = logging.getLogger(__name__)


def frames_to_leave_out(run: RunContext, name: str, *, most: float, key: str) -> list[int]:
    """Image ids of a split's frames that are copies of validation or test frames.

    Args:
        name: of the split.
        most: share of a video's frames that can be copies without a refusal.
        key: of `most` in the config, for messages.

    Raises:
        ValueError: they are more of a video; names videos and an example. The same on all
            processes.
    """
    held_out = [n for n in run.splits if n == "val" or n.startswith("test/")]
    if not held_out:
        logger.warning(
            "data.val and data.test are empty: nobody looks for frames of held-out videos among "
            "those of data.%s. Name the splits on which a model with this backbone will be "
            "evaluated, such as data.test={NAME: {json: ..., image_root: ...}}",
            name,
        )
        return []
    problem, left_out = "", list[int]()
    if comm.is_main_process():
        _warn_of_names(run, name, held_out)
        copies = _copies(run, name, held_out)
        problem, left_out = _refusal(run, name, copies, most, key), _ids(copies)
        if left_out and not problem:
            _log(copies, name, len(left_out))
    everywhere: Any = comm.all_gather((problem, left_out))
    problem, left_out = everywhere[0]
    if problem:
        raise ValueError(problem)
    return left_out


def _warn_of_names(run: RunContext, name: str, held_out: list[str]) -> None:
    """Other frames of a held-out video are no copies of its labelled ones; its name may tell."""
    own = {video["name"] for video in run.splits[name].videos.values()}
    for other in held_out:
        same = sorted(own & {video["name"] for video in run.splits[other].videos.values()})
        if same:
            logger.warning(
                "data.%s and data.%s both have %s called %s: if they are the same, leave them out "
                "of data.%s",
                name,
                other.replace("/", "."),
                counted(len(same), "video"),
                ", ".join(same[:5]),
                name,
            )


def _copies(run: RunContext, name: str, held_out: list[str]) -> list[Copies]:
    splits = {n: run.splits[n] for n in (name, *held_out)}
    prints: dict[str, dict[int, Fingerprint]] = run.found.setdefault("fingerprints", {})
    for missing in splits.keys() - prints.keys():
        prints[missing] = check_frames(splits[missing])
    return find_copies(splits, prints, among=name)


def _ids(copies: list[Copies]) -> list[int]:
    return sorted({image_id for found in copies for image_id in found.image_ids})


def _refusal(run: RunContext, name: str, copies: list[Copies], most: float, key: str) -> str:
    """Message about videos with too many copies; "" for none."""
    videos = run.splits[name].videos
    lengths = Counter(videos[r["video_id"]]["name"] for r in run.splits[name].records)
    shared: defaultdict[str, set[int]] = defaultdict(set)
    for found in copies:
        shared[found.videos[0]].update(found.image_ids)
    findings = Findings()
    for found in copies:
        own, other = found.videos
        if len(shared[own]) > most * lengths[own]:
            findings.add(
                f"video of data.{found.splits[1].replace('/', '.')} with frames in data.{name}",
                f"{len(found.image_ids)} of {counted(lengths[own], 'frame')} of {own} are also in "
                f"{other}, such as {found.example[0]}",
            )
    if not findings.lines():
        return ""
    listed = "\n".join(findings.lines())
    return (
        f"pretraining would see held-out frames; leave these videos out of data.{name} "
        "(tools/check_data.py lists all). Frames that are in both without a leak, such as a title "
        f"card, are left out where they are at most {key}={most:g} of a video:\n{listed}"
    )


def _log(copies: list[Copies], name: str, number: int) -> None:
    logger.warning(
        "%s of data.%s left out, in %s: copies of held-out frames, such as %s of %s",
        counted(number, "frame"),
        name,
        counted(len({found.videos[0] for found in copies}), "video"),
        copies[0].example[0],
        copies[0].example[1],
    )
