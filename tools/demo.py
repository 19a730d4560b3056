#!/usr/bin/env python3
"""The whole pipeline: synthetic video -> teacher, plain and V2I student -> report.

    python tools/demo.py                              # output/demo
    python tools/demo.py --output output/demo1 --seed 1
    python tools/demo.py -- train.max_iter=200        # with changes to the configuration

An interrupted demo is continued by the same command. Logs of the steps are in OUTPUT/logs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from progress import SECONDS_OTHERWISE, TITLES, Part, Progress, clock, data_part, run_parts
from synthetic_data import make_command, prepare_command, split_overrides

from v2idetr.atomic_file import read_record, write_text_atomically
from v2idetr.child_processes import Interrupted, ProgramError, run_logged
from v2idetr.output_folder import LOCK, check_folder, check_writable, explain_os_error, sole_user
from v2idetr.process_setup import ignore_torch_jit

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "v2i_synthetic.yaml"
RECORD = "demo.json"
# Test splits of the configuration, and names of the files of prepare_sunseg.py.
TESTS = ("easy", "hard", "negative")
FEWEST_NEGATIVES = 3  # one each for training, validation and test
SHORTEST_SIDE = 32  # of images of make_synthetic.py, px


@dataclass(frozen=True)
class Demo:
    """Settings of a demo.

    Attributes:
        output: folder of the demo.
        seed: random seed of the data and of the training.
        clips: number of clips for training, easy test and hard test, and of lesion-free clips (0,
            or at least `FEWEST_NEGATIVES`); () for the default numbers.
        size: size of the images, "WxH"; "" for the default.
        overrides: changes to the configuration.
    """

    output: Path
    seed: int = 0
    clips: tuple[int, ...] = ()
    size: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that identify this demo."""
        return {
            "seed": self.seed,
            "clips": list(self.clips),
            "size": self.size,
            "overrides": list(self.overrides),
        }

    @property
    def tests(self) -> tuple[str, ...]:
        """The test splits of the demo."""
        return TESTS if self.negatives else TESTS[:2]

    @property
    def negatives(self) -> bool:
        """Whether there are lesion-free clips."""
        return self.clips[3:] != (0,)

    @property
    def settings(self) -> list[str]:
        """All overrides of the configuration, the user's last."""
        data, annotations, run = (self.output / name for name in ("data", "annotations", "run"))
        tests = {name: f"test_{name}" for name in self.tests}
        own = [f"train.seed={self.seed}", f"train.output_dir={json.dumps(str(run))}"]
        return [*own, *split_overrides(data, annotations, tests), *self.overrides]

    @property
    def results(self) -> Path:
        """The last file of the training."""
        return self.output / "run" / "results.json"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.output / "report.html"

    def log(self, key: str) -> Path:
        """Log of a step."""
        return self.output / "logs" / f"{key}.log"

    def parts(self) -> list[Part]:
        """Parts of the demo with their progress."""
        seconds, run = SECONDS_OTHERWISE, self.output / "run"
        annotated = (self.output / "annotations" / "audit.json").exists()
        return [
            data_part(self.output / "data", self.log("data")),
            Part("annotations", seconds["annotations"], float(annotated)),
            *run_parts(run),
            Part("report", seconds["report"], 0.0),
        ]


@dataclass(frozen=True)
class Step:
    """One program of the demo: key in the record, title, command line, result."""

    key: str
    title: str
    command: list[str]
    result: Path


def steps_of(demo: Demo) -> list[Step]:
    """The programs, in order."""
    data, annotations, run = (demo.output / name for name in ("data", "annotations", "run"))
    make = make_command("sunseg", data, seed=demo.seed, size=demo.size, clips=demo.clips)
    prepare = prepare_command("sunseg", data, annotations, negatives=demo.negatives)
    train = [relative("train_net.py")]
    train += ["--config-file", os.path.relpath(CONFIG), "--resume", *demo.settings]
    report = [relative("tools/report.py"), str(run), "--output", str(demo.report)]
    report += ["--facts", str(demo.output / "facts.json")]
    return [
        Step("data", "1/4 synthetic video", make, data / "generator.json"),
        Step("annotations", "2/4 annotations", prepare, annotations),
        Step("training", "3/4 training", train, demo.results),
        Step("report", "4/4 report", report, demo.report),
    ]


def relative(program: str) -> str:
    """Path of one of our programs relative to the working directory."""
    return os.path.relpath(ROOT / program)


class Record:
    """OUTPUT/demo.json: arguments, finished steps, their duration and memory."""

    def __init__(self, demo: Demo) -> None:
        """Read the file, or create it.

        Raises:
            ValueError: the folder holds another demo.
        """
        self.path = demo.output / RECORD
        self.content: dict[str, Any] = {"arguments": demo.arguments, "done": [], "seconds": {}}
        if self.path.exists():
            self.content = read_record(self.path)
            before = self.content["arguments"]
            changed = [k for k, v in demo.arguments.items() if before.get(k) != v]
            if changed:
                raise ValueError(
                    f"{demo.output} holds a demo with other arguments ("
                    + "; ".join(f"{k}: {before.get(k)}, now {demo.arguments[k]}" for k in changed)
                    + "). Choose another --output, or delete that demo with --restart."
                )
        self.write()

    def finished(self, step: Step) -> bool:
        """Whether a step finished and its result still exists."""
        return step.key in self.content["done"] and step.result.exists()

    def add(self, step: Step, seconds: float, *, finished: bool) -> None:
        """Add the duration of a step, and whether it finished."""
        spent = self.content["seconds"]
        spent[step.key] = spent.get(step.key, 0.0) + seconds
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        self.content["largest_gib"] = max(self.content.get("largest_gib", 0.0), largest)
        if finished and step.key not in self.content["done"]:
            self.content["done"].append(step.key)
        self.write()

    def write(self) -> None:
        """Write the file atomically."""
        write_text_atomically(self.path, json.dumps(self.content, indent=1) + "\n")

    @property
    def seconds(self) -> float:
        """Time spent in all sessions."""
        return sum(self.content["seconds"].values())


