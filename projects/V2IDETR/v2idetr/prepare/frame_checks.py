"""Unusable and duplicate frames of splits.

    fingerprint      image -> 64-bit perceptual hash and a thumbnail for verification
    check_frames     split -> fingerprints of its frames, read as in training
    find_copies      fingerprints -> pairs of videos that share frames

Two frames are copies if their hashes differ in at most HASH_BITS of 64 bits and their thumbnails
correlate by CORRELATION or more. Measured on 478 colonoscopy frames of 23 videos, 400
stills and 624 ultrasound stills: copies that were recompressed, halved or brightened by a tenth
differ in at most 4 bits and correlate by 0.997 or more; frames of different colonoscopy videos
correlate by 0.973 at most. Copies cropped by 2 % of the side or more are not found.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import imagehash
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from v2idetr.data.clip_mapper import read_frame
from v2idetr.data.coco_vid import SplitData, by_video
from v2idetr.prepare.annotations import in_threads

HASH_BITS = 4
CORRELATION = 0.98
BLANK_CONTRAST = 4.0  # standard deviation of grey values: black or plain frames are all alike
THUMBNAIL_PX = 32
ROWS_AT_ONCE = 256  # of the table of all pairs, which has 10^9 entries for 30,000 frames


@dataclass(frozen=True)
class Fingerprint:
    """Perceptual hash and thumbnail of a frame, 1 KB."""

    hash_bits: int
    thumbnail: UInt8[np.ndarray, "32 32"]

    @property
    def is_blank(self) -> bool:
        """Black or nearly plain: such frames are alike without being copies."""
        return float(self.thumbnail.std()) < BLANK_CONTRAST


@dataclass(frozen=True)
class Copies:
    """Frames shared by two videos: those of the first that have a copy in the second.

    Attributes:
        splits, videos: the two, by name.
        image_ids: the frames of the first.
        example: files of one of them and of its copy.
    """

    splits: tuple[str, str]
    videos: tuple[str, str]
    image_ids: tuple[int, ...]
    example: tuple[str, str]

    @property
    def num_frames(self) -> int:
        """How many frames of the first have a copy in the second."""
        return len(self.image_ids)

    @property
    def across_splits(self) -> bool:
        """Whether the videos are in different splits: a leak."""
        return self.splits[0] != self.splits[1]


def fingerprint(pixels: UInt8[np.ndarray, "H W 3"]) -> Fingerprint:
    """Hash and thumbnail of a frame."""
    grey = Image.fromarray(pixels).convert("L")
    bits = int("".join("01"[bit] for bit in imagehash.phash(grey).hash.ravel().tolist()), 2)
    return Fingerprint(
        bits, np.asarray(grey.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX))
    )


def check_frames(split: SplitData, *, every: int = 1) -> dict[int, Fingerprint]:
    """Fingerprints by image id of every ``every``-th frame of each video.

    Frames that cannot be read, or differ in size from the JSON, become problems of
    ``split.report``. Files already known to be unusable are skipped.
    """
    root = split.image_root.resolve()
    missing = {os.path.join(root, name) for name in split.report.missing_frames}
    records = [
        record
        for clip in by_video(split.records).values()
        for record in clip[::every]
        if record["file_name"] not in missing
    ]

    def read(record: dict[str, Any]) -> Fingerprint | str:
        try:
            pixels = read_frame(record["file_name"], height=record["height"], width=record["width"])
        except ValueError as error:
            return str(error)
        return fingerprint(pixels)

    found = in_threads(read, records, f"frames of {split.json_path.name}")
    split.report.frames_decoded = len(records)
    fingerprints: dict[int, Fingerprint] = {}
    for record, result in zip(records, found, strict=True):
        if isinstance(result, str):
            split.report.problems.add("frame cannot be used", result)
            continue
        fingerprints[record["image_id"]] = result
        if result.is_blank:
            split.report.notes.add("frame is black or plain", record["file_name"])
    return fingerprints


def find_copies(
    splits: Mapping[str, SplitData],
    fingerprints: Mapping[str, Mapping[int, Fingerprint]],
    *,
    among: str = "",
) -> list[Copies]:
    """Pairs of different videos that share frames, first those across splits, then by number.

    Files shared by two splits are left to `split_set.check_shared_files`.

    Args:
        splits: splits by name.
        fingerprints: fingerprints by split name and image id; blank frames are ignored.
        among: the first split, to compare its frames with those of the others and no further ones;
            "" for all pairs.
    """
    assert not among or among == next(iter(splits)), among
    frames = [
        ((name, record["video_id"]), record, fingerprints[name][record["image_id"]])
        for name, split in splits.items()
        for record in split.records
        if record["image_id"] in fingerprints[name]
    ]
    frames = [frame for frame in frames if not frame[2].is_blank]
    own = sum(owner[0] == among for owner, _, _ in frames) if among else None
    owners = {owner: k for k, owner in enumerate(dict.fromkeys(frame[0] for frame in frames))}
    found: defaultdict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for first, second in _pairs([f[2] for f in frames], [owners[f[0]] for f in frames], own):
        (split_a, _), a, _ = frames[first]
        (split_b, _), b, _ = frames[second]
        if split_a != split_b and _same_file(a["file_name"], b["file_name"]):
            continue
        pair = owners[frames[first][0]], owners[frames[second][0]]
        found[pair].setdefault(first, second)
    places = list(owners)
    copies = []
    for (a, b), pairs in found.items():
        (split_a, video_a), (split_b, video_b) = places[a], places[b]
        first, second = next(iter(pairs.items()))
        copies.append(
            Copies(
                splits=(split_a, split_b),
                videos=(
                    splits[split_a].videos[video_a]["name"],
                    splits[split_b].videos[video_b]["name"],
                ),
                image_ids=tuple(frames[number][1]["image_id"] for number in pairs),
                example=(frames[first][1]["file_name"], frames[second][1]["file_name"]),
            )
        )
    return sorted(copies, key=lambda c: (not c.across_splits, -c.num_frames, c.videos))


def _same_file(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _pairs(
    prints: Sequence[Fingerprint], owners: Sequence[int], own: int | None = None
) -> list[tuple[int, int]]:
    """Indices i < j of copies with different owners; frames of an owner are consecutive.

    With `own`, i is among the first frames of this number and j is not.
    """
    hashes = np.array([p.hash_bits for p in prints], dtype=np.uint64)
    owner = np.array(owners, dtype=np.int64)
    pairs: list[tuple[int, int]] = []
    num_rows = len(prints) if own is None else own
    for start in range(0, num_rows, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, num_rows))
        begin = start if own is None else own
        apart = np.bitwise_count(hashes[rows, None] ^ hashes[None, begin:])
        close = (apart <= HASH_BITS) & (owner[rows, None] < owner[None, begin:])
        for i, j in zip(*np.nonzero(close), strict=True):
            first, second = start + int(i), begin + int(j)
            if _correlation(prints[first], prints[second]) >= CORRELATION:
                pairs.append((first, second))
    return pairs


def _correlation(a: Fingerprint, b: Fingerprint) -> float:
    first, second = (p.thumbnail.astype(np.float64).ravel() for p in (a, b))
    first, second = first - first.mean(), second - second.mean()
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))
