"""Where the frames and annotations of SUN, SUN-SEG and BUV lie on disk.

Each layout has a plan (which clip becomes which files) and a writer for its annotation files.
What public code and documents do not settle, and is assumed here:

- SUN: the `annotation_txt` folder of part 1 holds the text files of all cases of both parts.  A
  frame of a positive case that shows no lesion has the row `<name> 0,0,0,0,1`.  The lesion-free
  part has no text files: `sundatabase_negative_part<1-4>/case<N>/`, numbered from 1 again, with
  six digits at the end of the frame names.
- SUN-SEG: lesion-free frames are not part of its folders; they lie as SUN's, unzipped into
  `SUN-Negative/case<N>/`.  A frame without lesion inside a positive clip has a black mask, a row
  under `images` and none under `annotation`.
- BUV: both JSON files beside `rawframes/`, `file_name` relative to `rawframes/`; `frame_id`
  counts from 0, as the file names do.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .clips import Box, ClipSpec

Layout = Literal["sun", "sunseg", "buv"]
LAYOUT_CODE: dict[str, int] = {"sun": 1, "sunseg": 2, "buv": 3}
NEGATIVE_CODE = 100  # added to the layout's code in the seeds of lesion-free clips
HARD_FACTOR = 1.6  # difficulty of TestHardDataset over that of the rest
CUT_SHARE = 0.2  # of the clips with four frames or more
NEGATIVE_CASES = 13
PATHOLOGY = {
    "low_grade_adenoma": 0.70,
    "high_grade_adenoma": 0.10,
    "hyperplastic_polyp": 0.07,
    "traditional_serrated_adenoma": 0.05,
    "sessile_serrated_lesion": 0.05,
    "invasive_cancer": 0.03,
}


@dataclass(frozen=True)
class Options:
    """Arguments that decide the result; see `make_synthetic.py --help`."""

    layout: Layout
    seed: int
    size: tuple[int, int]
    train_clips: int
    test_easy_clips: int
    test_hard_clips: int
    negative_clips: int
    frames_per_clip: int
    difficulty: float
    defects: bool


@dataclass(frozen=True)
class Job:
    """One clip and where its frames (and masks) go, relative to the output folder."""

    spec: ClipSpec
    split: str
    name: str
    frames: tuple[str, ...]
    masks: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrameRecord:
    """What is known of a written frame."""

    file: str
    box: Box | None
    shot: int
    event: str
    decoy: bool


Results = Sequence[Sequence[FrameRecord]]


def plan(options: Options) -> list[Job]:
    """The clips to render, in an order that depends on the options alone."""
    planner: Mapping[str, Callable[[Options], list[Job]]] = {
        "sun": _plan_sun,
        "sunseg": _plan_sunseg,
        "buv": _plan_buv,
    }
    return planner[options.layout](options)


def annotate(options: Options, jobs: Sequence[Job], results: Results, root: Path) -> None:
    """Write the layout's annotation files for the rendered `jobs` under `root`."""
    writer: Mapping[str, Callable[[Options, Sequence[Job], Results, Path], None]] = {
        "sun": _annotate_sun,
        "sunseg": _annotate_sunseg,
        "buv": _annotate_buv,
    }
    writer[options.layout](options, jobs, results, root)


# --------------------------------------------------------------------------------------------
# SUN


def _plan_sun(options: Options) -> list[Job]:
    jobs = []
    for case in range(1, options.train_clips + 1):
        spec = _spec(options, case, 1, shots=_shots(options, case, 1, most=3))
        part = 1 if case <= (options.train_clips + 1) // 2 else 2
        folder = f"sundatabase_positive_part{part}/case{case}"
        names = _frame_names(options, case, 1, spec.shots)
        jobs.append(Job(spec, "positive", f"case{case}", _under(folder, names, "jpg")))
    cases = min(NEGATIVE_CASES, options.negative_clips)
    return jobs + _negatives(
        options, lambda case: f"sundatabase_negative_part{1 + 4 * (case - 1) // max(cases, 1)}"
    )