def check_settings(demo: Demo) -> None:
    """Raise ValueError for settings that the training would refuse."""
    ignore_torch_jit()
    import torch

    from v2idetr.config.load import load_run_config

    load_run_config(CONFIG, demo.settings, world_size=1, has_gpu=torch.cuda.is_available())


def run_demo(demo: Demo, lock: int, run_program: Callable[..., None] = run_logged) -> None:
    """Run the unfinished steps in order.

    Args:
        demo: settings of the demo.
        lock: file descriptor that every program inherits, see `sole_user`.
        run_program: function with the interface of `run_logged`.

    Raises:
        ValueError: see `Record`. Interrupted, ProgramError: see `run_logged`.
    """
    record = Record(demo)
    with closing(Progress()) as progress:
        for step in steps_of(demo):
            if record.finished(step):
                continue
            if step.key == "report":
                write_facts(demo, record)
            start, finished = time.monotonic(), False
            try:
                show(progress, step, demo)
                tick = partial(show, progress, step, demo)
                run_program(step.command, demo.log(step.key), tick, [lock])
                finished = True
            finally:
                record.add(step, time.monotonic() - start, finished=finished)


def show(progress: Progress, step: Step, demo: Demo) -> None:
    """Show the progress of the demo."""
    progress.show(step.key, step.title, demo.parts())


def write_facts(demo: Demo, record: Record) -> None:
    """Write facts for the report that are not in the run folder."""
    titles = {"data": "synthetic video", "annotations": "annotations", "training": "training"}
    times = [
        f"{titles[key]} {clock(s)}" for key, s in record.content["seconds"].items() if key in titles
    ]
    facts = {
        "Made by": shlex.join(["python", "tools/demo.py", *sys.argv[1:]]),
        "Time, evaluations included": ", ".join(times),
        "Largest process": f"{record.content['largest_gib']:.1f} GiB",
    }
    (demo.output / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def restart(output: Path) -> None:
    """Delete an earlier demo except its lock file, which is held."""
    for path in output.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def summary(demo: Demo, seconds: float) -> str:
    """Final message: the table, the duration, files to read next."""
    from v2idetr.evaluation.table import format_table

    results = json.loads(demo.results.read_text(encoding="utf-8"))["stages"]
    pooled = {TITLES[stage]: all_held_out(result) for stage, result in results.items()}
    return (
        f"\n{format_table(pooled)}\n\n"
        f"The demo took {clock(seconds)}. Read next:\n"
        f"  {demo.report}   report with curves, frames and masks\n"
        f"  {demo.results}   results of every test split\n"
        "  README.md   training on your own data\n"
        f"One seed proves little. Another: python tools/demo.py --output {demo.output}_1 --seed 1"
    )


def all_held_out(result: dict[str, Any]) -> dict[str, Any]:
    """A result with the pooled test splits as its only one."""
    pooled = result["all_tests"] or next(iter(result["tests"].values()))
    return {**result, "tests": {"held-out": {**pooled, "groups": {}}}, "all_tests": None}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line to options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/demo"), help="folder (default output/demo)")
    add("--seed", type=int, default=0, help="random seed of data and training (default 0)")
    add(
        "--clips",
        type=int,
        nargs=4,
        default=(),
        metavar=("TRAIN", "EASY", "HARD", "NEGATIVE"),
        help="number of clips for training and for both tests, and of lesion-free clips",
    )
    add("--size", default="", metavar="WxH", help="size of the images, such as 128x96")
    add("--restart", action="store_true", help="delete an earlier demo in this folder")
    add("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    options = parser.parse_intermixed_args(arguments)  # overrides anywhere
    if options.clips and 0 < options.clips[3] < FEWEST_NEGATIVES:
        parser.error(
            f"--clips: NEGATIVE is {options.clips[3]}; choose 0 or {FEWEST_NEGATIVES} and more"
        )
    sides = re.fullmatch(r"(\d+)x(\d+)", options.size or "128x96", re.IGNORECASE)
    if sides is None or min(map(int, sides.groups())) < SHORTEST_SIDE:
        parser.error(f"--size {options.size}: give WxH, such as 128x96, {SHORTEST_SIDE} px or more")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns 2 after a user's error, 1 if a program fails."""
    options = parse(arguments)
    demo = Demo(
        output=options.output,
        seed=options.seed,
        clips=tuple(options.clips),
        size=options.size,
        overrides=tuple(options.overrides),
    )
    try:
        check_folder(demo.output, RECORD, "demo")
        check_writable(demo.output)
        check_settings(demo)
        with sole_user(demo.output / LOCK, "A demo") as lock:
            if options.restart:
                restart(demo.output)
            run_demo(demo, lock)
        print(summary(demo, Record(demo).seconds))
    except ValueError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"demo: {explain_os_error(error)}", file=sys.stderr)
        return 1
    except ProgramError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as stop:
        print("\nInterrupted. Run the same command to continue.", file=sys.stderr)
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
