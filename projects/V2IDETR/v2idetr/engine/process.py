"""One process of a run: prepare, run the stages, say what went wrong."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from v2idetr.engine.command_line import USER_ERROR, UserError, start_of_command
from v2idetr.engine.run_context import RunContext, load_splits
from v2idetr.engine.signals import StopRequested, StopSignals
from v2idetr.engine.stage_training import SAME_BATCH
from v2idetr.engine.stages import evaluate_only, run_stages
from v2idetr.output_folder import LOCK, explain_os_error, sole_user
from v2idetr.process_setup import keep_freed_memory
from v2idetr.runs import folder as run_folder

logger = logging.getLogger(__name__)


def run_process(options: argparse.Namespace, config: DictConfig, device_type: str) -> int:
    """What every process does: prepare, run the stages; returns the exit code.

    Raises:
        UserError: see `launch.launch_run`.
    """
    _log_to_terminal()
    keep_freed_memory()
    folder = run_folder.output_folder(config, options)
    before = run_folder.Before.of(folder)
    with StopSignals() as signals, contextlib.ExitStack() as until_end:
        try:
            run = _prepare(options, config, device_type, signals, until_end)
            if options.eval_only:
                evaluate_only(run, folder, options.weights)
            else:
                run_stages(run)
        except StopRequested as stop:
            logger.warning("stopped by %s; %s", stop, _what_to_do_next(options, folder))
            return stop.exit_code
        except torch.OutOfMemoryError as error:
            _log_to_file("stopped for lack of memory", error)
            raise UserError(
                "The GPU has not enough memory. Begin again with a smaller train.clips_at_once "
                f"({SAME_BATCH}) or evaluation.batch_size, or with more --num-gpus.\n"
                f"{str(error).splitlines()[0]}"
            ) from error
        except (ValueError, FloatingPointError) as error:
            _log_to_file("stopped by an error", error)
            _undo(before)
            raise UserError(_message(error)) from error
        except OSError as error:
            _log_to_file("stopped by the file system", error)
            _undo(before)
            raise UserError(
                f"{explain_os_error(error)}. When that is fixed, "
                f"{_what_to_do_next(options, folder)}"
            ) from error
    return 0


def run_worker(options: argparse.Namespace, config: DictConfig, device_type: str) -> None:
    """`run_process` in a process of its own, whose exit code is all that others see."""
    if device_type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.num_gpus))
    try:
        code = run_process(options, config, device_type)
    except UserError as error:
        logger.error("%s", error)
        code = USER_ERROR
    if code:
        raise SystemExit(code)
    dist.destroy_process_group()


def _prepare(
    options: argparse.Namespace,
    config: DictConfig,
    device_type: str,
    signals: StopSignals,
    until_end: contextlib.ExitStack,
) -> RunContext:
    """Data, folder and device, checked before training; the folder is ours `until_end`."""
    folder = run_folder.output_folder(config, options)
    splits = load_splits(config, with_train=not options.eval_only)
    index = comm.get_local_rank() if device_type == "cuda" else None
    device = torch.device(device_type, index) if index is not None else torch.device(device_type)
    if config.train.deterministic:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Where there is no repeatable implementation, torch warns once and goes on.
    torch.use_deterministic_algorithms(config.train.deterministic, warn_only=True)
    deterministic: Any = torch.utils.deterministic  # a module whose class has the property
    deterministic.fill_uninitialized_memory = False  # would only cost time

    def take_folder() -> None:
        remedy = f"use another {'--output' if options.eval_only else 'train.output_dir'}"
        lock = sole_user(folder / LOCK, "Another train_net.py", remedy)
        until_end.enter_context(lock)
        if not options.eval_only:
            _warn_without_neighbours(config)
            run_folder.claim(folder, config, resume=options.resume)
            run_folder.record(
                folder,
                config,
                splits,
                device=run_folder.device_name(device),
                processes=comm.get_world_size(),
            )
        _add_log_file(folder / run_folder.LOG)

    _on_main_process(take_folder)
    if not all(comm.all_gather(folder.is_dir())):
        raise ValueError(f"{folder} must be a folder that all machines share; some have none.")
    logger.info("running on %s, writing to %s", run_folder.device_name(device), folder)
    return RunContext(config, device, splits, signals)


def _on_main_process(work: Callable[[], None]) -> None:
    """Do something on the first process; where it fails, all end, and the first one says why."""
    problem = None
    if comm.is_main_process():
        try:
            work()
        except (ValueError, OSError) as error:
            problem = error
    failed = comm.all_gather(problem is not None)
    if problem is not None:
        raise problem
    if any(failed):
        raise SystemExit(USER_ERROR)


def _warn_without_neighbours(config: DictConfig) -> None:
    if config.data.window == 0 and config.data.num_frames > 1:
        logger.warning(
            "data.window=0: every clip repeats its current frame, so a teacher that is trained "
            "now learns nothing from other frames."
        )


def _log_to_terminal() -> None:
    """The first process tells how it goes, the others only what went wrong."""
    rank = comm.get_rank()
    package = setup_logger(distributed_rank=rank, name="v2idetr")
    package.setLevel(logging.INFO)
    if rank > 0 and not package.handlers:
        handler = logging.StreamHandler()
        handler.setLevel(logging.ERROR)
        handler.setFormatter(logging.Formatter(f"process {rank}: %(message)s"))
        package.addHandler(handler)


def _add_log_file(path: Path) -> None:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("v2idetr")
    for old in [h for h in package.handlers if isinstance(h, logging.FileHandler)]:
        package.removeHandler(old)
        old.close()
    package.addHandler(handler)


def _log_to_file(text: str, error: Exception) -> None:
    """The whole traceback, for those who look for it; the terminal gets the message alone."""
    for handler in logging.getLogger("v2idetr").handlers:
        if isinstance(handler, logging.FileHandler):
            trace = (type(error), error, error.__traceback__)
            record = logger.makeRecord(logger.name, logging.ERROR, "", 0, text, (), trace)
            handler.handle(record)


def _message(error: Exception) -> str:
    """An error's own text; one from a data worker carries that process's traceback before it."""
    text = str(error)
    marker = f"{type(error).__name__}: "
    return text.rpartition(marker)[2].strip() if "Original Traceback" in text else text


def _undo(before: run_folder.Before) -> None:
    if comm.is_main_process():
        before.restore()


def _what_to_do_next(options: argparse.Namespace, folder: Path) -> str:
    program, *arguments = sys.argv
    aim, arguments = "begin again", [a for a in arguments if a != "--resume"]
    if not options.eval_only and run_folder.holds_results(folder):
        aim, arguments = "continue from the last checkpoint", ["--resume", *arguments]
    command = [*start_of_command(options), program, *arguments]
    return f"to {aim}:\n  {shlex.join(command)}"
