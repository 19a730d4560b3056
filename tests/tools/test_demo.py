"""tools/demo.py: what it runs and skips, how it stops, what it estimates; once, all of it."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from v2idetr import child_processes, output_folder, process_setup
from v2idetr.config.load import load_config

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["data", "annotations", "training", "report"]

# Three small detectors, two steps each, on images of 64 x 64.
TINY = """
train.max_iter=2 train.eval_period=2 train.checkpoint_period=1 train.log_period=1
train.num_workers=0 train.batch_size=2 evaluation.batch_size=4
model.net.d=32 model.net.num_queries=8 model.net.ffn_dim=32 model.net.num_encoder_layers=1
model.net.num_decoder_layers=1 teacher.model.net.fusion.features.ffn_dim=32
"""


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/demo.py as a module; the folder it is in is on the path, as when it is run."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("demo")


@pytest.fixture
def progress(demo: ModuleType) -> ModuleType:
    return sys.modules["progress"]


class Programs:
    """Stands in for `run_logged`: notes what is run, makes its result, fails where asked to."""

    def __init__(self, demo: ModuleType, settings: Any, fails_at: str = "") -> None:
        self.results = {step.key: step.result for step in demo.steps_of(settings)}
        self.fails_at, self.ran = fails_at, []

    def __call__(
        self, command: Sequence[str], log: Path, tick: Callable[[], None], keep_open: list[int]
    ) -> None:
        self.ran.append(log.stem)
        tick()
        if log.stem == self.fails_at:
            raise child_processes.Interrupted(signal.SIGINT)
        self.results[log.stem].parent.mkdir(parents=True, exist_ok=True)
        self.results[log.stem].write_text("{}")


def test_every_program_and_every_test_split_exists(demo: ModuleType, tmp_path: Path) -> None:
    steps = demo.steps_of(demo.Demo(tmp_path))
    assert [step.key for step in steps] == KEYS
    assert all(Path(step.command[0]).is_file() for step in steps)
    assert set(demo.TESTS) == set(load_config(demo.CONFIG).data.test)


def test_training_gets_data_seed_and_overrides(demo: ModuleType, tmp_path: Path) -> None:
    settings = demo.Demo(tmp_path / "a folder: odd", seed=3, overrides=("train.max_iter=7",))
    command = demo.steps_of(settings)[2].command
    overrides = command[command.index("--resume") + 1 :]
    config = load_config(demo.CONFIG, overrides)
    assert (config.train.seed, config.train.max_iter) == (3, 7)
    assert config.train.output_dir == str(tmp_path / "a folder: odd" / "run")
    paths = [config.data.train, config.data.val, *config.data.test.values()]
    assert all(Path(p.json).parent == settings.output / "annotations" for p in paths)
    assert all(Path(p.image_root) == settings.output / "data" for p in paths)


def test_without_lesion_free_clips_there_is_no_test_on_them(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, train = (
        s.command for s in demo.steps_of(demo.Demo(tmp_path, clips=(9, 2, 2, 0)))[1:3]
    )
    config = load_config(demo.CONFIG, train[train.index("--resume") + 1 :])
    assert (list(config.data.test), "--negatives" in prepare) == (["easy", "hard"], False)
    with pytest.raises(SystemExit):
        demo.parse(["--clips", "9", "2", "2", "2"])
    assert "choose 0 or 3 and more" in capsys.readouterr().err


def test_what_is_finished_is_skipped(demo: ModuleType, tmp_path: Path) -> None:
    settings = demo.Demo(tmp_path / "demo")
    first = Programs(demo, settings, fails_at="training")
    with pytest.raises(demo.Interrupted):
        demo.run_demo(settings, 0, first)
    second, third = Programs(demo, settings), Programs(demo, settings)
    demo.run_demo(settings, 0, second)
    demo.run_demo(settings, 0, third)
    assert (first.ran, second.ran, third.ran) == (KEYS[:3], KEYS[2:], [])


def test_what_was_deleted_is_made_again(demo: ModuleType, tmp_path: Path) -> None:
    settings = demo.Demo(tmp_path / "demo")
    demo.run_demo(settings, 0, Programs(demo, settings))
    settings.report.unlink()
    again = Programs(demo, settings)
    demo.run_demo(settings, 0, again)
    assert again.ran == ["report"]


def test_time_of_all_sessions_is_counted(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = demo.Demo(tmp_path / "demo")
    hours = iter(range(0, 1000, 10))
    monkeypatch.setattr(demo.time, "monotonic", lambda: float(next(hours)))
    monkeypatch.setattr(demo, "show", lambda *_: None)
    with pytest.raises(demo.Interrupted):
        demo.run_demo(settings, 0, Programs(demo, settings, fails_at="annotations"))
    demo.run_demo(settings, 0, Programs(demo, settings))
    spent = json.loads((settings.output / "demo.json").read_text())["seconds"]
    assert spent == {"data": 10, "annotations": 20, "training": 10, "report": 10}


def test_a_folder_of_another_demo_is_refused(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = demo.Demo(tmp_path, seed=1)
    demo.run_demo(settings, 0, Programs(demo, settings))
    assert demo.main(["--output", str(tmp_path), "--seed", "2"]) == 2
    error = capsys.readouterr().err
    assert "seed: 1, now 2" in error
    assert "--restart" in error


@pytest.mark.parametrize("options", [[], ["--restart"]])
def test_a_folder_with_other_things_is_not_touched(
    demo: ModuleType, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert demo.main(["--output", str(tmp_path), *options]) == 2
    assert "holds no demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train.max_itr=5"], "Did you mean train.max_iter?"),
        (["train.max_iter=0"], "train.max_iter"),
        (["--size", "128"], "--size 128: give WxH"),
        (["--size", "128x31"], "32 px or more"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    demo: ModuleType,
    tmp_path: Path,
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        code = demo.main(["--output", str(tmp_path / "demo"), *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_restart_removes_the_earlier_demo(demo: ModuleType, tmp_path: Path) -> None:
    settings = demo.Demo(tmp_path)
    demo.run_demo(settings, 0, Programs(demo, settings))
    demo.restart(tmp_path)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- processes


def test_a_program_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("print('line ' * 3); raise SystemExit('no such folder')")
    with pytest.raises(
        child_processes.ProgramError, match=r"code 1(.|\n)*no such folder(.|\n)*log\.txt"
    ):
        child_processes.run_logged([str(program)], tmp_path / "log.txt", lambda: None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_the_program_may_finish(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The program takes a while after the signal, as train_net.py does for its checkpoint."""
    program, ready, saved = (tmp_path / name for name in ("program.py", "ready", "saved"))
    program.write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(number, frame):\n"
        f"    time.sleep(0.2); pathlib.Path({str(saved)!r}).write_text(str(number)); sys.exit(9)\n"
        "signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    sent, before = [], signal.getsignal(number)  # which is to ignore it, in the background

    def tick() -> None:
        if ready.exists() and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    with pytest.raises(child_processes.Interrupted) as stop:
        child_processes.run_logged([str(program)], tmp_path / "log.txt", tick)
    assert stop.value.exit_code == 128 + number
    assert saved.read_text() == str(int(number))
    assert signal.getsignal(number) is before