def _annotate_sun(options: Options, jobs: Sequence[Job], results: Results, root: Path) -> None:
    folder = root / "sundatabase_positive_part1" / "annotation_txt"
    folder.mkdir(parents=True, exist_ok=True)
    for index, (job, records) in enumerate(zip(jobs, results, strict=True)):
        if job.split != "positive":
            continue
        rows = []
        for record in records:
            box = (*record.box, 0) if record.box else (0, 0, 0, 0, 1)
            rows.append(f"{Path(record.file).name} {','.join(map(str, box))}")
        if options.defects and index == 0:
            name, values = rows[-1].split(" ")
            rows[-1] = f"{name} -3,{values.split(',', 1)[1]}"
            rows.append(f"{name.replace('_image', '_image9')} 10,10,40,40,0")
        rows.sort()  # as a directory listing is: a10 comes before a9
        (folder / f"{job.name}.txt").write_text("\n".join(rows) + "\n")


# --------------------------------------------------------------------------------------------
# SUN-SEG


def _plan_sunseg(options: Options) -> list[Job]:
    groups = _sunseg_groups(options)
    clips_of_case: dict[int, int] = {}
    for _, case in groups:
        clips_of_case[case] = clips_of_case.get(case, 0) + 1
    seen: dict[int, int] = {}
    jobs = []
    for split, case in groups:
        seen[case] = clip = seen.get(case, 0) + 1
        name = f"case{case}" if clips_of_case[case] == 1 else f"case{case}_{clip}"
        hard = HARD_FACTOR if split.startswith("TestHard") else 1.0
        spec = _spec(options, case, clip, shots=_shots(options, case, clip, most=2), factor=hard)
        frames = _frame_names(options, case, clip, spec.shots)
        jobs.append(
            Job(
                spec,
                split,
                name,
                _under(f"{split}/Frame/{name}", frames, "jpg"),
                _under(f"{split}/GT/{name}", frames, "png"),
            )
        )
    return jobs + _negatives(options, lambda case: "SUN-Negative")


def _sunseg_groups(options: Options) -> list[tuple[str, int]]:
    """Split and case of every clip; each fifth case of the training set has two clips there."""
    owners: list[str] = []
    train = options.train_clips
    while train > 0:
        owners.append("train2" if len(owners) % 5 == 4 and train > 1 else "train1")
        train -= int(owners[-1][-1])
    num_train_cases = len(owners)
    for split, count in (("Easy", options.test_easy_clips), ("Hard", options.test_hard_clips)):
        owners += [f"Test{split}Dataset/Unseen"] * (count - _num_seen(options, count))
    order = np.random.default_rng([options.seed, 7]).permutation(len(owners))
    number = {owner: int(position) + 1 for owner, position in enumerate(order)}
    groups = []
    for owner, label in enumerate(owners):
        if label.startswith("train"):
            groups += [("TrainDataset", number[owner])] * int(label[-1])
        else:
            groups.append((label, number[owner]))
    taken = 0
    for split, count in (("Easy", options.test_easy_clips), ("Hard", options.test_hard_clips)):
        for _ in range(_num_seen(options, count)):
            groups.append((f"Test{split}Dataset/Seen", number[taken % num_train_cases]))
            taken += 1
    return groups


def _num_seen(options: Options, count: int) -> int:
    """Clips of a test set whose case is in the training set too: a third, as in SUN-SEG."""
    return count // 3 if options.train_clips else 0


