"""Clips, their files, and SUN's frame names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .clips import Box, ClipSpec
from .degrade import Degradation

Layout = Literal["sun", "sunseg", "buv"]
LAYOUT_CODE: dict[str, int] = {"sun": 1, "sunseg": 2, "buv": 3}
NEGATIVE_CODE = 100  # added to the layout's code in the seeds of lesion-free clips
CUT_SHARE = 0.2  # of the clips with four frames or more
NEGATIVE_CASES = 13


@dataclass(frozen=True)
class Options:
    """Arguments that determine the result; see `make_synthetic.py --help`."""

    layout: Layout
    seed: int
    size: tuple[int, int]
    train_clips: int
    test_easy_clips: int
    test_hard_clips: int
    negative_clips: int
    frames_per_clip: int
    difficulty: float
    degradation: Degradation
    defects: bool


@dataclass(frozen=True)
class Job:
    """One clip and the paths of its frames and masks, relative to the output folder."""

    spec: ClipSpec
    split: str
    name: str
    frames: tuple[str, ...]
    masks: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrameRecord:
    """Facts about a written frame."""

    file: str
    box: Box | None
    shot: int
    event: str
    decoy: bool


Results = Sequence[Sequence[FrameRecord]]


def make_spec(
    options: Options,
    case: int,
    clip: int,
    *,
    shots: tuple[int, ...],
    factor: float = 1.0,
    lesion: bool = True,
    malignant: bool = False,
) -> ClipSpec:
    code = LAYOUT_CODE[options.layout] + (0 if lesion else NEGATIVE_CODE)
    return ClipSpec(
        style="breast" if options.layout == "buv" else "colon",
        size=options.size,
        case_seed=(options.seed, code, case),
        clip_seed=(options.seed, code, case, clip),
        shots=shots,
        lesion=lesion,
        malignant=malignant,
        difficulty=options.difficulty * factor,
        degradation=options.degradation,
    )


def sun_clip(
    options: Options, case: int, clip: int, *, most_shots: int, factor: float = 1.0
) -> tuple[ClipSpec, list[str]]:
    """A clip of a case with a lesion, cut into shots, and the names of its frames."""
    shots = _cut_into_shots(options, case, clip, most=most_shots)
    spec = make_spec(options, case, clip, shots=shots, factor=factor)
    return spec, _frame_names(options, case, clip, shots)


def negative_jobs(options: Options, folders: Sequence[str]) -> list[Job]:
    """Lesion-free clips, their cases spread over the folders in order.

    A case holds several clips, told apart by the `_a<k>_` of their frames.
    """
    cases = min(NEGATIVE_CASES, options.negative_clips)
    jobs = []
    for index in range(options.negative_clips):
        case, acquisition = index % cases + 1, index // cases + 1
        spec = make_spec(options, index + 1, 1, shots=(options.frames_per_clip,), lesion=False)
        prefix = _prefix(options, NEGATIVE_CODE + case)
        names = [f"{prefix}_a{acquisition}_ayy_image{i + 1:06d}" for i in range(spec.shots[0])]
        folder = f"{folders[len(folders) * (case - 1) // cases]}/case{case}"
        name = f"negative_case{case}_a{acquisition}"
        jobs.append(Job(spec, "negative", name, under(folder, names, "jpg")))
    return jobs


def _cut_into_shots(options: Options, case: int, clip: int, *, most: int) -> tuple[int, ...]:
    """Frames between the cuts of a clip."""
    rng = np.random.default_rng([options.seed, LAYOUT_CODE[options.layout], case, clip, 3])
    total = options.frames_per_clip
    wanted = 1
    while wanted < most and total >= 4 * wanted and rng.random() < CUT_SHARE:
        wanted += 1
    if most > 2 and total >= 8:
        wanted = max(wanted, 2)  # a whole case of SUN has several recordings
    edges = np.linspace(0, total, wanted + 1).round().astype(int)
    return tuple(int(n) for n in np.diff(edges))


def _prefix(options: Options, case: int) -> str:
    """The part of a SUN frame name that is common to a case."""
    rng = np.random.default_rng([options.seed, LAYOUT_CODE[options.layout], case, 4])
    date = f"2018{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
    time = f"{rng.integers(9, 18):02d}{rng.integers(60):02d}{rng.integers(60):02d}"
    device = f"0U6236{rng.integers(10**10):010d}"
    return f"case_M_{date}{time}_{device}_1_{rng.integers(1, 10):03d}_001-1"


def _frame_names(options: Options, case: int, clip: int, shots: Sequence[int]) -> list[str]:
    """Names of a clip's frames; clips of one case never share an `_a<k>_`."""
    rng = np.random.default_rng([options.seed, LAYOUT_CODE[options.layout], case, 6])
    first = int(rng.integers(1, 12))
    if len(shots) > 1 and case % 2:
        first = 9  # a plain sort puts a10 before a9
    names = []
    for shot, num_frames in enumerate(shots):
        acquisition = first + 20 * (clip - 1) + shot
        names += [
            f"{_prefix(options, case)}_a{acquisition}_ayy_image{i + 1:04d}"
            for i in range(num_frames)
        ]
    return names


def under(folder: str, names: Sequence[str], suffix: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.{suffix}" for name in names)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, creating its folder if missing; an OSError names the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
