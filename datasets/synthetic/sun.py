"""Files of the SUN colonoscopy video database; assumptions: `layouts`."""

from collections.abc import Sequence
from pathlib import Path

from .jobs import Job, Options, Results, negative_jobs, sun_clip, under, write_text

NEGATIVE_PARTS = [f"sundatabase_negative_part{part}" for part in (1, 2, 3, 4)]


def plan(options: Options) -> list[Job]:
    """One job per case; cuts separate its recordings."""
    jobs = []
    for case in range(1, options.train_clips + 1):
        spec, names = sun_clip(options, case, 1, most_shots=3)
        part = 1 if case <= (options.train_clips + 1) // 2 else 2
        folder = f"sundatabase_positive_part{part}/case{case}"
        jobs.append(Job(spec, "positive", f"case{case}", under(folder, names, "jpg")))
    return jobs + negative_jobs(options, NEGATIVE_PARTS)


def annotate(options: Options, jobs: Sequence[Job], results: Results, root: Path) -> None:
    """One text file per case, rows in the order of a directory listing."""
    folder = root / "sundatabase_positive_part1" / "annotation_txt"
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
        write_text(folder / f"{job.name}.txt", "\n".join(rows) + "\n")
