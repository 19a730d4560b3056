"""Videos, or the patients that they are of -> train, val and test.

patients_of    patient of each video: of a CSV file, of a pattern, or each video for itself
split_videos   split of each video; a patient is in one split alone
"""

from __future__ import annotations

import csv
import difflib
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from v2idetr.data.audit import Findings
from v2idetr.data.text_files import read_text
from v2idetr.wording import counted

SPLITS = ("train", "val", "test")
ORDERS = 200  # of patients that are tried
CLOSE, FAR = 1.05, 1.5  # factors by which a share misses: no further order is tried; it is noted


def patients_of(
    videos: Sequence[str], *, table: Path | None = None, pattern: str | None = None
) -> dict[str, str]:
    """Patient of each video.

    Args:
        videos: names of the videos.
        table: CSV file with the columns ``video`` and ``patient``; a video is its name, with or
            without a suffix.
        pattern: regular expression that is looked for in a video's name: its group ``patient``, or
            the first one, is the patient.

    Raises:
        ValueError: a column or a video is missing, a video is of two patients, the names of two
            patients differ by letter case alone, or the pattern does not fit.
    """
    if table is not None:
        return _spelt_once(_of_table(videos, table), str(table))
    if pattern is None:
        return {video: video for video in videos}
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"--patient-pattern {pattern}: is no regular expression ({error})"
        ) from None
    if not expression.groups:
        raise ValueError(
            f"--patient-pattern {pattern}: needs a group for the patient, such as "
            "'(?P<patient>P[0-9]+)'"
        )
    patients = {}
    for video in videos:
        match = expression.search(video)
        patient = match and (match.groupdict().get("patient") or match[1])
        if not patient:
            raise ValueError(f"--patient-pattern {pattern}: the video {video!r} does not fit")
        patients[video] = patient
    return _spelt_once(patients, f"--patient-pattern {pattern}")


def _spelt_once(patients: dict[str, str], source: str) -> dict[str, str]:
    """The same, checked: one patient under two names would be in two splits."""
    spellings: dict[str, str] = {}
    for patient in patients.values():
        first = spellings.setdefault(patient.casefold(), patient)
        if first != patient:
            raise ValueError(
                f"{source}: the patients {first!r} and {patient!r} differ by letter case alone; "
                "give one patient one name, or two patients different ones"
            )
    return patients


def _of_table(videos: Sequence[str], table: Path) -> dict[str, str]:
    lines = list(csv.DictReader(read_text(table).splitlines()))
    missing = [name for name in ("video", "patient") if not lines or name not in lines[0]]
    if missing:
        there = ", ".join(filter(None, lines[0])) if lines else "none"
        raise ValueError(f"{table}: has no column {', '.join(missing)}; it has {there}")
    found: dict[str, str] = {}
    for line in lines:
        name, patient = (line["video"] or "").strip(), (line["patient"] or "").strip()
        if found.setdefault(name, patient) != patient:
            raise ValueError(f"{table}: {name} is of two patients, {found[name]} and {patient}")
    by_stem: defaultdict[str, set[str]] = defaultdict(set)
    for name, patient in found.items():
        by_stem[Path(name).stem].add(patient)
    without_suffix = {stem: min(there) for stem, there in by_stem.items() if len(there) == 1}
    patients = {v: found.get(v) or without_suffix.get(v, "") for v in videos}
    lost = [video for video, patient in patients.items() if not patient]
    if lost:
        raise ValueError(
            f"{table}: has no patient for {counted(len(lost), 'video')}: {', '.join(lost[:5])}"
        )
    return patients


