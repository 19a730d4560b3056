#!/usr/bin/env python3
"""Run the rows of one of the paper's ablations, and write the table with the paper's numbers.

    python tools/ablate.py --list
    python tools/ablate.py --table III --dataset synthetic --seeds 3 --output output/ablation
    python tools/ablate.py --table IV --dataset synthetic --seeds 3 --output output/ablation
    python tools/ablate.py --table III --dataset synthetic --seeds 1 --smoke --output output/smoke

Only missing runs are run; tables in one folder share runs and teachers. An interrupted ablation is
continued by the same command. OUTPUT/table_III.md, .json and .svg are updated after every run;
OUTPUT/seed0/ROW/ is the run of a row, with its log.

Rows change a config of configs/; key=value changes it for all rows, except keys that a row itself
sets or sections that it sets to null. Parallel runs: one per GPU; without GPUs one per core, as far
as memory allows (3 GiB each, 14 GiB for sun and buv). OMP_NUM_THREADS divides the cores among them,
unless it is set; a run with fewer than two cores prepares its samples itself
(train.num_workers=0). A run takes 80 MB of disk with the small configs, 1 GB with the large ones.

Tables I and II: tools/compare.py.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate_data import smoke_commands, smoke_overrides, synthetic_commands
from ablate_progress import Report
from doctor import available_memory_gib
from progress import SECONDS_OTHERWISE, Part, Progress, data_part

from v2idetr.ablation.schedule import Job, cores, run_jobs, slots_of
from v2idetr.ablation.tables import (
    COMPARISONS,
    CONTROLS,
    DATASETS,
    STUDENTS,
    Row,
    Table,
    choose_rows,
    choose_table,
    find_tables,
)
from v2idetr.child_processes import Interrupted, ProgramError, run_logged
from v2idetr.output_folder import LOCK, check_folder, check_writable, explain_os_error, sole_user
from v2idetr.process_setup import ignore_torch_jit

if TYPE_CHECKING:  # they import torch
    from v2idetr.ablation.row_configs import Settings
    from v2idetr.ablation.runs import Plan, Run

ROOT = Path(__file__).resolve().parent.parent
NOT_LISTED = ("output", "seeds", "rows", "jobs", "smoke")  # options without effect on --list
CONFIGS = ROOT / "configs"
TRAIN_NET = ROOT / "train_net.py"
GIB_A_RUN = {"sun": 14.0, "buv": 14.0, "clinicdb": 3.0, "synthetic": 3.0}


@dataclass(frozen=True)
class Program:
    """A program that runs tables.

    Attributes:
        name: file name without suffix.
        description: text of --help.
        tables: keys of its tables; all but ``COMPARISONS`` if it is empty.
    """

    name: str
    description: str
    tables: tuple[str, ...] = ()

    def has(self, table: Table) -> bool:
        """Whether a table is one of its own."""
        return table.key in self.tables if self.tables else table.key not in COMPARISONS


ABLATE = Program("ablate", __doc__ or "")


def parse(arguments: Sequence[str] | None = None, program: Program = ABLATE) -> argparse.Namespace:
    """Command line to options."""
    parser = argparse.ArgumentParser(
        description=program.description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = ", ".join(table.label for table in find_tables(CONFIGS) if program.has(table))
    add("--list", action="store_true", help="list the rows of --table or of all, and shared runs")
    add("--table", metavar="NAME", help=f"table: {names}")
    add("--dataset", choices=DATASETS, default="synthetic", help="data set (default synthetic)")
    add("--seeds", type=int, default=1, metavar="N", help="seeds 0 .. N - 1 (default 1)")
    add("--output", type=Path, metavar="DIR", help="folder of the runs and tables of a data set")
    add(
        "--student",
        choices=list(STUDENTS),
        default="deformable_detr",
        help=argparse.SUPPRESS if program.tables else "the student (default deformable_detr)",
    )
    add(
        "--rows",
        type=lambda names: names.split(","),
        default=[],
        metavar="NAME,...",
        help="only these rows, by name or number; --list shows them",
    )
    add("--jobs", type=int, metavar="N", help="number of parallel runs (default: see above)")
    add(
        "--smoke",
        action="store_true",
        help="dry run: a few steps of every row on tiny generated images; needs no data",
    )
    add("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    options = parser.parse_intermixed_args(arguments)  # overrides anywhere
    if not options.list and not (options.table and options.output):
        parser.error("give --table and --output, or --list")
    given = [name for name in NOT_LISTED if getattr(options, name) != parser.get_default(name)]
    if options.list and given:
        parser.error(f"--list runs nothing: leave out --{', --'.join(given)}")
    if options.seeds < 1 or (options.jobs is not None and options.jobs < 1):
        parser.error("--seeds and --jobs must be 1 or more")
    return options


def main(arguments: Sequence[str] | None = None, program: Program = ABLATE) -> int:
    """Run a table; returns 2 after a user's error, 1 if a run failed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given, program)
    command = shlex.join(["python", f"tools/{program.name}.py", *given])
    ignore_torch_jit()
    try:
        tables = find_tables(CONFIGS)
        own = [table for table in tables if program.has(table)]
        if options.list:
            listed = [choose_table(own, options.table)] if options.table else own
            print(listing(listed, plan_of(options, tables)))
            return 0
        table = choose_table(own, options.table)
        rows = choose_rows(table, options.rows)
        return run_table(options, program, tables, table, rows)
    except ValueError as error:
        print(f"{program.name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{program.name}: {explain_os_error(error)}", file=sys.stderr)
        return 1
    except ProgramError as error:
        print(f"{program.name}: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"\nInterrupted. To continue:\n  {command}", file=sys.stderr)
        return stop.exit_code if isinstance(stop, Interrupted) else 130


def plan_of(options: argparse.Namespace, tables: Sequence[Table]) -> Plan:
    """The runs of all tables."""
    import torch

    from v2idetr.ablation.row_configs import Settings
    from v2idetr.ablation.runs import Plan

    folder = (options.output or Path()).resolve()
    settings = Settings(
        configs=CONFIGS,
        dataset=options.dataset,
        student=options.student,
        overrides=tuple(options.overrides),
        first=tuple(smoke_overrides(options.dataset, folder)) if options.smoke else (),
        has_gpu=torch.cuda.is_available(),
    )
    return Plan(folder, settings, tables)


def run_table(
    options: argparse.Namespace,
    program: Program,
    tables: Sequence[Table],
    table: Table,
    rows: Sequence[Row],
) -> int:
    """Check everything, run missing runs, write the table; returns the exit code.

    Raises:
        ValueError: settings, data or folder are not usable. Interrupted: see `run_jobs`.
    """
    from v2idetr.ablation.dry_run import check_starts
    from v2idetr.ablation.folder import BASE, RECORD, claim, claim_data, file_name
    from v2idetr.ablation.run_records import check_data, check_earlier_runs
    from v2idetr.runs.folder import data_fingerprint

    plan = plan_of(options, tables)
    plan.check(table.rows)
    base = plan.base()
    check_folder(plan.folder, RECORD, "ablation", first=[BASE])
    check_writable(plan.folder)
    to_make = data_to_make(options, plan, base)
    runs = plan.runs(rows, range(options.seeds))
    check_starts(runs)
    # Before anything is written, unless data is to be made first.
    splits = {} if to_make else read_and_check(base, runs)
    shared = {key: getattr(options, key) for key in ("dataset", "student", "overrides", "smoke")}
    with sole_user(plan.folder / LOCK, "An ablation") as lock:
        claim(plan.folder, shared, base)
        if to_make:
            make_data(to_make, plan.folder, lock)
            splits = read_and_check(base, runs)
        data = {name: data_fingerprint(split) for name, split in splits.items()}
        seeds = sorted({*range(options.seeds), *earlier_seeds(plan.folder)})
        check_earlier_runs(plan.runs(table.rows, seeds))
        check_data(plan.runs(table.rows, seeds), data)
        claim_data(plan.folder, data)
        facts = {
            "smoke": options.smoke,
            "file": file_name(table.label),
            "command": command_of(options, program, table, seeds),
            "data": data,
        }
        report = Report(table, plan, seeds, facts, runs)
        report.write()
        slots = choose_slots(options, [run for run in runs if not run.finished])
        # Where a processor's time is measured, it includes the preparation of samples in all runs;
        # a GPU's does not.
        timed = table.key == CONTROLS and not any("CUDA_VISIBLE_DEVICES" in slot for slot in slots)
        own_samples = timed or needs_no_workers(options, slots)
        jobs = jobs_of(runs, plan.settings, own_samples=own_samples)
        print(report.introduction(len(slots)), flush=True)
        try:
            failures = run_jobs(jobs, slots, keep_open=[lock], tick=report.tick, ended=report.ended)
        finally:
            report.close()
            report.write()
    print(report.summary(failures))
    return 1 if failures else 0


def read_and_check(base: Any, runs: Sequence[Run]) -> dict[str, Any]:
    """The splits that all runs share, after a dry run of one student of every row.

    Raises:
        ValueError: the data is not usable or too small for a row, or a student does not fit its
            teacher.
    """
    from v2idetr.ablation.dry_run import check_batches, check_students, new_students
    from v2idetr.engine.run_context import load_splits

    splits = load_splits(base, with_train=True)
    check_batches(runs, splits)
    check_students(new_students(runs), splits)
    return splits


def command_of(
    options: argparse.Namespace, program: Program, table: Table, seeds: Sequence[int]
) -> str:
    """The command that makes the whole table, including earlier seeds and all rows."""
    words = ["--table", table.label, "--dataset", options.dataset]
    words += [] if program.tables else ["--student", options.student]
    words += ["--seeds", str(max(seeds) + 1), "--output", str(options.output)]
    words += ["--smoke"] if options.smoke else []
    return shlex.join(["python", f"tools/{program.name}.py", *words, *options.overrides])


def jobs_of(runs: Sequence[Run], settings: Settings, *, own_samples: bool) -> list[Job]:
    """The programs of runs; with `own_samples` they have no data workers."""
    program = os.path.relpath(TRAIN_NET)
    more = ["train.num_workers=0"] if own_samples else []
    return [
        Job(
            name=run.name,
            command=partial(_command, program, run, settings, more),
            log=run.log,
            result=run.evaluation,
            needs=tuple(needed.name for needed in run.needs),
        )
        for run in runs
    ]


def _command(program: str, run: Run, settings: Settings, more: Sequence[str]) -> list[str]:
    return [program, *run.arguments(settings, *more)]


def choose_slots(options: argparse.Namespace, runs: Sequence[Run]) -> list[dict[str, str]]:
    """Slots for parallel runs: as many as the user asks for, or as the machine has room for."""
    gpus = [] if "train.device=cpu" in options.overrides else visible_gpus()
    jobs = len(gpus) or cores()
    memory = available_memory_gib()
    if not gpus and memory is not None:
        jobs = min(jobs, int(memory / GIB_A_RUN["synthetic" if options.smoke else options.dataset]))
    return slots_of(gpus, max(1, min(options.jobs or jobs, len(runs))))


def visible_gpus() -> list[str]:
    """Names of the visible GPUs, for CUDA_VISIBLE_DEVICES."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in given.split(",") if name.strip()]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return names[:count] if names else [str(index) for index in range(count)]


def needs_no_workers(options: argparse.Namespace, slots: Sequence[dict[str, str]]) -> bool:
    """Whether each of several parallel runs has fewer than two cores."""
    given = any(override.startswith("train.num_workers=") for override in options.overrides)
    return not given and len(slots) > 1 and cores() < 2 * len(slots)


def data_to_make(
    options: argparse.Namespace, plan: Plan, base: Any
) -> list[tuple[list[str], Path]]:
    """Programs that render and prepare synthetic video, if it is needed and missing."""
    commands = []
    if options.smoke:
        commands = smoke_commands(options.dataset, plan.folder)
    elif options.dataset == "synthetic" and not any(
        o.startswith("data.") for o in options.overrides
    ):
        train = base.data.train
        commands = synthetic_commands(Path(train.image_root), Path(train.json).parent)
    return [] if all(result.exists() for _, result in commands) else commands


def make_data(commands: Sequence[tuple[list[str], Path]], folder: Path, lock: int) -> None:
    """Run programs that make data, given with their last output files; logs in `folder`/logs."""
    logs = [folder / "logs" / f"{Path(command[0]).stem}.log" for command, _ in commands]
    progress, data = Progress(), commands[0][1].parent

    def tick() -> None:
        annotations = Part("data", SECONDS_OTHERWISE["annotations"], 0.0)
        progress.show("data", f"synthetic video in {data}", [data_part(data, logs[0]), annotations])

    try:
        for (command, result), log in zip(commands, logs, strict=True):
            if not result.exists():
                run_logged(command, log, tick, [lock])
    finally:
        progress.close()


def earlier_seeds(folder: Path) -> list[int]:
    """Seeds of the runs in a folder."""
    names = [path.name.removeprefix("seed") for path in folder.glob("seed*")]
    return [int(name) for name in names if name.isdigit()]


def listing(tables: Sequence[Table], plan: Plan) -> str:
    """Tables with their rows, and the rows with which these share runs and teachers.

    Raises:
        ValueError: the overrides do not fit these rows.
    """
    from tabulate import tabulate

    plan.check([row for table in tables for row in table.rows])
    parts = []
    for table in tables:
        lines = []
        for row in table.rows:
            first, taught = plan.first_like(row), plan.first_taught_like(row)
            teacher = "" if taught is None else taught.key
            lines.append(
                {
                    "row": row.name,
                    "": row.title,
                    "same run as": "" if first == row else first.key,
                    "teacher": "its own" if taught == row else teacher,
                }
            )
        parts.append(f"{table.heading}\n" + tabulate(lines, headers="keys", disable_numparse=True))
    settings = plan.settings
    return "\n\n".join(
        [
            *parts,
            f"Shared runs are those of --dataset {settings.dataset} --student {settings.student}. "
            "--rows selects rows by name or number.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