class Told:
    """Stands in for a program that runs: notes the signals that it is sent."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def poll(self) -> None:
        return None

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


@pytest.mark.parametrize(
    ("before", "told"), [(signal.SIG_DFL, [signal.SIGTERM]), (signal.SIG_IGN, [])]
)
def test_a_terminal_that_closes_stops_a_program_once_and_below_nohup_never(
    before: signal.Handlers, told: list[int]
) -> None:
    program, outside = Told(), signal.signal(signal.SIGHUP, before)
    try:
        with child_processes.forwarded(lambda: [program]):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
        assert program.signals == told
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, outside)


def test_a_killed_demo_takes_its_program_along(tmp_path: Path) -> None:
    pid_file, program = tmp_path / "pid", tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, time\n"
        f"path = pathlib.Path({str(pid_file)!r}); temporary = path.with_suffix('.tmp')\n"
        "temporary.write_text(str(os.getpid())); temporary.rename(path); time.sleep(60)\n"
    )
    parent = os.fork()
    if parent == 0:
        try:
            child_processes.run_logged([str(program)], tmp_path / "log.txt", lambda: None)
        finally:
            os._exit(0)
    until(pid_file.exists)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    until(lambda: not is_running(int(pid_file.read_text())))


@pytest.mark.parametrize(("parent_of_child", "code"), [(1, 0), (77, 1)])
def test_a_program_runs_below_process_1_but_not_without_its_parent(
    parent_of_child: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A container's first process is number 1; 77 adopted the child of a parent that died."""
    monkeypatch.setattr(child_processes.os, "getpid", lambda: 1)
    monkeypatch.setattr(child_processes.os, "getppid", lambda: parent_of_child)
    child = child_processes.start_logged(["-c", "pass"], tmp_path / "log.txt")
    assert child.wait(60) == code