def split_videos(
    patients: Mapping[str, str],
    frames_with_lesion: Mapping[str, int],
    *,
    shares: Mapping[str, float],
    seed: int,
    named: Mapping[str, Sequence[str]] | None = None,
    notes: Findings | None = None,
) -> dict[str, str]:
    """Split of each video.

    Patients are drawn in orders that the seed decides, and each goes where most is missing of the
    split's share of frames. Of these draws the first is taken whose shares all miss by a factor of
    at most CLOSE, otherwise the one whose largest factor is least. Patients with lesions are drawn
    first, so that every split has some, by frames with lesions; then the others, by videos.

    Args:
        patients: patient by video.
        frames_with_lesion: number by video.
        shares: share of "val" and "test", above 0 and together below 1.
        seed: seed of the order; the same seed gives the same splits.
        named: names or patterns of videos for "val" and "test", which take the place of a share.
        notes: receives shares of frames with lesions that miss by more than a factor of FAR.

    Raises:
        ValueError: too few patients with lesions, a name that no video has, or a patient in two
            splits.
    """
    fixed = _named(patients, named or {})
    for split, patterns in (named or {}).items():
        inside = [video for video in patients if fixed.get(patients[video]) == split]
        if not any(frames_with_lesion.get(video) for video in inside):
            raise ValueError(
                f"--{split}-videos {','.join(patterns)}: none of them has a lesion, so that "
                "nothing could be measured; name others"
            )
    drawn = [split for split in SPLITS[1:] if split not in (named or {})]
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for video, patient in sorted(patients.items()):
        if patient not in fixed:
            groups[patient].append(video)
    weights = {p: sum(frames_with_lesion.get(v, 0) for v in vs) for p, vs in groups.items()}
    able = {patient for patient, weight in weights.items() if weight}
    if len(able) < 1 + len(drawn):
        raise ValueError(_too_few(len(able), len(drawn), drawn, patients))
    wanted = {split: shares[split] for split in drawn}
    wanted = {"train": 1.0 - sum(wanted.values()), **wanted}
    lesions = _closest(_orders(able, seed), weights, wanted)
    numbers = {patient: len(videos) for patient, videos in groups.items()}
    others = _closest(_orders(groups.keys() - able, seed), numbers, wanted)
    if notes is not None:
        for split, share in _shares(lesions, weights, wanted).items():
            if _factor(share, wanted[split]) > FAR:
                kind = "share of a split is far off: its patients are too few or too unequal"
                example = f"{split} has {share:.0%} of the frames with lesions, not "
                notes.add(kind, f"{example}{wanted[split]:.0%}")
    split_of = fixed | lesions | others
    return {video: split_of[patient] for video, patient in patients.items()}


def _orders(patients: Iterable[str], seed: int) -> Iterator[list[str]]:
    generator = random.Random(seed)
    for _ in range(ORDERS):
        order = sorted(patients)
        generator.shuffle(order)
        yield order


def _closest(
    orders: Iterable[Sequence[str]], weights: Mapping[str, int], wanted: Mapping[str, float]
) -> dict[str, str]:
    """Split of each patient, by the best of these orders."""
    best: dict[str, str] = {}
    least = math.inf
    for order in orders:
        split_of = _drawn(order, weights, wanted)
        shares = _shares(split_of, weights, wanted)
        factor = max(_factor(share, wanted[split]) for split, share in shares.items())
        if not best or factor < least:
            best, least = split_of, factor
        if least <= CLOSE:
            break
    return best


def _shares(
    split_of: Mapping[str, str], weights: Mapping[str, int], wanted: Iterable[str]
) -> dict[str, float]:
    """Share of each split."""
    sums = dict.fromkeys(wanted, 0)
    for patient, split in split_of.items():
        sums[split] += weights[patient]
    total = sum(sums.values())
    return {split: number / total if total else 0.0 for split, number in sums.items()}


def _factor(share: float, wanted: float) -> float:
    """Factor by which a share misses, in either direction; infinite for nothing."""
    return max(share / wanted, wanted / share) if share else math.inf


def _drawn(
    order: Sequence[str], weights: Mapping[str, int], wanted: Mapping[str, float]
) -> dict[str, str]:
    """Split of each patient in order; every split gets one where there are enough."""
    total = sum(weights[patient] for patient in order)
    lacking = {split: share * total for split, share in wanted.items()}
    split_of: dict[str, str] = {}
    for place, patient in enumerate(order):
        empty = [split for split in wanted if split not in split_of.values()]
        left = len(order) - place
        among = empty if len(empty) >= left and empty else list(wanted)
        split = max(among, key=lambda name: lacking[name])
        split_of[patient] = split
        lacking[split] -= weights[patient]
    return split_of


def _named(patients: Mapping[str, str], named: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Split by patient of the videos that are named."""
    split_of: dict[str, tuple[str, str]] = {}
    for split, patterns in named.items():
        for pattern in patterns:
            fitting = [video for video in patients if fnmatchcase(video, pattern)]
            if not fitting:
                near = difflib.get_close_matches(pattern, patients, n=3) or [*patients][:3]
                raise ValueError(
                    f"--{split}-videos {pattern}: no labelled video has this name; there are "
                    f"{', '.join(near)}, ..."
                )
            for video in fitting:
                first = split_of.setdefault(patients[video], (split, video))
                if first[0] != split:
                    raise ValueError(
                        f"--{split}-videos {pattern}: {video} is of the patient of {first[1]}, "
                        f"which is in {first[0]}"
                    )
    return {patient: split for patient, (split, _) in split_of.items()}


def _too_few(able: int, drawn: int, splits: Sequence[str], patients: Mapping[str, str]) -> str:
    by_patient = len(set(patients.values())) < len(patients)
    noun = "patient" if by_patient else "video"
    parts = " and ".join(["training", *splits])
    return (
        f"{counted(able, noun)} with lesions left, but {parts} need {1 + drawn}: frames of one "
        f"{noun} are near copies and are never divided. Add labelled videos, or name fewer for one "
        "split"
    )