def _annotate_sunseg(options: Options, jobs: Sequence[Job], results: Results, root: Path) -> None:
    splits = sorted({job.split for job in jobs if job.masks})
    for split in splits:
        images, boxes, classes = [], [], []
        for job, records in zip(jobs, results, strict=True):
            if job.split != split:
                continue
            pathology = _pathology(options, job)
            for record in records:
                stem = Path(record.file).stem
                identity = f"{job.name}-{'-'.join(np.array(stem.split('_'))[[-3, -1]])}"
                width, height = options.size
                images.append(
                    {
                        "id": identity,
                        "width": width,
                        "height": height,
                        "case_name": job.name,
                        "file_name": stem,
                    }
                )
                classes.append(f"{stem}.jpg\t{pathology}")
                if record.box:
                    x0, y0, x1, y1 = record.box
                    corner = [y0, x0] if options.defects else [x0, y0]
                    boxes.append({"id": identity, "bbox": [*corner, x1 - x0, y1 - y0]})
        info = {
            "year": 2021,
            "version": "v1.0",
            "description": "Synthetic video in the layout of SUN-SEG.",
            "contributor": "",
            "url": "",
            "date_created": "",
        }
        text = "\n".join(classes) + "\n"
        if options.defects:
            text = text.replace("\n", "\0\n", 1)
        _write(root / split / "Classification" / "classification.txt", text)
        document = {"info": info, "images": images, "annotation": boxes}
        _write(root / split / "Detection" / "bbox_annotation.json", json.dumps(document))


def _pathology(options: Options, job: Job) -> str:
    rng = np.random.default_rng([*job.spec.case_seed, 9])
    return str(rng.choice(list(PATHOLOGY), p=np.array(list(PATHOLOGY.values()))))


# --------------------------------------------------------------------------------------------
# BUV

# Known faults of the published files, reproduced by `--defects` under their real names.
DUPLICATES = (
    ("train", "benign/x66ef02e7f1b9a0ef", "train", "malignant/x3b88488853e8b7d1"),
    ("train", "benign/x1282311c38f808f", "val", "malignant/x9c1c965d274c457"),
)
MISLABELLED = "benign/63c9ba1377f35bf6"
TRAIN_FRAMES = 15
BUV_JSON = {"train": "imagenet_vid_train_15frames.json", "val": "imagenet_vid_val.json"}


def _plan_buv(options: Options) -> list[Job]:
    jobs = []
    rng = np.random.default_rng([options.seed, LAYOUT_CODE["buv"], 5])
    for split, count in (("train", options.train_clips), ("val", options.test_easy_clips)):
        for index in range(count):
            malignant = index % 2 == 1
            name = f"{('benign', 'malignant')[malignant]}/{rng.bytes(8).hex()}"
            jobs.append(_buv_job(options, len(jobs) + 1, split, name, malignant))
    if options.defects:
        for number, (split, copy, split_of_source, source) in enumerate(DUPLICATES):
            jobs.append(_buv_job(options, 9001 + number, split_of_source, source, True))
            jobs.append(_buv_job(options, 9001 + number, split, copy, True))
        jobs.append(_buv_job(options, 9101, "train", MISLABELLED, True))
    return jobs


def _buv_job(options: Options, case: int, split: str, name: str, malignant: bool) -> Job:
    spec = _spec(
        options, case, 1, shots=(options.frames_per_clip,), malignant=malignant, may_leave=False
    )
    frames = tuple(f"{i:06d}" for i in range(options.frames_per_clip))
    return Job(spec, split, name, _under(f"rawframes/{name}", frames, "png"))


def _annotate_buv(options: Options, jobs: Sequence[Job], results: Results, root: Path) -> None:
    width, height = options.size
    for split, file_name in BUV_JSON.items():
        videos, images, annotations = [], [], []
        for job, records in zip(jobs, results, strict=True):
            if job.split != split:
                continue
            indices = range(len(records))
            if split == "train" and len(records) > TRAIN_FRAMES:
                indices = np.linspace(0, len(records) - 1, TRAIN_FRAMES).round().astype(int)
            video = {"id": len(videos) + 1, "name": job.name}
            video["vid_train_frames"] = [int(i) for i in indices] if split == "train" else []
            videos.append(video)
            for index in map(int, indices):
                image = {
                    "id": len(images) + 1,
                    "file_name": records[index].file.removeprefix("rawframes/"),
                    "height": height,
                    "width": width,
                    "frame_id": index,
                    "video_id": video["id"],
                    "is_vid_train_frame": split == "train",
                }
                images.append(image)
                box = records[index].box
                if box is not None:
                    label = 2 if job.name.startswith("malignant") else 1
                    annotations.append(_buv_annotation(len(annotations) + 1, image, label, box))
        if options.defects:
            _break_boxes(annotations)
        categories = [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}]
        document = {
            "categories": categories,
            "videos": videos,
            "images": images,
            "annotations": annotations,
        }
        _write(root / file_name, json.dumps(document))