def test_of_future_warnings_only_torch_jits_is_ignored() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        process_setup.ignore_torch_jit()
        warnings.warn("`torch.jit.script` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("another one", FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["another one"]


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    lock = tmp_path / "demo" / ".lock"
    with (
        output_folder.sole_user(lock, "A demo"),
        pytest.raises(ValueError, match="A demo is running"),
        output_folder.sole_user(lock, "A demo", patience_s=0.0),
    ):
        pass
    with output_folder.sole_user(lock, "A demo", patience_s=0.0):
        pass


def test_a_file_system_without_locks_holds_nobody_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(output_folder.fcntl, "flock", flock)
    with output_folder.sole_user(tmp_path / ".lock", "A demo") as descriptor:
        os.fstat(descriptor)


def until(condition: Callable[[], bool], patience_s: float = 30.0) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---------------------------------------------------------------- progress


def test_the_estimate_starts_as_usual_and_follows_the_machine(
    progress: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    shown, total = progress.Progress(), 2e5 + 600
    for done in (1e5, 2e5):  # the first by an earlier session
        shown.show("training", "3/4 training", [progress.Part("training", total, done / total)])
        now += 2e5  # half as fast as usual
    assert [line.split("about ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "27:56:40 left",
        "19:59 left",
    ]


def test_progress_is_read_from_the_run(progress: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {max_iter: 100}\nteacher: {max_iter: 50}\n")
    for stage, done in (("teacher", 50), ("plain", 40)):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text(f'{{"iteration": {done}}}\n{{"iter')
    for name in ("final.pth", "evaluation.json"):
        (tmp_path / "teacher" / name).touch()
    parts = progress.run_parts(tmp_path)
    assert [part.done for part in parts] == [1, 1, 0.4, 0, 0, 0]
    assert (parts[2].name, parts[2].count) == ("plain student", "step 40 of 100")


def test_progress_of_a_stage_of_your_own_is_shown(progress: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {max_iter: 100, stages: [pretraining]}\n")
    training, evaluation = progress.run_parts(tmp_path)
    assert (training.name, training.count) == ("pretraining", "step 0 of 100")
    assert training.seconds > evaluation.seconds > 0


def test_steps_until_a_run_has_a_config_are_those_of_the_demo(progress: ModuleType) -> None:
    config = load_config("configs/v2i_synthetic.yaml")
    assert progress.STEPS == config.train.max_iter == config.teacher.max_iter


def test_progress_is_known_before_anything_runs(demo: ModuleType, tmp_path: Path) -> None:
    parts = demo.Demo(tmp_path / "demo").parts()
    assert not any(part.done for part in parts)
    assert {part.step for part in parts} == set(KEYS)


def test_frames_are_counted_in_the_log(progress: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "data.log"
    log.write_text("rendering:  1%| | 1/80 [00:01\rrendering: 25%|## | 20/80 [00:05<00:15]")
    part = progress.data_part(tmp_path / "data", log)
    assert (part.done, part.count) == (0.25, "frame 20 of 80")


def test_without_a_terminal_there_is_a_line_for_each_thing_that_begins(
    progress: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = progress.Progress()
    shown.write("two runs, one at a time")
    for step in range(5):
        parts = [
            progress.Part("training", 10.0, step / 4, "teacher", f"step {step} of 4"),
            progress.Part("training", 10.0, 0.0, "plain student", "step 0 of 4"),
        ]
        shown.show("training", "3/4 training", parts)
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r", about .*", "", line) for line in lines] == [
        "two runs, one at a time",
        "[  0%] 3/4 training: teacher, step 0 of 4",
        "[ 50%] 3/4 training: plain student, step 0 of 4",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (600, "10 min"), (3590, "1 h 0 min"), (540_000, "150 h 0 min")],
)
def test_times_are_said_as_a_person_says_them(
    progress: ModuleType, seconds: float, text: str
) -> None:
    assert progress.clock(seconds) == text


# ---------------------------------------------------------------- all of it


@pytest.mark.slow
def test_from_nothing_to_the_report(
    demo: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--output", str(tmp_path / "demo"), "--clips", "12", "4", "3", "5"]
    arguments += ["--size", "64x64", "--", *TINY.split()]
    assert demo.main(arguments) == 0
    output = capfd.readouterr().out
    for row in ("teacher", "plain student", "V2I student", "report.html", "The demo took"):
        assert row in output
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "The students have hardly learned to detect" in page
    assert "The frames are synthetic" in page
    started = time.monotonic()
    assert demo.main(arguments) == 0
    assert time.monotonic() - started < 5  # nothing is run again
