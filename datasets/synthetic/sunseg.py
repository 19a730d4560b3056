"""Files of SUN-SEG, version 2; assumptions: `layouts`."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .jobs import FrameRecord, Job, Options, Results, negative_jobs, sun_clip, under, write_text

HARD_FACTOR = 1.6  # difficulty of TestHardDataset over that of the rest
PATHOLOGY = {
    "low_grade_adenoma": 0.70,
    "high_grade_adenoma": 0.10,
    "hyperplastic_polyp": 0.07,
    "traditional_serrated_adenoma": 0.05,
    "sessile_serrated_lesion": 0.05,
    "invasive_cancer": 0.03,
}


def plan(options: Options) -> list[Job]:
    """Training, easy and hard test clips, and the lesion-free part of SUN."""
    groups = _groups(options)
    clips_of_case: dict[int, int] = {}
    for _, case in groups:
        clips_of_case[case] = clips_of_case.get(case, 0) + 1
    seen: dict[int, int] = {}
    jobs = []
    for split, case in groups:
        seen[case] = clip = seen.get(case, 0) + 1
        name = f"case{case}" if clips_of_case[case] == 1 else f"case{case}_{clip}"
        hard = HARD_FACTOR if split.startswith("TestHard") else 1.0
        spec, stems = sun_clip(options, case, clip, most_shots=2, factor=hard)
        frames = under(f"{split}/Frame/{name}", stems, "jpg")
        masks = under(f"{split}/GT/{name}", stems, "png")
        jobs.append(Job(spec, split, name, frames, masks))
    return jobs + negative_jobs(options, ["SUN-Negative"])


def _groups(options: Options) -> list[tuple[str, int]]:
    """Split and case of every clip; every fifth training case has two training clips."""
    owners: list[str] = []
    train = options.train_clips
    while train > 0:
        owners.append("train2" if len(owners) % 5 == 4 and train > 1 else "train1")
        train -= int(owners[-1][-1])
    num_train_cases = len(owners)
    tests = {"TestEasyDataset": options.test_easy_clips, "TestHardDataset": options.test_hard_clips}
    for split, count in tests.items():
        owners += [f"{split}/Unseen"] * (count - _num_seen(options, count))
    order = np.random.default_rng([options.seed, 7]).permutation(len(owners))
    number = {owner: int(position) + 1 for owner, position in enumerate(order)}
    groups = []
    for owner, label in enumerate(owners):
        if label.startswith("train"):
            groups += [("TrainDataset", number[owner])] * int(label[-1])
        else:
            groups.append((label, number[owner]))
    taken = 0
    for split, count in tests.items():
        for _ in range(_num_seen(options, count)):
            groups.append((f"{split}/Seen", number[taken % num_train_cases]))
            taken += 1
    return groups


def _num_seen(options: Options, count: int) -> int:
    """Number of a test set's clips with a training case: a third."""
    return count // 3 if options.train_clips else 0


def annotate(options: Options, jobs: Sequence[Job], results: Results, root: Path) -> None:
    """Boxes and classes of every split that has clips."""
    for split in sorted({job.split for job in jobs if job.masks}):
        clips = [(job, r) for job, r in zip(jobs, results, strict=True) if job.split == split]
        classes = [
            f"{Path(record.file).name}\t{_pathology(job)}"
            for job, records in clips
            for record in records
        ]
        text = "\n".join(classes) + "\n"
        if options.defects:
            text = text.replace("\n", "\0\n", 1)
        write_text(root / split / "Classification" / "classification.txt", text)
        document = _boxes(options, clips)
        write_text(root / split / "Detection" / "bbox_annotation.json", json.dumps(document))


def _boxes(options: Options, clips: Sequence[tuple[Job, Sequence[FrameRecord]]]) -> dict:
    """The content of bbox_annotation.json."""
    width, height = options.size
    size = {"width": width, "height": height}
    images, boxes = [], []
    for job, records in clips:
        for record in records:
            stem = Path(record.file).stem
            *_, acquisition, _, image = stem.split("_")
            identity = f"{job.name}-{acquisition}-{image}"
            images.append({"id": identity, **size, "case_name": job.name, "file_name": stem})
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
    return {"info": info, "images": images, "annotation": boxes}


def _pathology(job: Job) -> str:
    """Pathology of a clip's case."""
    rng = np.random.default_rng([*job.spec.case_seed, 9])
    return str(rng.choice(list(PATHOLOGY), p=np.array(list(PATHOLOGY.values()))))
