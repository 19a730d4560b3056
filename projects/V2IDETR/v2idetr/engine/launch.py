"""From the command line's options to the processes that run the stages.

The processes are started here (--num-gpus) or, one by one, by torchrun; from there on they do the
same, see `process.run_worker`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from types import FrameType

import torch
from omegaconf import DictConfig

from v2i_runtime.stop_signals import stop_signals
from v2idetr.config.load import ConfigError, load_run_config
from v2idetr.engine.command_line import UserError, under_torchrun
from v2idetr.output_folder import check_writable
from v2idetr.runs.folder import output_folder

logger = logging.getLogger(__name__)


def launch_run(options: argparse.Namespace) -> int:
    """Check the config, start one process or several, return the exit code.

    Raises:
        UserError: config, data, checkpoint or folder cannot be used, or a loss was not finite.
    """
    world = options.num_gpus * options.num_machines
    # Where the driver is too old, torch counts GPUs that it cannot use.
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        config = load_run_config(
            options.config_file,
            options.overrides,
            world_size=world,
            has_gpu=gpus > 0,
            layers=options.layer,
            training=not options.eval_only,
        )
    except ConfigError as error:
        raise UserError(str(error)) from error
    is_first = int(os.environ["RANK"] if under_torchrun() else options.machine_rank) == 0
    if is_first:  # a folder that all machines share
        given = "--output" if options.eval_only else "train.output_dir"
        try:
            check_writable(output_folder(config, options), given)
        except ValueError as error:
            raise UserError(str(error)) from error
    device_type = _choose_device(config.train.device, options.num_gpus, gpus, warn=is_first)
    # Imported here, so that a config is refused without waiting for all that it would have used.
    from v2idetr.engine.process import run_process, run_worker

    if world == 1:
        return run_process(options, config, device_type)
    if not under_torchrun():
        return _spawn(options, config, device_type)
    _join(options.num_gpus, device_type)
    run_worker(options, config, device_type)
    return 0


def _choose_device(given: str, processes_here: int, gpus: int, *, warn: bool) -> str:
    """Device type of all processes, cuda or cpu; UserError where GPUs are too few for them."""
    device_type = ("cuda" if gpus else "cpu") if given == "auto" else given
    if device_type == "cuda" and processes_here > gpus:
        raise UserError(f"{processes_here} processes need a GPU each: this machine has {gpus}.")
    if device_type == "cpu" and processes_here > 1 and warn:
        logger.warning(
            "no GPU: %d processes on the CPU take their memory and are seldom faster than one",
            processes_here,
        )
    return device_type


def _spawn(options: argparse.Namespace, config: DictConfig, device_type: str) -> int:
    """Start the processes of this machine and wait for them; the exit code."""
    from detectron2.engine import launch
    from torch.multiprocessing import ProcessExitedException

    from v2idetr.engine.process import run_worker

    if device_type == "cpu":  # detectron2 would choose NCCL where there is a GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with _signals_forwarded():
        try:
            launch(
                run_worker,
                options.num_gpus,
                num_machines=options.num_machines,
                machine_rank=options.machine_rank,
                dist_url=options.dist_url,
                args=(options, config, device_type),
            )
        except ProcessExitedException as error:
            return error.exit_code if error.exit_code > 0 else 1
    return 0


def _join(processes_here: int, device_type: str) -> None:
    """Make this process, which torchrun has started, one of the group, as `launch` does."""
    import torch.distributed as dist
    from detectron2.engine.launch import DEFAULT_TIMEOUT
    from detectron2.utils import comm

    backend = "nccl" if device_type == "cuda" else "gloo"
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, init_method="env://", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(processes_here)
    comm.synchronize()


@contextlib.contextmanager
def _signals_forwarded() -> Iterator[None]:
    """A signal to this process, which only waits, is passed on to those that work.

    The third one kills them: processes that wait for each other on GPUs see no other signal.
    """
    received = 0

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received += number != signal.SIGHUP  # a terminal that closes sends several
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number if received < 3 else signal.SIGKILL)

    previous = {number: signal.signal(number, forward) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
