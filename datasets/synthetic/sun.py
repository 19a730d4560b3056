"""Files of the SUN colonoscopy video database: what is assumed is in `layouts`."""

from collections.abc import Sequence
from pathlib import Path

from .jobs import (
    NEGATIVE_CASES,
    Job,
    Options,
    Results,
    cut_into_shots,
    frame_names,
    make_spec,
    negative_jobs,
    under,
)


def plan(options: Options) -> list[Job]:
    """One job a case; its recordings follow each other with cuts in between."""
    jobs = []
    for case in range(1, options.train_clips + 1):
        spec = make_spec(options, case, 1, shots=cut_into_shots(options, case, 1, most=3))
        part = 1 if case <= (options.train_clips + 1) // 2 else 2
        folder = f"sundatabase_positive_part{part}/case{case}"
        names = frame_names(options, case, 1, spec.shots)
        jobs.append(Job(spec, "positive", f"case{case}", under(folder, names, "jpg")))
    cases = min(NEGATIVE_CASES, options.negative_clips)
    return jobs + negative_jobs(
        options, lambda case: f"sundatabase_negative_part{1 + 4 * (case - 1) // max(cases, 1)}"
    )


def annotate(options: Options, jobs: Sequence[Job], results: Results, root: Path) -> None:
    """A text file a case, rows in the order of a directory listing."""
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