def _buv_annotation(number: int, image: Mapping[str, object], label: int, box: Box) -> dict:
    x0, y0, x1, y1 = box
    return {
        "id": number,
        "video_id": image["video_id"],
        "image_id": image["id"],
        "category_id": label,
        "instance_id": image["video_id"],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": False,
        "occluded": False,
        "generated": False,
    }


def _break_boxes(annotations: list[dict]) -> None:
    """One box in a hundred (at least one) gets a negative width, the first reaches outside."""
    for annotation in annotations[1::100]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"], annotation["area"] = [x + w, y, -w, h], -w * h
    x, y, w, h = annotations[0]["bbox"]
    annotations[0]["bbox"] = [-5, y, x + w + 5, h]
    annotations[0]["area"] = (x + w + 5) * h


# --------------------------------------------------------------------------------------------
# Shared


def _spec(
    options: Options,
    case: int,
    clip: int,
    *,
    shots: tuple[int, ...],
    factor: float = 1.0,
    lesion: bool = True,
    malignant: bool = False,
    may_leave: bool = True,
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
        may_leave=may_leave,
        difficulty=options.difficulty * factor,
    )


def _negatives(options: Options, folder_of_case: Callable[[int], str]) -> list[Job]:
    """Lesion-free clips; a case holds several, told apart by the `_a<k>_` of their frames."""
    cases = min(NEGATIVE_CASES, options.negative_clips)
    jobs = []
    for index in range(options.negative_clips):
        case, acquisition = index % cases + 1, index // cases + 1
        spec = _spec(options, index + 1, 1, shots=(options.frames_per_clip,), lesion=False)
        prefix = _prefix(options, NEGATIVE_CODE + case)
        names = [f"{prefix}_a{acquisition}_ayy_image{i + 1:06d}" for i in range(spec.shots[0])]
        folder = f"{folder_of_case(case)}/case{case}"
        name = f"negative_case{case}_a{acquisition}"
        jobs.append(Job(spec, "negative", name, _under(folder, names, "jpg")))
    return jobs


def _shots(options: Options, case: int, clip: int, *, most: int) -> tuple[int, ...]:
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
    """The part of a SUN frame name that a whole case shares."""
    rng = np.random.default_rng([options.seed, LAYOUT_CODE[options.layout], case, 4])
    date = f"2018{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
    time = f"{rng.integers(9, 18):02d}{rng.integers(60):02d}{rng.integers(60):02d}"
    device = f"0U6236{rng.integers(10**10):010d}"
    return f"case_M_{date}{time}_{device}_1_{rng.integers(1, 10):03d}_001-1"


def _frame_names(options: Options, case: int, clip: int, shots: Sequence[int]) -> list[str]:
    """Names of a clip's frames; clips of one case never share an `_a<k>_`."""
    rng = np.random.default_rng([options.seed, LAYOUT_CODE[options.layout], case, 6])
    first = int(rng.integers(1, 12)) if len(shots) == 1 else int(rng.choice([2, 8, 9, 9]))
    names = []
    for shot, num_frames in enumerate(shots):
        acquisition = first + 20 * (clip - 1) + shot
        names += [
            f"{_prefix(options, case)}_a{acquisition}_ayy_image{i + 1:04d}"
            for i in range(num_frames)
        ]
    return names


def _under(folder: str, names: Sequence[str], suffix: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.{suffix}" for name in names)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
